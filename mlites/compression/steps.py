"""One function a step of the pipeline: read model folders, compute, write one whole model folder."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.distillation.distill import distill_module
from mlites.compression.pruning.rewinding import Origin
from mlites.data.dataset import Dataset, Preprocessing
from mlites.errors import InputError
from mlites.files import digest_json
from mlites.models.build import build_model
from mlites.models.card import ModelCard, read_card, write_model_folder
from mlites.models.checkpoint import load_model, load_weights_, save_model
from mlites.recipe import QAT, Distill, Factorize, Prune, Quantize, Share, Teacher, Training
from mlites.training.loop import TrainingData, evaluate, train
from mlites.training.transfer import transfer
from mlites.training.workers import Workers


def train_teacher(
    teacher: Teacher,
    dataset: Dataset,
    seed: int,
    folder: Path,
    given: Path | None = None,
    checkpoint: Path | None = None,
    *,
    store: str | None = None,
    workers: Workers | None = None,
) -> ModelCard:
    """Train the teacher, or take over the user's own, as it is or transferred to this data.

    Where the recipe asks for workers, they are started here: as processes of this machine, or, with
    ``MLITES_TRAIN_JOB`` set, as pods of a Kubeflow TrainJob.

    Args:
        teacher: one of an architecture to train, a model folder, a factory with weights.
        dataset: to train and decide on.
        seed: of initial weights and all draws in training.
        folder: where the model goes; replaced whole.
        given: local copy of the user's model folder or safetensors file, where the recipe names one.
        checkpoint: place that outlives a killed run.
        store: ``s3://bucket/prefix`` through which data and model go to and from pods.
        workers: who train together, where this process is one of them.

    Raises:
        InputError: the model does not fit the data, or does not load.
        WorkerFailed: a worker ended before its time.
    """
    if teacher.workers > 1 and workers is None:
        from mlites.training.start_workers import train_with_workers

        return train_with_workers(teacher, dataset, seed, folder, given, checkpoint, store)
    facts = {"workers": workers.count} if workers else {}
    if teacher.architecture is not None:
        options = teacher.training or Training()
        module = build_model(teacher.architecture, dataset.input_shape, len(dataset.classes), seed)
        card = _new_card(dataset, teacher.architecture.model_dump(mode="json"))
        data = _training_data(card, dataset)
        history = train(module, data, options, seed, checkpoint=checkpoint, workers=workers)
        plain = options.model_dump(mode="json")
        return _save(folder, module, card, dataset, "train", plain, seed, history, facts=facts)
    if given is None:
        raise InputError("teacher: the recipe names a model or weights, but no local copy of them was given")
    what: dict[str, Any] = {}
    if teacher.model is not None:
        module, card = load_model(given)
        if not teacher.transfer:
            _check_fits(card, dataset)
            return save_model(folder, module, card)
        if card.input_shape != dataset.input_shape:
            raise InputError(
                f"the pretrained model takes rows of shape {card.input_shape}, the data has {dataset.input_shape}; "
                f"transfer changes the classes alone: bring the data to the model's shape, or start from another model"
            )
    else:
        architecture = {"family": "factory", "factory": teacher.factory, "options": teacher.options}
        module = build_model(architecture, dataset.input_shape, len(dataset.classes), seed)
        load_weights_(module, given)
        card = _new_card(dataset, architecture)
        what["factory"] = teacher.factory
        if not teacher.transfer:
            _check_answers(module.eval(), card)
            return _save(folder, module, card, dataset, "train", what, None, None)
    what["transfer"] = teacher.transfer.model_dump(mode="json")
    data, classes = _training_data(card, dataset), dataset.classes
    module, history = transfer(
        module, data, teacher.transfer, seed, classes_count=len(classes), checkpoint=checkpoint, workers=workers
    )
    # build_model takes the width of the output from the card's classes; of a factory it is recorded as a size
    return _save(folder, module, card, dataset, "train", what, seed, history, facts=facts, classes=classes)


def distill(
    parent: Path,
    teacher: Path,
    dataset: Dataset,
    options: Distill,
    seed: int,
    folder: Path,
    checkpoint: Path | None = None,
) -> ModelCard:
    """Train a student to answer as its teacher does.

    Args:
        parent: model before this pass. It teaches the student that the options name: at the chain's start it is the
            recipe's teacher; after another distillation it acts as the teacher's assistant (Mirzadeh et al. 2020).
            Where the options name no student, it is itself the student.
        teacher: the recipe's teacher, who then teaches.
        dataset: to train and decide on.
        options: the pass.
        seed: of a new student's weights and of the order of the rows.
        folder: where the model goes; replaced whole.
        checkpoint: place that outlives a killed run.
    """
    module, card = _load(parent, dataset)
    identity = card.digest
    changed: dict[str, Any] = {}
    if options.student is None:
        student = module
        module, teachers_card = load_model(teacher)
        identity += teachers_card.digest
    else:
        student = build_model(options.student, card.input_shape, len(card.classes), seed)
        changed = {"architecture": options.student.model_dump(mode="json"), "layers": {}}
    what = options.model_dump(mode="json", by_alias=True)
    student, history, facts = distill_module(
        module,
        student,
        _training_data(card, dataset),
        options,
        seed,
        identity=digest_json([identity, what]),
        keep_zeros=options.student is None and _was_made_sparse(card),
        checkpoint=checkpoint,
    )
    return _save(folder, student, card, dataset, "distill", what, seed, history, facts=facts, **changed)


def prune(
    parent: Path, dataset: Dataset, options: Prune, seed: int, folder: Path, checkpoint: Path | None = None
) -> ModelCard:
    """Remove weights or channels, then train again; zeros of an earlier pruning stay zero."""
    from mlites.compression.pruning.prune import prune_module  # takes seconds to import

    module, card = _load(parent, dataset)
    module, history, facts = prune_module(
        module,
        _training_data(card, dataset),
        options,
        seed,
        input_shape=card.input_shape,
        origin=_origin(card),
        keep_zeros=_was_made_sparse(card),
        checkpoint=checkpoint,
    )
    what = options.model_dump(mode="json", by_alias=True)
    return _save(folder, module, card, dataset, "prune", what, seed, history, facts=facts)


def factorize(
    parent: Path, dataset: Dataset, options: Factorize, seed: int, folder: Path, checkpoint: Path | None = None
) -> ModelCard:
    """Replace layers by cheaper ones, then fine-tune."""
    from mlites.compression.factorization.factorize import factorize_module

    module, card = _load(parent, dataset)
    data = _training_data(card, dataset)
    module, history, facts = factorize_module(
        module, data, options, seed, input_shape=card.input_shape, checkpoint=checkpoint
    )
    what = options.model_dump(mode="json", by_alias=True)
    return _save(folder, module, card, dataset, "factorize", what, seed, history, facts=facts)


def share(
    parent: Path, dataset: Dataset, options: Share, seed: int, folder: Path, checkpoint: Path | None = None
) -> ModelCard:
    """Give each layer's weights a few shared values, then train these; zeros of pruning stay zero."""
    from mlites.compression.sharing.share import share_module

    module, card = _load(parent, dataset)
    module, history, facts = share_module(module, _training_data(card, dataset), options, seed, checkpoint=checkpoint)
    what = options.model_dump(mode="json", by_alias=True)
    return _save(folder, module, card, dataset, "share", what, seed, history, facts=facts)


