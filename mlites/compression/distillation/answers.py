"""What the teacher says about each batch: asked once about each form of a row that returns."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlites.compression.distillation.features import Tap, capture, caught
from mlites.recipe import Training
from mlites.training.loop import EVALUATION_ROWS, TrainingData, form_of_rows

LARGEST_KEPT_BYTES = 1 << 28


class TeacherAnswers:
    """The teacher's logits and inner views of a batch.

    Rows that come back in the same form are asked about once, a form at a time and in the order of the rows, so that a
    resumed run hears the same; unless that takes more than 256 MiB. Rows that are new in every epoch are asked about
    batch by batch, in the precision in which the student trains. On request its logits are the mean over all forms of
    a row (Radosavovic et al. 2018, "Data Distillation").
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: TrainingData,
        options: Training,
        seed: int,
        *,
        taps: Sequence[Tap] = (),
        views: Sequence[nn.Module] = (),
        average: bool = False,
    ) -> None:
        """Get the teacher ready.

        Args:
            teacher: its own copy, moved and laid out as training wants it.
            data: to train on.
            options: of the student's training, which say how rows are augmented.
            seed: of that training.
            taps: where to listen in the teacher.
            views: for each of them, what turns the activation into what is kept.
            average: a row's logits are the mean over its forms, of which the options give a number; without taps.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = torch.channels_last if data.inputs.dim() == 4 else torch.contiguous_format
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.taps, self.views = taps, [view.to(device) for view in views]
        self.device, self.layout = device, layout
        self.data, self.options, self.seed = data, options, seed
        self.known: dict[int, list[Tensor]] = {}
        self.average = average
        self.mean: Tensor | None = None
        forms = (options.views or 0) if options.augmentation else 1
        row_bytes = sum(tensor[0].nbytes for tensor in self._ask(data.inputs[:2], bf16=False))
        self.keeps = 0 < forms * row_bytes * len(data.inputs) <= LARGEST_KEPT_BYTES

    def about(self, rows: Tensor, batch: Tensor, *, bf16: bool, rehearsal: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Logits (n, classes) and views (n, ...), float32, on the batch's device.

        Args:
            rows: numbers (n,) as `train` hands them to a loss: all rows of a batch are in the same form.
            batch: the rows as the student sees them (n, ...).
            bf16: the student computes in bfloat16.
            rehearsal: the step is only timed. Of kept answers it then gets the first row's for all: the work on whole
                forms is no part of a step, and what is kept must not depend on the precisions tried.
        """
        if rehearsal and (self.keeps or self.average):
            logits, *views = (
                tensor.expand(len(batch), *tensor.shape[1:]) for tensor in self._ask(batch[:1], bf16=bf16)
            )
        elif self.average:
            logits, views = self._mean_of_forms(bf16=bf16)[rows % len(self.data.labels)].to(batch.device), []
        elif not self.keeps:
            logits, *views = self._ask(batch, bf16=bf16)
        else:
            form, count = int(rows[0]) // len(self.data.labels), len(self.data.labels)
            if form not in self.known:
                self.known[form] = self._ask_about_form(form, bf16=bf16)
            logits, *views = (tensor[rows - form * count].to(batch.device) for tensor in self.known[form])
        return logits, views

    def _mean_of_forms(self, *, bf16: bool) -> Tensor:
        """Logits of every row (n, classes), found once."""
        if self.mean is None:
            forms = self.options.views or 1
            total = torch.zeros(1)
            for number in range(forms):
                total = total + self._ask_about_form(number, bf16=bf16)[0]
                print(f"the teacher has answered view {number + 1}/{forms}", flush=True)
            self.mean = total / forms
        return self.mean

    def _ask_about_form(self, number: int, *, bf16: bool) -> list[Tensor]:
        form = form_of_rows(self.data, self.options, self.seed, number)
        pieces = [
            [tensor.cpu() for tensor in self._ask(form.of(self.data.inputs[rows], rows), bf16=bf16)]
            for rows in torch.split(torch.arange(len(self.data.labels)), EVALUATION_ROWS)
        ]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

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
