"""Networks of users: attention with tuples inside, layers used twice, maps that shrink inside a block."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlites.models.resnet import BasicBlock


class Attention(nn.Module):
    """Answers with its output and its weights, as nn.MultiheadAttention does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, tokens, width) -> the same, and (n, tokens, tokens)."""
        values, weights = self.heads(tokens, tokens, tokens)
        return self.norm(tokens + values), weights


class Transformer(nn.Module):
    """Each row of the picture is a token."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> logits (n, 3)."""
        tokens = self.embed(pictures[:, 0])
        for block in self.blocks:
            tokens, _ = block(tokens)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


class Staged(nn.Module):
    """Stages of residual blocks, one attribute each, behind a stem whose ReLU works in place and twice."""

    def __init__(self, widths: Sequence[int] = (4, 6), blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Sequential(*(BasicBlock(widths[0], widths[0], 1) for _ in range(blocks)))
        self.second = nn.Sequential(
            BasicBlock(widths[0], widths[1], 2), *(BasicBlock(widths[1], widths[1], 1) for _ in range(blocks - 1))
        )
        self.head = nn.Linear(widths[1], 3)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> logits (n, 3)."""
        values = self.second(self.first(self.relu(self.stem(pictures))))
        logits: Tensor = self.head(self.relu(values.mean((2, 3))))
        return logits


class Unsteady(nn.Module):
    """Takes another way in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.head = nn.Linear(64, 5), nn.Linear(64, 3)
        self.noisy = nn.Linear(64, 5)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> logits (n, 3)."""
        flat = pictures.flatten(1)
        side = self.noisy(flat) if self.training else self.quiet(flat)
        logits: Tensor = self.head(flat) + torch.tanh(side[:, :3])
        return logits
