"""The steps of a promotion, and what ends one without the release in service."""

from collections.abc import Callable
from typing import Literal

from mlites.errors import InputError
from mlites.serving.lock import Busy
from mlites.serving.server import TritonRefused
from mlites.serving.smoke import WrongAnswers
from mlites.serving.trial import Unfit
from mlites.storage import PreconditionFailed, StoreFailed

# What a promoter has done; after each of these it may be killed.
Step = Literal[
    "locked",
    "settled",
    "verified",
    "tried",
    "shadowed",
    "canaried",
    "stored",
    "loaded",
    "answered",
    "configured",
    "switched",
    "recorded",
    "watched",
    "drained",
]
Say = Callable[[Step, str], None]
FAULTS = (Unfit, WrongAnswers, TritonRefused, InputError, StoreFailed, PreconditionFailed, Busy)


class PromotionFailed(Exception):
    """The channel has what it had before, or has it again; the message says why."""
