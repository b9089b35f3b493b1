"""What promotion promises, shown with a real tritonserver and a real SeaweedFS of their own.

    python -m tests.benchmarks.promotion traffic    200 requests/s during 50 promotions and 20 rollbacks
    python -m tests.benchmarks.promotion killed     kill -9 of the promoter after each thing it does, then of Triton too
    python -m tests.benchmarks.promotion triton     kill -9 of Triton after each thing that a promoter does
    python -m tests.benchmarks.promotion faults     S3 through a proxy: 503, slow, truncated, lost, reset, skewed clocks
    python -m tests.benchmarks.promotion rollback   from the command to an answer of the old version: at most 3 s
    python -m tests.benchmarks.promotion races      100 times two promoters at once

Bad releases are planted by tests/serving/test_promote.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http

from mlites import stack
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving.channel import history, read_channel
from mlites.serving.lock import Busy
from mlites.serving.promote import promote, rollback
from mlites.serving.release import fetch_release, list_releases
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.steps import PromotionFailed
from mlites.stack import process
from mlites.storage import Store
from tests.serving import killed, planted
from tests.serving.callers import Answer, calling
from tests.serving.faulty_s3 import Fault, faulty_s3

BRIEF = Promotion(trial_seconds=0.3, shadow_seconds=0.2, watch_seconds=0.2, slower=20, p95_ms=2000)
SERVING = Serving(promotion=BRIEF)
NAME = "linear"


class Stand:
    """Servers of its own, a model, and releases of it, each known by its seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.triton = Store.open(os.environ["MLITES_STORE"]), Triton.from_environment()
        self.mark = f"triton:{Path(os.environ['MLITES_HOME']).resolve() / 'stack'}"
        self.seeds: dict[str, int] = {}

    def up(self) -> None:
        """Start what was killed; a server whose port another took meanwhile listens elsewhere."""
        os.environ.update(stack.up())
        self.store, self.triton = Store.open(os.environ["MLITES_STORE"]), Triton.from_environment()

    def release(self, seed: int, name: str = NAME) -> str:
        digest = planted.good(self.store, name, self.folder, seed, SERVING).digest
        self.seeds[digest] = seed
        return digest

    def seed_of(self, logits: Any, row: int) -> int:
        """Which model gives this answer."""
        return round((float(np.median(np.array(logits) / planted.expected(0, planted.rows())[row])) - 1) * 100)

    def answer(self, version: int | str = "", name: str = NAME) -> int:
        """Seed of the model that answers a caller."""
        with tritonclient.http.InferenceServerClient(self.triton.url.removeprefix("http://")) as client:
            value = tritonclient.http.InferInput("input", [1, planted.FEATURES], "FP32")
            value.set_data_from_numpy(planted.rows()[:1])
            return self.seed_of(client.infer(name, [value], model_version=str(version)).as_numpy("logits")[0], 0)

    def check(self, name: str = NAME) -> str:
        """The channel points to a whole, verified release, and callers by channel get it; its digest.

        Raises:
            AssertionError: it does not.
        """
        pointer = read_channel(self.store, name, "production")
        assert pointer is not None, "no pointer"
        with tempfile.TemporaryDirectory() as scratch:
            fetch_release(self.store, name, pointer.digest, Path(scratch))
        assert self.answer(pointer.version, name) == self.seeds[pointer.digest], "the channel's version answers wrongly"
        return pointer.digest


