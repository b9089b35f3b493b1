"""Entropy coding of symbols by asymmetric numeral systems, many at a time, under models that learn as they go.

Each model is one function for both directions: what it learns from, the encoder has and the decoder has just read. All
arithmetic on probabilities is on integers and single IEEE divisions, so that every machine decodes alike.

Sources: Duda (2013), "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression
rate of arithmetic coding"; Giesen (2014), "Interleaved entropy coders"; Krichevsky & Trofimov (1981), "The performance
of universal encoding".
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

PRECISION = 15  # bits of a probability
WHOLE = 1 << PRECISION
WORD = 16  # bits written at a time
LEAST_STATE = 1 << WORD
LEAST_WIDTH = 64  # cells coded at a time, where there are as many
PIECES = 16  # of a row: what the first hold tells how full the others are
BLOCKS = 256  # of rows


class Coder(Protocol):
    """Writes what it is given, or reads what was written."""

    def flags(self, ones: Integers, given: Bytes | None) -> Bytes:
        """Code bits (n,), each 1 with its probability ones / 2^15, strictly between 0 and 1."""
        ...

    def symbols(self, frequencies: Integers, count: int, given: Bytes | None) -> Bytes:
        """Code symbols (count,) of one distribution: frequencies (k,), none 0, with sum 2^15."""
        ...


class Meter:
    """A coder that only counts the bits that what it is given would take."""

    def __init__(self) -> None:
        self.bits = 0.0

    def flags(self, ones: Integers, given: Bytes | None) -> Bytes:
        """See Coder."""
        assert given is not None
        self.bits -= float(np.log2(np.where(given, ones, WHOLE - ones) / WHOLE).sum())
        return given

    def symbols(self, frequencies: Integers, count: int, given: Bytes | None) -> Bytes:
        """See Coder."""
        assert given is not None
        self.bits -= float(np.log2(frequencies / WHOLE)[given].sum())
        return given


class Encoder:
    """Takes symbols in the order in which they will be read; they are written in the reverse order, at the end."""

    def __init__(self) -> None:
        self.runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def flags(self, ones: Integers, given: Bytes | None) -> Bytes:
        """See Coder."""
        assert given is not None
        self._add(np.where(given, WHOLE - ones, 0), np.where(given, ones, WHOLE - ones))
        return given

    def symbols(self, frequencies: Integers, count: int, given: Bytes | None) -> Bytes:
        """See Coder."""
        assert given is not None
        self._add((np.cumsum(frequencies) - frequencies)[given], frequencies[given])
        return given

    def _add(self, starts: Integers, sizes: Integers) -> None:
        self.runs.append((starts.astype(np.uint64), sizes.astype(np.uint64)))

    def finish(self, lanes: int) -> bytes:
        """Everything written: the lanes' states, then words; as many symbols are coded at a time as there are lanes."""
        states = np.full(lanes, LEAST_STATE, np.uint64)
        words: list[NDArray[np.uint64]] = []
        for starts, sizes in reversed(self.runs):
            for first in reversed(range(0, len(starts), lanes)):
                start, size = starts[first : first + lanes], sizes[first : first + lanes]
                state = states[: len(start)]
                full = state >= size << np.uint64(2 * WORD - PRECISION)
                if full.any():
                    words.append(state[full] & np.uint64(LEAST_STATE - 1))
                    state = np.where(full, state >> np.uint64(WORD), state)
                quotient, rest = np.divmod(state, size)
                states[: len(start)] = (quotient << np.uint64(PRECISION)) + rest + start
        written = np.concatenate([*reversed(words), np.zeros(0, np.uint64)])
        return states.astype("<u4").tobytes() + written.astype("<u2").tobytes()


