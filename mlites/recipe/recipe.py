"""A whole run: data, teacher, candidates, hardware, budget and serving."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlites.recipe.architecture import Factory
from mlites.recipe.budget import Budget
from mlites.recipe.cluster import InCluster
from mlites.recipe.data import Data
from mlites.recipe.hardware import Hardware
from mlites.recipe.options import Name, Options
from mlites.recipe.order import check_order
from mlites.recipe.passes import Distill, Pass, Prune
from mlites.recipe.training import Teacher, Training


class Candidate(Options):
    """One way to compress the teacher: passes in the order they are applied."""

    name: Name
    passes: tuple[Pass, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _order_can_work(self) -> "Candidate":
        check_order(self.passes)
        return self


class Serving(Options):
    """How Triton serves the selected candidate."""

    model: Name | None = Field(None, description="Name in Triton; default: the recipe's.")
    max_batch_size: int = Field(32, ge=1, le=4096)
    max_queue_delay_us: int = Field(
        100, ge=0, le=1_000_000, description="How long dynamic batching waits, microseconds."
    )
    instances: int = Field(1, ge=1, le=64)


def _or_name(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"type": "string"}, {"$ref": schema.pop("$ref")}]


class Recipe(Options):
    """A whole run. The pipeline is built from it; `mlites check` tells whether it is right."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**31)
    task: Literal["image-classification", "tabular-classification"] | None = Field(
        None, description="Default: tabular for csv and parquet, else image; npz goes by the shape of x."
    )
    data: Data
    teacher: Teacher
    candidates: tuple[Candidate, ...] = Field(min_length=1, max_length=256)
    hardware: Hardware = Field(
        Hardware(),
        description="A mapping, a shipped profile's name, or a profile's YAML file, from the recipe's folder.",
        json_schema_extra=_or_name,
    )
    budget: Budget = Budget()
    serving: Serving = Serving()
    cluster: InCluster = InCluster()

    @field_validator("candidates")
    @classmethod
    def _candidates_differ(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        seen: dict[str, str] = {}
        for candidate in candidates:
            if candidate.name in ("teacher", "baseline"):
                raise ValueError(f"candidate name {candidate.name!r} is taken by the baseline; choose another")
            for key in (candidate.name, str(candidate.passes)):
                if key in seen:
                    raise ValueError(
                        f"candidate {candidate.name!r} repeats {seen[key]!r}: names and passes must differ"
                    )
                seen[key] = candidate.name
        return candidates

    @model_validator(mode="after")
    def _networks_fit_data(self) -> "Recipe":
        tabular = self.task == "tabular-classification" or self.data.source in ("csv", "parquet")
        if self.task == "image-classification" and self.data.source in ("csv", "parquet"):
            raise ValueError(f"task image-classification needs images; {self.data.source} holds a table")
        students = [step.student for one in self.candidates for step in one.passes if isinstance(step, Distill)]
        for network in [self.teacher.architecture, *students]:
            if tabular and network is not None and network.family not in ("mlp", "factory"):
                raise ValueError(f"{network.family} needs images; for a table use family: mlp")
        return self

    @model_validator(mode="after")
    def _rewinding_has_an_origin(self) -> "Recipe":
        for candidate in self.candidates:
            for step in candidate.passes:
                if isinstance(step, Prune) and step.retrain != "fine-tune":
                    _check_origin(candidate.name, step, self.teacher)
        return self

    @property
    def model_name(self) -> str:
        """The name under which Triton serves."""
        return self.serving.model or self.name

    @property
    def factories(self) -> tuple[str, ...]:
        """Functions of the user's own that build networks; naming them here is what makes them trusted."""
        students = [step.student for one in self.candidates for step in one.passes if isinstance(step, Distill)]
        named = [self.teacher.factory, *(one.factory for one in students if isinstance(one, Factory))]
        if isinstance(self.teacher.architecture, Factory):
            named.append(self.teacher.architecture.factory)
        return tuple(dict.fromkeys(one for one in named if one))


def _check_origin(name: str, step: Prune, teacher: Teacher) -> None:
    """Rewinding repeats the teacher's own training; that of a model folder stands in its card."""
    if teacher.factory is not None:
        raise ValueError(f"candidate {name!r}: {step.retrain} repeats the teacher's training, which given weights lack")
    epochs = (teacher.training or Training()).epochs
    if teacher.architecture is not None and step.rewind_epoch >= epochs:
        raise ValueError(
            f"candidate {name!r}: rewind_epoch must be below the teacher's {epochs} epochs, got {step.rewind_epoch}"
        )
