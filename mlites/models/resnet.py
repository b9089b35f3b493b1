"""Residual networks in the CIFAR form: a 3x3 stem, then three stages of basic blocks.

Source: He, Zhang, Ren & Sun (2015), "Deep Residual Learning for Image Recognition", section 4.2; but shortcuts that
change the shape are projections (its option B), not zero padding (option A): every channel then has weights of its
own on both paths, so that whole channels can be pruned.
"""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, added and rectified."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride), both rounded up."""
        values = self.norm1(self.conv1(inputs)).relu()
        values = self.norm2(self.conv2(values)) + self.shortcut(inputs)
        rectified: Tensor = values.relu()
        return rectified


class ResNetClassifier(nn.Module):
    """``depth`` = 6n + 2 layers: stem, three stages of n blocks with width, 2 x width, 4 x width channels, output."""

    def __init__(self, channels_in: int, depth: int, width: int, classes_count: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(channels, classes_count)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> logits (n, classes)."""
        values = self.blocks(self.norm(self.stem(inputs)).relu())
        logits: Tensor = self.output(values.mean((2, 3)))
        return logits
