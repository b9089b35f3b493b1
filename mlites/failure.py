"""A candidate whose step failed: what stands in place of its model, so that the other candidates go on."""

from dataclasses import asdict, dataclass
from pathlib import Path

from mlites.errors import InputError
from mlites.files import canonical_json, new_folder, read_document

FORMAT = "mlites-failure/1"
NAME = "failed.json"


@dataclass(frozen=True)
class Failure:
    """Where and of what a candidate failed.

    Attributes:
        step: in words.
        error: one line.
    """

    step: str
    error: str

    @classmethod
    def of(cls, fault: Exception, step: str) -> "Failure":
        """What an error of a step means: the failure itself, or that of a step before it."""
        return fault.failure if isinstance(fault, CandidateFailed) else cls(step, " ".join(str(fault).split()))

    def __str__(self) -> str:
        return f"{self.step}: {self.error}"


class CandidateFailed(InputError):
    """A step before this one failed, so that there is no model to work on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def write_failure(folder: Path, failure: Failure) -> None:
    """Put the failure where the model would have been; an existing folder is replaced."""
    with new_folder(folder) as work:
        (work / NAME).write_bytes(canonical_json({"format": FORMAT, **asdict(failure)}))


def read_failure(folder: Path) -> Failure | None:
    """The failure that stands in a model's place, if one does.

    Raises:
        InputError: ``failed.json`` is damaged.
    """
    if not (folder / NAME).is_file():
        return None
    document = read_document(folder / NAME, FORMAT, "failure")
    return Failure(str(document.get("step")), str(document.get("error")))
