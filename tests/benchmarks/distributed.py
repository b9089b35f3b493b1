"""`workers: 2` against `workers: 1` on digits: `python -m tests.benchmarks.distributed [SEEDS [WORKERS]]`.

The same teacher is trained alone and by several workers, with each seed, as the recipe's step does it: real processes
under torchrun. The difference of the two accuracies on the test rows is taken seed by seed; both are equal within noise
where the 95% t-interval of its mean lies within one point on either side of zero (two one-sided tests), and does not
exclude zero. Beside it stands how much the seed alone changes. Then the first seed is trained once more by the workers,
which must give the same bytes, and a worker, the launcher and the step are killed in turn, which must leave no process.

Measured, sixteen seeds on two busy cores, a thread a process: 97.48% alone, 97.63% with two workers, of 359 test rows;
difference +0.16 points, 95% interval -0.35 to +0.66, and 0.7 to 0.9 points between seeds in either case. The two
trainings agree to three digits in their first epochs and then go apart as roundings grow. On so few cores workers gain
nothing: 3 s alone, 21 s together, the start of the processes and the talk between them included.
"""

import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import t as student

from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset
from mlites.data.prepare import prepare
from mlites.models.checkpoint import load_model
from mlites.recipe import Data, Teacher
from mlites.training.loop import evaluate

TEACHER = {
    "architecture": {"family": "resnet", "depth": 8, "width": 16},
    "training": {"epochs": 12, "batch_size": 64, "precision": "fp32", "augmentation": ["crop"]},
}
MARGIN = 0.01  # of accuracy
LONG = 10_000  # epochs: does not end by itself


def teacher(workers: int, epochs: int = 12) -> Teacher:
    """The digits recipe's kind of teacher."""
    training = {**TEACHER["training"], "epochs": epochs}
    return Teacher.model_validate({**TEACHER, "training": training, "workers": workers})


def accuracy(folder: Path, dataset: Dataset) -> float:
    """Of a model folder, on the test rows."""
    module, card = load_model(folder)
    rows, labels = dataset.normalised_for(card.preprocessing).arrays("test")
    return evaluate(module, torch.from_numpy(rows), torch.from_numpy(labels))[0]


def compare(dataset: Dataset, folder: Path, seeds: int, workers: int) -> bool:
    """Train with every seed both ways, print what came out, and say whether it is equal within noise."""
    alone, together = [], []
    print(f"seed  alone    {workers} workers")
    for seed in range(seeds):
        found = []
        for count in (1, workers):
            begin = time.monotonic()
            target = folder / f"{seed}-{count}"
            train_teacher(teacher(count), dataset, seed, target)
            found.append((accuracy(target, dataset), time.monotonic() - begin))
        alone.append(found[0][0])
        together.append(found[1][0])
        print(f"{seed:4}  {alone[-1]:.4f}  {together[-1]:.4f}   {found[0][1]:.1f} s, {found[1][1]:.1f} s", flush=True)
    differences = [two - one for one, two in zip(alone, together, strict=True)]
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    half = float(student.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds)
    print(f"mean accuracy: {statistics.mean(alone):.4f} alone, {statistics.mean(together):.4f} with {workers} workers")
    print(f"standard deviation between seeds: {statistics.stdev(alone):.4f} alone, {statistics.stdev(together):.4f}")
    print(f"difference, paired by seed: {mean:+.4f}, 95% interval {mean - half:+.4f} to {mean + half:+.4f}")
    return mean - half <= 0 <= mean + half and max(abs(mean - half), abs(mean + half)) < MARGIN


def repeats(dataset: Dataset, folder: Path, workers: int) -> bool:
    """Whether the first seed's training, done again, gives the same bytes."""
    again = train_teacher(teacher(workers), dataset, 0, folder / "again")
    first = (folder / f"0-{workers}" / "model.safetensors").read_bytes()
    same = (folder / "again" / "model.safetensors").read_bytes() == first
    print(f"seed 0 again: {'the same bytes' if same else 'OTHER BYTES'} ({again.files['model.safetensors'][:16]})")
    return same


def survives(dataset: Dataset, folder: Path, victim: str, workers: int) -> bool:
    """Kill a worker, the launcher or the step in the middle of a training; whether the step ends and leaves nobody."""
    mark = f"{victim}-{time.time_ns()}"
    program = (
        "import sys; from pathlib import Path; from tests.benchmarks.distributed import *\n"
        "dataset, out, workers = Dataset.load(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])\n"
        "train_teacher(teacher(workers, LONG), dataset, 0, out)"
    )
    step = subprocess.Popen(
        [sys.executable, "-c", program, str(dataset.folder), str(folder / mark), str(workers)],
        env={**os.environ, "MLITES_TEST": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert step.stdout is not None
    next(line for line in step.stdout if line.startswith("epoch 2/"))
    rank = {"worker": workers - 1, "launcher": -1}.get(victim)
    os.kill(step.pid if rank is None else _processes(mark)[rank], signal.SIGKILL)
    begin = time.monotonic()
    _, errors = step.communicate(timeout=60)
    while (left := _processes(mark)) and time.monotonic() - begin < 20:
        time.sleep(0.05)
    last = (errors.splitlines() or ["killed"])[-1]
    print(f"{victim} killed: after {time.monotonic() - begin:.1f} s {len(left)} processes are left; {last}", flush=True)
    return not left and step.returncode != 0


def _processes(mark: str) -> dict[int, int]:
    """The launcher (-1) and the workers, by rank, that bear a mark in their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"MLITES_TEST={mark}".encode() in variables and b"mlites.training." in command:
            rank = next((one[5:] for one in variables if one.startswith(b"RANK=")), b"-1")
            found[int(rank)] = int(path.name)
    return found


def main(seeds: int = 8, workers: int = 2) -> None:
    """Print all figures; exit with 1 where something is not shown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(Data(source="digits"), None, 0, None, folder / "data", folder / "quality.html", None)
        dataset = Dataset.load(folder / "data")
        shown = [compare(dataset, folder, seeds, workers), repeats(dataset, folder, workers)]
        shown += [survives(dataset, folder, victim, workers) for victim in ("worker", "launcher", "step")]
    print("shown" if all(shown) else f"NOT SHOWN: {shown}")
    raise SystemExit(not all(shown))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
