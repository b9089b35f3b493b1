"""Splits: leak-free, stratified, and made by content and seed alone."""

from collections import Counter
from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlites.data.raw import RawData
from mlites.data.splits import Splits, content_keys, leaked_rows, split

Refusal = Callable[..., str]
FRACTIONS = st.floats(0.01, 0.49)


def _raw(inputs: np.ndarray, labels: np.ndarray, test: tuple[np.ndarray, np.ndarray] | None = None) -> RawData:
    every = labels if test is None else np.concatenate([labels, test[1]])
    return RawData(inputs, labels, tuple(f"c{i}" for i in range(int(every.max()) + 1)), 1.0, ("x",), test)


def _different(counts: list[int], start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.arange(start, start + len(labels), dtype=np.float32)[:, None], labels.astype(np.int64)


def _split(raw: RawData, validation: float = 0.1, test: float = 0.2, limit: int | None = None, seed: int = 0) -> Splits:
    return split(raw, validation=validation, test=test, limit=limit, seed=seed, place="somewhere")


def _pairs(result: Splits) -> list[tuple[bytes, int]]:
    return sorted(
        (row.tobytes(), int(label))
        for inputs, labels in result.parts.values()
        for row, label in zip(inputs, labels, strict=True)
    )


@given(st.lists(st.integers(3, 60), min_size=2, max_size=6), FRACTIONS, FRACTIONS, st.integers(0, 2**31 - 1))
def test_every_class_is_held_out_in_proportion_within_one_row(
    counts: list[int], validation: float, test: float, seed: int
) -> None:
    result = _split(_raw(*_different(counts)), validation, test, seed=seed)
    found = {name: np.bincount(labels, minlength=len(counts)) for name, (_, labels) in result.parts.items()}
    for label, count in enumerate(counts):
        tested = found["test"][label]
        assert abs(tested - count * test) <= 1
        assert abs(found["validation"][label] - (count - tested) * validation) <= 1
        assert min(part[label] for part in found.values()) >= 1
        assert sum(part[label] for part in found.values()) == count


@st.composite
def _repeating(draw: st.DrawFn) -> RawData:
    """Rows of which many are equal, some with contradictory labels."""
    classes = draw(st.integers(2, 4))
    contents, labels = [], []
    for label in range(classes):
        sizes = draw(st.lists(st.integers(1, 6), min_size=8, max_size=12))  # 5 may go to a contradicting class
        for content, repetitions in enumerate(sizes):
            contents += [label * 100 + content] * repetitions
            labels += [label] * repetitions
    for content in draw(st.lists(st.sampled_from(contents), max_size=5)):
        contents.append(content)
        labels.append(draw(st.integers(0, classes - 1)))
    return _raw(np.array(contents, np.float32)[:, None], np.array(labels, np.int64))


@given(_repeating(), FRACTIONS, FRACTIONS, st.integers(0, 99))
def test_no_content_is_in_two_splits_and_no_row_is_lost(
    raw: RawData, validation: float, test: float, seed: int
) -> None:
    result = _split(raw, validation, test, seed=seed)
    contents = [{row.tobytes() for row in inputs} for inputs, _ in result.parts.values()]
    assert not contents[0] & contents[1] and not contents[0] & contents[2] and not contents[1] & contents[2]
    assert leaked_rows(result.parts) == 0
    whole = sorted((row.tobytes(), int(label)) for row, label in zip(raw.inputs, raw.labels, strict=True))
    assert _pairs(result) == whole


@given(_repeating(), st.integers(0, 99))
def test_repetitions_and_contradictions_are_counted(raw: RawData, seed: int) -> None:
    result = _split(raw, seed=seed)
    contents = [row.tobytes() for row in raw.inputs]
    labels_of: dict[bytes, set[int]] = {}
    for content, label in zip(contents, raw.labels, strict=True):
        labels_of.setdefault(content, set()).add(int(label))
    assert result.duplicates == len(contents) - len(set(contents))
    assert result.contradictions == sum(len(labels_of[content]) > 1 for content in contents)


@given(_repeating(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(raw: RawData, seed: int, random: object) -> None:
    order = np.arange(len(raw.labels))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = _raw(raw.inputs[order], raw.labels[order])
    for name, (inputs, labels) in _split(raw, seed=seed).parts.items():
        other_inputs, other_labels = _split(shuffled, seed=seed).parts[name]
        assert np.array_equal(inputs, other_inputs) and np.array_equal(labels, other_labels)


def test_another_seed_gives_another_split() -> None:
    raw = _raw(*_different([100, 100]))
    tests = {bytes(np.sort(_split(raw, seed=seed).parts["test"][0], axis=0).tobytes()) for seed in range(5)}
    assert len(tests) == 5


def test_every_row_is_held_out_about_equally_often() -> None:
    """Over seeds a row is in test with the asked probability: binomial, five standard deviations."""
    raw, seeds = _raw(*_different([50, 50])), 400
    times = Counter(value for seed in range(seeds) for value in _split(raw, seed=seed).parts["test"][0][:, 0].tolist())
    deviation = (seeds * 0.2 * 0.8) ** 0.5
    assert len(times) == 100
    assert all(abs(count - seeds * 0.2) < 5 * deviation for count in times.values())


def test_rows_in_the_sources_own_test_set_leave_train() -> None:
    inputs, labels = _different([20, 20])
    own = np.array([[0.0], [25.0], [99.0]], np.float32), np.array([0, 1, 1], np.int64)
    result = _split(_raw(inputs, labels, own))
    assert result.removed == 2
    assert sorted(result.parts["test"][0][:, 0].tolist()) == [0.0, 25.0, 99.0]
    kept = np.concatenate([result.parts["train"][0], result.parts["validation"][0]])[:, 0]
    assert sorted(kept.tolist()) == sorted(set(map(float, range(40))) - {0.0, 25.0})
    assert leaked_rows(result.parts) == 0


def test_leaks_are_counted_by_content() -> None:
    one, two = np.zeros((2, 1), np.float32), np.ones((3, 1), np.float32)
    labels = np.zeros(3, np.int64)
    parts = {"train": (one, labels[:2]), "validation": (two, labels), "test": (np.concatenate([one, two]), labels)}
    assert leaked_rows(parts) == 5
    assert leaked_rows({**parts, "test": (one + 7, labels[:2])}) == 0


@given(st.lists(st.integers(3, 80), min_size=2, max_size=5), st.integers(20, 120), st.integers(0, 99), st.booleans())
def test_limit_is_met_exactly_and_in_proportion(counts: list[int], limit: int, seed: int, own: bool) -> None:
    test = _different(counts, start=1000) if own else None
    result = _split(_raw(*_different(counts), test), limit=limit, seed=seed)
    total = sum(counts) * (2 if own else 1)
    assert sum(len(labels) for _, labels in result.parts.values()) == min(limit, total)
    if limit < total:
        least = 2 if own else 3
        share = limit / total
        kept = np.bincount(
            np.concatenate([result.parts[name][1] for name in (("train", "validation") if own else result.parts)]),
            minlength=len(counts),
        )
        raised = [label for label, count in enumerate(counts) if count * share < least]
        for label, count in enumerate(counts):
            assert kept[label] >= min(least, count)
            if not raised:
                assert abs(kept[label] - count * share) <= 1 + (0.5 if own else 0)


def test_limit_prefers_different_rows_to_repetitions() -> None:
    inputs = np.array([[0.0]] * 50 + [[1.0], [2.0], [3.0]] + [[float(i)] for i in range(10, 63)], np.float32)
    labels = np.array([0] * 53 + [1] * 53, np.int64)
    result = _split(_raw(inputs, labels), limit=20)
    zero = {row.tobytes() for part, names in result.parts.values() for row in part[names == 0]}
    assert len(zero) == 4


def test_limit_below_three_rows_a_class_is_refused(refusal: Refusal) -> None:
    message = refusal(_split, _raw(*_different([10] * 8)), limit=20)
    assert "limit leaves 20 rows for 8 classes" in message and "at least 3" in message


def test_a_class_too_small_to_split_is_refused(refusal: Refusal) -> None:
    message = refusal(_split, _raw(*_different([10, 2])))
    assert message == "somewhere: class 'c1' has 2 different rows; at least 3 are needed, one a split"
    own = _different([3, 3], start=100)
    assert "at least 2" in refusal(_split, _raw(*_different([10, 1]), own))


def test_repetitions_do_not_make_a_class_large_enough(refusal: Refusal) -> None:
    inputs = np.array([[1.0]] * 30 + [[2.0]] + [[float(i)] for i in range(10, 30)], np.float32)
    labels = np.array([0] * 31 + [1] * 20, np.int64)
    assert "class 'c0' has 2 different rows" in refusal(_split, _raw(inputs, labels))


def test_a_class_of_large_groups_still_gets_every_split() -> None:
    inputs = np.repeat(np.arange(6, dtype=np.float32), 40)[:, None]
    labels = np.repeat(np.array([0, 1], np.int64), 120)
    result = _split(_raw(inputs, labels))
    assert all(np.bincount(part, minlength=2).min() == 40 for _, part in result.parts.values())


def test_keys_differ_where_only_the_last_byte_does() -> None:
    inputs = np.zeros((256, 3), np.uint8)
    inputs[:, 2] = np.arange(256)
    assert len(np.unique(content_keys(inputs, 3))) == 256
    assert not np.isin(content_keys(inputs, 3), content_keys(inputs, 4)).any()
