"""Requests to a Triton as they really come, over gRPC: callers that wait for their answer, or independent ones.

Source: Schroeder, Wierman & Harchol-Balter (2006), Open Versus Closed: A Cautionary Tale. The response time of an
independent caller counts from the moment at which it wanted to ask, or a slow server would slow down its own judge.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import grpc
import numpy as np
from grpc import aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mlites.inference import INPUT, OUTPUT
from mlites.recipe.hardware import Arrival
from mlites.serving.server import Triton

RAMP_SECONDS = 0.1  # the first answers, which find empty queues, are not counted
MOST_WAITING = 2000  # independent callers at once; a server that keeps more waiting does not keep up
PATIENCE_SECONDS = 10.0  # of one caller


@dataclass(frozen=True)
class Answered:
    """What became of the requests of a time.

    Attributes:
        response_ms: of each that was asked within the time and answered, whenever that was, (n,).
        errors: requests that were asked within the time and not answered.
        per_second: answers that came within the time, in a second.
        lateness_ms: median delay of the callers themselves, whose processor may be busy; 0 for those that wait.
    """

    response_ms: NDArray[np.float64]
    errors: int
    per_second: float
    lateness_ms: float


def send_traffic(
    triton: Triton, model: str, version: int, rows: NDArray[np.float32], arrival: Arrival, callers: int, seconds: float
) -> Answered:
    """Send the same request over and over.

    Args:
        triton: the server.
        model: its name there.
        version: its number.
        rows: of one request, (n, ...).
        arrival: closed callers, or a Poisson process.
        callers: at once, where they are closed.
        seconds: to count answers for.
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=str(version))
    request.inputs.add(name=INPUT, datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(np.ascontiguousarray(rows, np.float32).tobytes())
    request.outputs.add(name=OUTPUT)
    return asyncio.run(_send(triton, request, arrival, callers, seconds))


async def _send(
    triton: Triton, request: service_pb2.ModelInferRequest, arrival: Arrival, callers: int, seconds: float
) -> Answered:
    done: list[tuple[float, float]] = []  # asked when, answered when
    failed: list[float] = []
    late: list[float] = []
    scheme, _, address = triton.grpc.rpartition("://")
    options = [("grpc.enable_http_proxy", 0)]
    secure = scheme in ("grpcs", "https")
    channel = (
        aio.secure_channel(address, grpc.ssl_channel_credentials(), options)
        if secure
        else aio.insecure_channel(address, options)
    )
    async with channel:
        ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        async def one(since: float) -> None:
            try:
                await ask(request, timeout=PATIENCE_SECONDS)
            except aio.AioRpcError:
                failed.append(since)
            else:
                done.append((since, time.perf_counter()))

        start = time.perf_counter()
        end = start + RAMP_SECONDS + seconds
        if arrival.rate_per_second is None:
            await asyncio.gather(*(_ask_again(one, end) for _ in range(callers)))
        else:
            await _ask_independently(one, arrival.rate_per_second, start, end, late)
    begin = start + RAMP_SECONDS
    return Answered(
        np.array([1000 * (answered - asked) for asked, answered in done if begin <= asked < end]),
        sum(begin <= asked < end for asked in failed),
        sum(begin <= answered < end for _, answered in done) / seconds,
        1000 * float(np.median(late)) if late else 0.0,
    )


async def _ask_again(one: Callable[[float], Coroutine[None, None, None]], end: float) -> None:
    while (now := time.perf_counter()) < end:
        await one(now)


async def _ask_independently(
    one: Callable[[float], Coroutine[None, None, None]], rate: float, start: float, end: float, late: list[float]
) -> None:
    draw, at = random.Random(0), start  # noqa: S311 the same arrivals for every setting
    waiting: set[asyncio.Task[None]] = set()
    while (at := at + draw.expovariate(rate)) < end:
        if (pause := at - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        elif len(late) % 16 == 0:
            await asyncio.sleep(0)  # answers are read even where the callers cannot keep up
        late.append(max(0.0, time.perf_counter() - at))
        if len(waiting) >= MOST_WAITING:
            break
        task = asyncio.create_task(one(at))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    if waiting:
        await asyncio.wait(waiting, timeout=max(0.0, end - time.perf_counter()) + PATIENCE_SECONDS)
