"""A store that is empty gets what Triton starts on; one that is not stays as it is."""

from collections.abc import Callable
from typing import Any

import pytest

from mlites.serving.provide import PLACE_KEEPER, main, provide_repository
from mlites.storage import Store


def test_an_empty_store_gets_one_object_and_the_next_time_nothing(store: Store) -> None:
    provide_repository(store)
    before = store.stat(PLACE_KEEPER)
    provide_repository(store)
    assert store.keys() == [PLACE_KEEPER]
    assert store.stat(PLACE_KEEPER) == before


def test_the_command_says_where(
    seaweedfs: dict[str, str], store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLITES_STORE", store.uri)
    assert main() == 0
    assert capsys.readouterr().out == f"{store.uri}/repository is there\n"
    assert store.keys() == [PLACE_KEEPER]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda set_: set_("MLITES_S3_ENDPOINT", "http://127.0.0.1:9"), "does not answer"),
        (lambda set_: set_("MLITES_STORE", "nowhere"), "s3://bucket"),
    ],
)
def test_what_is_wrong_is_one_line(
    change: Callable[[Any], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    change(monkeypatch.setenv)
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and len(error.splitlines()) == 1
