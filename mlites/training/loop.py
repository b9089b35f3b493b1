"""The one training loop: any loss, masks that keep pruned weights at zero, and a resume that gives the same weights."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mlites.errors import InputError
from mlites.files import digest_json
from mlites.recipe import Training
from mlites.training.augmentation import Form, draw_form
from mlites.training.display import batch_bar, epoch_line
from mlites.training.precision import Precision, choose_precision
from mlites.training.resume import Epoch, Progress, load_progress_, save_progress
from mlites.training.schedule import SCHEDULES
from mlites.training.shared_norm import shared_statistics
from mlites.training.workers import LEAST_ROWS, Workers

EVALUATION_ROWS = 512
CHECK_EVERY = 64  # batches between looks at the loss, as a look waits for the device
TIGHTENINGS = 10  # of the masks, in each epoch

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
MaskSchedule = Callable[[nn.Module, float], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainingData:
    """Preprocessed rows, held whole in memory.

    Attributes:
        inputs: to train on, (n, *input_shape) float32.
        labels: (n,) int64.
        validation_inputs: to decide on, (m, *input_shape) float32.
        validation_labels: (m,) int64.
        padding: for each channel, what a black pixel becomes in preprocessing; shifted images are filled with it.
    """

    inputs: Tensor
    labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor
    padding: tuple[float, ...] = ()


def smoothed_cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy whose target gives ``label_smoothing`` of the mass to all classes alike."""

    def loss(logits: Tensor, labels: Tensor, _rows: Tensor, _inputs: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    return loss


def train(
    module: nn.Module,
    data: TrainingData,
    options: Training,
    seed: int,
    loss: Loss | None = None,
    *,
    identity: str = "",
    masks: dict[str, Tensor] | None = None,
    mask_schedule: MaskSchedule | None = None,
    rates: Mapping[str, float] | None = None,
    first_epoch: int = 0,
    end_epoch: int | None = None,
    checkpoint: Path | None = None,
    report: Callable[[Epoch], None] | None = None,
    workers: Workers | None = None,
) -> list[Epoch]:
    """Train a module in place; it ends on the CPU, in evaluation mode.

    The weights kept are the last epoch's; with ``early_stop``, those of the epoch with the least validation loss.

    Several workers take the steps that one would take, up to rounding: a batch is shared among them, its rows, their
    augmentation and the statistics of batch normalization are the same, only dropout is drawn by each for its own rows.
    The same seed and number of workers give the same weights.

    Args:
        module: takes inputs, gives logits (n, classes).
        data: rows to train on and to decide on.
        options: epochs, optimizer, schedule and the rest.
        seed: of the order of the rows, augmentation and dropout.
        loss: (logits, labels, row numbers, inputs as augmented) -> scalar; default: cross-entropy with the options'
            label smoothing. With ``views``, row r in form f has the number f x n + r, as what is known of it holds
            whenever that form returns.
        identity: what else decides the result, such as the teacher behind ``loss`` or a mask schedule: a checkpoint
            counts only if equal.
        masks: parameter name -> bool tensor; where False, the weight is held at zero.
        mask_schedule: (module, fraction of all steps done) -> the masks from here on; asked at each epoch's start, so
            that a resumed run asks as the whole one did, and evenly within it.
        rates: parameter name -> factor on the learning rate, 1 where none is given; 0 freezes. Layers whose parameters
            are all frozen, by this or by ``requires_grad``, stay in evaluation mode: their batch normalization keeps
            its statistics and their dropout lets all pass.
        first_epoch: epochs of the schedule to leave out: learning rates and draws are those of a run from 0.
        end_epoch: epoch of the schedule to stop before; default: its end.
        checkpoint: file written after each epoch; if it is this run's, training goes on after its last epoch.
        report: takes each epoch's entry; default: prints a line.
        workers: who trains this module together, all of them from the same data and options; their loss is the mean
            over rows. The first one's weights and checkpoint count; it alone validates, writes and reports.

    Returns:
        One entry an epoch: epoch (of the schedule), train_loss, validation_loss, validation_accuracy, learning_rate
        (its last).

    Raises:
        InputError: the data does not suit the options, or the loss is no longer finite.
        ValueError: first and end epoch are not a part of the schedule.
    """
    _check(data, options, workers)
    if not 0 <= first_epoch < (options.epochs if end_epoch is None else end_epoch) <= options.epochs:
        raise ValueError(f"epochs {first_epoch} to {end_epoch} are not a part of the schedule's {options.epochs}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    criterion = loss or smoothed_cross_entropy(options.label_smoothing)
    report = report or (lambda entry: print(epoch_line(entry, options.epochs), flush=True))
    with _deterministic(), _frozen(module, rates or {}):
        if workers:
            workers.take_first_(module.state_dict().values())
        start = _digest_tensors(module.state_dict())
        _to_device_(module, device, data.inputs.dim())
        precision = _precision(module, data, options, criterion, device, workers)
        optimizer = _optimizer(module, options, rates or {})
        run = _Run(
            module, optimizer, data, options, seed, criterion, masks or {}, mask_schedule, precision, device, workers
        )
        identity = digest_json(
            {
                "identity": identity,
                "options": options.model_dump(mode="json"),
                "seed": seed,
                "start": start,
                "data": [_digest_tensors({k: v for k, v in vars(data).items() if k != "padding"}), data.padding],
                "masks": _digest_tensors(run.masks),
                "rates": dict(rates or {}),
                "epochs": [first_epoch, end_epoch],
                "precision": precision,
                "torch": torch.__version__,
                **({"workers": workers.count} if workers else {}),
            }
        )
        progress = Progress()
        if checkpoint:
            progress = load_progress_(checkpoint, identity, module, run.optimizer, workers) or progress
        first = workers is None or workers.rank == 0
        epochs = range(first_epoch, options.epochs if end_epoch is None else end_epoch)
        while len(progress.history) < len(epochs) and progress.stale < (options.early_stop or math.inf):
            entry = run.epoch(epochs[len(progress.history)])
            _record(progress, entry, module, options)
            if checkpoint and first:
                save_progress(checkpoint, identity, module, run.optimizer, progress)
            if first:
                report(entry)
        if options.early_stop:
            module.load_state_dict(progress.best)
        if workers:
            workers.check_equal(_digest_tensors(module.state_dict()))
        module.zero_grad(set_to_none=True)
        module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    module.eval()
    return progress.history


def evaluate(module: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Fraction of rows whose largest logit is the label's, and the logits (n, classes) on the CPU, in float32."""
    was_training = module.training
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    module.eval()
    with torch.no_grad():
        pieces = [module(rows.to(device)).float().cpu() for rows in torch.split(inputs, EVALUATION_ROWS)]
    module.train(was_training)
    logits = torch.cat(pieces)
    return float((logits.argmax(1) == labels).float().mean()), logits


@dataclass(frozen=True)
class _Run:
    """All that an epoch needs and no epoch changes, but for the module's weights and the optimizer's state."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    data: TrainingData
    options: Training
    seed: int
    criterion: Loss
    masks: dict[str, Tensor]
    mask_schedule: MaskSchedule | None
    precision: Precision
    device: torch.device
    workers: Workers | None

    def epoch(self, index: int) -> Epoch:
        """Train over all rows once, then evaluate; draws depend on seed and epoch alone, so a run can resume here."""
        generator = Generator().manual_seed(self.seed * 1_000_003 + index)
        number = index % self.options.views if self.options.views else index
        form = form_of_rows(self.data, self.options, self.seed, number)
        base = number * len(self.data.labels) if self.options.views else 0
        batches = _batches(len(self.data.labels), self.options.batch_size, generator, _least(self.workers))
        steps = len(batches) * self.options.epochs
        masked = self._masked(self.masks)
        total, rows_seen, rate = torch.zeros((), device=self.device), 0, 0.0
        rank = self.workers.rank if self.workers else 0
        statistics = shared_statistics(self.module, self.workers) if self.workers else nullcontext()
        _train_mode_(self.module)
        with torch.random.fork_rng(), statistics, batch_bar(len(batches)) as advance:
            # dropout draws from the global generator; 2^40 is beyond any seed's epochs
            torch.manual_seed(self.seed * 1_000_003 + index + (rank << 40))
            for step, rows in enumerate(batches):
                rate = SCHEDULES[self.options.schedule](index * len(batches) + step, steps, self.options.learning_rate)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                if self.mask_schedule and step % math.ceil(len(batches) / TIGHTENINGS) == 0:
                    scheduled = self.mask_schedule(self.module, (index * len(batches) + step) / steps)
                    masked = self._masked(self.masks) + self._masked(scheduled)
                    _hold_(masked)
                total += self._step(rows, form, base)
                _hold_(masked)
                rows_seen += len(rows)
                if step % CHECK_EVERY == 0 or step + 1 == len(batches):
                    seen = self.workers.sum_(total.clone()) if self.workers else total
                    self._check_finite(seen, index, rate)
                advance()
        validation_loss, accuracy = self._validate(rank)
        self._check_finite(validation_loss, index, rate)
        return {
            "epoch": index + 1,
            "train_loss": float(seen) / rows_seen,
            "validation_loss": validation_loss,
            "validation_accuracy": accuracy,
            "learning_rate": rate,
        }

    def _step(self, rows: Tensor, form: Form, base: int) -> Tensor:
        """Learn from a batch; the sum of the losses of this worker's rows."""
        own = self.workers.share(rows) if self.workers else rows
        inputs = _inputs(self.data, form, own, self.device)
        value = _loss(self.module, self.data, own, inputs, self.criterion, self.precision, base)
        self.optimizer.zero_grad()
        if self.workers:
            (value * (len(own) / len(rows))).backward()  # type: ignore[no-untyped-call]
            self.workers.sum_gradients_(self.module.parameters())
        else:
            value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value.detach() * len(own)

    def _validate(self, rank: int) -> tuple[float, float]:
        """Loss and accuracy on the validation rows, which the first worker alone finds out."""
        found = [0.0, 0.0]
        if rank == 0:
            accuracy, logits = evaluate(self.module, self.data.validation_inputs, self.data.validation_labels)
            found = [float(F.cross_entropy(logits, self.data.validation_labels)), accuracy]
        loss, accuracy = self.workers.first_numbers(found) if self.workers else found
        return loss, accuracy

    def _masked(self, masks: dict[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
        parameters = dict(self.module.named_parameters())
        return [(parameters[name], mask.to(self.device)) for name, mask in masks.items()]

    def _check_finite(self, value: Tensor | float, index: int, rate: float) -> None:
        if not math.isfinite(float(value)):
            raise InputError(
                f"training diverged: the loss is no longer finite in epoch {index + 1} at learning rate {rate:.3g}; "
                f"lower learning_rate (now {self.options.learning_rate:g})"
            )


def _hold_(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, mask in masked:
            parameter.masked_fill_(~mask, 0.0)  # a product would leave zeros of two signs, which pack worse


def _least(workers: Workers | None) -> int:
    """Rows that a batch must have."""
    return LEAST_ROWS * (workers.count if workers else 1)


def _check(data: TrainingData, options: Training, workers: Workers | None) -> None:
    least = _least(workers)
    whose = f" with {workers.count} workers" if workers else ""
    if len(data.labels) < least or len(data.validation_labels) < 1:
        raise InputError(
            f"training{whose} needs {least} training rows and 1 validation row at least, "
            f"got {len(data.labels)} and {len(data.validation_labels)}"
        )
    if options.batch_size < least:
        raise InputError(f"training{whose} needs a batch_size of {least} at least, got {options.batch_size}")
    if options.augmentation and data.inputs.dim() != 4:
        steps = ", ".join(options.augmentation)
        raise InputError(f"augmentation {steps} needs images; these rows have shape {tuple(data.inputs.shape[1:])}")


def _record(progress: Progress, entry: Epoch, module: nn.Module, options: Training) -> None:
    progress.history.append(entry)
    if not options.early_stop:
        return
    if progress.best_loss is None or entry["validation_loss"] < progress.best_loss:
        progress.best_loss, progress.stale = entry["validation_loss"], 0
        progress.best = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    else:
        progress.stale += 1


def _batches(count: int, size: int, generator: Generator, least: int) -> list[Tensor]:
    """Row numbers in random order; a last batch of fewer than ``least`` is left out, as there is no training on it."""
    batches = list(torch.split(torch.randperm(count, generator=generator), size))
    return batches[:-1] if len(batches[-1]) < least else batches


def form_of_rows(data: TrainingData, options: Training, seed: int, number: int) -> Form:
    """How the training rows look in the epochs that see form ``number``."""
    shape = tuple(data.inputs.shape[1:])
    return draw_form(
        len(data.labels), shape, options.augmentation, data.padding, seed, number, crop=options.crop_fraction
    )


def _inputs(data: TrainingData, form: Form, rows: Tensor, device: torch.device) -> Tensor:
    inputs = form.of(data.inputs[rows].to(device), rows)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _loss(
    module: nn.Module,
    data: TrainingData,
    rows: Tensor,
    inputs: Tensor,
    criterion: Loss,
    precision: Precision,
    base: int = 0,
) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = module(inputs)
    return criterion(logits.float(), data.labels[rows].to(inputs.device), base + rows, inputs)


def _precision(
    module: nn.Module,
    data: TrainingData,
    options: Training,
    criterion: Loss,
    device: torch.device,
    workers: Workers | None,
) -> Precision:
    rows = torch.arange(min(options.batch_size, len(data.labels)))
    inputs = _inputs(data, form_of_rows(data, options, 0, 0), rows, device)

    def step(trial: nn.Module, precision: Precision) -> Tensor:
        return _loss(trial, data, rows, inputs, criterion, precision)

    chosen: Precision = "fp32"
    if workers is None or workers.rank == 0:
        chosen = choose_precision(options.precision, module, step, list(inputs.shape))
    if workers and workers.first_numbers([chosen == "bf16"]) == [1.0]:
        return "bf16"
    return chosen


@contextmanager
def _frozen(module: nn.Module, rates: Mapping[str, float]) -> Iterator[None]:
    """Parameters whose rate is 0 take no part in the gradient while this lasts."""
    parameters = dict(module.named_parameters())
    for name, rate in rates.items():
        if name not in parameters or not 0 <= rate < math.inf:
            raise ValueError(f"rates must be 0 or more for parameters of the module, got {rate} for {name!r}")
    frozen = [parameters[name] for name, rate in rates.items() if rate == 0 and parameters[name].requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _train_mode_(module: nn.Module) -> None:
    module.train()
    for layer in module.modules():
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            layer.eval()


def _optimizer(module: nn.Module, options: Training, rates: Mapping[str, float]) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and kernels alone: on biases and normalization it only hurts."""
    trained = [(rates.get(name, 1.0), p) for name, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for factor in sorted({factor for factor, _ in trained}, reverse=True):
        parameters = [p for own, p in trained if own == factor]
        matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
        groups.append({"params": matrices, "weight_decay": options.weight_decay, "factor": factor})
        groups.append({"params": vectors, "weight_decay": 0.0, "factor": factor})
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate)
    nesterov = options.momentum > 0
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, nesterov=nesterov)


def _to_device_(module: nn.Module, device: torch.device, dimensions: int) -> None:
    """Move the weights; those of image networks lie channels last, 1.3 to 1.4 times as fast on the CPUs measured."""
    layout = torch.channels_last if dimensions == 4 else torch.contiguous_format
    module.to(device, memory_format=layout)  # type: ignore[call-overload]


@contextmanager
def _deterministic() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic  # sets its flag through properties that mypy does not see
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # a user's own layer may have no such form on a GPU
    settings.fill_uninitialized_memory = False  # fills what is overwritten anyway, at a cost
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in sorted order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