def qat(
    parent: Path, dataset: Dataset, options: QAT, seed: int, folder: Path, checkpoint: Path | None = None
) -> ModelCard:
    """Train a PyTorch model with the rounding of INT8, and write it as INT8 ONNX."""
    from mlites.compression.quantization.qat import train_quantized

    module, card = _load(parent, dataset)
    model, history, facts = train_quantized(
        module,
        _training_data(card, dataset),
        options,
        seed,
        input_shape=card.input_shape,
        keep_zeros=_was_made_sparse(card),
        checkpoint=checkpoint,
    )
    what = options.model_dump(mode="json", by_alias=True)
    child = card.after(
        "qat",
        options=what,
        data=dataset.digest,
        metrics=facts,
        seed=seed,
        history=history,
        form="onnx",
        layers={},
    )
    return write_model_folder(folder, model.SerializeToString(deterministic=True), child)


def export(parent: Path, dataset: Dataset, folder: Path) -> ModelCard:
    """Write a PyTorch model as ONNX, checked on the validation rows."""
    from mlites.export import answers, check_parity, export_onnx

    module, card = _load(parent, dataset)
    model = export_onnx(module, card.input_shape)
    inputs, labels = _arrays(card, dataset, "validation")
    metrics = check_parity(model, module, inputs)
    metrics["validation_accuracy"] = float((answers(model, inputs).argmax(1) == labels).mean())
    child = card.after("export", options={}, data=dataset.digest, metrics=metrics, form="onnx", layers={})
    return write_model_folder(folder, model.SerializeToString(deterministic=True), child)


