"""A release proves itself where no caller meets it: in the sandbox, then in the server under another name."""

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

from mlites.recipe import Hardware
from mlites.serving.channel import Pointer
from mlites.serving.release import Fetched
from mlites.serving.repository import configuration, configuration_json
from mlites.serving.sandbox import Sandbox
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.smoke import Comparison
from mlites.serving.steps import Say
from mlites.serving.trial import Subject, Unfit, judge_answers, judge_memory, judge_speed, parity
from mlites.serving.versions import Place


def prove(
    place: Place,
    trial: Callable[[], AbstractContextManager[Sandbox]],
    candidate: Fetched,
    stable: Fetched | None,
    former: Pointer | None,
    tell: Say,
) -> None:
    """Load a release in the sandbox, then in the server itself under a name that no caller knows, and judge it there.

    Raises:
        Unfit: interface, answers, memory or speed are not as they must be.
        TritonRefused: a server does not load it, or does not answer.
    """
    if stable:
        _check_interface(candidate, stable)
    limits = candidate.release.serving.promotion
    with trial() as box, ExitStack() as loaded:
        mine, mine_bytes = _load_measured(box, candidate, "candidate", loaded)
        theirs, their_bytes = _load_measured(box, stable, "stable", loaded) if stable else (None, None)
        words = [
            judge_answers(box.triton, mine, theirs),
            judge_memory(mine_bytes, their_bytes and their_bytes * _instances(candidate, stable), limits),
            judge_speed(box.triton, mine, theirs, limits.trial_seconds),
        ]
    tell("tried", "; ".join(words))
    replica = next(iter(place.each()), None)  # before the first rollout there is none
    if limits.shadow_seconds > 0 and replica:
        name = f"{place.name}-check-{uuid.uuid4().hex[:12]}"
        try:
            shadow = _load(replica, candidate, name)
            parity(replica, shadow)
            beside = Subject(former.served_as, former.version, stable) if former and stable else None
            words = [judge_speed(replica, shadow, beside, limits.shadow_seconds)]
        finally:
            _unload(replica, name)
        tell("shadowed", words[0])


def _check_interface(candidate: Fetched, stable: Fetched) -> None:
    """Versions of a model share their configuration, and callers their requests."""
    mine, theirs = candidate.release, stable.release
    if (mine.input_shape, len(mine.classes)) != (theirs.input_shape, len(theirs.classes)):
        raise Unfit(
            f"it takes rows of {list(mine.input_shape)} and knows {len(mine.classes)} classes, the release in service "
            f"{list(theirs.input_shape)} and {len(theirs.classes)}; give it another model name"
        )


def _instances(candidate: Fetched, stable: Fetched | None) -> float:
    """Times as many instances as in service, which take as many times the memory and are asked for."""
    return candidate.release.serving.instances / stable.release.serving.instances if stable else 1.0


def _load(triton: Triton, fetched: Fetched, name: str) -> Subject:
    """Load a release that is not in the repository: what was verified goes with the request."""
    release = fetched.release
    sha256 = {1: release.objects["model.onnx"].sha256}
    text = configuration(name, fetched.card, release.serving, [1], release.threads, sha256)
    triton.load_apart(name, configuration_json(text), {"1/model.onnx": (fetched.folder / "model.onnx").read_bytes()})
    triton.wait_until_ready(name, 1)
    return Subject(name, 1, fetched)


def _unload(triton: Triton, name: str) -> None:
    with suppress(TritonRefused):  # it never loaded, or Triton is gone: what failed says so
        triton.unload(name)
        triton.wait_until_gone(name)


def _load_measured(box: Sandbox, fetched: Fetched, role: str, loaded: ExitStack) -> tuple[Subject, int]:
    """Load a release in the sandbox and ask it; the bytes that this took."""
    before = box.memory()
    name = f"{fetched.release.model}-{role}-{uuid.uuid4().hex[:12]}"
    loaded.callback(_unload, box.triton, name)
    subject = _load(box.triton, fetched, name)
    parity(box.triton, subject)
    after = box.memory()
    if before is not None and after is not None:  # processes of an earlier trial may be ending meanwhile
        return subject, sum(held - before.get(pid, 0) for pid, held in after.items())
    from mlites.hardware.memory import measure_process  # a rollback, which is in a hurry, never needs it

    hardware = Hardware(threads=fetched.release.threads, batch=fetched.release.serving.max_batch_size)
    process = measure_process(fetched.folder / "model.onnx", fetched.golden.rows, hardware)
    return subject, process.peak_memory_bytes * fetched.release.serving.instances


def ask_each(place: Place, subject: Subject) -> Comparison:
    """Golden parity in every replica; the largest difference counts.

    Raises:
        Unfit: one answers otherwise, or there is none.
    """
    found = [parity(replica, subject) for replica in place.each()]
    if not found:
        raise Unfit("no replica is ready")
    return max(found, key=lambda one: one.max_abs_difference)
