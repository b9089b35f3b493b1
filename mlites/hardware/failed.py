"""The verdict on a candidate that could not be made or measured."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlites.failure import Failure
from mlites.hardware.validate import FORMAT


def failed_verdict(name: str, passes: Sequence[str], failure: Failure) -> dict[str, Any]:
    """What `validate` would have returned: the candidate does not pass, and why there are no figures."""
    return {
        "format": FORMAT,
        "candidate": name,
        "passes": list(passes),
        "failed": asdict(failure),
        "baseline": None,
    }
