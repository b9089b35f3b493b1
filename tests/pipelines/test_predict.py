"""mlites predict as a user runs it; the command's own process is that of the test."""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlites.errors import InputError
from mlites.recipe import Serving
from mlites.serving.raw import load_raw
from mlites.serving.samples import SampleReader
from mlites.serving.server import Triton
from mlites.storage import Store
from pipelines.cli import cli
from tests.serving.served import Network, serve, withdraw

NETWORK = Network("images")


@pytest.fixture(scope="module")
def model(stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store, triton = Store.open(stack["MLITES_STORE"], stack), Triton.from_environment(stack)
    name = f"p-{uuid.uuid4().hex[:8]}"
    rows = NETWORK.normalised(NETWORK.raw(4)).astype(np.float32)
    serving = Serving(max_batch_size=4, preprocessing="server")
    release = serve(store, triton, NETWORK.folder(tmp_path_factory.mktemp("predict")), name, rows, serving=serving)
    load_raw(store, triton, name, release, [1])
    yield name
    withdraw(store, triton, name)


@pytest.fixture
def rows(in_stack: dict[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, x=NETWORK.raw(6))
    return path


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["predict", *map(str, arguments)])


@pytest.mark.parametrize("how", [[], ["--protocol", "http"], ["--raw"], ["--raw", "--protocol", "http"]])
def test_classes_and_probabilities_are_those_of_the_network(model: str, rows: Path, how: list[str]) -> None:
    found = predict(model, "--input", rows, "--json", "--top", 2, *how)
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    expected = NETWORK.probabilities(NETWORK.raw(6))
    assert (document["model"], document["channel"], document["version"]) == (model, "production", 1)
    assert [row["name"] for row in document["rows"]] == [str(index) for index in range(6)]
    for row, wanted in zip(document["rows"], expected, strict=True):
        assert row["class"] == ("cat", "dog", "owl")[wanted.argmax()] == row["top"][0]["class"]
        assert [one["probability"] for one in row["top"]] == pytest.approx(sorted(wanted)[:-3:-1], abs=1e-4)


def test_people_get_a_line_for_each_row_and_where_the_answer_came_from(model: str, rows: Path) -> None:
    found = predict(model, "-i", rows, "--log-samples")
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["row", "class", "probability"] and len(lines) == 7
    best = NETWORK.probabilities(NETWORK.raw(6)).max(axis=1)
    assert f"{best[0]:.1%}" in lines[1]
    assert f"{model} version 1 (production, release " in found.stderr and ": 6 rows in " in found.stderr
    now = datetime.now(UTC)
    store = Store.open("s3://mlites")
    assert len(SampleReader(store, model).read(now - timedelta(minutes=1), now + timedelta(minutes=1))) == 6


def test_rows_are_fetched_from_s3(model: str, rows: Path) -> None:
    store = Store.open("s3://mlites")
    store.put(f"incoming/{model}/rows.npz", rows.read_bytes())
    found = predict(model, "-i", f"s3://mlites/incoming/{model}/rows.npz", "--json")
    assert found.exit_code == 0 and len(json.loads(found.stdout)["rows"]) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model", "-i", "{rows}"], "no-such-model has no release in channel production; promote one"),
        (["{model}", "-i", "{rows}", "--channel", "staging"], "has no release in channel staging"),
        (["{model}", "-i", "nowhere.npz"], "nowhere.npz: not a readable npz archive: No such file"),
    ],
)
def test_wrong_input_is_one_line(model: str, rows: Path, arguments: list[str], words: str) -> None:
    found = predict(*(one.format(model=model, rows=rows) for one in arguments))
    assert isinstance(found.exception, InputError) and words in str(found.exception)
    assert "\n" not in str(found.exception)


def test_a_server_that_does_not_answer_is_one_line_and_exit_code_1(
    model: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLITES_TRITON_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MLITES_TRITON_GRPC", "127.0.0.1:9")
    for protocol in ("grpc", "http"):
        found = predict(model, "-i", rows, "--deadline", "0.5", "--protocol", protocol)
        assert found.exit_code == 1 and found.stderr.startswith(f"error: {model} does not answer")
        assert found.stderr.count("\n") == 1
