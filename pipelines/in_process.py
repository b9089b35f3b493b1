"""The chains of a recipe on one model, in this process: no pipeline and no servers."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mlites import __version__
from mlites.compression import steps
from mlites.data.dataset import Dataset
from mlites.data.prepare import prepare, source_digest
from mlites.errors import InputError, ParityError
from mlites.failure import Failure, read_failure, write_failure
from mlites.files import canonical_json, digest_json, write_atomically
from mlites.hardware.failed import failed_verdict
from mlites.hardware.selection import select
from mlites.hardware.validate import validate
from mlites.inference import check_file
from mlites.models.card import ModelCard, read_card, write_model_folder
from mlites.models.factory import TRUSTED
from mlites.recipe import Recipe, Teacher
from mlites.storage import fetch
from pipelines.trie import Node, candidate_nodes, nodes, source_node


@dataclass(frozen=True)
class _Work:
    """What every step of a chain needs: where it works, on what data, and the model that the chains start from."""

    folder: Path
    dataset: Dataset
    model: Path
    recipe: Recipe

    def of(self, node: Node | None) -> Path:
        """The model folder that a node makes."""
        return self.folder / node.name if node else self.model


def compress(model: Path, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Apply every chain of a recipe to a model and measure what comes out against it.

    A finished step whose inputs are still the same is not run again, so a run that was killed goes on.

    Args:
        model: an mlites model folder, or any ONNX classifier with input ``input`` and output ``logits``, for chains
            that quantize alone. It takes the place of the recipe's teacher.
        recipe: names data, candidates, hardware and budget.
        folder: gets one model folder a candidate, and selection.json; steps lie in its ``.steps``.
        say: takes one line as each step begins.

    Returns:
        The selection document.

    Raises:
        InputError: the model is of no use here, or a pass cannot be applied to it.
    """
    if recipe.factories:
        os.environ[TRUSTED] = ",".join(filter(None, (os.environ.get(TRUSTED), *recipe.factories)))
    hidden = folder / ".steps"
    hidden.mkdir(parents=True, exist_ok=True)
    dataset = _dataset(recipe, hidden)
    work = _Work(hidden, dataset, _given(model, dataset, recipe, hidden), recipe)
    ends = candidate_nodes(recipe.candidates, recipe.hardware)
    for node in nodes(list(ends.values())):
        if work.of(node) != work.model:  # a given ONNX model stands where its export would
            _run(node, work, say)
            if (failure := read_failure(work.of(node))) and failure.step == node.label:
                say(f"failed {failure}")
    baseline = work.of(Node(None))
    verdicts = []
    for candidate in recipe.candidates:
        name, end = candidate.name, ends[candidate.name]
        if not read_failure(work.of(end)):
            say(f"measure {name}")
        labels = [step.label for step in candidate.passes]
        folders = work.of(end), baseline
        try:
            source = work.of(source_node(end))
            verdict = validate(*folders, dataset, recipe.hardware, name, labels, source, recipe.budget)
        except (InputError, ParityError) as fault:
            verdict = failed_verdict(name, labels, Failure.of(fault, f"measure {name}"))
        verdicts.append(verdict)
    selection = select(verdicts, recipe.budget)
    for name, end in ends.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        if not read_failure(work.of(end)):
            shutil.copytree(work.of(end), target)
    write_atomically(folder / "selection.json", json.dumps(selection, indent=2))
    return selection


def _dataset(recipe: Recipe, folder: Path) -> Dataset:
    """Prepared data, kept for the next time under a name that says what it was made from."""
    remote = recipe.data.path is not None and recipe.data.path.startswith("s3://")
    fetched = fetch(recipe.data.path, folder / "source") if remote and recipe.data.path else None
    data = recipe.data.model_copy(update={"path": str(fetched)}) if fetched else recipe.data
    what = [recipe.data.model_dump(mode="json"), source_digest(data), recipe.task, recipe.seed]
    target = folder / f"data-{digest_json(what)[:12]}"
    if not target.is_dir():
        path = fetched or (Path(recipe.data.path) if recipe.data.path else None)
        reference = fetch(recipe.data.reference, folder / "reference") if recipe.data.reference else None
        prepare(recipe.data, recipe.task, recipe.seed, path, target, folder / "quality.html", reference)
    return Dataset.load(target)


def _given(model: Path, dataset: Dataset, recipe: Recipe, folder: Path) -> Path:
    """The model that the chains start from, as a model folder."""
    passes = {step.technique for candidate in recipe.candidates for step in candidate.passes}
    if model.is_dir():
        card = read_card(model)
        if card.form == "torch":
            target = folder / "model"
            steps.train_teacher(Teacher(model=str(model)), dataset, recipe.seed, target, given=model)
            return target
        content = (model / "model.onnx").read_bytes()
    elif model.is_file():
        check_file(model)
        content = model.read_bytes()
        card = ModelCard(
            form="onnx",
            architecture={"family": "onnx"},
            input_shape=dataset.input_shape,
            classes=dataset.classes,
            preprocessing=dataset.preprocessing.to_json(),
        )
    else:
        raise InputError(f"{model}: no such file or folder; give an mlites model folder or an .onnx file")
    if passes - {"quantize"}:
        first = sorted(passes - {"quantize"})[0]
        raise InputError(f"{model}: holds ONNX, which no longer trains; {first} needs a PyTorch model folder")
    target = folder / Node(None).name
    write_model_folder(target, onnx.load_from_string(content).SerializeToString(deterministic=True), card)
    return target


def _run(node: Node, work: _Work, say: Callable[[str], None]) -> None:
    """Make a node's model folder, or the failure in its place; without the teacher's own export nothing goes on."""
    try:
        _make(node, work, say)
    except (InputError, ParityError) as fault:
        if node == Node(None):
            raise
        write_failure(work.of(node), Failure.of(fault, node.label))
        work.of(node).with_suffix(".json").unlink(missing_ok=True)  # tried again the next time


def _make(node: Node, work: _Work, say: Callable[[str], None]) -> None:
    target, parent = work.of(node), work.of(node.parent)
    stamp, begun = target.with_suffix(".json"), read_card(parent)
    parents = [begun.digest, read_card(work.model).digest]
    what = {"parents": parents, "data": work.dataset.digest, "seed": work.recipe.seed, "version": __version__}
    if target.is_dir() and stamp.is_file() and json.loads(stamp.read_bytes()) == what:
        return
    say(node.label)
    step, data, seed, checkpoint = node.step, work.dataset, work.recipe.seed, target.with_suffix(".checkpoint")
    if step is None:
        steps.export(parent, data, target)
    elif step.technique == "quantize":
        steps.quantize(parent, data, step, target)
    elif step.technique == "distill":
        steps.distill(parent, work.model, data, step, seed, target, checkpoint)
    else:
        train: Any = {"prune": steps.prune, "factorize": steps.factorize, "share": steps.share, "qat": steps.qat}
        train[step.technique](parent, data, step, seed, target, checkpoint)
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    checkpoint.unlink(missing_ok=True)
    write_atomically(stamp, canonical_json(what))
