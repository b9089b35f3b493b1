"""The client against a real Triton, and against connections that break."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.serving.client import Client, PredictionFailed, check_rows
from mlites.serving.connection import NotAnswered
from mlites.serving.release import Release
from mlites.serving.server import Triton
from mlites.storage import Store
from tests.serving.broken_server import BrokenServer
from tests.serving.served import CLASSES, Network, serve, withdraw


@pytest.fixture(scope="module")
def place(stack: dict[str, str]) -> tuple[Store, Triton]:
    return Store.open(stack["MLITES_STORE"], stack), Triton.from_environment(stack)


@pytest.fixture(scope="module")
def fresh(place: tuple[Store, Triton]) -> Iterator[Callable[[], str]]:
    """Names of models that are forgotten at the end."""
    names: list[str] = []

    def name() -> str:
        names.append(f"c-{uuid.uuid4().hex[:8]}")
        return names[-1]

    yield name
    for one in names:
        withdraw(*place, one)


@pytest.fixture(scope="module")
def images(place: tuple[Store, Triton], fresh: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of images in production, batches up to 4."""
    name, network = fresh(), Network("images")
    serve(*place, network.folder(tmp_path_factory.mktemp("images")), name, golden(network))
    return name


def golden(network: Network) -> NDArray[np.float32]:
    return network.normalised(network.raw(8)).astype(np.float32)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_raw_rows_become_classes_with_probabilities_in_pieces_of_the_largest_batch(
    place: tuple[Store, Triton], images: str, protocol: Any
) -> None:
    network, raw = Network("images"), Network("images").raw(11, seed=3)
    expected = network.probabilities(raw)
    before = place[1].statistics(images)["inference_count"]
    with Client(images, store=place[0], triton=place[1], protocol=protocol) as client:
        found = client.predict(raw)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert found.labels == [CLASSES[index] for index in expected.argmax(1)]
    assert (found.version, found.digest, found.channel) == (1, client.release.digest, "production")
    assert [len(row) for row in found.top(2)] == [2] * 11
    assert found.top(2)[0][0] == (found.labels[0], pytest.approx(expected[0].max(), abs=1e-5))
    assert place[1].statistics(images)["inference_count"] - before == 11


def test_a_table_is_normalised_by_the_manifest(
    place: tuple[Store, Triton], fresh: Callable[[], str], tmp_path: Path
) -> None:
    name, network = fresh(), Network("table")
    serve(*place, network.folder(tmp_path), name, golden(network))
    with Client(name, store=place[0], triton=place[1]) as client:
        raw = network.raw(5).astype(np.float64)
        np.testing.assert_allclose(client.predict(raw).probabilities, network.probabilities(raw), atol=1e-5)
        with pytest.raises(InputError, match=rf"rows for {name}: NaN or infinity; every feature must be a number"):
            client.predict(np.full((1, 4), np.nan))
        with pytest.raises(InputError, match=r"shape \(3,\) of one row; it takes \(4,\)"):
            client.predict(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("rows", "scale", "expected"),
    [
        (np.array([[[0, 255], [51, 1]]], np.uint8), 1 / 255, [0, 255, 51, 1]),
        (np.array([[[0, 1.0], [0.2, 0]]]), 1 / 255, [0, 255, 51, 0]),
        (np.array([[[[0], [255]], [[51], [1]]]], np.int64), 1 / 255, [0, 255, 51, 1]),
        (np.array([[[0, 16.0], [8, 1]]]), 1 / 16, [0, 16, 8, 1]),
        (np.array([[[0, 1.0], [1, 1]]]), 1 / 16, [0, 1, 1, 1]),
        (np.array([[[0, 1.0], [0.5, 0.25]]]), 1 / 16, [0, 16, 8, 4]),
    ],
)
def test_pixels_are_read_as_the_training_data_held_them(rows: NDArray[Any], scale: float, expected: list[int]) -> None:
    release = Release.model_construct(
        model="m", input_shape=(1, 2, 2), preprocessing={"scale": scale, "mean": [0.0], "std": [1.0]}
    )
    found = check_rows(rows, release)
    assert found.dtype == np.uint8 and found.ravel().tolist() == expected


def test_images_of_another_size_or_range_are_refused(place: tuple[Store, Triton], images: str) -> None:
    with Client(images, store=place[0], triton=place[1]) as client:
        with pytest.raises(InputError, match=r"shape \(1, 3, 2\) of one row; it takes \(1, 2, 2\)"):
            client.predict(np.zeros((1, 3, 2), np.uint8))
        with pytest.raises(InputError, match="pixels must be 0 to 255, got -1 to 0"):
            client.predict(np.array([[[0, -1], [0, 0]]]))


