"""The techniques for a notebook: modules and arrays in, modules and ONNX out; no folders, no pipeline, no servers."""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from mlites.errors import InputError
from mlites.recipe import QAT, Distill, Factorize, Prune, Quantize, Share, Training, Transfer
from mlites.training.loop import TrainingData
from mlites.training.loop import train as train_module
from mlites.training.resume import Epoch

Model = TypeVar("Model", nn.Module, onnx.ModelProto)


class Result(NamedTuple, Generic[Model]):
    """What a technique made.

    Attributes:
        model: a new model; the one given is left as it was.
        history: one entry an epoch, empty where nothing was trained.
        facts: what was found on the way, as JSON values.
    """

    model: Model
    history: list[Epoch]
    facts: dict[str, Any]


def arrays(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], *, validation: float = 0.1, seed: int = 0
) -> TrainingData:
    """Rows to train on, a share of them held out to decide on.

    Args:
        inputs: (n, channels, height, width) or (n, features), already normalised.
        labels: (n,), the index of each row's class.
        validation: fraction held out, the same of every class.
        seed: of the choice.

    Raises:
        InputError: lengths differ, or a class is too small to be split.
    """
    if len(inputs) != len(labels) or labels.ndim != 1:
        raise InputError(f"labels must be one a row: got inputs {inputs.shape} and labels {labels.shape}")
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(np.arange(len(labels)), test_size=validation, random_state=seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"cannot hold out {validation:g} of {len(labels)} rows: {error}") from None
    rows, classes = torch.from_numpy(np.float32(inputs)), torch.from_numpy(np.int64(labels))
    return TrainingData(rows[kept], classes[kept], rows[held], classes[held])


def train(module: nn.Module, data: TrainingData, *, seed: int = 0, **options: Any) -> list[Epoch]:
    """Train a module in place. Options: those of `mlites.recipe.Training`."""
    return train_module(module, data, Training(**options), seed)


def transfer(
    module: nn.Module, data: TrainingData, classes_count: int, *, seed: int = 0, **options: Any
) -> Result[nn.Module]:
    """Give a trained network a new head for other classes, and train it. Options: those of `mlites.recipe.Transfer`.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 4)).astype("f"), np.arange(80) % 2)
    >>> known = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    >>> result = mlites.transfer(known, data, 2, head_epochs=1, training={"epochs": 1})  # doctest: +ELLIPSIS
    epoch...
    >>> result.model(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """
    from mlites.training.transfer import transfer as transfer_module

    model, history = transfer_module(module, data, Transfer(**options), seed, classes_count=classes_count)
    return Result(model, history, {})


def distill(
    teacher: nn.Module, student: nn.Module, data: TrainingData, *, seed: int = 0, **options: Any
) -> Result[nn.Module]:
    """Train a student to answer as its teacher does.

    Args:
        teacher: takes inputs, gives logits (n, classes).
        student: the same; its present weights are where training starts.
        data: to train and decide on.
        seed: of the order of the rows.
        **options: those of `mlites.recipe.Distill`, but for student.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 4)).astype("f"), np.arange(80) % 2)
    >>> teacher, student = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    >>> result = mlites.distill(teacher, student, data, training={"epochs": 1}, control=False)  # doctest: +ELLIPSIS
    epoch...
    >>> result.model(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """
    from mlites.compression.distillation.distill import distill_module

    return Result(*distill_module(teacher, student, data, Distill(technique="distill", **options), seed))


def prune(module: nn.Module, data: TrainingData, *, seed: int = 0, **options: Any) -> Result[nn.Module]:
    """Remove weights or channels and train again. Options: those of `mlites.recipe.Prune`.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 4)).astype("f"), np.arange(80) % 2)
    >>> options = {"method": "magnitude", "amount": 0.5, "training": {"epochs": 1}}
    >>> result = mlites.prune(torch.nn.Linear(4, 2), data, **options)  # doctest: +ELLIPSIS
    epoch...
    >>> int((result.model.weight == 0).sum())
    4
    """
    from mlites.compression.pruning.prune import prune_module

    chosen = Prune(technique="prune", **options)
    return Result(*prune_module(module, data, chosen, seed, input_shape=data.inputs.shape[1:]))


