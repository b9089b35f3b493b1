"""Stratified splits that depend on content and seed alone, and across which no duplicate straddles."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.dataset import Inputs
from mlites.data.raw import RawData, Rows
from mlites.errors import InputError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """The rows of each split and what was found on the way.

    Attributes:
        parts: inputs and labels of train, validation and test.
        duplicates: rows of train and validation that repeat another row there, kept together on one side.
        removed: training rows dropped because the source's own test set holds them too.
        contradictions: rows whose content also occurs with another label.
    """

    parts: dict[str, Rows]
    duplicates: int
    removed: int
    contradictions: int


def split(raw: RawData, *, validation: float, test: float, limit: int | None, seed: int, place: str) -> Splits:
    """Divide rows into train, validation and test.

    Each class gives each held-out split its fraction, rounded to whole rows, at least one; groups of duplicates move as
    one and can miss that by less than the largest group's size. Rows are ordered by a seeded hash of their content, so
    the same set of rows in any order gives the same splits, byte for byte.

    Args:
        raw: what the source holds; its own test rows stay the test split.
        validation: fraction of the rows that remain for training.
        test: fraction of all rows; unused where the source has its own.
        limit: largest number of rows over all splits, taken from each class in proportion.
        seed: chooses the splits.
        place: for messages.

    Raises:
        InputError: a class with too few different rows to be in every split.
    """
    inputs, labels, own = raw.inputs, raw.labels, raw.test
    keys = content_keys(inputs, seed)
    removed = 0
    if own:
        own_keys = content_keys(own[0], seed)
        kept = ~np.isin(keys, own_keys)
        removed = int(len(kept) - kept.sum())
        inputs, labels, keys = inputs[kept], labels[kept], keys[kept]
    if limit is not None:
        share = round(limit * len(labels) / (len(labels) + len(own[1]))) if own else limit
        chosen = _subsample(keys, labels, len(raw.classes), share, 2 if own else 3, place)
        inputs, labels, keys = inputs[chosen], labels[chosen], keys[chosen]
        if own:
            chosen = _subsample(own_keys, own[1], len(raw.classes), limit - share, 0, place)
            own, own_keys = (own[0][chosen], own[1][chosen]), own_keys[chosen]
    assigned = _assign(keys, labels, raw.classes, validation, 0.0 if own else test, place)
    order = np.lexsort((labels, keys))
    parts: dict[str, tuple[Inputs, Indices]] = {}
    for index, name in enumerate(("train", "validation", "test")):
        rows = order[assigned[order] == index]
        parts[name] = (inputs[rows], labels[rows])
    contradictions = _contradictions(keys, labels)
    if own:
        order = np.lexsort((own[1], own_keys))
        parts["test"] = (own[0][order], own[1][order])
        contradictions = _contradictions(np.concatenate([keys, own_keys]), np.concatenate([labels, own[1]]))
    return Splits(parts, len(keys) - len(np.unique(keys)), removed, contradictions)


def content_keys(inputs: NDArray[Any], seed: int) -> NDArray[np.bytes_]:
    """A keyed hash of each row's bytes: equal rows have equal keys, and sorting by it is a seeded shuffle."""
    flat = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
    key = seed.to_bytes(8, "little")
    # a final byte that is never 0: numpy strips trailing zero bytes from such strings when it compares them
    return np.array([hashlib.blake2b(row.tobytes(), digest_size=15, key=key).digest() + b"\1" for row in flat], "S16")


def leaked_rows(parts: dict[str, Rows]) -> int:
    """Rows of validation and test whose content also occurs in an earlier split."""
    keys = [content_keys(parts[name][0], 0) for name in ("train", "validation", "test")]
    return int(np.isin(keys[1], keys[0]).sum() + np.isin(keys[2], np.concatenate(keys[:2])).sum())


def _contradictions(keys: NDArray[np.bytes_], labels: Indices) -> int:
    _, group = np.unique(keys, return_inverse=True)
    low = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    high = np.full(len(low), -1)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return int((low != high)[group].sum())


def _subsample(keys: NDArray[np.bytes_], labels: Indices, classes: int, limit: int, least: int, place: str) -> Indices:
    """Rows to keep: each class in proportion by largest remainder, different contents before repetitions."""
    if limit >= len(labels):
        return np.arange(len(labels))
    if limit < least * classes:
        raise InputError(
            f"{place}: limit leaves {limit} rows for {classes} classes; give at least {least} for each class"
        )
    counts = np.bincount(labels, minlength=classes)
    exact = limit * counts / len(labels)
    quota = np.minimum(np.maximum(np.floor(exact).astype(np.int64), least), counts)
    for label in np.argsort(np.floor(exact) - exact, kind="stable"):
        quota[label] += int(quota.sum() < limit and quota[label] < counts[label])
    while quota.sum() > limit:  # small classes were raised to their least number
        quota[np.argmax(quota)] -= 1
    chosen = []
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        repetition = np.zeros(len(rows), np.int64)
        for index in range(1, len(rows)):
            repetition[index] = repetition[index - 1] + 1 if keys[rows[index]] == keys[rows[index - 1]] else 0
        chosen.append(rows[np.argsort(repetition, kind="stable")][: quota[label]])
    return np.concatenate(chosen)


def _assign(
    keys: NDArray[np.bytes_], labels: Indices, classes: tuple[str, ...], validation: float, test: float, place: str
) -> Indices:
    """0, 1 or 2 for each row: train, validation, test; all rows of one content go together."""
    contents, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    owner = np.full(len(contents), len(classes))
    np.minimum.at(owner, group, labels)  # a contradictory group counts with its first class
    split_of = np.zeros(len(contents), np.int64)
    needed = 3 if test else 2
    for label, name in enumerate(classes):
        groups = np.flatnonzero(owner == label)
        if len(groups) < needed:
            raise InputError(
                f"{place}: class {name!r} has {len(groups)} different rows; at least {needed} are needed, one a split"
            )
        rows = int(sizes[groups].sum())
        held_out = max(1, round(rows * test)) if test else 0
        if held_out:
            split_of[_take(groups, sizes, held_out, spare=2)] = 2
        groups = groups[split_of[groups] == 0]
        remaining = int(sizes[groups].sum())
        split_of[_take(groups, sizes, max(1, round(remaining * validation)), spare=1)] = 1
    return split_of[group]


def _take(groups: Indices, sizes: Indices, rows: int, spare: int) -> list[int]:
    """Groups in their order whose sizes add up to at most ``rows``, leaving at least ``spare`` groups.

    Where every group is larger than that, the smallest one.
    """
    taken: list[int] = []
    for group in groups:
        if len(groups) - len(taken) == spare or rows == 0:
            break
        if sizes[group] <= rows:
            taken.append(int(group))
            rows -= int(sizes[group])
    return taken or [int(groups[np.argmin(sizes[groups])])]