def traffic(stand: Stand, promotions: int = 50, rollbacks: int = 20, rate: float = 200) -> bool:
    """Promote and roll back under load; every answer is right and of a version that was verified by then."""
    digests = [stand.release(seed) for seed in range(1, promotions + 2)]
    verified: dict[int, tuple[float, int]] = {}  # version: since when, seed
    proved: dict[str, float] = {}

    def watch(digest: str) -> Callable[[str, str], None]:
        def say(step: str, words: str) -> None:
            if step == "tried":
                proved[digest] = time.time()
            elif step == "stored":
                verified[int(words.split()[-1])] = (proved[digest], stand.seeds[digest])

        return say

    promote(stand.store, NAME, digests[0], say=watch(digests[0]))
    seconds: list[float] = []
    back: list[float] = []
    with calling(stand.store, stand.triton, NAME, planted.rows(), rate, stand.folder) as ended:
        start = time.time()
        for number, digest in enumerate(digests[1:], 1):
            begin = time.time()
            promote(stand.store, NAME, digest, say=watch(digest))
            seconds.append(time.time() - begin)
            while len(back) < number * rollbacks // promotions:
                begin = time.time()
                pointer = read_channel(stand.store, NAME, "production")
                assert pointer is not None and pointer.previous is not None
                rollback(stand.store, NAME, say=watch(pointer.previous))
                back.append(time.time() - begin)
            print(f"{number} promotions, {len(back)} rollbacks, {time.time() - start:.0f} s", flush=True)
        duration = time.time() - start
        answers: list[Answer] = ended()
    failed = [one for one in answers if one.error]
    wrong, early = [], []
    for one in answers:
        if one.version is not None:
            since, seed = verified[one.version]
            if stand.seed_of(one.logits, one.row) != seed:
                wrong.append(one)
            if one.answered < since:
                early.append(one)
    versions = len({one.version for one in answers})
    print(
        f"{promotions} promotions (median {statistics.median(seconds):.1f} s), {len(back)} rollbacks "
        f"(median {statistics.median(back):.1f} s) in {duration:.0f} s: {len(answers)} requests "
        f"({len(answers) / duration:.0f}/s) answered by {versions} versions, {len(failed)} failed, {len(wrong)} wrong, "
        f"{len(early)} by a version not yet verified"
    )
    for one in [*failed, *wrong, *early][:5]:
        print(one)
    return not failed and not wrong and not early and len(answers) > 0.9 * rate * duration


def die(stand: Stand, victim: str) -> bool:
    """Kill after each point of a promotion and of both kinds of rollback."""
    with sandbox({}) as box:  # for what is promoted around it; who is killed starts one of its own
        return _die(stand, box, victim)


def _die(stand: Stand, box: Sandbox, victim: str) -> bool:
    good = True
    seed = 0
    for action in ("promote", "rollback at once", "rollback anew"):
        points, at = [""], 0
        while at <= len(points):
            name = f"{NAME}-{seed}"
            digests = []
            for _ in range(3):
                seed += 1
                digests.append(stand.release(seed, name))
            for digest in digests[: 1 if action == "promote" else 2]:
                promote(stand.store, name, digest, trial=lambda: nullcontext(box))
            if action == "rollback anew":  # the release before is not loaded any more
                rollback(stand.store, name)
                rollback(stand.store, name, digests[1])
            target = digests[1] if action == "promote" else digests[0]
            before = read_channel(stand.store, name, "production")
            done = killed.run(action.split()[0], name, target, victim, at)
            if at == 0:
                points = json.loads(done.stdout.splitlines()[-1])
                print(f"{action}: {len(points)} points", flush=True)
            stand.up()
            words = _after(stand, box, name, target, before.digest if before else "", digests[2], victim, done)
            right = not words
            good &= right
            point = points[at - 1] if at else "none"
            print(f"{action}, killed after {at} ({point}): {'whole' if right else words}", flush=True)
            at += 1
            stand.triton.unload(name)
            stand.store.delete(f"repository/{name}/config.pbtxt")
            stand.store.delete(f"channels/{name}/production.json")
    return good