def factorize(module: nn.Module, data: TrainingData, *, seed: int = 0, **options: Any) -> Result[nn.Module]:
    """Replace layers by cheaper ones and fine-tune. Options: those of `mlites.recipe.Factorize`.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 64)).astype("f"), np.arange(80) % 2)
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    >>> result = mlites.factorize(net, data, method="svd", budget=0.6, training={"epochs": 1})  # doctest: +ELLIPSIS
    epoch...
    >>> [part.out_features for part in result.model[0]]
    [16, 64]
    """
    from mlites.compression.factorization.factorize import factorize_module

    chosen = Factorize(technique="factorize", **options)
    return Result(*factorize_module(module, data, chosen, seed, input_shape=data.inputs.shape[1:]))


def share(module: nn.Module, data: TrainingData, *, seed: int = 0, **options: Any) -> Result[nn.Module]:
    """Give the weights of each layer a few shared values. Options: those of `mlites.recipe.Share`.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 16)).astype("f"), np.arange(80) % 2)
    >>> result = mlites.share(torch.nn.Linear(16, 2), data, bits=2, training={"epochs": 1})  # doctest: +ELLIPSIS
    epoch...
    >>> len(result.model.weight.unique()) <= 4
    True
    """
    from mlites.compression.sharing.share import share_module

    return Result(*share_module(module, data, Share(technique="share", **options), seed))


def qat(module: nn.Module, data: TrainingData, *, seed: int = 0, **options: Any) -> Result[onnx.ModelProto]:
    """Train with the rounding of INT8, and export. Options: those of `mlites.recipe.QAT`.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 16)).astype("f"), np.arange(80) % 2)
    >>> result = mlites.qat(torch.nn.Linear(16, 2), data, training={"epochs": 1})  # doctest: +ELLIPSIS
    epoch...
    >>> [one.name for one in result.model.graph.output]
    ['logits']
    """
    from mlites.compression.quantization.qat import train_quantized

    chosen = QAT(technique="qat", **options)
    return Result(*train_quantized(module, data, chosen, seed, input_shape=data.inputs.shape[1:]))


def quantize(model: nn.Module | onnx.ModelProto, data: TrainingData, **options: Any) -> Result[onnx.ModelProto]:
    """Quantize for ONNX Runtime, and say whether it became faster here; a module is exported first.

    Options: those of `mlites.recipe.Quantize`.

    >>> import torch, mlites
    >>> data = mlites.arrays(np.random.default_rng(0).normal(size=(80, 16)).astype("f"), np.arange(80) % 2)
    >>> result = mlites.quantize(torch.nn.Linear(16, 2), data, method="dynamic")  # doctest: +ELLIPSIS
    quantized: ...
    >>> [one.name for one in result.model.graph.input]
    ['input']
    """
    from mlites.compression.quantization.calibration import evenly
    from mlites.compression.quantization.quantize import quantize_model
    from mlites.compression.quantization.speed import compare_speed

    chosen = Quantize(technique="quantize", **options)
    rows = data.inputs.numpy()
    before = to_onnx(model, rows.shape[1:]) if isinstance(model, nn.Module) else model
    quantized, facts = quantize_model(
        before,
        chosen,
        calibration=rows[evenly(len(rows), chosen.samples)],
        validation_inputs=data.validation_inputs.numpy(),
        validation_labels=data.validation_labels.numpy(),
    )
    speed = compare_speed(before, quantized, rows[:1])
    print(f"quantized: {speed}", flush=True)
    facts |= {"speedup_over_source": speed.speedup, "speedup_over_source_interval": list(speed.interval)}
    return Result(quantized, [], facts)


def to_onnx(module: nn.Module, input_shape: Sequence[int]) -> onnx.ModelProto:
    """ONNX with input ``input`` [batch, *input_shape] and output ``logits``.

    >>> import torch, mlites
    >>> mlites.to_onnx(torch.nn.Linear(4, 2), (4,)).graph.input[0].name
    'input'
    """
    from mlites.export import export_onnx

    return export_onnx(module, input_shape)