class Decoder:
    """Reads what an encoder of as many lanes wrote, if asked under the same distributions in the same order."""

    def __init__(self, content: bytes, lanes: int) -> None:
        if len(content) < 4 * lanes or len(content) % 2:
            raise InputError("packed model: its coded numbers are cut off")
        self.lanes = lanes
        self.states = np.frombuffer(content[: 4 * lanes], "<u4").astype(np.uint64)
        self.words = np.frombuffer(content[4 * lanes :], "<u2").astype(np.uint64)
        self.place = 0

    def flags(self, ones: Integers, given: Bytes | None) -> Bytes:
        """See Coder."""
        zeros, found = (WHOLE - ones).astype(np.uint64), np.empty(len(ones), np.uint8)
        for first in range(0, len(ones), self.lanes):
            limit = zeros[first : first + self.lanes]
            slot = self.states[: len(limit)] & np.uint64(WHOLE - 1)
            flag = slot >= limit
            found[first : first + self.lanes] = flag
            self._advance(slot, np.where(flag, limit, np.uint64(0)), np.where(flag, np.uint64(WHOLE) - limit, limit))
        return found

    def symbols(self, frequencies: Integers, count: int, given: Bytes | None) -> Bytes:
        """See Coder."""
        sizes = frequencies.astype(np.uint64)
        ends = np.cumsum(sizes)
        starts, found = ends - sizes, np.empty(count, np.uint8)
        for first in range(0, count, self.lanes):
            slot = self.states[: min(self.lanes, count - first)] & np.uint64(WHOLE - 1)
            symbol = np.searchsorted(ends, slot, side="right")
            found[first : first + self.lanes] = symbol
            self._advance(slot, starts[symbol], sizes[symbol])
        return found

    def _advance(self, slot: NDArray[np.uint64], start: NDArray[np.uint64], size: NDArray[np.uint64]) -> None:
        state = size * (self.states[: len(slot)] >> np.uint64(PRECISION)) + slot - start
        low = np.flatnonzero(state < LEAST_STATE)
        if len(low):
            words = self.words[self.place : self.place + len(low)]
            if len(words) < len(low):
                raise InputError("packed model: its coded numbers are cut off")
            state[low] = state[low] << np.uint64(WORD) | words
            self.place += len(low)
        self.states[: len(slot)] = state

    def finish(self) -> None:
        """Check that all was read, and ended where the encoder began."""
        if self.place != len(self.words) or (self.states != LEAST_STATE).any():
            raise InputError("packed model: its coded numbers are damaged")


