"""Batch normalization within a layer whose weights are rounded as they will be once it is folded into them.

Sources: Jacob et al. (2018), section 3.2, and Krishnamoorthi (2018), "Quantizing deep convolutional networks for
efficient inference: A whitepaper", section 3.2.2: weights are scaled by the running deviation before they are rounded,
so that rounding does not change from batch to batch, and the normalization by the batch's own statistics, which keeps
training stable at usual rates, freezes towards the end. With frozen statistics the layer is a plain one.

The exporter has folded the normalization away by the time it is needed, so its statistics are measured anew.
"""

from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from mlites.compression.quantization.fake_quantization import Clock, WeightQuantizer

EPSILON = 1e-5
MOMENTUM = 0.1
LEAST_FACTOR = 1e-8
NEAR = 1e-4  # relative: weights that were scaled and still hold the same kernel


@dataclass(frozen=True)
class Folded:
    """A layer that had a batch normalization behind it.

    Attributes:
        weight: its initializer, as scaled.
        bias: its initializer.
        output: tensor that it computes.
        factor: (channels,) by which the normalization scaled the module's own weight.
    """

    weight: str
    bias: str
    output: str
    factor: Tensor


def find_folded(module: nn.Module, prepared: onnx.ModelProto) -> list[Folded]:
    """Layers whose weight is a parameter of the module's, scaled channel by channel."""
    stored = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in prepared.graph.initializer}
    readers = [name for node in prepared.graph.node for name in node.input]
    own = [one.detach().cpu() for one in module.parameters() if one.dim() > 1 and one.is_floating_point()]
    found = []
    for node in prepared.graph.node:
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        if len(node.input) != 3 or not (node.op_type == "Conv" or (node.op_type == "Gemm" and transposed)):
            continue
        weight, bias = node.input[1:]
        if weight not in stored or bias not in stored or readers.count(weight) > 1 or readers.count(bias) > 1:
            continue
        for parameter in own:
            factor = _factor(stored[weight], parameter)
            if factor is not None:
                found.append(Folded(weight, bias, node.output[0], factor))
                break
    return found


def _factor(scaled: Tensor, weight: Tensor) -> Tensor | None:
    """What each channel of a weight was multiplied by; None where nothing was, or the weight is another."""
    if scaled.shape != weight.shape or torch.equal(scaled, weight):
        return None
    rows, scaled_rows = weight.flatten(1).double(), scaled.flatten(1).double()
    squares = (rows * rows).sum(1)
    factor = (rows * scaled_rows).sum(1) / squares.clamp(min=1e-30)
    rest = (scaled_rows - factor[:, None] * rows).norm(dim=1)
    if not bool((rest <= NEAR * scaled_rows.norm(dim=1) + 1e-12).all()):
        return None
    return torch.where(factor.abs() < 1e-6, 1.0, factor).float()  # of a dead channel the weight is kept as it is: zero


class Moments(nn.Module):
    """Passes values on and sums up the mean and variance of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def forward(self, values: Tensor) -> Tensor:
        """(n, channels, ...) as it is."""
        axes = [axis for axis in range(values.dim()) if axis != 1]
        self.count += values.numel() // values.shape[1]
        self.sum = self.sum + values.double().sum(axes)
        self.squares = self.squares + values.double().square().sum(axes)
        return values

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (channels,), float64."""
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


class FoldedNorm(nn.Module):
    """The three places where the normalization acts: on the weight, on the bias and on the layer's output.

    Args:
        factor: (channels,) by which the normalization scaled the module's own weight.
        bias: (channels,) as folded.
        moments: mean and variance of the layer's output.
        quantizer: that rounds its weight.
        clock: of the training.
        freeze_after: training batches after which the statistics stay.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        factor: Tensor,
        bias: Tensor,
        moments: tuple[Tensor, Tensor],
        quantizer: WeightQuantizer,
        clock: Clock,
        freeze_after: int,
    ) -> None:
        super().__init__()
        factor = factor.double()
        mean, variance = (moments[0] - bias) / factor, moments[1] / factor.square()
        self.register_buffer("mean", mean.float())
        self.register_buffer("variance", variance.float())
        self.scale = nn.Parameter((factor * (variance + EPSILON).sqrt()).float())
        self.shift = nn.Parameter((bias + factor * mean).float())
        self.quantizer, self._clock, self.freeze_after = quantizer, [clock], freeze_after

    @property
    def normalizes(self) -> bool:
        """Whether the batch's own statistics count."""
        return self.training and self._clock[0].batches <= self.freeze_after

    def factor(self) -> Tensor:
        """(channels,): what folding multiplies the weight by."""
        factor = self.scale / (self.variance + EPSILON).sqrt()
        return torch.where(factor.abs() < LEAST_FACTOR, LEAST_FACTOR, factor)

    def fold(self, weight: Tensor) -> Tensor:
        """Own weight (channels, ...) to that of the plain layer that this is once frozen."""
        return weight * _beside(self.factor(), weight)

    def unfold(self, weight: Tensor) -> Tensor:
        """The way back."""
        return weight / _beside(self.factor(), weight)

    def folded_bias(self) -> Tensor:
        """(channels,): of the plain layer."""
        return self.shift - self.mean * self.factor()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (channels, ...) to compute with: rounded as if folded."""
        factor = _beside(self.factor(), weight)
        rounded: Tensor = self.quantizer(weight * factor)
        return rounded / factor if self.normalizes else rounded

    def bias(self) -> Tensor:
        """(channels,): none before a normalization, which would take it away again."""
        return torch.zeros_like(self.shift) if self.normalizes else self.folded_bias()

    def normalize(self, values: Tensor) -> Tensor:
        """Outputs of the layer (n, channels, ...), normalized by themselves until frozen."""
        if not self.normalizes:
            return values
        return F.batch_norm(values, self.mean, self.variance, self.scale, self.shift, True, MOMENTUM, EPSILON)


class NormBias(nn.Module):
    """Stands where the layer's bias was stored, before it is rounded."""

    def __init__(self, norm: FoldedNorm, then: nn.Module | None) -> None:
        super().__init__()
        self._norm, self.then = [norm], then  # in a list, as its state is saved where it belongs

    def forward(self, _: Tensor) -> Tensor:
        """(channels,) to the same."""
        bias = self._norm[0].bias()
        return bias if self.then is None else self.then(bias)


class NormOutput(nn.Module):
    """Stands where the layer's output is passed on, before it is rounded."""

    def __init__(self, norm: FoldedNorm, then: nn.Module | None) -> None:
        super().__init__()
        self._norm, self.then = [norm], then

    def forward(self, values: Tensor) -> Tensor:
        """(n, channels, ...) to the same."""
        values = self._norm[0].normalize(values)
        return values if self.then is None else self.then(values)


def _beside(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (weight.dim() - 1))
