"""The errors that mean "what you gave us is wrong", "what we made is", and "the machines failed us"."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(Exception):
    """Wrong input from the user: a recipe, data, a model, a setting of the environment.

    The message is one line that says what is wrong, where, and what would be right. The command line prints it without
    a traceback and exits with 2; any other exception is a defect or a failure of the machine and exits with 1.
    """


class ParityError(Exception):
    """A model answers differently from its source: it is not offered. The command line exits with 1, in one line."""


class WorkerFailed(Exception):
    """A worker of a training ended before its time, or a cluster gave it no place: another try may do better.

    The message is one line; a step exits with 1.
    """


def first_fault(error: "ValidationError", whole: str) -> tuple[str, str]:
    """Where a document of JSON first is not as it must be, and what is wrong there.

    Args:
        error: of its validation.
        whole: the place's name where the fault is not in one of its fields.
    """
    fault = error.errors(include_url=False)[0]
    return ".".join(str(part) for part in fault["loc"]) or whole, fault["msg"]
