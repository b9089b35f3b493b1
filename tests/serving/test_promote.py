"""Promotion with the real servers: what is good goes into service, what is bad does not, and there is a way back."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import minisign
import numpy as np
import pytest

from mlites.errors import InputError
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving.channel import history, read_channel, refusals
from mlites.serving.lock import Busy
from mlites.serving.promote import promote, rollback
from mlites.serving.prune import prune
from mlites.serving.release import list_releases, read_release
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.server import Triton
from mlites.serving.signature import sign
from mlites.serving.steps import PromotionFailed
from mlites.storage import Store
from tests.serving import planted
from tests.serving.callers import calling


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """One sandbox for all tests here."""
    with sandbox({}) as one:
        yield one


class Bench:
    """A model, and what happens to it."""

    def __init__(self, store: Store, triton: Triton, name: str, folder: Path, box: Sandbox) -> None:
        self.store, self.triton, self.name, self.folder, self.box = store, triton, name, folder, box

    def promote(self, digest: str, channel: Any = "production", **options: Any) -> Any:
        return promote(
            self.store, self.name, digest, channel, triton=self.triton, trial=lambda: nullcontext(self.box), **options
        )

    def good(self, seed: int, **options: Any) -> str:
        return planted.good(self.store, self.name, self.folder, seed, **options).digest

    def plant(self, content: bytes, *arguments: Any, **options: Any) -> str:
        return planted.plant(self.store, self.name, self.folder, content, *arguments, **options)

    def answers(self, version: int | str = "", name: str = "") -> Any:
        """Seed of the model that answers."""
        import tritonclient.http

        with tritonclient.http.InferenceServerClient(self.triton.url.removeprefix("http://")) as client:
            value = tritonclient.http.InferInput("input", [4, planted.FEATURES], "FP32")
            value.set_data_from_numpy(planted.rows(4))
            logits = client.infer(name or self.name, [value], model_version=str(version)).as_numpy("logits")
        ratio = np.median(logits / planted.expected(0, planted.rows(4)))
        return round((float(ratio) - 1) * 100)

    def pointer(self, channel: Any = "production") -> Any:
        return read_channel(self.store, self.name, channel)


@pytest.fixture
def bench(served: Store, triton: Triton, name: str, tmp_path: Path, box: Sandbox) -> Bench:
    return Bench(served, triton, name, tmp_path, box)


def test_releases_follow_each_other_and_a_rollback_returns(bench: Bench) -> None:
    digests = []
    for seed in (1, 2, 3):
        digests.append(bench.good(seed))
        time.sleep(1.1)  # S3 tells by whole seconds which one is the last
    steps: list[str] = []
    for digest in digests:
        steps.clear()
        promoted = bench.promote(digest, say=lambda step, words: steps.append(step))
    assert " ".join(steps) == (
        "locked settled verified tried shadowed stored loaded answered configured switched recorded watched"
    )
    assert (promoted.pointer.version, promoted.previous_version) == (3, 2)
    assert bench.triton.ready_versions()[bench.name] == [2, 3]
    assert [bench.answers(), bench.answers(2), bench.answers(3)] == [3, 2, 3]

    # the one before is loaded still: at once
    begin = time.monotonic()
    back = rollback(bench.store, bench.name, triton=bench.triton)
    assert time.monotonic() - begin < 10
    assert (back.pointer.digest, back.pointer.version) == (digests[1], 2)
    assert bench.answers() == bench.answers(2) == 2

    # the one before that is not: under a new number
    back = rollback(bench.store, bench.name, triton=bench.triton)
    assert (back.pointer.digest, back.pointer.version, back.pointer.previous) == (digests[0], 4, None)
    assert bench.answers() == bench.answers(4) == 1
    with pytest.raises(InputError, match="is the first release in production; there is none before it"):
        rollback(bench.store, bench.name, triton=bench.triton)

    # and forward again, by name
    back = rollback(bench.store, bench.name, digests[2], triton=bench.triton)
    assert bench.answers() == bench.answers(back.pointer.version) == 3
    with pytest.raises(InputError, match="is in production already"):
        rollback(bench.store, bench.name, digests[2], triton=bench.triton)
    events = [(one.event, one.digest) for one in history(bench.store, bench.name, "production")]
    assert events == [
        *(("promoted", one) for one in digests),
        *(("rolled back", digests[one]) for one in (1, 0, 2)),
    ]

    # prune keeps what is in use, and what is served stays served
    pruned = prune(bench.store, bench.name, 1, triton=bench.triton)
    assert pruned.releases == (digests[1],)
    assert [one.release.digest for one in list_releases(bench.store, bench.name)] == [digests[0], digests[2]]
    kept = {key.split("/")[2] for key in bench.store.keys(f"repository/{bench.name}/") if not key.endswith("claim")}
    assert kept == {"config.pbtxt", str(back.pointer.version)}
    assert prune(bench.store, bench.name, 1, triton=bench.triton).versions == {}
    assert bench.answers() == 3


def test_bad_releases_are_stopped_with_the_reason_while_the_old_one_answers(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = minisign.KeyPair.generate()
    stranger = minisign.KeyPair.generate()
    (tmp_path / "secret").write_bytes(bytes(pair.secret_key))
    (tmp_path / "ours.pub").write_bytes(bytes(pair.public_key))
    (tmp_path / "stranger").write_bytes(bytes(stranger.secret_key))
    stable = bench.good(1, work=40, ballast_mib=32)
    bench.promote(stable)
    bad = {
        "nan": (bench.plant(planted.onnx(2, work=40, ballast_mib=32, nan=True)), r"differs from the ONNX file by nan"),
        "labels": (
            bench.plant(planted.onnx(2, work=40, ballast_mib=32), planted.mislabel),
            r"names the labelled class for \d+% of the golden rows, and promises 100%: is the order of its classes",
        ),
        "slow": (
            bench.plant(planted.onnx(2, work=500, ballast_mib=32)),
            r"takes [\d.]+ ms, [\d.]+ in service; 1.5 times that is allowed, tried 3 times",
        ),
        "large": (
            bench.plant(planted.onnx(2, work=40, ballast_mib=128)),
            r"it takes \d+ MiB of memory, the release in service \d+; 1.5 times that is allowed",
        ),
        "config": (
            bench.plant(planted.onnx(2, work=40, ballast_mib=32), planted.misshape),
            r"it takes rows of \[65\] and knows 4 classes, the release in service \[64\]",
        ),
        "corrupted": (planted.corrupt(bench.store, bench.name, bench.good(3)), r"model\.onnx is damaged"),
    }
    with calling(bench.store, bench.triton, bench.name, planted.rows(), 20, tmp_path) as ended:
        for digest, reason in bad.values():
            with pytest.raises(PromotionFailed, match=reason) as caught:
                bench.promote(digest)
            assert refusals(bench.store, bench.name)[digest]["reason"] == str(caught.value)
        monkeypatch.setenv("MLITES_TRUSTED_KEYS", str(tmp_path / "ours.pub"))
        monkeypatch.setenv("MLITES_SIGNING_KEY", str(tmp_path / "stranger"))
        signed = bench.good(4, work=40, ballast_mib=32)
        with pytest.raises(PromotionFailed, match="its signature is wrong: none of the keys in"):
            bench.promote(signed)
        monkeypatch.setenv("MLITES_SIGNING_KEY", str(tmp_path / "secret"))
        assert bench.good(4, work=40, ballast_mib=32) == signed
        unsigned = bench.plant(planted.onnx(5, work=40, ballast_mib=32), golden_seed=5)
        with pytest.raises(PromotionFailed, match="is not signed, and MLITES_TRUSTED_KEYS asks for it"):
            bench.promote(unsigned)
        assert bench.pointer().digest == stable
        answers = ended()
    assert len(answers) > 50 and not [one.error for one in answers if one.error]
    for one in answers:
        assert one.version == 1
        np.testing.assert_allclose(one.logits, planted.expected(1, planted.rows())[one.row], atol=1e-3)
    sign(bench.store, f"releases/{bench.name}/{stable}/release.json")  # what it is compared with is loaded too
    assert bench.promote(signed).pointer.digest == signed


def test_a_first_release_that_does_not_fit_its_configuration_is_stopped(bench: Bench) -> None:
    digest = bench.plant(planted.onnx(2), planted.misshape)
    with pytest.raises(
        PromotionFailed, match=r"input 'input': the configuration says \[-1, 65\], the model \[-1, 64\]"
    ):
        bench.promote(digest)
    assert bench.pointer() is None
    assert bench.store.keys(f"repository/{bench.name}/") == []


def test_of_two_promoters_one_wins_and_the_other_is_told(bench: Bench) -> None:
    digests = [bench.good(seed) for seed in (1, 2)]
    meeting = threading.Barrier(2)

    def run(digest: str) -> Any:
        meeting.wait(60)
        try:
            return bench.promote(digest)
        except Busy as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, digests))
    (loser,) = (one for one in results if isinstance(one, str))
    won = next(place for place, one in enumerate(results) if not isinstance(one, str))
    assert f"promotion of {bench.name}@{digests[won][:12]} to production (process {os.getpid()} on" in loser
    assert bench.pointer().digest == digests[won]
    assert bench.answers() == won + 1


def test_what_fails_in_the_watch_is_taken_back(bench: Bench) -> None:
    first, second = bench.good(1), bench.good(2)
    bench.promote(first)

    def spoil(step: str, words: str) -> None:
        if step == "recorded":  # the version goes bad in service
            bench.triton.load_with(bench.name, _only(bench, 1))

    with pytest.raises(PromotionFailed, match=rf"not available .*; {bench.name}@{first[:12]} \(version 1\) is back"):
        bench.promote(second, say=spoil)
    assert bench.pointer().digest == first and bench.pointer().event == "rolled back"
    assert bench.answers() == 1


def _only(bench: Bench, version: int) -> Any:
    from mlites.serving.repository import configuration_json

    return configuration_json(bench.store.get(f"repository/{bench.name}/{version}/config.pbtxt").decode())


def test_a_rollback_takes_the_channel_from_a_promoter(bench: Bench) -> None:
    digests = [bench.good(seed) for seed in (1, 2, 3)]
    for digest in digests[:2]:
        bench.promote(digest)
    done: list[Any] = []

    def interrupt(step: str, words: str) -> None:
        if step == "stored":
            done.append(rollback(bench.store, bench.name, triton=bench.triton))

    with pytest.raises(PromotionFailed, match="is not in service: another promoter has taken over"):
        bench.promote(digests[2], say=interrupt)
    assert bench.pointer() == done[0].pointer.model_copy(update={"etag": bench.pointer().etag})
    assert bench.answers() == bench.answers(bench.pointer().version) == 1


def test_channels_are_models_of_their_own_and_a_canary_gets_its_share(bench: Bench) -> None:
    slow = Serving(
        promotion=Promotion(
            trial_seconds=0.3, shadow_seconds=0, watch_seconds=0, canary_share=0.25, canary_seconds=1, slower=50
        )
    )
    first, second = bench.good(1), bench.good(2, serving=slow)
    bench.promote(first)
    bench.promote(second, "staging")
    assert (bench.answers(), bench.answers(name=f"{bench.name}.staging")) == (1, 2)
    seen: list[Any] = []
    with _noting(bench, "canary", seen):
        promoted = bench.promote(second)
    assert [one.share for one in seen] == [0.25, 0.0]
    assert any(words.startswith("canaried: 25% of the requests") for words in promoted.findings)
    assert (bench.answers(), bench.pointer("canary").digest) == (2, second)


@contextmanager
def _noting(bench: Bench, channel: Any, seen: list[Any]) -> Iterator[None]:
    """Collect what a channel points to, one after another."""
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.05):
            found = bench.pointer(channel)
            if found and (not seen or found.sequence != seen[-1].sequence):
                seen.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        time.sleep(0.2)
        end.set()
        thread.join()


def test_what_a_killed_promoter_left_is_put_in_order(bench: Bench) -> None:
    first, second = bench.good(1), bench.good(2)
    bench.promote(first)
    bench.promote(second)
    name = bench.name
    # a version that was configured and not yet pointed to, one that is damaged, and a copy of a trial
    text = bench.store.get(f"repository/{name}/config.pbtxt").decode()
    bench.store.put(f"repository/{name}/config.pbtxt", text.replace("[1, 2]", "[1, 2, 9]").encode())
    bench.store.put(f"repository/{name}/2/model.onnx", b"damaged")
    release = read_release(bench.store, name, first)
    assert release.digest == first
    assert bench.promote(second).pointer.version == 2
    assert b"versions: [2]" in bench.store.get(f"repository/{name}/config.pbtxt")
    assert bench.store.get(f"repository/{name}/2/model.onnx") == planted.onnx(2)
    assert bench.answers() == 2


def test_nothing_to_promote_or_to_go_back_to_is_told(bench: Bench) -> None:
    with pytest.raises(PromotionFailed, match=rf"{bench.name}@{'0' * 12} is not loaded: .* does not exist"):
        bench.promote("0" * 64)
    with pytest.raises(InputError, match=r"production of .* has no release; see: mlites releases"):
        rollback(bench.store, bench.name, triton=bench.triton)
    with pytest.raises(InputError, match=r"--keep must be at least 1, got 0"):
        prune(bench.store, bench.name, 0, triton=bench.triton)
    with pytest.raises(InputError, match="has no releases in"):
        prune(bench.store, bench.name, 3, triton=bench.triton)
    digests = [bench.good(seed) for seed in (1, 2)]
    bench.promote(digests[0])
    with pytest.raises(InputError, match=r"was never in production; promote it"):
        rollback(bench.store, bench.name, digests[1], triton=bench.triton)