def quantize(parent: Path, dataset: Dataset, options: Quantize, folder: Path) -> ModelCard:
    """Quantize an FP32 ONNX model, calibrated on training rows taken at even distances."""
    from mlites.compression.quantization.calibration import evenly
    from mlites.compression.quantization.quantize import quantize_model
    from mlites.inference import check_file

    card = read_card(parent)
    if card.form != "onnx":
        raise InputError(f"{parent}: holds a PyTorch model; export it to ONNX before quantizing")
    _check_fits(card, dataset)
    check_file(parent / "model.onnx")
    model = onnx.load(parent / "model.onnx", load_external_data=False)
    rows, _ = _arrays(card, dataset, "train")
    inputs, labels = _arrays(card, dataset, "validation")
    quantized, facts = quantize_model(
        model,
        options,
        calibration=rows[evenly(len(rows), options.samples)],
        validation_inputs=inputs,
        validation_labels=labels,
    )
    what = options.model_dump(mode="json", by_alias=True)
    child = card.after("quantize", options=what, data=dataset.digest, metrics=facts)
    return write_model_folder(folder, quantized.SerializeToString(deterministic=True), child)


def _load(folder: Path, dataset: Dataset) -> tuple[nn.Module, ModelCard]:
    module, card = load_model(folder)
    _check_fits(card, dataset)
    return module, card


def _new_card(dataset: Dataset, architecture: dict[str, Any]) -> ModelCard:
    return ModelCard(
        form="torch",
        architecture=architecture,
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing.to_json(),
    )


def _save(
    folder: Path,
    module: nn.Module,
    parent: ModelCard,
    dataset: Dataset,
    step: str,
    options: dict[str, Any],
    seed: int | None,
    history: list[dict[str, float]] | None,
    *,
    facts: dict[str, Any] | None = None,
    **changed: Any,
) -> ModelCard:
    inputs, labels = _tensors(parent, dataset, "validation")
    accuracy, _ = evaluate(module, inputs, labels)
    metrics = {"validation_accuracy": accuracy, **count_cost(module, parent.input_shape), **(facts or {})}
    child = parent.after(
        step, options=options, data=dataset.digest, metrics=metrics, seed=seed, history=history, **changed
    )
    return save_model(folder, module, child)


def _arrays(card: ModelCard, dataset: Dataset, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows as the model wants them: its own preprocessing counts, which another dataset may have shaped."""
    return dataset.normalised_for(card.preprocessing).arrays(split)


def _tensors(card: ModelCard, dataset: Dataset, split: str) -> tuple[Tensor, Tensor]:
    inputs, labels = _arrays(card, dataset, split)
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def _training_data(card: ModelCard, dataset: Dataset) -> TrainingData:
    black = Preprocessing.from_json(card.preprocessing).apply(np.zeros((1, card.input_shape[0]), np.float32))
    return TrainingData(
        *_tensors(card, dataset, "train"), *_tensors(card, dataset, "validation"), padding=tuple(black[0].tolist())
    )


def _check_fits(card: ModelCard, dataset: Dataset) -> None:
    if card.input_shape != dataset.input_shape:
        raise InputError(f"the model takes rows of shape {card.input_shape}, the data has {dataset.input_shape}")
    if card.classes != dataset.classes:
        shown = [f"{len(names)} ({', '.join(names[:4])}...)" for names in (card.classes, dataset.classes)]
        raise InputError(f"the model knows classes {shown[0]}, the data has {shown[1]}; they must be the same")


def _check_answers(module: nn.Module, card: ModelCard) -> None:
    """Refuse a user's network that does not turn rows into logits."""
    example = torch.zeros(2, *card.input_shape)
    try:
        with torch.no_grad():
            answer = module(example)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputError(f"the factory's network fails on rows of shape {card.input_shape}: {reason}") from error
    wanted = (2, len(card.classes))
    if not isinstance(answer, Tensor) or tuple(answer.shape) != wanted or answer.dtype != torch.float32:
        found = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(f"the factory's network must answer 2 rows with float32 logits of shape {wanted}, got {found}")


def _was_made_sparse(card: ModelCard) -> bool:
    """Whether single weights were pruned after the last step that drew new ones."""
    for entry in reversed(card.provenance):
        step, options = entry["step"], entry["options"]
        if step == "train" or (step == "distill" and options["student"] is not None):
            return False
        if step == "prune" and options["method"] != "structured":
            return True
    return False


def _origin(card: ModelCard) -> Origin | None:
    """The training that a model comes from, where it is one that can be repeated."""
    first = card.provenance[0] if card.provenance else {}
    draws_anew = any(
        (entry["step"] == "distill" and entry["options"]["student"]) or "transfer" in entry["options"]
        for entry in card.provenance
    )
    if draws_anew or first.get("step") != "train" or "epochs" not in first["options"]:
        return None
    seed: int = first["seed"]
    return Origin(
        build=lambda: build_model(card.architecture, card.input_shape, len(card.classes), seed),
        options=Training.model_validate(first["options"]),
        seed=seed,
    )
