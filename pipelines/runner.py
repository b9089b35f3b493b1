"""The local runner: one recipe through kfp.local, in a process group that ends with it, resumed by content."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlites import stack
from mlites.data.prepare import source_digest
from mlites.errors import InputError
from mlites.files import digest_file, digest_folder, digest_json, new_folder, write_atomically
from mlites.hardware.machine import fingerprint
from mlites.recipe import Recipe
from mlites.report.publish import failed_run, finish_run, recipe_yaml
from mlites.report.summary import Step, Summary
from mlites.storage import Store, remote_digest
from pipelines.progress import Progress

DEPLOYED, FAILED, WRONG_INPUT, REJECTED = 0, 1, 2, 3
GRACE_SECONDS = 5.0  # how long the process group may take to end on SIGTERM


@dataclass
class Outcome:
    """What the worker's events told."""

    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str | None] = field(default_factory=dict)  # steps of candidates; None where an earlier one failed
    running: str | None = None
    error: str | None = None
    failed_step: str | None = None
    wrong_input: bool = False

    def steps(self, labels: dict[str, str]) -> list[Step]:
        """Every step that ran or came from the cache, under its name in words."""
        done = {**dict.fromkeys(self.cached, 0.0), **self.seconds}
        return [
            Step(name=labels.get(name, name), seconds=round(seconds, 3), cached=name in self.cached)
            for name, seconds in done.items()
        ]


