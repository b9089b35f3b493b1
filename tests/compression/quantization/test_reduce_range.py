"""Seven bits are asked for exactly where eight would saturate."""

import numpy as np
import pytest

from mlites.compression.quantization.reduce_range import reduces_range, saturates


def vpmaddubsw(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The instruction as Intel's manual has it: neighbouring products of u8 and s8, added in 16 bits, saturated."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    return np.clip(products.reshape(-1, 2).sum(1), -32768, 32767)


@pytest.mark.parametrize(("largest", "exact"), [(127, False), (64, True)])
def test_pairs_of_products_fit_16_bits_with_seven_bit_weights_alone(largest: int, exact: bool) -> None:
    activations = np.array([255, 255, 255, 255], np.uint8)
    weights = np.array([largest, largest, -largest, -largest], np.int8)
    wide = (activations.astype(np.int64) * weights).reshape(-1, 2).sum(1)
    assert np.array_equal(vpmaddubsw(activations, weights), wide) == exact


@pytest.mark.parametrize(
    ("isa", "architecture", "expected"),
    [
        (("avx", "avx2", "fma"), "x86_64", True),
        (("avx2", "avx512bw", "avx512f", "avx512vl"), "x86_64", True),  # the first with AVX-512 had no VNNI
        (("avx2", "avx_vnni"), "x86_64", False),
        (("avx2", "avx512_vnni", "avx512f"), "x86_64", False),
        (("amx_int8", "avx512f"), "x86_64", False),
        (("asimd", "asimddp"), "aarch64", False),
        (("neon",), "armv7l", False),
        ((), "arm64", False),  # macOS has no /proc/cpuinfo
        ((), "AMD64", True),
    ],
)
def test_every_processor_gets_its_bits(isa: tuple[str, ...], architecture: str, expected: bool) -> None:
    assert saturates(isa, architecture) is expected


def test_a_recipe_may_decide_itself() -> None:
    assert reduces_range(True) is True and reduces_range(False) is False
    assert isinstance(reduces_range("auto"), bool)
