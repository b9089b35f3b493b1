"""Fake quantization: numbers are rounded as INT8 would round them, and gradients pass as if they were not.

Sources: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", for the arithmetic, the moving average of ranges and their freezing; Bengio, Léonard & Courville (2013),
"Estimating or Propagating Gradients Through Stochastic Neurons", for the straight-through gradient: 1 where the value
lies in the range, 0 where it is clipped.
"""

import torch
from torch import Tensor, nn

AVERAGING = 0.01  # share of the newest batch in a range
LEAST_SCALE = 1e-12  # what is zero throughout has no scale of its own


def activation_scale(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of uint8 for the range from ``low`` to ``high``, which takes in zero.

    Zero is one of the values represented, so padding and rectifiers are exact.

    >>> scale, zero_point = activation_scale(torch.tensor(-1.0), torch.tensor(1.55))
    >>> round(float(scale), 4), int(zero_point)
    (0.01, 100)
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=LEAST_SCALE)
    return scale, torch.round(-low / scale).clamp(0, 255).to(torch.int32)


def weight_scale(weight: Tensor, axis: int | None, levels: int) -> Tensor:
    """Step between two values: the largest magnitude becomes ``levels``, zero stays zero.

    Args:
        weight: any shape.
        axis: of the channels that each have a scale; None: one for all.
        levels: 127, or 64 where weights do with 7 bits.

    Returns:
        (channels,), or () for None.
    """
    axes = [one for one in range(weight.dim()) if axis is None or one != axis % weight.dim()]
    magnitude = weight.detach().abs()
    largest = magnitude.amax(axes) if axes else magnitude
    return (largest / levels).clamp(min=LEAST_SCALE)


class Clock(nn.Module):
    """Counts training batches, by which ranges and statistics freeze.

    A number and no tensor, as a GPU would have to be waited for to read one; but saved with the module's state, so
    that a resumed run goes on from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.batches)

    def set_extra_state(self, state: Tensor) -> None:
        self.batches = int(state)


class ActivationQuantizer(nn.Module):
    """Rounds activations to uint8 in a range that follows the batches seen, until it freezes.

    Args:
        low: least value of the range at the start, as calibration found it.
        high: largest.
        clock: of the training.
        freeze_after: training batches after which the range stays.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: float, high: float, clock: Clock, freeze_after: int) -> None:
        super().__init__()
        self._clock, self.freeze_after = [clock], freeze_after  # in a list, as it is saved where it belongs
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same, float32."""
        if self.training and self._clock[0].batches <= self.freeze_after:
            least, largest = torch.aminmax(values.detach().float())
            self.low.lerp_(least, AVERAGING)
            self.high.lerp_(largest, AVERAGING)
        return self.round(values)

    def round(self, values: Tensor) -> Tensor:
        """Rounded in the range as it stands."""
        scale, zero_point = activation_scale(self.low, self.high)
        return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, 255)


class SameRange(nn.Module):
    """Rounds in another's range: an operator that only moves numbers, or picks some, shares its input's."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self._quantizer = [quantizer]

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same, float32."""
        return self._quantizer[0].round(values)


class WeightQuantizer(nn.Module):
    """Rounds weights to symmetric int8 in the range that they have at the moment.

    Args:
        axis: of the channels that each have a scale; None: one for all.
        levels: 127, or 64 where weights do with 7 bits.
    """

    def __init__(self, axis: int | None, levels: int) -> None:
        super().__init__()
        self.axis, self.levels = axis, levels
        self.scale = torch.ones(())  # of the last weight rounded

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape to the same."""
        self.scale = scale = weight_scale(weight, self.axis, self.levels)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(weight, scale, zeros, -self.levels, self.levels)
        axis = self.axis % weight.dim()
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -self.levels, self.levels)


class BiasQuantizer(nn.Module):
    """Rounds a bias to the product of its layer's scales, coarse where activations are large and weights too.

    Args:
        source: that rounds the layer's input.
        weight: that rounds its weight, always before its bias.
        factor: by which the layer multiplies its bias.
    """

    def __init__(self, source: ActivationQuantizer, weight: WeightQuantizer, factor: float) -> None:
        super().__init__()
        self._source, self._weight, self.factor = [source], [weight], factor

    def forward(self, bias: Tensor) -> Tensor:
        """(channels,) to the same."""
        source = self._source[0]
        step = activation_scale(source.low, source.high)[0] * self._weight[0].scale / self.factor
        return bias + (torch.round(bias.detach() / step) * step - bias.detach())


class ConstantQuantizer(nn.Module):
    """Rounds a stored operand of an addition or product to uint8, as activations are, in its own range."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same."""
        scale, zero_point = activation_scale(*torch.aminmax(values.detach()))
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)
