"""Whether INT8 weights must do with 7 bits, because the processor's 8-bit products saturate.

Source: Intel (2019), "Lower Numerical Precision Deep Learning Inference and Training", section 3: before VNNI,
``vpmaddubsw`` adds two products of an unsigned and a signed byte in 16 bits, up to 2 * 255 * 127 = 64,770, and cuts
what is above 32,767. With weights of 7 bits the sum ends at 2 * 255 * 64 = 32,640.
"""

import platform
from collections.abc import Collection
from typing import Literal, get_args

from mlites.hardware.machine import read_machine
from mlites.recipe.hardware import Arm, Hardware, without

ACCUMULATE_IN_32_BITS = {"vnni", "avx_vnni", "avx512_vnni", "amx_int8"}
ARM = ("arm", "aarch64")


def saturates(isa: Collection[str], architecture: str) -> bool:
    """Whether sums of 8-bit products are cut on a processor.

    Arm's kernels, with a dot product or without, widen before they add. An architecture not known counts as x86.

    Args:
        isa: instruction sets by their names in /proc/cpuinfo.
        architecture: as ``platform.machine()`` has it.

    >>> saturates(["avx2", "fma"], "x86_64"), saturates(["avx2", "avx_vnni"], "x86_64"), saturates([], "arm64")
    (True, False, False)
    """
    return not architecture.lower().startswith(ARM) and not ACCUMULATE_IN_32_BITS.intersection(isa)


def reduces_range(option: Literal["auto"] | bool) -> bool:
    """What a recipe's ``reduce_range`` means on this machine."""
    return saturates(read_machine().isa, platform.machine()) if option == "auto" else option


def target_saturates(hardware: Hardware) -> bool | None:
    """Whether sums of 8-bit products are cut on a profile's target; None where it says nothing of its processor.

    What a profile of an x86 processor does not promise is not assumed. Nothing is cut on a GPU.

    >>> target_saturates(Hardware(isa=("avx2",))), target_saturates(Hardware(isa=("avx2", "vnni")))
    (True, False)
    >>> target_saturates(Hardware(without_isa=("vnni",))), target_saturates(Hardware(without_isa=("vnni", "asimddp")))
    (True, False)
    """
    named = {*hardware.isa, *hardware.without_isa}
    if hardware.provider != "cpu":
        return False
    if not named:
        return None
    if hardware.isa:
        return saturates(hardware.isa, "arm" if set(get_args(Arm)) & set(hardware.isa) else "x86")
    if set(get_args(Arm)) & named:
        return False
    return True if "vnni" in without(hardware.without_isa) else None
