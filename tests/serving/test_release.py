import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.recipe import Serving
from mlites.serving.channel import (
    history,
    next_pointer,
    read_channel,
    read_channels,
    record,
    swap_channel,
)
from mlites.serving.release import (
    differences,
    fetch_release,
    find_release,
    list_releases,
    make_release,
    read_release,
)
from mlites.storage import MissingObject, PreconditionFailed, Store

LABELS = ("cat", "dog", "ümlaut", "cat", "dog", "ümlaut", "cat", "dog", "ümlaut", "cat")


@pytest.fixture
def made(store: Store, models: Any, golden: NDArray[np.float32]) -> Any:
    """Makes a release of the model of a seed."""

    def make(seed: int = 1, **facts: Any) -> Any:
        return make_release(store, models.folder(seed), "m", serving=Serving(), rows=golden, labels=LABELS, **facts)

    return make


def test_a_release_comes_back_as_it_was_made(store: Store, models: Any, made: Any, tmp_path: Any, golden: Any) -> None:
    release = made(metrics={"accuracy": 0.9}, git_commit="c" * 40)
    assert read_release(store, "m", release.digest) == release
    assert store.keys("releases/m/") == [
        f"releases/m/{release.digest}/{name}" for name in ("golden.npz", "model.json", "model.onnx", "release.json")
    ]
    fetched = fetch_release(store, "m", release.digest, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.onnx").read_bytes() == models.onnx(1)
    np.testing.assert_allclose(fetched.golden.logits, golden @ models.weight(1), atol=1e-5)
    assert fetched.golden.labels == LABELS
    right = [("cat", "dog", "ümlaut")[one] for one in (golden @ models.weight(1)).argmax(1)]
    assert release.golden.accuracy == pytest.approx(np.mean([a == b for a, b in zip(right, LABELS, strict=True)]))


def test_the_same_model_is_the_same_release_and_another_fact_another(made: Any, store: Store) -> None:
    first = made()
    assert made(parent="a" * 64) == first
    other = made(git_commit="c" * 40)
    assert other.digest != first.digest
    assert differences(first, other) == {"digest": (first.digest, other.digest), "git_commit": (None, "c" * 40)}
    listed = list_releases(store, "m")
    assert sorted(one.release.digest for one in listed) == sorted([first.digest, other.digest])
    assert listed[0].made <= listed[1].made  # S3 knows whole seconds


def test_a_release_without_its_manifest_does_not_exist(made: Any, store: Store) -> None:
    release = made()
    store.delete(f"{release.prefix}/release.json")
    with pytest.raises(MissingObject):
        read_release(store, "m", release.digest)
    assert list_releases(store, "m") == []
    assert made() == release


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "golden.npz"])
def test_one_changed_byte_is_noticed(made: Any, store: Store, name: str, tmp_path: Any) -> None:
    release = made()
    content = bytearray(store.get(f"{release.prefix}/{name}"))
    content[len(content) // 2] ^= 1
    store.put(f"{release.prefix}/{name}", bytes(content))
    with pytest.raises(InputError, match=rf"release m@{release.digest[:12]}: {name} is damaged: its sha256 is"):
        fetch_release(store, "m", release.digest, tmp_path / "fetched")
    assert made() == release  # made again, it is whole again
    fetch_release(store, "m", release.digest, tmp_path / "fetched")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metrics", {"accuracy": 1.0}, "is not what its digest names"),
        ("classes", ["cat"], "is damaged: classes"),
        ("format", "mlites-release/9", "is damaged: format"),
    ],
)
def test_an_altered_manifest_is_noticed(made: Any, store: Store, field: str, value: Any, message: str) -> None:
    release = made()
    key = f"{release.prefix}/release.json"
    store.put(key, json.dumps({**json.loads(store.get(key)), field: value}).encode())
    with pytest.raises(InputError, match=message):
        read_release(store, "m", release.digest)
    assert list_releases(store, "m") == []


def test_a_release_is_found_by_its_first_digits(made: Any, store: Store) -> None:
    release = made()
    assert find_release(store, "m", release.digest[:6]) == release.digest
    for wrong, message in (("xyz", "6 to 64 hexadecimal digits"), ("f" * 8, "no release begins with these digits")):
        with pytest.raises(InputError, match=message):
            find_release(store, "m", wrong)


def test_wrong_golden_samples_are_told(store: Store, models: Any, golden: Any) -> None:
    for rows in (golden[:0], golden[:, :3], golden.astype(np.float64)):
        with pytest.raises(InputError, match=r"rows must be float32 \(n, 4\) with n >= 1, got"):
            make_release(store, models.folder(1), "m", serving=Serving(), rows=rows)
    with pytest.raises(InputError, match="golden labels must be as many as rows, got 1 for 10"):
        make_release(store, models.folder(1), "m", serving=Serving(), rows=golden, labels=("cat",))
    with pytest.raises(InputError, match="model name 'M m'"):
        make_release(store, models.folder(1), "M m", serving=Serving(), rows=golden)
    with pytest.raises(InputError, match="answers with NaN or infinity"):
        make_release(store, models.folder(2, last="Log"), "m", serving=Serving(), rows=-np.abs(golden))
    assert store.keys("releases/") == []


def test_a_channel_has_one_successor_and_remembers_all(store: Store) -> None:
    digests = ["a" * 64, "b" * 64, "c" * 64]
    assert read_channel(store, "m", "production") is None
    pointer = None
    for number, digest in enumerate(digests, 1):
        following = next_pointer("m", "production", digest, number, pointer)
        pointer = swap_channel(store, following, pointer)
        record(store, pointer)
        record(store, pointer)
    assert pointer is not None and read_channel(store, "m", "production") == pointer
    assert (pointer.version, pointer.sequence, pointer.previous, pointer.served_as) == (3, 3, "b" * 64, "m")
    back = swap_channel(store, next_pointer("m", "production", "b" * 64, 4, pointer, rolled_back=True), pointer)
    record(store, back)
    assert (back.trail, back.previous, back.event) == (("a" * 64, "b" * 64), "a" * 64, "rolled back")
    with pytest.raises(PreconditionFailed):
        swap_channel(store, next_pointer("m", "production", "c" * 64, 5, pointer), pointer)
    with pytest.raises(PreconditionFailed):
        swap_channel(store, next_pointer("m", "production", "c" * 64, 5, None), None)
    assert [one.digest[0] for one in history(store, "m", "production")] == ["a", "b", "c", "b"]
    assert read_channels(store, "m") == {"production": back}


def test_a_damaged_pointer_is_told(store: Store) -> None:
    store.put("channels/m/staging.json", b'{"format": "mlites-channel/1"}')
    with pytest.raises(InputError, match=r"channels/m/staging\.json is damaged: model: .*; restore it"):
        read_channel(store, "m", "staging")
