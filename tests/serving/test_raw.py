"""Preprocessing on the server: a Python model of Triton that asks the model beside it."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving.channel import read_channel
from mlites.serving.client import Client
from mlites.serving.promote import promote, rollback
from mlites.serving.raw import check_raw, follow_channel, forget_raw, load_raw, prove_raw, recover_raw
from mlites.serving.release import Release, make_release
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.smoke import WrongAnswers
from mlites.storage import Store
from tests.serving.served import CLASSES, Network, serve, withdraw

QUICK = Promotion(trial_seconds=0.2, shadow_seconds=0, watch_seconds=0, p95_ms=1000, slower=100)
SERVER = Serving(max_batch_size=4, preprocessing="server", promotion=QUICK)


@pytest.fixture
def name(in_stack: dict[str, str]) -> Iterator[str]:
    name = f"e-{uuid.uuid4().hex[:8]}"
    yield name
    withdraw(Store.open(in_stack["MLITES_STORE"]), Triton.from_environment(), name)


def golden(network: Network) -> NDArray[np.float32]:
    return network.normalised(network.raw(6)).astype(np.float32)


def release_of(network: Network, **changes: Any) -> Release:
    fields = {
        "model": "m",
        "input_shape": network.raw(1).shape[1:],
        "classes": CLASSES,
        "preprocessing": network.preprocessing,
    }
    return Release.model_construct(**{**fields, **changes})


@pytest.mark.parametrize("kind", ["images", "table"])
def test_raw_rows_are_recovered_from_golden_inputs(kind: str) -> None:
    network = Network(kind)
    raw = network.raw(50)
    found = recover_raw(network.normalised(raw).astype(np.float32), release_of(network))
    if kind == "images":
        assert found.dtype == np.uint8 and (found == raw).all()
    else:
        np.testing.assert_allclose(found, raw, atol=1e-5)


def test_raw_rows_are_answered_through_promotion_and_rollback_as_by_the_client_all_the_while(
    in_stack: dict[str, str], name: str, tmp_path: Path
) -> None:
    store, triton = Store.open(in_stack["MLITES_STORE"]), Triton.from_environment()
    networks = [Network("images", seed) for seed in (1, 2)]
    releases = [
        make_release(store, one.folder(tmp_path), name, serving=SERVER, rows=golden(one)).digest for one in networks
    ]
    promote(store, name, releases[0])
    raw, found, faults, done = networks[0].raw(6), [], [], threading.Event()

    def call() -> None:
        """As a caller who knows nothing but the name."""
        with tritonclient.grpc.InferenceServerClient(triton.grpc) as client:
            value = tritonclient.grpc.InferInput("raw", [1, 1, 2, 2], "UINT8")
            value.set_data_from_numpy(raw[:1])
            while not done.is_set():
                try:
                    answer = client.infer(f"{name}-raw", [value])
                    version = int(answer.get_response().model_version)
                    found.append((version, answer.as_numpy("probabilities")))
                except Exception as error:
                    faults.append(str(error))
                time.sleep(0.01)

    thread = threading.Thread(target=call)
    with (
        Client(name, preprocessing="server", refresh_s=0.1) as server,
        Client(name, protocol="http", refresh_s=0.1) as client,
    ):
        mine, theirs = server.predict(raw), client.predict(raw)
        assert (mine.version, theirs.version) == (1, 1) and mine.labels == theirs.labels
        np.testing.assert_allclose(mine.probabilities, theirs.probabilities, atol=1e-6)
        np.testing.assert_allclose(mine.probabilities, networks[0].probabilities(raw), atol=1e-5)
        thread.start()
        try:
            promote(store, name, releases[1])
            after = server.predict(raw)
            rollback(store, name)
            back = server.predict(raw)
        finally:
            done.set()
            thread.join()
        assert (after.version, after.digest) == (2, releases[1]) and (back.version, back.digest) == (1, releases[0])
        np.testing.assert_allclose(after.probabilities, networks[1].probabilities(raw), atol=1e-5)
        np.testing.assert_allclose(back.probabilities, networks[0].probabilities(raw), atol=1e-5)
    assert faults == [] and {version for version, _ in found} == {1, 2}
    for version, probabilities in found:
        np.testing.assert_allclose(probabilities, networks[version == 2].probabilities(raw[:1]), atol=1e-5)
    assert [one for one in triton.ready_versions() if "check" in one and name in one] == []
    # names of the classes come with the answer, for callers who ask Triton for the best
    with tritonclient.grpc.InferenceServerClient(triton.grpc) as plain:
        value = tritonclient.grpc.InferInput("raw", [1, 1, 2, 2], "UINT8")
        value.set_data_from_numpy(raw[:1])
        outputs = [tritonclient.grpc.InferRequestedOutput("probabilities", class_count=1)]
        text = plain.infer(f"{name}-raw", [value], outputs=outputs).as_numpy("probabilities")[0, 0].decode()
    assert text.split(":")[2] == back.labels[0] and float(text.split(":")[0]) == pytest.approx(
        back.probabilities[0].max(), abs=1e-5
    )
    assert triton.ready_versions()[f"{name}-raw"] == [1]


def test_a_rollout_of_immutable_revisions_refuses_raw_rows() -> None:
    release = release_of(Network("images"), digest="ab" * 32, serving=SERVER)
    check_raw(release, rolled_out=False)
    with pytest.raises(
        InputError, match=r"m@abababababab: serving\.preprocessing: server needs a Triton that loads on"
    ):
        check_raw(release, rolled_out=True)


def test_a_release_whose_clients_normalise_takes_no_raw_rows(
    in_stack: dict[str, str], name: str, tmp_path: Path
) -> None:
    store, triton, network = Store.open(in_stack["MLITES_STORE"]), Triton.from_environment(), Network("table")
    for preprocessing, raw in (("server", [1]), ("client", None)):
        serving = SERVER.model_copy(update={"preprocessing": preprocessing})
        serve(store, triton, network.folder(tmp_path), name, golden(network), serving=serving)
        pointer = read_channel(store, name, "production")
        assert pointer is not None
        follow_channel(store, triton, pointer, [pointer.version])
        assert triton.ready_versions().get(f"{name}-raw") == raw
        assert bool(store.keys(f"repository/{name}-raw/config.pbtxt")) == bool(raw)
    forget_raw(store, name, (1,))
    assert store.keys(f"repository/{name}-raw/1/") == []


@pytest.mark.parametrize("kind", ["images", "table"])
def test_every_request_of_a_batch_gets_its_own_rows_and_a_wrong_one_harms_none(
    in_stack: dict[str, str], name: str, tmp_path: Path, kind: str
) -> None:
    store, triton = Store.open(in_stack["MLITES_STORE"]), Triton.from_environment()
    network = Network(kind)
    serving = SERVER.model_copy(update={"max_queue_delay_us": 100_000})
    release = serve(store, triton, network.folder(tmp_path), name, golden(network), serving=serving)
    load_raw(store, triton, name, release, [1])
    raw = network.raw(4)
    parts = [raw[:1], raw[1:2], raw[2:4]]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda rows: triton.infer_raw(f"{name}-raw", 1, rows), parts))
    for rows, (probabilities, classes) in zip(parts, answers, strict=True):
        np.testing.assert_allclose(probabilities, network.probabilities(rows), atol=1e-5)
        assert classes[:, 0].tolist() == network.probabilities(rows).argmax(1).tolist()
    triton.unload(name)
    with pytest.raises(TritonRefused, match=name):
        triton.infer_raw(f"{name}-raw", 1, raw)


def test_answers_that_are_not_the_clients_never_reach_a_caller(
    in_stack: dict[str, str], name: str, tmp_path: Path
) -> None:
    store, triton = Store.open(in_stack["MLITES_STORE"]), Triton.from_environment()
    network, other = Network("images"), Network("images", 9)
    release = serve(store, triton, network.folder(tmp_path), name, golden(network), serving=SERVER)
    with pytest.raises(WrongAnswers, match=rf"{name}-raw-check-\w+ differs from the client's preprocessing by"):
        prove_raw(triton, name, release, other.folder(tmp_path), 1, golden(network))
    with pytest.raises(TritonRefused, match=name):
        prove_raw(triton, name, release, network.folder(tmp_path), 7, golden(network))
    assert [one for one in triton.ready_versions() if one.startswith(f"{name}-raw")] == []