def run_recipe(recipe: Recipe, *, fresh: bool = False) -> tuple[int, Summary, Path]:
    """Run the pipeline of a recipe to its end.

    Args:
        recipe: A checked recipe; relative paths in it are taken from the current folder.
        fresh: Forget all cached results and checkpoints first.

    Returns:
        Exit code (0 deployed, 1 failed, 2 wrong input, 3 rejected by the gate), the summary, and the run's folder.

    Raises:
        InputError: something is wrong that shows before the first step, or another run is under way.
    """
    begin, wall = time.monotonic(), time.time()
    home = Path(os.environ.get("MLITES_HOME", ".mlites")).resolve()
    if any(map(_is_remote, _paths(recipe))):
        os.environ.update(stack.up())  # they may lie in the embedded S3
    digests = _digests(recipe)
    with _only_run(home):
        if fresh:
            for name in ("cache", "artifacts", "checkpoints"):
                shutil.rmtree(home / name, ignore_errors=True)
        run = _run_name(recipe.name)
        work = home / "work" / run
        shutil.rmtree(work.parent, ignore_errors=True)  # a killed run's
        _forget_failed(home)
        _forget_unreferenced(home)
        for folder in (work / "tmp", work / "run", home / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(work / "run" / "recipe.yaml", recipe_yaml(recipe))
        (work / "events.jsonl").touch()
        with Progress(recipe.name) as progress, _worker(home, work, progress) as process:
            outcome, labels = Outcome(), {"stack": "embedded stack"}
            with _timed(outcome, "stack", progress, labels):
                os.environ.update(stack.up(progress.detail))
            store = Store.open(os.environ["MLITES_STORE"])
            _follow(process, _job(recipe, digests, run, work, home, store), work, outcome, labels, progress)
        steps = outcome.steps(labels)
        folder = work / "run"
        shutil.copyfile(work / "run.log", folder / "run.log")
        if outcome.error is None:
            store.get_folder(f"runs/{run}", work / "published")
            for path in (work / "published").iterdir():
                path.replace(folder / path.name)
            summary = finish_run(folder, steps, _overhead(begin, steps), _git_commit())
        else:
            _keep_quality_page(home, folder, wall)
            data, verdicts = _findings(home, store, wall)
            overhead = _overhead(begin, steps)
            summary = failed_run(
                folder, run, recipe, outcome.error, outcome.failed_step, steps, overhead, data, verdicts
            )
        store.put_folder(f"runs/{run}", folder)
        target = Path("runs") / run
        _move(folder, target)
        _point_latest(target)
        shutil.rmtree(work.parent, ignore_errors=True)
    if summary.status == "failed":
        return (WRONG_INPUT if outcome.wrong_input else FAILED), summary, target
    return (DEPLOYED if summary.status == "deployed" else REJECTED), summary, target


def code_digest() -> str:
    """Digest of the code that computes results: a cached result of other code is not reused."""
    root = Path(__file__).parent.parent
    paths = (path for room in ("mlites", "components") for path in (root / room).rglob("*"))
    sources = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    return digest_json({path.relative_to(root).as_posix(): digest_file(path) for path in sources})[:16]


def _digests(recipe: Recipe) -> dict[str, str]:
    """Digests of what the recipe names, so that a changed file is a changed input."""
    data, teacher = recipe.data, recipe.teacher
    given = teacher.model or teacher.weights or ""
    return {
        "data_path": _absolute(data.path or ""),
        "data_digest": remote_digest(data.path) if data.path and _is_remote(data.path) else source_digest(data),
        "reference_path": _absolute(data.reference or ""),
        "teacher_path": _absolute(given),
        "teacher_digest": _content_digest(given, "teacher") if given else "",
    } | ({"reference_digest": _content_digest(data.reference, "data.reference")} if data.reference else {})


def _paths(recipe: Recipe) -> list[str]:
    data, teacher = recipe.data, recipe.teacher
    return [path for path in (data.path, data.reference, teacher.model, teacher.weights) if path]


def _content_digest(path: str, field_name: str) -> str:
    if _is_remote(path):
        return remote_digest(path)
    place = Path(path)
    if not place.exists():
        raise InputError(f"{field_name}: {path} does not exist; name a file or folder, or s3://bucket/key")
    return digest_folder(place) if place.is_dir() else digest_file(place)


def _is_remote(path: str) -> bool:
    return path.startswith("s3://")


def _absolute(path: str) -> str:
    return path if not path or _is_remote(path) else str(Path(path).resolve())


@contextmanager
def _only_run(home: Path) -> Iterator[None]:
    """Hold the home folder's lock; the system releases it when this process ends, however it ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{home}: another run is under way there; wait for it or set MLITES_HOME") from None
        yield


def _run_name(recipe: str) -> str:
    name = f"{recipe}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    number = 2
    unique = name
    while (Path("runs") / unique).exists():
        unique, number = f"{name}-{number}", number + 1
    return unique


def _forget_failed(home: Path) -> None:
    """Remove cache entries of candidates' failed steps: what was wrong may lie outside the recipe, and be right now."""
    for path in (home / "cache").glob("*.json"):
        artifacts = [one for one in json.loads(path.read_bytes()).values() if isinstance(one, dict)]
        if any("failed" in one.get("metadata", {}) for one in artifacts):
            path.unlink()


def _forget_unreferenced(home: Path) -> None:
    """Remove artifacts that no cache entry refers to: those of killed, failed and uncached steps."""
    artifacts = home / "artifacts"
    entries = [path.read_text() for path in (home / "cache").glob("*.json")]
    for folder in artifacts.iterdir() if artifacts.exists() else ():
        if not any(folder.name in entry for entry in entries):
            shutil.rmtree(folder)


@contextmanager
def _timed(outcome: Outcome, name: str, progress: Progress, labels: dict[str, str]) -> Iterator[None]:
    start = time.monotonic()
    progress.begin(labels[name])
    yield
    outcome.seconds[name] = time.monotonic() - start
    progress.end(labels[name], outcome.seconds[name])


def _overhead(begin: float, steps: list[Step]) -> float:
    return round(time.monotonic() - begin - sum(step.seconds for step in steps), 3)


def _git_commit() -> str | None:
    """The commit of the folder where the user stands, if it is under git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _keep_quality_page(home: Path, folder: Path, since: float) -> None:
    """A failed run's data checks, if it came that far: they may be why it failed."""
    for page in home.glob("artifacts/*/prepare-data/quality"):
        if page.stat().st_mtime >= since:
            shutil.copyfile(page, folder / "data-quality.html")


def _findings(home: Path, store: Store, since: float) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What a failed run's own steps had found: the data document, and the verdicts of candidates measured before."""
    data = None
    for document in home.glob("artifacts/*/prepare-data/dataset/document.json"):
        if document.stat().st_mtime >= since:
            data = json.loads(document.read_bytes())
    outputs = [
        path for path in home.glob("artifacts/*/validate-*/executor_output.json") if path.stat().st_mtime >= since
    ]
    digests = [json.loads(path.read_bytes()).get("parameterValues", {}).get("Output") for path in sorted(outputs)]
    return data, [store.get_document(digest) for digest in digests if digest]


def _move(folder: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with new_folder(target) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)


def _point_latest(target: Path) -> None:
    link = target.parent / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(target.parent / "latest")


@contextmanager
def _worker(home: Path, work: Path, progress: Progress) -> Iterator["subprocess.Popen[bytes]"]:
    """The process that runs the pipeline. Started early: it imports KFP while the servers come up; always ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={
            **os.environ,
            "MLITES_HOME": str(home),
            "MLITES_EVENTS": str(work / "events.jsonl"),
            "MLITES_CHECKPOINTS": str(home / "checkpoints"),
            "MLITES_RUNNER_PID": str(os.getpid()),
            "TMPDIR": str(work / "tmp"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # the user's folder may hold a components/ of its own, which must not replace ours
        },
    )
    pump = threading.Thread(target=_pump_log, args=(process, work / "run.log", progress), daemon=True)
    pump.start()
    try:
        yield process
    finally:
        _end_group(process)
        pump.join()


def _job(recipe: Recipe, digests: dict[str, str], run: str, work: Path, home: Path, store: Store) -> dict[str, Any]:
    """What the worker is told, over a pipe: keys stand neither in arguments nor in a file."""
    environment = {
        "MLITES_CODE": code_digest(),
        "MLITES_MACHINE": fingerprint()[:16],
        "MLITES_STORE_ID": store.identity(),
    }
    if "reference_digest" in digests:
        environment["MLITES_REFERENCE"] = digests.pop("reference_digest")[:16]
    return {
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "environment": environment,
        "variables": {**stack.environment(), "MLITES_GIT_COMMIT": _git_commit() or ""},
        "arguments": {"run": run, "store": store.uri, **digests},
        "compiled": str(work / "run" / "pipeline.yaml"),
        "workspace": str(work / "workspace"),
        "home": str(home),
    }


def _follow(
    process: "subprocess.Popen[bytes]",
    job: dict[str, Any],
    work: Path,
    outcome: Outcome,
    labels: dict[str, str],
    progress: Progress,
) -> None:
    """Hand the worker its job and take in what happens until it ends or a step fails."""
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it could not even start; its exit code and run.log tell
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        for event in _events(process, work / "events.jsonl"):
            _take(event, outcome, labels, progress)
            if outcome.error is not None:
                return
        if process.wait() != 0:
            outcome.error = f"the pipeline ended with exit code {process.returncode}; run.log has more"
            outcome.failed_step = outcome.running
    except KeyboardInterrupt:
        outcome.error = "interrupted"


def _events(process: "subprocess.Popen[bytes]", path: Path) -> Iterator[dict[str, Any]]:
    """The worker's events as they come, until it has ended and none is left."""
    with path.open() as file:
        pending = ""
        while True:
            ended = process.poll() is not None
            while line := file.readline():
                pending += line
                if pending.endswith("\n"):
                    yield json.loads(pending)
                    pending = ""
            if ended:
                return
            time.sleep(0.05)


def _take(event: dict[str, Any], outcome: Outcome, labels: dict[str, str], progress: Progress) -> None:
    kind, step = event["event"], event.get("step", "")
    label = labels.get(step, step)
    if kind == "plan":
        labels.update(event["steps"])
        progress.expect(len(event["steps"]))
    elif kind == "start":
        outcome.running = label
        progress.begin(label)
    elif kind == "cached":
        outcome.cached.append(step)
        progress.end(label, None)
    elif kind == "failed":
        outcome.failed[step] = event["error"] if event["here"] else None
    elif kind == "end" and event["success"]:
        outcome.seconds[step] = event["seconds"]
        if step in outcome.failed:
            progress.fail(label, outcome.failed[step])
        else:
            progress.end(label, event["seconds"])
    elif kind == "error":
        outcome.error, outcome.failed_step, outcome.wrong_input = event["error"], label, event["input"]


def _pump_log(process: "subprocess.Popen[bytes]", path: Path, progress: Progress) -> None:
    assert process.stdout is not None
    with path.open("wb", buffering=0) as log:
        for line in process.stdout:
            log.write(line)
            progress.detail(line.decode(errors="replace").strip())


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End the worker and all that it started: kfp.local leaves its children running."""
    for sign, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)
    process.wait()
