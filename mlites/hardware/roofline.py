"""The roofline: the time that the machine's measured peaks would allow a model, and what bounds it.

Sources: Williams, Waterman & Patterson (2009), attainable speed is the lesser of peak arithmetic and bandwidth times
intensity; Ilic, Pratas & Sousa (2014), what fits a cache is bound by its bandwidth; Chen & Revels (2016), other
processes only ever add time, so the fastest of many short blocks is the machine's own.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from math import inf
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlites.hardware.macs import Work, count_work

SECONDS = 0.08  # for each peak
EDGE = 512  # of the square products; large enough for the kernels' best speed, small enough for 20 blocks
CACHED_BYTES = (1 << 19, 1 << 22, 1 << 24)  # working sets of which some lie in a cache on every machine
STREAMED_BYTES = 1 << 27  # lies in none
CHAIN = 64  # nodes that make the cost of one visible


@dataclass(frozen=True)
class Peaks:
    """What this machine reaches with ONNX Runtime's own kernels, undisturbed.

    Attributes:
        fp32_gmacs_per_second: matrix products in FP32, 10^9 multiply-accumulates.
        int8_gmacs_per_second: the same of unsigned with signed 8-bit integers.
        stream_gbytes_per_second: from memory, 10^9 bytes.
        cached_gbytes_per_second: working set in bytes and what is read from it, the smallest set first.
        call_us: fixed cost of one call.
        node_us: fixed cost of each operator.
        threads: of the sessions that were timed.
    """

    fp32_gmacs_per_second: float
    int8_gmacs_per_second: float
    stream_gbytes_per_second: float
    cached_gbytes_per_second: tuple[tuple[int, float], ...]
    call_us: float
    node_us: float
    threads: int

    def gbytes_per_second(self, working_set: int) -> float:
        """Bandwidth for so many bytes that are used again and again."""
        cached = (rate for size, rate in self.cached_gbytes_per_second if working_set <= size)
        return next(cached, self.stream_gbytes_per_second)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cached_gbytes_per_second": [list(pair) for pair in self.cached_gbytes_per_second]}


@dataclass(frozen=True)
class Roofline:
    """One inference against the peaks.

    Attributes:
        macs: multiply-accumulates.
        int8_macs: those of them that run in integers.
        bytes: that operators read and write.
        kernels: operators that run.
        intensity: multiply-accumulates a byte.
        compute_ms: what the multiply-accumulates take at peak speed.
        memory_ms: what the bytes take at peak bandwidth.
        overhead_ms: what the runtime takes to call the operators, whatever they do.
        limit_ms: the greater of compute and memory: no kernel of this machine is faster.
        fraction_of_limit: limit over measured latency.
        bound: which of the three is the greatest.
        not_counted: kinds of operators whose products are not in ``macs``.
    """

    macs: int
    int8_macs: int
    bytes: int
    kernels: int
    intensity: float
    compute_ms: float
    memory_ms: float
    overhead_ms: float
    limit_ms: float
    fraction_of_limit: float
    bound: Literal["compute", "memory", "overhead"]
    not_counted: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "not_counted": list(self.not_counted)}


def place(model: onnx.ModelProto, row: NDArray[np.float32], latency_ms: float, batch: int, peaks: Peaks) -> Roofline:
    """Place a measured model under the roof of the processor.

    Args:
        model: one float32 input; weights within.
        row: real inputs (n, ...), repeated or cut to fill the batch.
        latency_ms: of one inference of the batch.
        batch: rows in one inference.
        peaks: of the same number of threads.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    return place_work(count_work(model, np.resize(row, (batch, *row.shape[1:]))), latency_ms, peaks)


