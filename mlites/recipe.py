"""What the user asks for: data, teacher, candidates, hardware, budget and serving, as one checked YAML file."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlites.errors import InputError

LARGEST_RECIPE_BYTES = 1 << 20
NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # also legal as a Kubernetes, KFP, S3 and Triton name

Name = Annotated[str, Field(pattern=NAME, description="Lower-case letters, digits and inner hyphens, at most 63.")]


class Options(BaseModel):
    """Base of every part of a recipe: unknown fields are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


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


class MLP(Options):
    """Multilayer perceptron: linear layers with ReLU between them."""

    family: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1, le=16384)], ...] = Field(
        (64,), min_length=1, max_length=16, description="Width of each hidden layer."
    )


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


Architecture = Annotated[MLP | ResNet, Field(discriminator="family")]


class Training(Options):
    """One training loop's settings, for teacher, student and fine-tuning alike."""

    epochs: int = Field(20, ge=1, le=10000)
    batch_size: int = Field(64, ge=2, le=65536)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=10, description="Peak of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD (Nesterov); AdamW ignores it.")
    weight_decay: float = Field(5e-4, ge=0, le=1)
    schedule: Literal["one-cycle", "step"] = Field(
        "one-cycle", description="one-cycle (Smith 2018), or step: divided by 10 after 1/2 and 3/4 of the epochs."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augmentation: tuple[Literal["crop", "flip"], ...] = Field(
        (),
        description="crop: shift by up to an eighth of the edge, zero-padded; flip: mirror left-right. Images alone.",
    )
    early_stop: int | None = Field(
        None, ge=1, description="Stop after this many epochs without a better validation loss."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where a few steps show it faster."
    )

    @model_validator(mode="after")
    def _augmentation_is_a_set(self) -> "Training":
        if len(set(self.augmentation)) != len(self.augmentation):
            raise ValueError(f"augmentation names a step twice: {', '.join(self.augmentation)}")
        return self


class Teacher(Options):
    """The network to compress: one to train, a model folder, or a user's own factory with safetensors."""

    architecture: Architecture | None = Field(None, description="Train this network from scratch.")
    training: Training | None = Field(None, description="How to train the architecture.")
    model: str | None = Field(None, description="An mlites model folder, local or s3://, taken as it is.")
    factory: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="package.module:function returning a torch.nn.Module. This code runs: name only what you trust.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the factory.")
    weights: str | None = Field(None, description="Safetensors file for the factory's module, local or s3://.")

    @field_validator("options")
    @classmethod
    def _whole_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        """KFP hands on every number as a float; 3.0 was 3."""
        return {key: int(x) if isinstance(x, float) and x.is_integer() else x for key, x in options.items()}

    @model_validator(mode="after")
    def _one_origin(self) -> "Teacher":
        origins = [key for key in ("architecture", "model", "factory") if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(f"give exactly one of architecture, model or factory, got {', '.join(origins) or 'none'}")
        if self.training and not self.architecture:
            raise ValueError("training belongs to an architecture; a given model is taken as it is")
        if self.factory and not self.weights:
            raise ValueError("factory needs weights: a safetensors file")
        if not self.factory and (self.weights or self.options):
            raise ValueError("weights and options belong to a factory")
        return self


class Distill(Options):
    """Train a student on the teacher's soft targets (Hinton, Vinyals & Dean 2015)."""

    technique: Literal["distill"] = Field(alias="pass")
    student: Architecture
    temperature: float = Field(4.0, gt=0, le=100, description="Softens the teacher's and the student's outputs.")
    soft_weight: float = Field(0.9, ge=0, le=1, description="Share of the soft-target loss; the rest is cross-entropy.")
    training: Training = Training()

    @property
    def label(self) -> str:
        """The pass in a few words."""
        network = self.student
        size = "-".join(map(str, network.hidden)) if network.family == "mlp" else f"{network.depth}x{network.width}"
        return f"distill to {network.family} {size}"


class Prune(Options):
    """Remove weights or whole channels by magnitude, then fine-tune."""

    technique: Literal["prune"] = Field(alias="pass")
    method: Literal["magnitude", "structured"] = Field(
        "structured",
        description="magnitude: zero single weights over all layers (Han 2015), smaller to download, not faster; "
        "structured: remove channels along the dependency graph (Fang 2023), smaller and faster.",
    )
    amount: float = Field(0.5, gt=0, lt=1, description="Fraction of the weights (magnitude) or channels to remove.")
    round_to: int = Field(8, ge=1, le=64, description="Kept channels are a multiple of this; CPU kernels want 8.")
    training: Training = Training(epochs=5, learning_rate=0.01)

    @property
    def label(self) -> str:
        """The pass in a few words."""
        return f"prune {self.method} {100 * self.amount:g}%"


class Quantize(Options):
    """INT8 by ONNX Runtime. Ends the chain: the result is ONNX, which no longer trains."""

    technique: Literal["quantize"] = Field(alias="pass")
    method: Literal["static", "dynamic"] = Field(
        "static",
        description="static: QDQ with calibrated activations (U8S8); dynamic: ranges found at run time over the whole "
        "batch, so that an answer depends a little on the rows beside it.",
    )
    per_channel: bool = Field(True, description="One scale for each output channel instead of one for each weight.")
    calibration: Literal["minmax", "entropy", "percentile"] = Field("minmax", description="static alone.")
    samples: int = Field(256, ge=1, le=1_000_000, description="Training rows used to calibrate; static alone.")

    @property
    def label(self) -> str:
        """The pass in a few words."""
        return f"quantize {self.method}" + ("" if self.per_channel else " per tensor")


Pass = Annotated[Distill | Prune | Quantize, Field(discriminator="technique")]


class Candidate(Options):
    """One way to compress the teacher: passes in the order they are applied."""

    name: Name
    passes: tuple[Pass, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _order_can_work(self) -> "Candidate":
        for index, step in enumerate(self.passes[:-1]):
            if isinstance(step, Quantize):
                after = self.passes[index + 1].technique
                raise ValueError(f"{after} cannot follow quantize: INT8 ONNX no longer trains; put quantize last")
        return self


class Hardware(Options):
    """What the candidates are measured on and how."""

    name: Name = "this-machine"
    threads: int = Field(1, ge=1, le=256, description="Threads of one ONNX Runtime session.")
    batch: int = Field(1, ge=1, le=4096, description="Rows in one inference.")
    seconds: float = Field(2.0, gt=0, le=600, description="Time to measure each of candidate and teacher, interleaved.")


class Budget(Options):
    """What a candidate must reach to be deployed; a line left out is not judged."""

    accuracy_drop_points: float = Field(1.0, ge=0, le=100, description="Largest loss against the teacher, in points.")
    p95_ms: float | None = Field(None, gt=0, description="Largest 95th percentile of latency, milliseconds a batch.")
    speedup: float | None = Field(None, gt=0, description="Least ratio of the teacher's median latency to its own.")
    size_kib: float | None = Field(None, gt=0, description="Largest model.onnx, KiB.")
    peak_memory_mib: float | None = Field(
        None, gt=0, description="Largest resident memory of a process that infers, MiB."
    )


class Serving(Options):
    """How Triton serves the selected candidate."""

    model: Name | None = Field(None, description="Name in Triton; default: the recipe's.")
    max_batch_size: int = Field(32, ge=1, le=4096)
    max_queue_delay_us: int = Field(
        100, ge=0, le=1_000_000, description="How long dynamic batching waits, microseconds."
    )
    instances: int = Field(1, ge=1, le=64)


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
    hardware: Hardware = Hardware()
    budget: Budget = Budget()
    serving: Serving = Serving()

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
        if tabular:
            students = [step.student for one in self.candidates for step in one.passes if isinstance(step, Distill)]
            for network in [self.teacher.architecture, *students]:
                if isinstance(network, ResNet):
                    raise ValueError("resnet needs images; for a table use family: mlp")
        return self

    @property
    def model_name(self) -> str:
        """The name under which Triton serves."""
        return self.serving.model or self.name


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, which PyYAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    Relative local paths in it are taken from the current folder.

    Args:
        path: YAML file.
        overrides: ``key=value`` with dots between levels, as in ``teacher.training.epochs=3``; values are YAML.

    Raises:
        InputError: with file, line, field, rule and what would be right.
    """
    try:
        if path.stat().st_size > LARGEST_RECIPE_BYTES:
            raise InputError(f"{path}: larger than 1 MiB; a recipe names data, it does not hold it")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_StrictLoader)
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; a recipe is a YAML file") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"{path}{_yaml_place(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: the recipe must be a mapping with name, data, teacher and candidates")
    for override in overrides or []:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise InputError(_explain(path, root, error)) from None


def _yaml_place(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return f":{mark.line + 1}: not valid YAML: {problem}" if mark else f": not valid YAML: {problem}"


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set {override}: expected key=value, for example teacher.training.epochs=3")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        if isinstance(place, list) and parent.isdecimal() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict):
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        else:
            raise InputError(f"--set {override}: there is no {parent!r} in the recipe to go into")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        raise InputError(f"--set {override}: there is no {last!r} in the recipe to set")


def _explain(path: Path, root: yaml.Node | None, error: ValidationError | RecursionError) -> str:
    """One line for the first fault, with how many more there are."""
    if isinstance(error, RecursionError):
        return f"{path}: the recipe refers to itself; remove the YAML alias that makes the loop"
    faults = error.errors(include_url=False)
    fault = faults[0]
    place, line = _locate(root, fault["loc"])
    field = ".".join(str(part) for part in place) or "recipe"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{path}:{line}: {field}: {_rule(fault)}{more}"


def _rule(fault: Any) -> str:
    given, kind = fault["input"], fault["type"]
    if kind == "extra_forbidden":
        return "unknown field; remove it or check its spelling"
    if kind == "missing":
        return "required field is missing"
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    if kind == "union_tag_not_found":
        field = fault["ctx"]["discriminator"].strip("'").split("'")[0].replace("technique", "pass")
        return f"required field {field} is missing"
    if kind == "union_tag_invalid":
        return f"must be one of {fault['ctx']['expected_tags']}, got {fault['ctx']['tag']!r}"
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else type(given).__name__
    rule = fault["msg"][0].lower() + fault["msg"][1:]
    if kind == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        rule = "must be lower-case letters, digits and inner hyphens, at most 63"
    return f"{rule}, got {shown[:80]}"


def _locate(root: yaml.Node | None, loc: tuple[int | str, ...]) -> tuple[list[int | str], int]:
    """The path in the user's words (union tags left out) and the nearest line of the file."""
    place: list[int | str] = []
    node, line = root, (root.start_mark.line + 1 if root else 1)
    for index, part in enumerate(loc):
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None and _is_union_tag(part):
            continue
        if child is None:
            place.extend(loc[index:])
            break
        place.append(part)
        node = child
    return place, line


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and re.fullmatch(r"mlp|resnet|distill|prune|quantize", part) is not None
