"""Promoters and Tritons killed at the points that matter most; tests/benchmarks/promotion.py kills at every one."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http

from mlites import stack as embedded
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving.channel import read_channel
from mlites.serving.promote import promote, rollback
from mlites.serving.release import fetch_release
from mlites.serving.server import Triton
from mlites.stack import process
from mlites.storage import Store
from tests.serving import killed, planted

SERVING = Serving(promotion=Promotion(trial_seconds=0.1, shadow_seconds=0, watch_seconds=0.1, slower=50))


class Bench:
    """Two releases, the first in service."""

    def __init__(self, store: Store, triton: Triton, name: str, folder: Path, home: Path) -> None:
        self.store, self.triton, self.name = store, triton, name
        self.mark = f"triton:{home / 'stack'}"
        self.digests = [planted.good(store, name, folder, seed, SERVING).digest for seed in (1, 2)]
        self.folder = folder
        promote(store, name, self.digests[0])

    def answer(self, version: int | str = "") -> float:
        with tritonclient.http.InferenceServerClient(self.triton.url.removeprefix("http://")) as client:
            value = tritonclient.http.InferInput("input", [1, planted.FEATURES], "FP32")
            value.set_data_from_numpy(planted.rows()[:1])
            logits = client.infer(self.name, [value], model_version=str(version)).as_numpy("logits")
        return round(100 * float((logits / planted.expected(0, planted.rows()[:1])).mean() - 1))

    def in_service(self) -> str:
        """The channel's release: whole, verified, and what its callers get."""
        pointer = read_channel(self.store, self.name, "production")
        assert pointer is not None
        fetch_release(self.store, self.name, pointer.digest, self.folder / "fetched")
        assert self.answer(pointer.version) == self.digests.index(pointer.digest) + 1
        return pointer.digest


@pytest.fixture
def bench(
    served: Store, triton: Triton, name: str, tmp_path: Path, _home: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv("MLITES_HOME", str(_home))  # so that the stack can be started again
    monkeypatch.delenv("MLITES_SANDBOX_URL", raising=False)
    return Bench(served, triton, name, tmp_path, _home)


@pytest.mark.parametrize(("step", "expected"), [("configured", 0), ("switched", 1)])
def test_a_killed_promoter_leaves_the_channel_whole_and_the_next_one_works(
    bench: Bench, step: str, expected: int
) -> None:
    done = killed.run("promote", bench.name, bench.digests[1], "self", step)
    assert done.returncode == -signal.SIGKILL and json.loads(done.stdout.splitlines()[-1]) == [f"step {step}"]
    assert bench.in_service() == bench.digests[expected]
    process.stop(bench.mark)
    embedded.up()
    bench.triton.wait_until_ready(bench.name, 1 + expected)
    assert bench.in_service() == bench.digests[expected]
    assert bench.answer() == expected + 1  # who names no version gets the channel's
    if expected:
        rollback(bench.store, bench.name)
        assert bench.in_service() == bench.digests[0]
    else:
        promote(bench.store, bench.name, bench.digests[1])
        assert bench.in_service() == bench.digests[1]
    assert bench.triton.ready_versions()[bench.name][-1:] == [bench.answer() and _version(bench)]


def _version(bench: Bench) -> Any:
    pointer = read_channel(bench.store, bench.name, "production")
    return pointer and pointer.version


def test_a_triton_that_dies_during_a_promotion_stops_it_with_the_reason(bench: Bench) -> None:
    done = killed.run("promote", bench.name, bench.digests[1], bench.mark, "stored")
    assert done.returncode == 1
    assert done.stderr.startswith(f"PromotionFailed: {bench.name}@{bench.digests[1][:12]} is not in service: no connec")
    embedded.up()
    bench.triton.wait_until_ready(bench.name, 1)
    assert bench.in_service() == bench.digests[0] and bench.answer() == 1
    promote(bench.store, bench.name, bench.digests[1])
    assert bench.in_service() == bench.digests[1] and bench.answer() == 2