def code_flags(coder: Coder, count: int, columns: int, given: Bytes | None = None) -> Bytes:
    """Code bits (count,) that lie in rows, as the cells that pruning left do: some rows and columns are fuller.

    A cell's odds are its column's in the rows before, times how much fuller than expected its row has been so far.

    Args:
        coder: reads or writes.
        count: of bits.
        columns: in a row.
        given: the bits, to write.
    """
    width = row_width(columns)
    rows = count // width
    found = np.empty(count, np.uint8)
    ones, before = np.zeros(width, np.int64), 0  # in each column of the rows before, and how many these are
    height, piece = math.ceil(rows / BLOCKS) or 1, max(math.ceil(width / PIECES), LEAST_WIDTH // 2)
    for top in [*range(0, rows * width, height * width), rows * width]:
        size = min(height * width, rows * width - top) or count - top  # whole rows, and last what is left over
        if not size:
            break
        shape = (size // width, width) if size >= width else (1, size)
        block, share = found[top : top + size].reshape(shape), (ones.sum() + 1) / (before * width + 2)
        expected = np.floor((ones + 2) / (before + 2 / share) * (WHOLE - 2)).astype(np.int64) + 1
        so_far, so_far_expected = np.zeros((shape[0], 1), np.int64), 0
        for left in range(0, shape[1], piece):
            part = expected[left : min(left + piece, shape[1])]
            odds = part / (WHOLE - part) * ((so_far + 1) * WHOLE / (so_far_expected + WHOLE))
            likely = np.clip(np.floor(odds / (1 + odds) * WHOLE), 1, WHOLE - 1).astype(np.int64)
            cells = None
            if given is not None:
                cells = given[top : top + size].reshape(shape)[:, left : left + piece].flatten()
            bits = coder.flags(likely.flatten(), cells).reshape(likely.shape)
            block[:, left : left + piece] = bits
            so_far, so_far_expected = so_far + bits.sum(1, keepdims=True, dtype=np.int64), so_far_expected + part.sum()
        if size >= width:
            ones, before = ones + block.sum(0, dtype=np.int64), before + len(block)
    return found


def row_width(columns: int) -> int:
    """Cells in a row: as many whole rows of a tensor as make it long enough to be coded at once."""
    return columns * math.ceil(LEAST_WIDTH / columns)


def code_symbols(coder: Coder, lengths: Integers, kinds: int, classes: int, given: Bytes | None = None) -> Bytes:
    """Code symbols that come in rows, of which some spread wider than others: each class of rows has its frequencies.

    Args:
        coder: reads or writes.
        lengths: (rows,), symbols in each; their sum is n.
        kinds: of symbols, 1 to 256.
        classes: of rows.
        given: (n,) below ``kinds``, to write.
    """
    if kinds == 1:
        return np.zeros(int(lengths.sum()), np.uint8)
    ends = np.cumsum(lengths)
    chosen = None if given is None or classes == 1 else classify(given, ends - lengths, kinds, classes)
    if classes > 1:
        chosen = coder.symbols(np.full(classes, WHOLE // classes), len(lengths), chosen)
    found = np.empty(int(lengths.sum()), np.uint8)
    overall, seen = np.zeros(kinds, np.int64), np.zeros((classes, kinds), np.int64)
    for row, (begin, end) in enumerate(zip((ends - lengths).tolist(), ends.tolist(), strict=True)):
        own = seen[chosen[row] if chosen is not None else 0]
        while begin < end:  # in short pieces at first, while there is most to learn
            piece = slice(begin, min(end, begin + max(begin // 4, LEAST_WIDTH // 2)))
            table = frequencies(own, overall)
            found[piece] = coder.symbols(table, piece.stop - begin, None if given is None else given[piece])
            counts = np.bincount(found[piece], minlength=kinds)
            overall += counts
            own += counts
            begin = piece.stop
    return found


def frequencies(own: Integers, overall: Integers) -> Integers:
    """Expected frequencies (k,), each at least 1, with sum 2^15: a class's counts, and the whole's for 32 more.

    >>> frequencies(np.array([0, 0]), np.array([3, 0])).tolist()
    [28672, 4096]
    """
    kinds = len(own)
    prior = (2 * overall + 1) / (2 * overall.sum() + kinds)  # Krichevsky and Trofimov's half a count each
    likely = (own + 32 * prior) / (own.sum() + 32)
    table: Integers = 1 + np.floor(likely * (WHOLE - kinds)).astype(np.int64)
    table[np.argmax(table)] += WHOLE - table.sum()
    return table


def classify(symbols: Bytes, begins: Integers, kinds: int, classes: int) -> Bytes:
    """Classes (rows,) of equal size, by how rare a row's symbols are in all rows."""
    if not len(symbols):
        return np.zeros(len(begins), np.uint8)
    counts = np.bincount(symbols, minlength=kinds)
    rare = np.concatenate([np.log2(len(symbols) / np.maximum(counts, 1))[symbols], [0.0]])
    sums = np.diff(np.concatenate([np.cumsum(np.concatenate([[0.0], rare]))[begins], [rare.sum()]]))
    sizes = np.diff(np.concatenate([begins, [len(symbols)]]))
    order = np.argsort(sums / np.maximum(sizes, 1), kind="stable")
    ranks = np.empty(len(begins), np.int64)
    ranks[order] = np.arange(len(begins))
    return (ranks * classes // len(begins)).astype(np.uint8)
