"""Networks as users bring them: branches, grouped convolutions, squeeze-and-excitation, attention."""

import torch
from torch import Tensor, nn


class Inception(nn.Module):
    """Branches of different kernels, concatenated; a residual of grouped convolutions behind them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.narrow = nn.Conv2d(width, width, 1)
        self.wide = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 5, padding=2))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(width, width, 1))
        joined = 3 * width
        self.grouped = nn.Sequential(
            nn.Conv2d(joined, joined, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(joined), nn.ReLU()
        )
        self.head = nn.Linear(joined, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 1, h, w) -> logits (n, 3)."""
        values = self.stem(inputs)
        values = torch.cat([self.narrow(values), self.wide(values), self.pooled(values)], 1).relu()
        values = values + self.grouped(values)
        logits: Tensor = self.head(values.mean((2, 3)))
        return logits


class Excited(nn.Module):
    """Dense connections over depthwise convolutions with squeeze-and-excitation and SiLU; a 1x1 convolution decides."""

    def __init__(self, growth: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, growth, 3, 2, padding=1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(growth * (1 + i), growth * (1 + i), 3, padding=1, groups=growth * (1 + i)) for i in range(2)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(growth * (1 + i), growth, 1) for i in range(2))
        self.squeeze = nn.Conv2d(3 * growth, growth, 1)
        self.excite = nn.Conv2d(growth, 3 * growth, 1)
        self.classify = nn.Conv2d(3 * growth, 3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 1, h, w) -> logits (n, 3)."""
        values = nn.functional.silu(self.stem(inputs))
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            values = torch.cat([values, nn.functional.silu(pointwise(depthwise(values)))], 1)
        gate = self.excite(nn.functional.silu(self.squeeze(values.mean((2, 3), keepdim=True)))).sigmoid()
        logits: Tensor = self.classify((values * gate).mean((2, 3), keepdim=True)).flatten(1)
        return logits


class Patches(nn.Module):
    """A small vision transformer: patches, a learned position, attention of PyTorch's own."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(depth))
        self.forward_ = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> logits (n, 3)."""
        values = self.embed(inputs).flatten(2).transpose(1, 2) + self.position
        for index, (attention, forward) in enumerate(zip(self.attention, self.forward_, strict=True)):
            normed = self.norms[2 * index](values)
            values = values + attention(normed, normed, normed, need_weights=False)[0]
            values = values + forward(self.norms[2 * index + 1](values))
        logits: Tensor = self.head(values.mean(1))
        return logits
