"""How networks are trained, and where the teacher comes from."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlites.recipe.architecture import FACTORY, Architecture, whole_numbers
from mlites.recipe.options import Options


class Training(Options):
    """One training loop's settings, for teacher, student and fine-tuning alike."""

    epochs: int = Field(20, ge=1, le=10000)
    batch_size: int = Field(64, ge=2, le=65536)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=10, description="Peak of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD (Nesterov); AdamW ignores it.")
    weight_decay: float = Field(5e-4, ge=0, le=1)
    schedule: Literal["one-cycle", "step", "constant"] = Field(
        "one-cycle",
        description="one-cycle (Smith 2018); step: divided by 10 after 1/2 and 3/4 of the epochs; or constant.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augmentation: tuple[Literal["crop", "flip"], ...] = Field(
        (),
        description="crop: shift by up to crop_fraction of the edge, black coming in; flip: mirror left-right. Images "
        "alone.",
    )
    crop_fraction: float = Field(0.125, gt=0, le=0.5, description="Of the edge; shifts by one pixel at least.")
    views: int | None = Field(
        None,
        ge=1,
        le=10000,
        description="Augmented forms of each row: epochs see them in turn, so that distillation asks the teacher about "
        "each once. Default: a new one every epoch.",
    )
    early_stop: int | None = Field(
        None, ge=1, description="Stop after this many epochs without a better validation loss."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where a few steps show it faster."
    )

    @model_validator(mode="after")
    def _augmentation_makes_sense(self) -> "Training":
        if len(set(self.augmentation)) != len(self.augmentation):
            raise ValueError(f"augmentation names a step twice: {', '.join(self.augmentation)}")
        if self.views is not None and not self.augmentation:
            raise ValueError("views needs augmentation: without it each row has one form")
        if "crop" not in self.augmentation and self.crop_fraction != type(self).model_fields["crop_fraction"].default:
            raise ValueError("crop_fraction belongs to augmentation: [crop]")
        return self


class Transfer(Options):
    """Transfer learning: the new head is trained first, then all layers, the earlier the slower.

    Source: Howard & Ruder (2018), "Universal Language Model Fine-tuning": discriminative fine-tuning.
    """

    head_epochs: int = Field(2, ge=0, le=1000, description="Epochs in which the head alone is trained.")
    layer_decay: float = Field(
        0.38, gt=0, le=1, description="Factor on the learning rate from each layer group to the one before (1/2.6)."
    )
    training: Training = Field(Training(epochs=5), description="Of all layers; the head before has its settings.")


class Teacher(Options):
    """The network to compress: one to train, a model folder, or a user's own factory with safetensors."""

    architecture: Architecture | None = Field(None, description="Train this network from scratch.")
    training: Training | None = Field(None, description="How to train the architecture.")
    model: str | None = Field(None, description="An mlites model folder, local or s3://, taken as it is.")
    factory: str | None = Field(
        None,
        pattern=FACTORY,
        description="package.module:function returning a torch.nn.Module. This code runs: name only what you trust.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the factory.")
    weights: str | None = Field(None, description="Safetensors file for the factory's module, local or s3://.")

    transfer: Transfer | None = Field(
        None, description="Train the given network on this data, which may have other classes than it knows."
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that train together, each on its share of every batch; one batch of all of them is "
        "batch_size. On this machine they share its cores; in a cluster each is a pod.",
    )

    @field_validator("options")
    @classmethod
    def _whole_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        return whole_numbers(options)

    @model_validator(mode="after")
    def _one_origin(self) -> "Teacher":
        origins = [key for key in ("architecture", "model", "factory") if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(f"give exactly one of architecture, model or factory, got {', '.join(origins) or 'none'}")
        if self.training and not self.architecture:
            raise ValueError("training belongs to an architecture; a given model takes transfer, or is taken as it is")
        if self.transfer and self.architecture:
            raise ValueError("transfer starts from a given network: a model, or a factory with weights")
        if self.factory and not self.weights:
            raise ValueError("factory needs weights: a safetensors file")
        if not self.factory and (self.weights or self.options):
            raise ValueError("weights and options belong to a factory")
        return self

    @model_validator(mode="after")
    def _workers_have_work(self) -> "Teacher":
        if self.workers == 1:
            return self
        if not self.architecture and not self.transfer:
            raise ValueError("workers train an architecture or a transfer; a given model is taken as it is")
        training = self.transfer.training if self.transfer else self.training or Training()
        if training.batch_size < 2 * self.workers:
            raise ValueError(
                f"workers must be 1 to {training.batch_size // 2}, as each takes 2 rows at least of a batch of "
                f"{training.batch_size}, got {self.workers}"
            )
        return self
