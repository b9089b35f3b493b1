"""The networks that a recipe can name, one family each."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mlites.recipe.options import Options

FACTORY = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class MLP(Options):
    """Multilayer perceptron: linear layers with ReLU between them."""

    family: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1, le=16384)], ...] = Field(
        (64,), min_length=1, max_length=16, description="Width of each hidden layer."
    )

    @property
    def label(self) -> str:
        """The network in a few words."""
        return f"mlp {'-'.join(map(str, self.hidden))}"


class ResNet(Options):
    """Residual network in its CIFAR form (He et al. 2015): three stages of (depth - 2) / 6 basic blocks."""

    family: Literal["resnet"]
    depth: int = Field(20, description="6n + 2 layers: 8, 14, 20, 32, 44, 56, 110.")
    width: int = Field(
        16, ge=1, le=512, description="Channels of the first stage; the others have twice and four times."
    )

    @model_validator(mode="after")
    def _depth_is_6n_plus_2(self) -> "ResNet":
        if self.depth < 8 or self.depth > 1202 or (self.depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110), got {self.depth}")
        return self

    @property
    def label(self) -> str:
        """The network in a few words."""
        return f"resnet {self.depth}x{self.width}"


class LeNet(Options):
    """LeNet-5 in the form that Deep Compression compresses: 20 and 50 kernels of 5x5, 500 hidden units."""

    family: Literal["lenet"]

    @property
    def label(self) -> str:
        """The network in a few words."""
        return "lenet"


class ConvNet(Options):
    """Convolutions with batch normalization and ReLU, one after the other, and one layer that decides.

    Nothing branches: of all networks the one with the fewest operators, which is what small inputs are bound by.
    """

    family: Literal["convnet"]
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (32, 64, 64), min_length=1, max_length=64, description="Of each convolution."
    )
    strides: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field((2, 2, 1), description="Of each convolution.")
    kernels: tuple[Annotated[int, Field(ge=1, le=11)], ...] | None = Field(
        None, description="Edge of each convolution's kernel; default: 3 each."
    )
    head: Literal["mean", "full"] = Field(
        "mean",
        description="mean: logits from the mean over the picture; full: from every position, which small networks want "
        "where all pictures are framed alike.",
    )
    separable_from: int | None = Field(
        None,
        ge=1,
        description="Convolutions from this one on, the first being 0, are each a depthwise one and a 1x1 (Howard et "
        "al. 2017): more channels and layers for the same parameters. Default: none.",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> "ConvNet":
        for name in ("strides", "kernels"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.channels):
                raise ValueError(f"{name} needs one entry a convolution: {len(self.channels)}, got {len(values)}")
        if self.separable_from is not None and self.separable_from >= len(self.channels):
            raise ValueError(f"separable_from must be 1 to {len(self.channels) - 1}, got {self.separable_from}")
        return self

    @property
    def label(self) -> str:
        """The network in a few words."""
        return f"{'separable ' if self.separable_from else ''}convnet {'-'.join(map(str, self.channels))}"


class Scaled(Options):
    """A lightweight network, scaled in its three dimensions."""

    width: float = Field(1.0, gt=0, le=16, description="Factor on the channels of every layer, kept multiples of 8.")
    depth: float = Field(1.0, gt=0, le=16, description="Factor on the blocks of every stage, rounded up.")
    resolution: int | None = Field(
        None, ge=8, le=1024, description="Edge in pixels to which pictures are resized; default: as they come."
    )

    @property
    def label(self) -> str:
        """The network in a few words."""
        family: str = self.family  # type: ignore[attr-defined]
        size = f" {self.resolution}px" if self.resolution else ""
        return f"{family} {self.width:g}x{self.depth:g}{size}"


class Separable(Scaled):
    """Depthwise-separable convolutions in a row (MobileNet, Howard et al. 2017)."""

    family: Literal["separable"]


class MobileNetV2(Scaled):
    """Inverted residuals with linear bottlenecks (Sandler et al. 2018)."""

    family: Literal["mobilenet-v2"]


class MobileNetV3(Scaled):
    """MobileNetV3-Small or -Large: inverted residuals with squeeze-and-excitation (Howard et al. 2019)."""

    family: Literal["mobilenet-v3"]
    variant: Literal["small", "large"] = "small"


class EfficientNet(Scaled):
    """MBConv blocks under compound scaling (Tan & Le 2019)."""

    family: Literal["efficientnet"]
    compound: float = Field(
        0.0,
        ge=-3,
        le=7,
        description="phi of the paper: depth grows by 1.2^phi, width by 1.1^phi, resolution by 1.15^phi, on top of "
        "the factors given.",
    )


class Factory(Options):
    """A network of the user's own."""

    family: Literal["factory"]
    factory: str = Field(
        pattern=FACTORY,
        description="package.module:function returning a torch.nn.Module. This code runs: name only what you trust.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the factory.")

    @field_validator("options")
    @classmethod
    def _whole_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        return whole_numbers(options)

    @property
    def label(self) -> str:
        """The network in a few words."""
        return self.factory.rpartition(":")[2]


def whole_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """KFP hands on every number as a float; 3.0 was 3."""
    return {key: int(x) if isinstance(x, float) and x.is_integer() else x for key, x in options.items()}


Architecture = Annotated[
    MLP | LeNet | ResNet | ConvNet | Separable | MobileNetV2 | MobileNetV3 | EfficientNet | Factory,
    Field(discriminator="family"),
]
