"""What the teacher says about each batch: looked up where rows never change, else asked at the student's own price."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlites.compression.distillation.features import Tap, capture, caught
from mlites.training.loop import EVALUATION_ROWS

LARGEST_KEPT_BYTES = 1 << 28


class TeacherAnswers:
    """The teacher's logits and inner views, for rows by number or for a batch as augmented.

    Unless rows are augmented, and if it takes 256 MiB at most, the teacher looks at all rows once, at the start, in
    float32. Otherwise it looks at each batch in the precision and the memory layout in which the student trains.
    """

    def __init__(
        self,
        teacher: nn.Module,
        inputs: Tensor,
        *,
        augmented: bool,
        taps: Sequence[Tap] = (),
        views: Sequence[nn.Module] = (),
    ) -> None:
        """Ask about all rows where that will do.

        Args:
            teacher: its own copy, moved and laid out as training wants it.
            inputs: all training rows, as preprocessed.
            augmented: rows change from epoch to epoch.
            taps: where to listen in the teacher.
            views: for each of them, what turns the activation into what is kept.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = torch.channels_last if inputs.dim() == 4 else torch.contiguous_format
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.taps, self.views = taps, [view.to(device) for view in views]
        self.device, self.layout = device, layout
        self.known: list[Tensor] | None = None
        row_bytes = sum(tensor[0].nbytes for tensor in self._ask(inputs[:2], bf16=False))
        if not augmented and row_bytes * len(inputs) <= LARGEST_KEPT_BYTES:
            pieces = [
                [tensor.cpu() for tensor in self._ask(rows, bf16=False)]
                for rows in torch.split(inputs, EVALUATION_ROWS)
            ]
            self.known = [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def about(self, rows: Tensor, batch: Tensor, *, bf16: bool) -> tuple[Tensor, list[Tensor]]:
        """Logits (n, classes) and views (n, ...), float32, on the batch's device.

        Args:
            rows: numbers (n,) of the rows.
            batch: the rows as the student sees them (n, ...).
            bf16: the student computes in bfloat16.
        """
        if self.known is None:
            logits, *views = self._ask(batch, bf16=bf16)
        else:
            logits, *views = (tensor[rows].to(batch.device) for tensor in self.known)
        return logits, views

    def _ask(self, batch: Tensor, *, bf16: bool) -> list[Tensor]:
        batch = batch.to(self.device).contiguous(memory_format=self.layout)
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
            capture(self.teacher, self.taps) as found,
        ):
            logits = self.teacher(batch)
            views = [view(value) for view, value in zip(self.views, caught(found, self.taps), strict=True)]
        return [tensor.float() for tensor in (logits, *views)]
