"""Which layers a factorization may replace, how much each works, and why the others stay whole."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlites.compression.factorization.parts import padding_of
from mlites.compression.factorization.ranks import Choice

FEWEST_CHANNELS = 8
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Bilinear)


@dataclass(frozen=True)
class Call:
    """One use of a layer for one row: the (height, width) it reads and writes; of a linear layer (1, positions)."""

    read: tuple[int, int]
    written: tuple[int, int]

    @property
    def positions_read(self) -> int:
        """Height times width of the input."""
        return self.read[0] * self.read[1]

    @property
    def positions_written(self) -> int:
        """Height times width of the output."""
        return self.written[0] * self.written[1]


@dataclass(frozen=True)
class Candidate:
    """A layer that a factorization may replace.

    Attributes:
        layer: linear with weight (out, in), or convolution with weight (out, in, height, width).
        calls: every use of it for one row.
    """

    layer: nn.Linear | nn.Conv2d
    calls: tuple[Call, ...]

    @property
    def pointwise(self) -> bool:
        """Whether it mixes channels alone: linear, or a 1x1 convolution."""
        return isinstance(self.layer, nn.Linear) or self.layer.kernel_size == (1, 1)

    @property
    def whole(self) -> Choice:
        """The layer as it is."""
        parameters = self.layer.weight.numel()
        return Choice((), parameters * sum(call.positions_written for call in self.calls), parameters, 1.0)


def find_candidates(module: nn.Module, example: Tensor, method: str) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Look at every layer, and at what one row does in it.

    Args:
        module: in evaluation mode.
        example: one row (1, *input_shape).
        method: svd, tucker, cp or depthwise-separable.

    Returns:
        The candidates by dotted name, and for every other linear layer and convolution the reason it stays whole.
    """
    uses = Counter(layer for _, layer in module.named_modules(remove_duplicate=False))
    owners = Counter(parameter for layer in module.modules() for parameter in layer.parameters(recurse=False))
    calls = _calls(module, example)
    found: dict[str, Candidate] = {}
    reasons: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, KINDS):
            continue
        reason = _obstacle(layer)
        if reason is None and not name:
            reason = "it is the whole network"
        if reason is None and uses[layer] > 1:
            reason = f"the network holds it under {uses[layer]} names"
        if reason is None and any(owners[parameter] > 1 for parameter in layer.parameters()):
            reason = "it shares its weight with another layer"
        if reason is None and layer not in calls:
            reason = "the network never calls it"
        if reason is None:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            reason = _unsuited(Candidate(layer, ()), method)
        if reason is None:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            found[name] = Candidate(layer, tuple(calls[layer]))
        else:
            reasons[name] = reason
    return found, reasons


def _obstacle(layer: nn.Module) -> str | None:
    """Why a layer of any kind cannot be replaced, if so."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"it is a {type(layer).__name__}, not a plain Linear or Conv2d"
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "it carries hooks, which its parts would not"
    if not 0 < float(layer.weight.detach().double().norm()) < float("inf"):
        return "its weight is zero or not finite"
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups > 1:
        return f"it is grouped ({layer.groups} groups), so that its channels are apart already"
    if layer.padding_mode != "zeros":
        return f"it pads by {layer.padding_mode}, its parts would pad with zeros"
    if padding_of(layer) is None:
        return "it pads one side more than the other"
    return None


def _unsuited(candidate: Candidate, method: str) -> str | None:
    """Why this method has nothing to do in a layer, if so."""
    layer = candidate.layer
    channels = tuple(layer.weight.shape[:2])
    if not candidate.pointwise:
        height, width = layer.kernel_size  # type: ignore[misc]
        if method == "svd":
            return f"its kernel is {height}x{width}; svd is for linear layers and 1x1 convolutions"
        if method == "cp" and 1 in (height, width):
            return f"its kernel is {height}x{width}; cp splits kernels that extend in both directions"
    elif method == "depthwise-separable":
        return "it has no spatial kernel to separate"
    if min(channels) < FEWEST_CHANNELS:
        return f"it is too small: {channels[1]} channels in, {channels[0]} out, and {FEWEST_CHANNELS} are the least"
    return None


def _calls(module: nn.Module, example: Tensor) -> dict[nn.Module, list[Call]]:
    calls: dict[nn.Module, list[Call]] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Any], output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            positions = output.numel() // layer.out_features
            call = Call((1, positions), (1, positions))
        else:
            inputs = (*args, *named.values())[0]
            times = output[..., 0, 0].numel() // output.shape[-3]  # pictures that one row became
            sizes = [(times * values.shape[-2], values.shape[-1]) for values in (inputs, output)]
            call = Call(sizes[0], sizes[1])
        calls.setdefault(layer, []).append(call)

    hooks = [
        layer.register_forward_hook(note, with_kwargs=True)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
