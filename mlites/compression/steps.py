"""One function a step of the pipeline: read model folders, compute, write one whole model folder."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.distillation.soft_targets import distillation_loss
from mlites.compression.pruning.magnitude import prune_magnitude, sparsity, zero_masks
from mlites.data.dataset import Dataset, Preprocessing
from mlites.errors import InputError
from mlites.files import digest_json
from mlites.models.build import build_model
from mlites.models.card import ModelCard, read_card, write_model_folder
from mlites.models.checkpoint import load_model, load_weights_, save_model
from mlites.recipe import Distill, Prune, Quantize, Teacher, Training
from mlites.training.loop import TrainingData, evaluate, train


def train_teacher(
    teacher: Teacher,
    dataset: Dataset,
    seed: int,
    folder: Path,
    given: Path | None = None,
    checkpoint: Path | None = None,
) -> ModelCard:
    """Train the teacher, or take over the user's own.

    Args:
        teacher: one of an architecture to train, a model folder, a factory with weights.
        dataset: to train and decide on.
        seed: of initial weights and all draws in training.
        folder: where the model goes; replaced whole.
        given: local copy of the user's model folder or safetensors file, where the recipe names one.
        checkpoint: file that outlives a killed run.

    Raises:
        InputError: the model does not fit the data, or does not load.
    """
    if teacher.architecture is not None:
        options = teacher.training or Training()
        module = build_model(teacher.architecture, dataset.input_shape, len(dataset.classes), seed)
        card = _new_card(dataset, teacher.architecture.model_dump(mode="json"))
        history = train(module, _training_data(card, dataset), options, seed, checkpoint=checkpoint)
        return _save(folder, module, card, dataset, "train", options.model_dump(mode="json"), seed, history)
    if given is None:
        raise InputError("teacher: the recipe names a model or weights, but no local copy of them was given")
    if teacher.model is not None:
        module, card = load_model(given)
        _check_fits(card, dataset)
        return save_model(folder, module, card)
    architecture = {"family": "factory", "factory": teacher.factory, "options": teacher.options}
    module = build_model(architecture, dataset.input_shape, len(dataset.classes), seed)
    load_weights_(module, given)
    card = _new_card(dataset, architecture)
    _check_answers(module.eval(), card)
    return _save(folder, module, card, dataset, "train", {"factory": teacher.factory}, None, None)


def distill(
    parent: Path, dataset: Dataset, options: Distill, seed: int, folder: Path, checkpoint: Path | None = None
) -> ModelCard:
    """Train a new student on the soft targets of the model before it in the chain.

    At the chain's start that model is the teacher; after another distillation it is the first student, which then acts
    as the teacher's assistant (Mirzadeh et al. 2020).
    """
    teacher, card = load_model(parent)
    _check_fits(card, dataset)
    student = build_model(options.student, card.input_shape, len(card.classes), seed)
    data = _training_data(card, dataset)
    loss = distillation_loss(
        teacher,
        data.inputs,
        augmented=bool(options.training.augmentation),
        temperature=options.temperature,
        soft_weight=options.soft_weight,
        label_smoothing=options.training.label_smoothing,
    )
    what = options.model_dump(mode="json", by_alias=True)
    identity = digest_json([card.digest, what])
    history = train(student, data, options.training, seed, loss, identity=identity, checkpoint=checkpoint)
    architecture = options.student.model_dump(mode="json")
    return _save(folder, student, card, dataset, "distill", what, seed, history, architecture=architecture, layers={})


def prune(
    parent: Path, dataset: Dataset, options: Prune, seed: int, folder: Path, checkpoint: Path | None = None
) -> ModelCard:
    """Remove weights or channels, then fine-tune; zeros of an earlier magnitude pruning stay zero."""
    from mlites.compression.pruning.structured import prune_structured  # takes seconds to import

    module, card = load_model(parent)
    _check_fits(card, dataset)
    facts: dict[str, Any]
    if options.method == "magnitude":
        module, facts = prune_magnitude(module, options.amount)
    else:
        module, facts = prune_structured(module, card.input_shape, options.amount, options.round_to)
    data = _training_data(card, dataset)
    facts["validation_accuracy_before_tuning"] = evaluate(module, data.validation_inputs, data.validation_labels)[0]
    sparse = options.method == "magnitude" or _was_made_sparse(card)
    masks = zero_masks(module) if sparse else None
    history = train(module, data, options.training, seed, masks=masks, checkpoint=checkpoint)
    if sparse:
        facts |= sparsity(module)
    what = options.model_dump(mode="json", by_alias=True)
    return _save(folder, module, card, dataset, "prune", what, seed, history, facts=facts)


def export(parent: Path, dataset: Dataset, folder: Path) -> ModelCard:
    """Write a PyTorch model as ONNX, checked on the validation rows."""
    from mlites.export import answers, check_parity, export_onnx

    module, card = load_model(parent)
    _check_fits(card, dataset)
    model = export_onnx(module, card.input_shape)
    inputs, labels = _arrays(card, dataset, "validation")
    metrics = check_parity(model, module, inputs)
    metrics["validation_accuracy"] = float((answers(model, inputs).argmax(1) == labels).mean())
    child = card.after("export", options={}, data=dataset.digest, metrics=metrics, form="onnx", layers={})
    return write_model_folder(folder, model.SerializeToString(deterministic=True), child)


def quantize(parent: Path, dataset: Dataset, options: Quantize, folder: Path) -> ModelCard:
    """Quantize an FP32 ONNX model, calibrated on training rows taken at even distances."""
    from mlites.compression.quantization.dynamic import quantize_dynamic_int8
    from mlites.compression.quantization.static import quantize_static_int8
    from mlites.export import answers, compact_
    from mlites.inference import check_file

    card = read_card(parent)
    if card.form != "onnx":
        raise InputError(f"{parent}: holds a PyTorch model; export it to ONNX before quantizing")
    _check_fits(card, dataset)
    check_file(parent / "model.onnx")
    model = onnx.load(parent / "model.onnx", load_external_data=False)
    if options.method == "dynamic":
        quantized = quantize_dynamic_int8(model, per_channel=options.per_channel)
    else:
        inputs, _ = _arrays(card, dataset, "train")
        rows = inputs[np.linspace(0, len(inputs) - 1, min(options.samples, len(inputs))).round().astype(np.int64)]
        quantized = quantize_static_int8(model, rows, per_channel=options.per_channel, calibration=options.calibration)
    compact_(quantized)
    inputs, labels = _arrays(card, dataset, "validation")
    accuracy = float((answers(quantized, inputs).argmax(1) == labels).mean())
    before, after = (len(one.SerializeToString(deterministic=True)) for one in (model, quantized))
    child = card.after(
        "quantize",
        options=options.model_dump(mode="json", by_alias=True),
        data=dataset.digest,
        metrics={"validation_accuracy": accuracy, "size_bytes_before": before, "size_bytes": after},
    )
    return write_model_folder(folder, quantized.SerializeToString(deterministic=True), child)


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
    """Whether a magnitude pruning came after the last step that drew new weights."""
    for entry in reversed(card.provenance):
        if entry["step"] in ("train", "distill"):
            return False
        if entry["step"] == "prune" and entry["options"]["method"] == "magnitude":
            return True
    return False