def test_a_channel_without_a_release_names_the_command(place: tuple[Store, Triton]) -> None:
    with pytest.raises(InputError, match=r"none has no release in channel staging; promote one: mlites promote none"):
        Client("none", channel="staging", store=place[0], triton=place[1])


def test_callers_follow_the_channel_and_every_answer_belongs_to_its_version(
    place: tuple[Store, Triton], fresh: Callable[[], str], tmp_path: Path
) -> None:
    name, networks = fresh(), [Network("images", seed) for seed in (1, 2, 3)]
    serve(*place, networks[0].folder(tmp_path), name, golden(networks[0]))
    raw, answers, done = networks[0].raw(6), [], threading.Event()
    with Client(name, store=place[0], triton=place[1], refresh_s=0.05) as client:

        def call() -> None:
            while not done.is_set():
                answers.append(client.predict(raw))
                time.sleep(0.01)  # the servers share the processor

        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            # the last one takes the version before away at once: whoever asks for it learns where to go
            for network, keep in ((networks[1], True), (networks[2], False)):
                serve(*place, network.folder(tmp_path), name, golden(network), keep_former=keep)
                time.sleep(0.2)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert client.predict(raw).version == 3
    assert {one.version for one in answers} == {1, 2, 3} and len({one.digest for one in answers}) == 3
    for one in answers:
        expected = networks[one.version - 1].probabilities(raw)
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-5)


def test_productions_callers_give_a_canary_its_share(
    place: tuple[Store, Triton], fresh: Callable[[], str], tmp_path: Path
) -> None:
    name, networks = fresh(), [Network("images", seed) for seed in (1, 2)]
    serve(*place, networks[0].folder(tmp_path), name, golden(networks[0]))
    serve(*place, networks[1].folder(tmp_path), name, golden(networks[1]), channel="canary", share=0.3)
    raw = networks[0].raw(1)
    with Client(name, store=place[0], triton=place[1], refresh_s=60) as client:
        found = [client.predict(raw) for _ in range(200)]
    by_canary = sum(one.channel == "canary" for one in found)
    assert 30 <= by_canary <= 90  # of 200 with 0.3: four standard deviations either way
    for one in found:
        network = networks[one.channel == "canary"]
        np.testing.assert_allclose(one.probabilities, network.probabilities(raw), atol=1e-5)


def test_what_the_store_said_last_is_served_while_the_store_is_away(
    place: tuple[Store, Triton], images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Network("images").raw(1)
    with Client(images, store=place[0], triton=place[1], refresh_s=0) as client:
        monkeypatch.setattr(client._store, "_client", Store("s3://mlites", DEAD)._client)
        assert client.predict(raw).version == 1


DEAD = {"MLITES_S3_ENDPOINT": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_comes_back_is_asked_again(place: tuple[Store, Triton], images: str, protocol: Any) -> None:
    raw = Network("images").raw(3)
    with (
        BrokenServer(place[1]) as broken,
        Client(images, store=place[0], triton=broken.triton, protocol=protocol) as client,
    ):
        client.predict(raw)
        broken.cut()
        threading.Timer(0.15, broken.mend).start()
        found = client.predict(raw)
        np.testing.assert_allclose(found.probabilities, Network("images").probabilities(raw), atol=1e-5)
        assert found.milliseconds > 100


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("how", ["cut", "hang"])
def test_the_deadline_holds_whatever_the_server_does(
    place: tuple[Store, Triton], images: str, protocol: Any, how: str
) -> None:
    raw = Network("images").raw(3)
    with (
        BrokenServer(place[1]) as broken,
        Client(images, store=place[0], triton=broken.triton, protocol=protocol, attempts=100) as client,
    ):
        client.predict(raw)
        getattr(broken, how)()
        begin = time.monotonic()
        with pytest.raises(PredictionFailed, match=rf"{images}.*(deadline|within)"):
            client.predict(raw, deadline_s=0.6)
        assert time.monotonic() - begin < 1.0


def test_attempts_are_bounded(place: tuple[Store, Triton], images: str) -> None:
    with BrokenServer(place[1]) as broken, Client(images, store=place[0], triton=broken.triton, attempts=3) as client:
        broken.cut()
        begin = time.monotonic()
        with pytest.raises(PredictionFailed, match=rf"{images} does not answer, at last: "):
            client.predict(Network("images").raw(1))
        assert time.monotonic() - begin < 3


def test_a_refusal_is_not_repeated(place: tuple[Store, Triton], images: str) -> None:
    with Client(images, store=place[0], triton=place[1]) as client:
        begin = time.monotonic()
        for connection_rows in (np.zeros((1, 7), np.float32),):
            with pytest.raises(NotAnswered, match="unexpected shape") as caught:
                client._connection.ask(images, "1", "input", connection_rows, "logits", 5)
            assert caught.value.fault == "refused"
        assert time.monotonic() - begin < 1
