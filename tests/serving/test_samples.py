import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mlites.errors import InputError
from mlites.serving.predictions import Predictions
from mlites.serving.samples import SampleLog, SampleReader
from mlites.storage import Store

DEAD = {"MLITES_S3_ENDPOINT": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


def predictions(rows: int, version: int = 1) -> Predictions:
    draw = np.random.default_rng(version)
    probabilities = draw.dirichlet([1, 1, 1], rows).astype(np.float32)
    return Predictions("m", "production", version, "d" * 64, ("cat", "dog", "owl"), probabilities, 12.5)


def read(store: Store, model: str) -> list[tuple[str, float, int, float]]:
    now = datetime.now(UTC)
    found = SampleReader(store, model).read(now - timedelta(minutes=5), now + timedelta(minutes=5))
    return [(one.label, one.probability, one.version, one.milliseconds) for one in found]


@pytest.fixture
def model(store: Store) -> Iterator[str]:
    yield f"s-{uuid.uuid4().hex[:8]}"


def test_what_was_predicted_is_read_back_and_inputs_are_not_there_unless_asked_for(store: Store, model: str) -> None:
    answers, raw = predictions(7), np.arange(28, dtype=np.uint8).reshape(7, 1, 2, 2)
    log = SampleLog(store, model)
    log.add(answers, raw)
    log.close()
    assert read(store, model) == [
        (label, pytest.approx(float(row.max()), abs=1e-6), 1, 12.5)
        for label, row in zip(answers.labels, answers.probabilities, strict=True)
    ]
    (key,) = store.keys(f"samples/{model}/")
    assert b"input" not in store.get(key) and log.written == 7
    asked = SampleLog(store, f"{model}-i", inputs=True)
    asked.add(answers, raw)
    asked.close()
    (key,) = store.keys(f"samples/{model}-i/")
    assert b'"base64":"AAECAw==","dtype":"uint8","shape":[1,2,2]' in store.get(key)


def test_a_share_of_the_rows_is_kept(store: Store, model: str) -> None:
    log = SampleLog(store, model, share=0.25)
    log.add(predictions(4000), np.zeros((4000, 1, 2, 2), np.uint8))
    log.close()
    assert len(read(store, model)) == pytest.approx(1000, abs=110)  # four standard deviations
    assert log.dropped == 0


def test_rows_are_written_in_batches_while_callers_go_on(store: Store, model: str) -> None:
    log = SampleLog(store, model, every_s=0.05, most_in_object=10)
    for _ in range(5):
        log.add(predictions(5), np.zeros((5, 4), np.float32))
    deadline = time.monotonic() + 20
    while log.written < 25 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.written == len(read(store, model)) == 25
    assert 3 <= len(store.keys(f"samples/{model}/")) <= 5
    log.close()


def test_a_store_that_is_away_costs_callers_no_time_and_memory_stays_bounded() -> None:
    log = SampleLog(Store("s3://mlites", DEAD), "m", every_s=0.01, most_waiting=50)
    begin = time.monotonic()
    for _ in range(20):
        log.add(predictions(10), np.zeros((10, 4), np.float32))
    assert time.monotonic() - begin < 0.5
    deadline = time.monotonic() + 20
    while not log.failures and time.monotonic() < deadline:
        time.sleep(0.02)
    log.add(predictions(100), np.zeros((100, 4), np.float32))
    assert log.failures and len(log._waiting) <= 50 and log.dropped >= 200
    begin = time.monotonic()
    log.close()
    assert time.monotonic() - begin < 7
    log.add(predictions(1), np.zeros((1, 4), np.float32))
    assert log.written == 0


def test_damaged_and_foreign_objects_are_left_out(store: Store, model: str) -> None:
    log = SampleLog(store, model)
    log.add(predictions(2), np.zeros((2, 4), np.float32))
    log.close()
    (key,) = store.keys(f"samples/{model}/")
    for name, content in (("9999999999999-a.json", b"{"), ("9999999999999-b.json", b'{"rows":[{}]}'), ("x.json", b"")):
        store.put(f"{key.rsplit('/', 1)[0]}/{name}", content)
    assert len(read(store, model)) == 2


def test_an_object_is_fetched_once_and_new_ones_are_found(store: Store, model: str) -> None:
    fetched = []

    class Counting(Store):
        def get(self, key: str) -> bytes:
            fetched.append(key)
            return super().get(key)

    counting = Counting(store.uri, {})
    counting._client = store._client
    now = datetime.now(UTC)
    reader = SampleReader(counting, model)
    for rows in (3, 8):
        log = SampleLog(store, model)
        log.add(predictions(rows - len(fetched) * 3), np.zeros((8, 4), np.float32))
        log.close()
        for _ in range(2):
            assert len(reader.read(now - timedelta(minutes=1), now + timedelta(minutes=1))) == rows
    assert len(fetched) == len(set(fetched)) == 2
    assert reader.read(now + timedelta(hours=2), now + timedelta(hours=3)) == []


def test_a_share_outside_of_0_to_1_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"share of the sample log must be 0 to 1, got 1\.5"):
        SampleLog(store, "m", share=1.5)
