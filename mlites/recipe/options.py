"""What every part of a recipe has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # also legal as a Kubernetes, KFP, S3 and Triton name

Name = Annotated[str, Field(pattern=NAME, description="Lower-case letters, digits and inner hyphens, at most 63.")]


class Options(BaseModel):
    """Base of every part of a recipe: unknown fields are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)