def place_work(work: Work, latency_ms: float, peaks: Peaks) -> Roofline:
    """The same for work that is counted already."""
    in_floats = (work.macs - work.int8_macs) / peaks.fp32_gmacs_per_second
    compute_ms = (in_floats + work.int8_macs / peaks.int8_gmacs_per_second) / 1e6
    memory_ms = work.bytes / peaks.gbytes_per_second(work.footprint_bytes) / 1e6
    overhead_ms = (peaks.call_us + work.kernels * peaks.node_us) / 1e3
    limit_ms = max(compute_ms, memory_ms)
    bound: Literal["compute", "memory", "overhead"] = "compute" if compute_ms >= memory_ms else "memory"
    return Roofline(
        macs=work.macs,
        int8_macs=work.int8_macs,
        bytes=work.bytes,
        kernels=work.kernels,
        intensity=work.macs / max(1, work.bytes),
        compute_ms=compute_ms,
        memory_ms=memory_ms,
        overhead_ms=overhead_ms,
        limit_ms=limit_ms,
        fraction_of_limit=limit_ms / latency_ms,
        bound="overhead" if overhead_ms > limit_ms else bound,
        not_counted=work.not_counted,
    )


@cache
def measure_peaks(threads: int) -> Peaks:
    """Time the kernels once in this process, in about a second; later calls return the same figures."""
    square = np.random.default_rng(0).uniform(-1, 1, (EDGE, EDGE)).astype(np.float32)
    fp32 = _fastest(_product("MatMul", square, square, threads))
    integers = (127 * square).astype(np.int8)
    int8 = _fastest(_product("MatMulInteger", integers.view(np.uint8), integers, threads))
    chains = [_fastest(_chain(length, threads)) for length in (1, 1 + CHAIN)]
    node = max(0.0, chains[1] - chains[0]) / CHAIN
    call = max(0.0, chains[0] - node)
    *cached, streamed = (size / _fastest_pass(size, threads, call) / 1e9 for size in (*CACHED_BYTES, STREAMED_BYTES))
    return Peaks(
        fp32_gmacs_per_second=EDGE**3 / fp32 / 1e9,
        int8_gmacs_per_second=EDGE**3 / int8 / 1e9,
        stream_gbytes_per_second=streamed,
        cached_gbytes_per_second=tuple(zip(CACHED_BYTES, cached, strict=True)),
        call_us=1e6 * call,
        node_us=1e6 * node,
        threads=threads,
    )


def _fastest_pass(size: int, threads: int, call: float) -> float:
    """Seconds to go once through so many bytes: as weights of a product with one row, or copied by NumPy."""
    inner = 1024
    weights = np.ones((inner, size // 4 // inner), np.float32)
    node = helper.make_node("MatMul", ["data", "weight"], ["result"])
    feed = {"data": np.ones((1, inner), np.float32), "weight": weights}
    read = _fastest(_runner([node], feed, {}, threads)) - call
    source, target = weights.ravel()[: size // 8], np.empty(size // 8, np.float32)
    copied = _fastest(lambda: np.copyto(target, source))
    return min(read, copied) if read > 0 else copied


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest block of calls; a block is one call, or as many as the timer needs."""
    run()
    clock, best, calls = time.perf_counter, inf, 1
    end = clock() + SECONDS
    while clock() < end or best is inf:
        start = clock()
        for _ in range(calls):
            run()
        spent = (clock() - start) / calls
        best = min(best, spent)
        calls = max(1, min(64, round(2e-4 / best)))
    return best


def _product(kind: str, data: NDArray[Any], weight: NDArray[Any], threads: int) -> Callable[[], object]:
    node = helper.make_node(kind, ["data", "weight"], ["result"])
    return _runner([node], {"data": data}, {"weight": weight}, threads)


def _chain(length: int, threads: int) -> Callable[[], object]:
    """Operators that do next to nothing, and that the runtime does not merge."""
    names = ["data", *(f"value{index}" for index in range(length - 1)), "result"]
    nodes = [helper.make_node("Sigmoid", [names[at]], [names[at + 1]]) for at in range(length)]
    return _runner(nodes, {"data": np.ones((1, 8), np.float32)}, {}, threads)


def _runner(
    nodes: list[onnx.NodeProto], feed: dict[str, NDArray[Any]], weights: dict[str, NDArray[Any]], threads: int
) -> Callable[[], object]:
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feed.items()}
    result = TensorProto.INT32 if kinds["data"] == TensorProto.UINT8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info(name, kind, feed[name].shape) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("result", result, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)
