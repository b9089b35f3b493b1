"""Data-parallel training: each worker takes its share of every batch, and all take the step of the whole batch.

Gradients are added up here and not by PyTorch's DistributedDataParallel, which sorts them anew after the first step:
from three workers on, a resumed run would then round differently from one that was never stopped.

Source: Goyal et al. (2017), "Accurate, Large Minibatch SGD"; Li et al. (2020), "PyTorch Distributed".
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

LEAST_ROWS = 2  # of a batch, for each worker: batch normalization cannot train on one


class LostWorker(Exception):
    """Another worker of this training no longer answers."""


@dataclass(frozen=True)
class Workers:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: of this one; the first, 0, validates, keeps checkpoints and shows progress.
        count: of all.
        group: through which they speak; every call of a method below must be made by all of them.
    """

    rank: int
    count: int
    group: ProcessGroup

    def share(self, rows: Tensor) -> Tensor:
        """This worker's part of a batch's row numbers; all parts together are the batch, their sizes differ by one."""
        return torch.tensor_split(rows, self.count)[self.rank]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all workers, in place; each gets the same bits."""
        with _answered():
            self.group.allreduce([tensor]).wait()
        return tensor

    def sum_gradients_(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all workers, in one message; one that no worker has stays None."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for device in sorted({parameter.device for parameter in trained}, key=str):
            here = [parameter for parameter in trained if parameter.device == device]
            have = self.sum_(torch.tensor([float(one.grad is not None) for one in here], device=device))
            here = [one for one, count in zip(here, have.tolist(), strict=True) if count]
            if not here:
                continue
            gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in here]
            flat = self.sum_(torch.cat([one.float().flatten() for one in gradients]))
            pieces = torch.split(flat, [one.numel() for one in gradients])
            for parameter, gradient, piece in zip(here, gradients, pieces, strict=True):
                gradient.copy_(piece.view(gradient.shape))
                parameter.grad = gradient

    def take_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first worker."""
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            with _answered():
                self.group.broadcast(whole, 0).wait()
            tensor.detach().copy_(whole)

    def first_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The first worker's numbers; all give as many, whose values count on the first alone."""
        told = torch.tensor(numbers, dtype=torch.float64)
        self.take_first_([told])
        return told.tolist()

    def first_bytes(self, content: bytes) -> bytes:
        """The first worker's bytes."""
        (size,) = self.first_numbers([len(content)])
        told = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0 and content:
            told = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if size:
            self.take_first_([told])
        return told.numpy().tobytes()

    def check_equal(self, digest: str) -> None:
        """Raise where workers have come to different results.

        Args:
            digest: in hexadecimal digits, of this worker's.

        Raises:
            RuntimeError: it is not the first worker's.
        """
        wrong = torch.tensor(float(self.first_bytes(digest.encode()).decode() != digest))
        if float(self.sum_(wrong)):
            raise RuntimeError("the workers of this training hold different weights; are their machines of one kind?")


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # a connection that was reset, closed or silent for too long
        raise LostWorker(str(error).splitlines()[0]) from None