def _after(
    stand: Stand, box: Sandbox, name: str, target: str, before: str, following: str, victim: str, done: Any
) -> str:
    """What is not as it should be after a kill; empty if all is."""
    try:
        found = stand.check(name)
        if found not in (target, before):
            return f"the channel points to {found[:12]}"
        if stand.answer("", name) not in (stand.seeds[target], stand.seeds[before]):
            return "callers who name no version get another model"
        if victim != "self" and done.returncode not in (0, 1):
            return f"the promoter ends with {done.returncode}: {done.stderr[-300:]}"
        if victim != "self" and done.returncode == 1 and ("Traceback" in done.stderr or not done.stderr.strip()):
            return f"no clear reason: {done.stderr[-300:]}"
        process.stop(stand.mark)
        stand.up()
        stand.triton.wait_until_ready(name, int(read_channel(stand.store, name, "production").version))  # type: ignore[union-attr]
        found = stand.check(name)
        if stand.answer("", name) != stand.seeds[found]:
            return "after Triton's restart callers who name no version do not get the channel's"
        promote(stand.store, name, following, trial=lambda: nullcontext(box))
        if stand.check(name) != following or stand.answer("", name) != stand.seeds[following]:
            return "the next promotion does not work"
        rollback(stand.store, name)
        if stand.check(name) != found or stand.answer("", name) != stand.seeds[found]:
            return "the next rollback does not work"
    except (AssertionError, PromotionFailed, Busy, TritonRefused) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def killed_(stand: Stand) -> bool:
    """kill -9 of the promoter."""
    return die(stand, "self")


def triton_(stand: Stand) -> bool:
    """kill -9 of Triton, all its processes."""
    return die(stand, stand.mark)


def faults(stand: Stand) -> bool:
    """Each fault now and then, which is survived, and for good from some write on, which ends in a clear error."""
    good = True
    inside = planted.good(stand.store, NAME, stand.folder, 1, SERVING).digest
    stand.seeds[inside] = 1
    promote(stand.store, NAME, inside)
    seed = 1
    kinds: tuple[Fault, ...] = ("503", "slow", "truncated", "lost", "reset", "skewed")
    with faulty_s3(os.environ["MLITES_S3_ENDPOINT"], slow_seconds=0.3) as proxy:
        outside = Store("s3://mlites", {**os.environ, "MLITES_S3_ENDPOINT": proxy.url})
        for kind in kinds:
            seed += 1
            proxy.choose = lambda method, path, number, kind=kind: kind if number % 4 == 1 else None
            proxy.seen.clear()
            begin = time.time()
            digest, words = _release_and_promote(stand, outside, seed)
            if words != PROMOTED:
                words, good = f"{words}   WRONG", False
            hit = sum(1 for one in proxy.seen if one[2])
            print(
                f"{kind} at each 4th of {len(proxy.seen)} requests ({hit}): {words}, {time.time() - begin:.1f} s",
                flush=True,
            )
            good &= stand.check() == digest
        for kind in ("503", "lost", "reset", "truncated"):
            for first in (0, 2, 5, 9, 14, 20, 27, 35, 44, 50, 55, 60, 65):
                seed += 1
                good &= _for_good(stand, outside, proxy, kind, first, seed)  # type: ignore[arg-type]
    return good


def _release_and_promote(stand: Stand, store: Store, seed: int) -> tuple[str, str]:
    """The release's digest, empty where it came to none, and `PROMOTED` or the error in words."""
    digest = ""
    try:
        digest = planted.good(store, NAME, stand.folder, seed, SERVING).digest
        stand.seeds[digest] = seed
        promote(store, NAME, digest)
    except Exception as error:
        return digest, f"{type(error).__name__}: {error}"
    return digest, PROMOTED


def _for_good(stand: Stand, outside: Store, proxy: Any, kind: Fault, first: int, seed: int) -> bool:
    """From one request on all fail: bounded tries, a clear error, nothing half visible, and the old version serves."""
    before = stand.check()
    releases = {one.release.digest for one in list_releases(stand.store, NAME)}
    proxy.choose = lambda method, path, number: kind if number >= first and not path.endswith("lock.json") else None
    proxy.seen.clear()
    begin = time.time()
    digest, words = _release_and_promote(stand, outside, seed)
    seconds = time.time() - begin
    proxy.choose = lambda method, path, number: None
    for one in list_releases(stand.store, NAME):
        if one.release.digest not in releases:
            stand.seeds[one.release.digest] = seed
            with tempfile.TemporaryDirectory() as scratch:
                fetch_release(stand.store, NAME, one.release.digest, Path(scratch))  # whole, or it would raise
    after = stand.check()
    tries = max((sum(1 for other in proxy.seen if other == one) for one in proxy.seen if one[2]), default=0)
    clear = words == PROMOTED or (len(words.splitlines()) == 1 and words.split(":")[0] in CLEAR)
    right = clear and seconds < 120 and tries <= 24 and after in (before, digest)
    said = f"{kind} from request {first}: {seconds:.1f} s, {tries} tries at most"
    print(f"{said}, {words}{'' if right else '   WRONG'}", flush=True)
    return right


