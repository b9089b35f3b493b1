"""LeNet-5 in the Caffe form that pruning papers compress: two convolutions, one hidden layer.

Source: LeCun, Bottou, Bengio & Haffner (1998), "Gradient-Based Learning Applied to Document Recognition"; the sizes
are those of Han, Mao & Dally (2016), "Deep Compression", table 3.
"""

import torch.nn.functional as F
from torch import Tensor, nn

LEAST_EDGE = 16  # pixels: below, nothing is left after the second pooling


class LeNetClassifier(nn.Module):
    """20 and 50 kernels of 5x5 without padding, the largest of 2x2 after each; 500 hidden units with ReLU."""

    def __init__(self, channels_in: int, height: int, width: int, classes_count: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.hidden = nn.Linear(50 * _edge_left(height) * _edge_left(width), 500)
        self.output = nn.Linear(500, classes_count)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, height, width) -> logits (n, classes)."""
        values = F.max_pool2d(self.conv1(inputs), 2)
        values = F.max_pool2d(self.conv2(values), 2)
        logits: Tensor = self.output(self.hidden(values.flatten(1)).relu())
        return logits


def _edge_left(edge: int) -> int:
    """Pixels after both convolutions and poolings."""
    return ((edge - 4) // 2 - 4) // 2
