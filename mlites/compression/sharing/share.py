"""The share pass: each layer's weights take a few values, training moves these, and the network is a plain one again.

Source: Han, Mao & Dally (2016), "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization
and Huffman Coding", section 3.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from mlites.compression.sharing.batch_norm_folding import Bias, fold_batch_norms_
from mlites.compression.sharing.weight_sharing import SharedWeight
from mlites.errors import InputError
from mlites.recipe import Share
from mlites.training.loop import TrainingData, evaluate, train
from mlites.training.resume import Epoch


def share_module(
    module: nn.Module, data: TrainingData, options: Share, seed: int, *, checkpoint: Path | None = None
) -> tuple[nn.Module, list[Epoch], dict[str, Any]]:
    """Give the weights of each layer at most 2^bits values besides zero, and train these.

    Batch normalization is folded first. Shared values and biases end rounded to 16 bits (bfloat16): their last digits
    would cost downloads and help nobody.

    Args:
        module: left unchanged.
        data: rows to train on and to decide on.
        options: the pass.
        seed: of the training's draws.
        checkpoint: file that outlives a killed run.

    Returns:
        The network with plain weights in evaluation mode, one entry an epoch, and facts.

    Raises:
        InputError: two layers have one weight in common.
    """
    accuracy = evaluate(module, data.validation_inputs, data.validation_labels)[0]
    result, layers = copy.deepcopy(module).eval(), dict[str, dict[str, Any]]()
    folded = fold_batch_norms_(result)
    trained = copy.deepcopy(result)
    for name, norm in folded.items():
        trained.set_submodule(name, Bias(norm))
    for name, owner, attribute, weight in list(_weights(trained)):
        bits = options.conv_bits if isinstance(owner, _ConvNd) else options.bits
        shared = SharedWeight(weight, bits)
        before = weight.detach().clone()
        parametrize.register_parametrization(owner, attribute, shared)
        layers[name] = {"bits": bits, **_facts(before, getattr(owner, attribute).detach())}
    untuned = evaluate(trained, data.validation_inputs, data.validation_labels)[0]
    history = train(trained, data, options.training, seed, checkpoint=checkpoint)
    _take_over_(result, trained)
    for name in layers:
        layers[name]["distinct_values"] = _distinct(result.get_parameter(name).detach())
    weights, zeros = (sum(layer[key] for layer in layers.values()) for key in ("weights", "zeros"))
    return (
        result,
        history,
        {
            "validation_accuracy_before": accuracy,
            "validation_accuracy_before_tuning": untuned,
            "validation_accuracy": evaluate(result, data.validation_inputs, data.validation_labels)[0],
            "sparsity": zeros / weights if weights else 0.0,
            "layers": layers,
        },
    )


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Full name, owner, name there and value of each matrix and kernel."""
    seen: dict[int, str] = {}
    for prefix, owner in module.named_modules():
        for attribute, weight in owner.named_parameters(recurse=False):
            if weight.dim() < 2 or isinstance(owner, nn.RNNBase):  # which reads its weights behind a parametrization
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            if id(weight) in seen:
                raise InputError(f"share: {seen[id(weight)]} and {name} are one weight, which cannot be shared twice")
            seen[id(weight)] = name
            yield name, owner, attribute, weight


def _take_over_(result: nn.Module, trained: nn.Module) -> None:
    """Give a network with plain weights what its parametrized copy learned, rounded."""
    shared = {
        f"{prefix}.{attribute}" if prefix else attribute: getattr(owner, attribute).detach()
        for prefix, owner in trained.named_modules()
        for attribute in getattr(owner, "parametrizations", {})
    }
    state = result.state_dict()
    learned = {name: value for name, value in trained.state_dict().items() if name in state}
    result.load_state_dict(state | learned | shared)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if parameter.dim() < 2 or name in shared:
                parameter.copy_(parameter.bfloat16())
    result.eval()


def _facts(weight: Tensor, shared: Tensor) -> dict[str, Any]:
    kept = int((weight != 0).sum())
    return {
        "weights": weight.numel(),
        "zeros": weight.numel() - kept,
        "relative_squared_error": float((shared - weight).square().sum() / weight.square().sum().clamp(min=1e-30)),
    }


def _distinct(weight: Tensor) -> int:
    """Values besides zero."""
    return len(torch.unique(weight[weight != 0]))
