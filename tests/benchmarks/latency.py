"""How far the figures of `mlites measure` can be trusted, shown on untrained networks, FP32 and INT8.

    python -m tests.benchmarks.latency equal     two copies of a file: the interval holds 1 and lies within 2% of it
    python -m tests.benchmarks.latency planted   a file that does 5% more: the interval lies below 1
    python -m tests.benchmarks.latency script    FP32 against INT8: within 3% of a script that times them by itself
    python -m tests.benchmarks.latency memory    peak memory: within 5% of /usr/bin/time -v (Debian package time)

`--load busy` keeps one more process busy meanwhile, `--load training` trains a network with PyTorch.
"""

import argparse
import math
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mlites.compression.quantization.quantize import quantize_model
from mlites.export import export_onnx
from mlites.hardware.latency import measure_latency
from mlites.hardware.load import watch
from mlites.hardware.memory import measure_process
from mlites.models.build import build_model
from mlites.recipe import Hardware, Quantize

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "resnet-20": ({"family": "resnet", "depth": 20, "width": 16}, (1, 28, 28)),
    "convnet": ({"family": "convnet", "channels": [16, 32, 32], "strides": [2, 2, 1]}, (1, 28, 28)),
    "mlp": ({"family": "mlp", "hidden": [512, 256]}, (1, 16, 16)),
}
CLASSES = 10
PATIENT = Hardware(longest_seconds=60)  # where others want the cores; on a quiet machine it ends after 2 s a model
LOADS = {
    "busy": "while True: pass",
    "training": """
import torch
layers = torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 26 * 26, 10)
net = torch.nn.Sequential(*layers)
optimizer = torch.optim.SGD(net.parameters(), 0.01)
while True:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(torch.randn(64, 1, 28, 28)), torch.randint(10, (64,))).backward()
    optimizer.step()
""",
}
# what one would write without mlites: single calls, in turns; the faster quartile, as others may take half of the calls
SCRIPT = """
import statistics, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
rows = numpy.load(sys.argv[1])[:1]
sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in sys.argv[2:]]
times = [[] for _ in sessions]
end = time.time() + 6
while time.time() < end:
    for session, found in zip(sessions, times):
        for call in range(30):
            start = time.perf_counter()
            session.run(None, {"input": rows})
            if call >= 5:
                found.append(time.perf_counter() - start)
first, second = (statistics.quantiles(found, n=4)[0] for found in times)
print(first / second)
"""
INFER = """
import sys
import numpy, onnxruntime
rows = numpy.load(sys.argv[1])[:1]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
for _ in range(10):
    session.run(None, {"input": rows})
"""


class Files:
    """The networks' ONNX files and rows for them, in a folder."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.rows: dict[str, NDArray[np.float32]] = {}
        for name in names:
            architecture, shape = NETWORKS[name]
            model = export_onnx(build_model(architecture, shape, CLASSES, 0).eval(), shape)
            rows = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
            options, labels = Quantize(technique="quantize"), np.zeros(64, np.int64)
            int8, _ = quantize_model(model, options, calibration=rows, validation_inputs=rows, validation_labels=labels)
            for label, form in ((name, model), (f"{name}-int8", int8)):
                self.path(label).write_bytes(form.SerializeToString())
                self.rows[label] = rows
            np.save(self.folder / f"{name}.npy", rows)

    def path(self, label: str) -> Path:
        return self.folder / f"{label}.onnx"


def plant(model: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """The same model with two more matrix products after its logits, which do not change."""
    slower = onnx.ModelProto()
    slower.CopyFrom(model)
    for node in slower.graph.node:
        node.output[:] = ["answer" if name == "logits" else name for name in node.output]
    up = np.zeros((CLASSES, max(width, CLASSES)), np.float32)
    np.fill_diagonal(up, 1)
    slower.graph.initializer.extend([numpy_helper.from_array(up, "up"), numpy_helper.from_array(up.T.copy(), "down")])
    slower.graph.node.append(helper.make_node("MatMul", ["answer", "up"], ["wide"]))
    slower.graph.node.append(helper.make_node("MatMul", ["wide", "down"], ["logits"]))
    return slower


def plant_share(files: Files, label: str, share: float) -> tuple[Path, float, tuple[float, float]]:
    """A file that takes so much longer, and what a long measurement says of it: the ratio of times and its interval."""
    model, rows, path = onnx.load(files.path(label)), files.rows[label], files.folder / "slower.onnx"
    patient = Hardware(seconds=6, longest_seconds=60, precision=0.0075)
    tried: dict[int, float] = {}
    width = 256
    while True:
        path.write_bytes(plant(model, width).SerializeToString())
        slower = measure_latency([files.path(label), path], rows, patient)[1]
        tried[width] = 1 / slower.speedup - 1
        if abs(tried[width] - share) < 0.01 or len(tried) == 6 or width == CLASSES:
            low, high = slower.speedup_interval
            return path, 1 / slower.speedup, (1 / high, 1 / low)
        (first, before), (second, after) = [(0, 0.0), *sorted(tried.items())][-2:]
        slope = (after - before) / (second - first) if after > before else tried[width] / width
        width = max(CLASSES, round(width + (share - tried[width]) / slope))
        if width in tried:
            width += 8


def equal(files: Files, label: str, runs: int) -> bool:
    pair = [files.path(label)] * 2
    good = _repeat(files, label, runs, pair, lambda low, high: 0.98 <= low <= 1 <= high <= 1.02)
    return _count("equal", label, good, runs)


def planted(files: Files, label: str, runs: int) -> bool:
    path, truth, (least, most) = plant_share(files, label, 0.05)
    print(f"{label}: planted, takes {truth:.4f} times as long [{least:.4f}, {most:.4f}]", flush=True)
    good = _repeat(files, label, runs, [files.path(label), path], lambda _low, high: high < 1)
    return _count("planted slowdown detected", label, good, runs)


def _repeat(files: Files, label: str, runs: int, pair: list[Path], is_right: Callable[[float, float], bool]) -> int:
    """In how many runs the interval of the second file's speedup over the first is right."""
    good = 0
    for _ in range(runs):
        with watch() as load:
            found = measure_latency(pair, files.rows[label], PATIENT)[1]
        low, high = found.speedup_interval
        right = is_right(low, high)
        good += right
        took = f"{found.seconds:4.0f} s, others {load.others_share:.0%}"
        _tell(label, f"{found.speedup:.4f} [{low:.4f}, {high:.4f}] {took}", right)
    return good