PROMOTED = "promoted"
CLEAR = ("InputError", "StoreFailed", "PromotionFailed", "Busy", "MissingObject")


def rollback_(stand: Stand, times: int = 5) -> bool:
    """Seconds from `mlites rollback` to the old version's answer, for callers by channel and for those by name."""
    worst = 0.0
    for number in range(times):
        digests = [stand.release(2 * number + one) for one in (1, 2)]
        for digest in digests:
            promote(stand.store, NAME, digest)
        begin = time.perf_counter()
        program = subprocess.Popen([sys.executable, "-m", "pipelines.cli", "rollback", NAME], stderr=-3, stdout=-3)
        by_channel = by_name = 0.0
        while not (by_channel and by_name):
            pointer = read_channel(stand.store, NAME, "production")
            assert pointer is not None
            now = time.perf_counter() - begin
            if not by_channel and stand.answer(pointer.version) == stand.seeds[digests[0]]:
                by_channel = now
            if not by_name and stand.answer() == stand.seeds[digests[0]]:
                by_name = now
            assert now < 60
            time.sleep(0.02)
        assert program.wait(30) == 0
        worst = max(worst, by_channel)
        print(f"rollback: by channel {by_channel:.2f} s, without a version {by_name:.2f} s", flush=True)
    return worst <= 3


def races(stand: Stand, times: int = 100) -> bool:
    """Two promoters at once: one is in service, the other is told."""
    told = good = 0
    with sandbox({}) as box:
        for number in range(times):
            digests = [stand.release(2 * number + one) for one in (1, 2)]
            meeting = threading.Barrier(2)

            def run(digest: str, meeting: threading.Barrier = meeting) -> str:
                meeting.wait()
                try:
                    promote(stand.store, NAME, digest, trial=lambda: nullcontext(box))
                    return ""
                except (Busy, PromotionFailed) as error:
                    return str(error)

            with ThreadPoolExecutor(2) as pool:
                results = list(pool.map(run, digests))
            told += sum(1 for one in results if one)
            winner = digests[results.index("")] if results.count("") == 1 else ""
            right = bool(winner) and stand.check() == winner and stand.answer() == stand.seeds[winner]
            good += right
            print(f"race {number + 1}: {[one or 'won' for one in results]}{'' if right else '   WRONG'}", flush=True)
    swaps = len(history(stand.store, NAME, "production"))
    print(f"{good} of {times} races have one winner, {told} were told; the channel was swapped {swaps} times")
    return good == times == told


@contextmanager
def servers() -> Iterator[Path]:
    """A stack of its own, which goes down at the end."""
    with tempfile.TemporaryDirectory(prefix="promotion-") as folder:
        os.environ["MLITES_HOME"] = f"{folder}/home"
        for name in ("MLITES_S3_ENDPOINT", "MLITES_TRITON_URL", "MLITES_TRITON_GRPC", "MLITES_STORE"):
            os.environ.pop(name, None)
        try:
            os.environ.update(stack.up())
            yield Path(folder)
        finally:
            stack.down()


SHOWS: dict[str, Callable[[Stand], bool]] = {
    "traffic": traffic,
    "killed": killed_,
    "triton": triton_,
    "faults": faults,
    "rollback": rollback_,
    "races": races,
}


def main() -> None:
    """Show one, or all; exit 1 where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("show", choices=[*SHOWS, "all"])
    chosen = parser.parse_args().show
    good = True
    for name in SHOWS if chosen == "all" else [chosen]:
        with servers() as folder:
            right = SHOWS[name](Stand(folder))
        print(f"{name}: {'shown' if right else 'NOT SHOWN'}", flush=True)
        good &= right
    sys.exit(not good)


if __name__ == "__main__":
    main()
