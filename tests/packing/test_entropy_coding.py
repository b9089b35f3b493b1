"""Coded symbols come back, and take little more than their entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlites.errors import InputError
from mlites.packing.entropy_coding import (
    WHOLE,
    Coder,
    Decoder,
    Encoder,
    Meter,
    code_flags,
    code_symbols,
    frequencies,
)


def entropy_bytes(symbols: np.ndarray) -> float:
    """Of symbols independent of each other, by their frequencies."""
    shares = np.bincount(symbols) / len(symbols)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() * len(symbols) / 8)


def coded_flags(flags: np.ndarray, columns: int, lanes: int = 8) -> bytes:
    encoder = Encoder()
    code_flags(encoder, len(flags), columns, flags)
    content = encoder.finish(lanes)
    decoder = Decoder(content, lanes)
    np.testing.assert_array_equal(code_flags(decoder, len(flags), columns), flags)
    decoder.finish()
    return content


def coded_symbols(symbols: np.ndarray, lengths: list[int], kinds: int, classes: int = 1, lanes: int = 8) -> bytes:
    encoder, sizes = Encoder(), np.array(lengths, np.int64)
    code_symbols(encoder, sizes, kinds, classes, symbols)
    content = encoder.finish(lanes)
    decoder = Decoder(content, lanes)
    np.testing.assert_array_equal(code_symbols(decoder, sizes, kinds, classes), symbols)
    decoder.finish()
    return content


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_even_zeros_take_their_entropy(share: float) -> None:
    flags = (np.random.default_rng(0).random(60_000) < share).astype(np.uint8)
    assert len(coded_flags(flags, 200)) < 1.04 * entropy_bytes(flags) + 32


@pytest.mark.parametrize("kinds", [2, 16, 200])
def test_symbols_take_their_entropy(kinds: int) -> None:
    generator = np.random.default_rng(kinds)
    shares = generator.dirichlet(np.full(kinds, 0.5))
    symbols = generator.choice(kinds, 60_000, p=shares).astype(np.uint8)
    assert len(coded_symbols(symbols, [600] * 100, kinds)) < 1.02 * entropy_bytes(symbols) + 2 * kinds + 32


def test_one_symbol_of_many_that_never_come_costs_next_to_nothing() -> None:
    assert len(coded_symbols(np.full(60_000, 7, np.uint8), [600] * 100, 256)) < 300


def test_fuller_rows_and_columns_cost_less_than_their_whole_says() -> None:
    """Odds that are products of a row's and a column's: near the entropy of each cell by itself."""
    generator = np.random.default_rng(0)
    odds = np.exp(generator.normal(0, 1.5, (200, 1)) + generator.normal(0, 1.5, 300) - 3)
    likely = odds / (1 + odds)
    flags = (generator.random(likely.shape) < likely).astype(np.uint8).ravel()
    bound = float(-(likely * np.log2(likely) + (1 - likely) * np.log2(1 - likely)).sum() / 8)
    size = len(coded_flags(flags, 300))
    assert size < 1.13 * bound
    assert size < 0.8 * entropy_bytes(flags)


def test_rows_that_spread_differently_cost_less_in_classes() -> None:
    generator = np.random.default_rng(0)
    widths = generator.choice([2, 8, 40], 200)
    rows = [np.clip(generator.normal(128, width, 300), 0, 255).astype(np.uint8) for width in widths]
    symbols, bound = (
        np.concatenate(rows),
        sum(
            entropy_bytes(np.concatenate([row for row, own in zip(rows, widths, strict=True) if own == width]))
            for width in (2, 8, 40)
        ),
    )
    one, many = (len(coded_symbols(symbols, [300] * 200, 256, classes)) for classes in (1, 8))
    assert many < 1.06 * bound
    assert many < 0.92 * one


def test_the_meter_tells_what_coding_takes() -> None:
    generator = np.random.default_rng(0)
    flags = (generator.random(20_000) < 0.1).astype(np.uint8)
    symbols = generator.integers(0, 30, 20_000).astype(np.uint8)
    meter = Meter()
    code_flags(meter, len(flags), 100, flags)
    assert len(coded_flags(flags, 100)) == pytest.approx(meter.bits / 8, abs=40)
    meter = Meter()
    code_symbols(meter, np.array([20_000]), 30, 1, symbols)
    assert len(coded_symbols(symbols, [20_000], 30)) == pytest.approx(meter.bits / 8, abs=40)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 700),
    columns=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    lanes=st.sampled_from([4, 32]),
)
def test_any_flags_come_back(count: int, columns: int, share: float, lanes: int) -> None:
    coded_flags((np.random.default_rng(count).random(count) < share).astype(np.uint8), columns, lanes)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 90), max_size=9), kinds=st.integers(1, 256), classes=st.sampled_from([1, 8]))
def test_any_symbols_come_back(lengths: list[int], kinds: int, classes: int) -> None:
    symbols = np.random.default_rng(kinds).integers(0, kinds, sum(lengths)).astype(np.uint8)
    coded_symbols(symbols, lengths, kinds, classes)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=256), part=st.integers(1, 9))
def test_frequencies_are_whole_and_none_is_zero(counts: list[int], part: int) -> None:
    overall = np.array(counts)
    table = frequencies(overall // part, overall)
    assert table.sum() == WHOLE
    assert table.min() >= 1


@pytest.mark.parametrize("fault", ["half a word", "without its end", "without its states"])
def test_what_is_cut_off_is_refused(fault: str) -> None:
    symbols = np.random.default_rng(0).integers(0, 9, 500).astype(np.uint8)
    content = coded_symbols(symbols, [500], 9)
    ends = {"half a word": -1, "without its end": -40, "without its states": 8}
    with pytest.raises(InputError, match=r"^packed model: its coded numbers are cut off$"):
        code_symbols(Decoder(content[: ends[fault]], 8), np.array([500]), 9, 1)


def test_what_is_altered_does_not_end_where_it_began() -> None:
    symbols = np.random.default_rng(0).integers(0, 9, 500).astype(np.uint8)
    content = bytearray(coded_symbols(symbols, [500], 9))
    content[3] ^= 64
    decoder: Coder = Decoder(bytes(content) + bytes(200), 8)
    code_symbols(decoder, np.array([500]), 9, 1)
    assert isinstance(decoder, Decoder)
    with pytest.raises(InputError, match=r"^packed model: its coded numbers are damaged$"):
        decoder.finish()
