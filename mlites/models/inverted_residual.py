"""Inverted residuals: wide depthwise convolutions between narrow layers that the shortcuts join.

Source: Sandler, Howard, Zhu, Zhmoginov & Chen (2018), "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; Hu,
Shen & Sun (2018), "Squeeze-and-Excitation Networks".
"""

from torch import Tensor, nn


class ConvNorm(nn.Module):
    """A convolution without bias, padded to keep the size, then normalized and activated."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.activation = activation()
        # a depthwise kernel feeds one channel alone, which PyTorch's fan_out does not know
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out" if groups == 1 else "fan_in")

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride), both rounded up."""
        values: Tensor = self.activation(self.norm(self.conv(inputs)))
        return values


class SqueezeExcitation(nn.Module):
    """Each channel is multiplied by a gate that two small layers compute from the means of all channels."""

    def __init__(
        self, channels: int, squeezed: int, activation: type[nn.Module] = nn.ReLU, gate: type[nn.Module] = nn.Sigmoid
    ) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) -> same shape."""
        means = inputs.mean((2, 3), keepdim=True)
        gates: Tensor = self.gate(self.excite(self.activation(self.squeeze(means))))
        return inputs * gates


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, gate, project 1x1 without activation; a shortcut where input and output are alike."""

    def __init__(
        self,
        channels_in: int,
        expanded: int,
        channels_out: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        gate: SqueezeExcitation | None = None,
    ) -> None:
        super().__init__()
        widens = expanded != channels_in
        self.expand = ConvNorm(channels_in, expanded, activation=activation) if widens else nn.Identity()
        self.depthwise = ConvNorm(expanded, expanded, kernel, stride, groups=expanded, activation=activation)
        self.gate = gate or nn.Identity()
        self.project = ConvNorm(expanded, channels_out)
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride), both rounded up."""
        values: Tensor = self.project(self.gate(self.depthwise(self.expand(inputs))))
        return inputs + values if self.has_shortcut else values
