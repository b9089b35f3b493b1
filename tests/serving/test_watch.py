import io
import json
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from mlites.errors import InputError
from mlites.serving.client import Client
from mlites.serving.predictions import Predictions
from mlites.serving.samples import SampleLog
from mlites.serving.server import Triton
from mlites.serving.watch import Limits, Watcher, start_command, take_turn
from mlites.storage import Store
from pipelines.cli import cli
from pipelines.watched import draw, line
from tests.serving.served import CLASSES, REFERENCE, Network, serve, withdraw

ALIKE = {"cat": 60, "dog": 80, "owl": 60}
SHIFTED = {"cat": 150, "dog": 30, "owl": 20}


@pytest.fixture(scope="module")
def place(stack: dict[str, str]) -> tuple[Store, Triton]:
    return Store.open(stack["MLITES_STORE"], stack), Triton.from_environment(stack)


@pytest.fixture(scope="module")
def model(place: tuple[Store, Triton], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model in production, whose reference is 300, 400 and 300 rows."""
    name, network = f"w-{uuid.uuid4().hex[:8]}", Network("images")
    rows = network.normalised(network.raw(4)).astype(np.float32)
    serve(*place, network.folder(tmp_path_factory.mktemp("watched")), name, rows)
    yield name
    withdraw(*place, name)


@pytest.fixture(autouse=True)
def forgotten(place: tuple[Store, Triton], model: str, in_stack: dict[str, str]) -> Iterator[None]:
    """No log and no note of an earlier test."""
    yield
    for prefix in ("samples", "watch"):
        for key in place[0].keys(f"{prefix}/{model}/"):
            place[0].delete(key)


def log(place: tuple[Store, Triton], model: str, counts: dict[str, int]) -> None:
    """Log predictions of these classes, by the version in service."""
    with Client(model, store=place[0], triton=place[1]) as client:
        digest = client.release.digest
    indices = np.repeat([CLASSES.index(name) for name in counts], list(counts.values()))
    probabilities = (0.05 + 0.85 * np.eye(len(CLASSES)))[indices].astype(np.float32)
    answers = Predictions(model, "production", 1, digest, CLASSES, probabilities, 8.0)
    samples = SampleLog(place[0], model)
    samples.add(answers, np.zeros((len(indices), 1, 2, 2), np.uint8))
    samples.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["watch", *arguments])


def test_predictions_like_the_reference_are_well_and_shifted_ones_raise_an_alarm(
    place: tuple[Store, Triton], model: str
) -> None:
    watcher = Watcher(place[0], model, limits=Limits())
    assert watcher.look().drift is None
    log(place, model, ALIKE)
    sight = watcher.look()
    assert sight.drift and sight.drift.psi < 0.01 and sight.alarms == () and sight.sampled.labels == ALIKE
    assert sight.sampled.p95_ms == 8.0 and sight.sampled.mean_probability == pytest.approx(0.9)
    log(place, model, SHIFTED)
    sight = watcher.look()
    assert sight.drifted and sight.sampled.rows == 400
    p, q = [0.3, 0.4, 0.3], [210 / 400, 110 / 400, 80 / 400]
    psi = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    assert sight.drift and sight.drift.psi == pytest.approx(psi, abs=0.01)
    assert sight.alarms[0].startswith(f"drift of the predicted classes: PSI {sight.drift.psi:.3f} over 400 rows")
    assert json.loads(json.dumps(sight.to_json()))["drift"]["shares"]["cat"] == [0.3, 0.525]


def test_calls_of_the_client_are_seen_by_triton_and_in_the_log(place: tuple[Store, Triton], model: str) -> None:
    watcher = Watcher(place[0], model, limits=Limits(least_rows=5))
    watcher.look()
    samples = SampleLog(place[0], model)
    with Client(model, store=place[0], triton=place[1], samples=samples) as client:
        client.predict(Network("images").raw(10))
    sight = watcher.look()
    assert sight.served and (sight.served.requests, sight.served.failures) == (3, 0)  # of 4, 4 and 2 rows
    assert sight.sampled.rows == 10 and sight.drift and sight.fault is None
    picture = Console(width=120, record=True, file=io.StringIO())
    picture.print(draw(sight))
    shown = picture.export_text()
    assert f"{model} production: version 1" in shown and all(name in shown for name in REFERENCE)
    assert "drift PSI" in line(sight)


def test_latency_and_a_dead_server_are_alarms(
    place: tuple[Store, Triton], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(place, model, ALIKE)
    place[1].infer_grpc(model, 1, np.zeros((1, 1, 2, 2), np.float32))
    slow = Watcher(place[0], model, limits=Limits(p95_ms=1e-6)).look()
    assert [one.split(":")[0] for one in slow.alarms] == ["latency"]
    monkeypatch.setenv("MLITES_TRITON_METRICS", "http://127.0.0.1:9/metrics")
    gone = Watcher(place[0], model, limits=Limits(p95_ms=5.0)).look()
    assert gone.served is None and [one.split(":")[0] for one in gone.alarms] == ["not answering", "latency"]
    assert "p95 8.00 ms; at most 5 ms is right" in gone.alarms[1]  # of the logged calls


def test_one_watcher_of_many_acts_once_for_a_release(place: tuple[Store, Triton], model: str) -> None:
    log(place, model, SHIFTED)
    sights = [Watcher(place[0], model, limits=Limits()).look() for _ in range(2)]
    day = timedelta(days=1)
    assert [take_turn(place[0], sight, day) for sight in sights] == [True, False]
    time.sleep(0.01)
    later = Watcher(place[0], model, limits=Limits()).look()
    assert not take_turn(place[0], later, day) and take_turn(place[0], later, timedelta(0))


def test_the_command_of_drift_runs_once_and_is_told_what_was_seen(
    place: tuple[Store, Triton], model: str, tmp_path: Path
) -> None:
    program = tmp_path / "act.py"
    program.write_text(
        "import json, os, sys\nseen = json.loads(os.environ['MLITES_WATCH'])\n"
        f"open({str(tmp_path / 'acted')!r}, 'a').write(seen['alarms'][0] + '\\n')\nsys.exit(int(sys.argv[1]))\n"
    )
    command = f"{sys.executable} {program} 0"
    log(place, model, ALIKE)
    calm = run(model, "--once", "--on-drift", command)
    assert calm.exit_code == 0 and not (tmp_path / "acted").exists(), calm.output
    log(place, model, SHIFTED)
    for _ in range(2):
        found = run(model, "--once", "--json", "--on-drift", command)
        assert found.exit_code == 3, found.output
    assert (tmp_path / "acted").read_text().count("drift of the predicted classes: PSI 0.2") == 1
    failed = run(model, "--once", "--on-drift", f"{sys.executable} {program} 5", "--again-after", "0")
    assert failed.exit_code == 1
    with pytest.raises(InputError, match=r"--on-drift: cannot start '/no/program': No such file"):
        start_command("/no/program x", Watcher(place[0], model, limits=Limits()).look())


def test_a_json_document_for_scripts_and_a_line_for_people(place: tuple[Store, Triton], model: str) -> None:
    log(place, model, SHIFTED)
    found = run(model, "--once", "--json")
    document: dict[str, Any] = json.loads(found.stdout)
    assert document["format"] == "mlites-watch/1" and document["model"] == model and document["version"] == 1
    assert document["sampled"]["rows"] == 200 and document["served"]["failures"] == 0
    plain = run(model, "--once", "--psi", "9")
    assert plain.exit_code == 0 and "well" in plain.stdout and f"{model} production version 1" in plain.stdout
    missing = CliRunner().invoke(cli, ["watch", "no-such-model", "--once"])
    assert isinstance(missing.exception, InputError)
    assert str(missing.exception).startswith("no-such-model has no release in channel production; promote one")
