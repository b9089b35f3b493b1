"""Where the data comes from."""

from typing import Literal

from pydantic import Field, model_validator

from mlites.recipe.options import Options


class Data(Options):
    """Where the labelled examples come from and how they are split."""

    source: Literal["digits", "idx", "npz", "csv", "parquet", "imagefolder"] = Field(
        description="digits (ships with scikit-learn), idx (MNIST files), npz (arrays x and y, or x_train, y_train, "
        "x_test, y_test), csv or parquet (feature columns and a label column), imagefolder (one folder a class)."
    )
    path: str | None = Field(None, description="Local file or folder, or s3://bucket/key. Not for digits.")
    label: str = Field("label", description="Label column of a csv or parquet table.")
    image_size: int | None = Field(
        None, ge=4, le=512, description="Edge in pixels to which an imagefolder is resized; default: the first image's."
    )
    validation: float = Field(0.1, gt=0, lt=0.5, description="Fraction of the training rows held out for decisions.")
    test: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="Fraction held out for the verdict; unused where the source has its own test set.",
    )
    limit: int | None = Field(None, ge=20, description="Use only this many rows (stratified, seeded), for a quick try.")
    reference: str | None = Field(
        None, description="profile.json of an earlier dataset, local or s3://; data that drifted from it is refused."
    )

    @model_validator(mode="after")
    def _path_fits_source(self) -> "Data":
        if self.source == "digits" and self.path is not None:
            raise ValueError("digits ships with scikit-learn and takes no path; remove it or choose another source")
        if self.source != "digits" and not self.path:
            raise ValueError(f"source {self.source} needs a path: a local one or s3://bucket/key")
        if self.image_size is not None and self.source != "imagefolder":
            raise ValueError(f"image_size applies to imagefolder alone, not to {self.source}")
        return self