def script(files: Files, label: str, runs: int) -> bool:
    if label.endswith("-int8"):
        return True
    pair = [files.path(label), files.path(f"{label}-int8")]
    good = 0
    for _ in range(runs):
        ratios, ours = [], []
        for _ in range(4):  # in turns: how fast INT8 is against FP32 changes with what else the machine does
            done = _python(SCRIPT, files.folder / f"{label}.npy", *pair)
            ratios.append(math.log(float(done)))
            found = measure_latency(pair, files.rows[label], Hardware(longest_seconds=4))[1]
            ours.append(math.log(found.speedup))
        theirs, own = (math.exp(statistics.median(values)) for values in (ratios, ours))
        right = abs(own / theirs - 1) <= 0.03
        good += right
        _tell(
            label,
            f"INT8 is {own:.3f} times as fast as FP32, the script says {theirs:.3f}: {own / theirs - 1:+.1%}",
            right,
        )
    return _count("agrees with the script", label, good, runs)


def memory(files: Files, label: str, runs: int) -> bool:
    good = 0
    for _ in range(runs):
        own = measure_process(files.path(label), files.rows[label], Hardware()).peak_memory_bytes
        rows = files.folder / f"{label.removesuffix('-int8')}.npy"
        command = ["/usr/bin/time", "-v", sys.executable, "-c", INFER, rows, files.path(label)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        kib = re.search(r"Maximum resident set size \(kbytes\): (\d+)", said)
        assert kib
        theirs = int(kib[1]) * 1024
        right = abs(own / theirs - 1) <= 0.05
        good += right
        _tell(label, f"{own / 2**20:.1f} MiB, time says {theirs / 2**20:.1f} MiB: {own / theirs - 1:+.1%}", right)
    return _count("agrees with time -v", label, good, runs)


def _python(program: str, *arguments: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    ).stdout


def _tell(label: str, text: str, right: bool) -> None:
    print(f"{label:14} {text}{'' if right else '   WRONG'}", flush=True)


def _count(what: str, label: str, good: int, runs: int) -> bool:
    print(f"{label}: {what} in {good} of {runs} runs", flush=True)
    return good == runs


@contextmanager
def loaded(kind: str | None) -> Iterator[None]:
    """Keep another process at work meanwhile."""
    if kind is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", LOADS[kind]]) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    shows = {"equal": equal, "planted": planted, "script": script, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("show", choices=shows)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--load", choices=LOADS)
    parser.add_argument("--only", choices=NETWORKS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the process that keeps the machine busy ends too
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder), [arguments.only] if arguments.only else NETWORKS)
        with loaded(arguments.load):
            right = [shows[arguments.show](files, label, arguments.runs) for label in files.rows]
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
