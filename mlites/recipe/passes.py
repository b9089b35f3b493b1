"""The passes that a chain is made of, one class a technique."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mlites.recipe.architecture import Architecture
from mlites.recipe.options import Options
from mlites.recipe.training import Training

DISTILLATION = {
    "soft-targets": "soft targets",
    "hints": "hints",
    "attention": "attention transfer",
    "relational": "relations",
    "decoupled": "decoupled targets",
    "triple": "triple loss",
}


class Distill(Options):
    """Train a student to answer as its teacher does.

    With a student named, the model before this pass in the chain is its teacher. Without one, the model before this
    pass is itself the student, and learns from the recipe's teacher what earlier passes cost it.
    """

    technique: Literal["distill"] = Field(alias="pass")
    method: Literal["soft-targets", "hints", "attention", "relational", "decoupled", "triple"] = Field(
        "soft-targets",
        description="soft-targets (Hinton 2015); hints: an inner layer too (FitNets, 2015); attention: maps of where "
        "the network looks (2017); relational: distances and angles between examples (2019); decoupled: target and "
        "other classes apart (2022); triple: soft targets, labels and hidden states' cosine (DistilBERT, 2019).",
    )
    student: Architecture | None = Field(None, description="Default: the model before this pass, as it is.")
    temperature: float = Field(4.0, gt=0, le=100, description="Softens the teacher's and the student's outputs.")
    soft_weight: float = Field(0.9, ge=0, le=1, description="Share of the soft-target loss; the rest is cross-entropy.")
    feature_weight: float | None = Field(
        None, gt=0, le=1e6, description="Weight of the term on inner layers or relations; default: the paper's."
    )
    initialize: Literal["random", "teacher"] = Field(
        "random", description="teacher: copy its layers where shapes allow (every second block of a deeper one)."
    )
    average_views: bool = Field(
        False,
        description="The teacher's answer about a row is its mean over the training's views (Radosavovic et al. 2018, "
        '"Data Distillation"): better than each, and the same for all.',
    )
    control: bool = Field(
        True, description="Train the same student without the teacher too, and say whether distillation paid."
    )
    training: Training = Training()

    @model_validator(mode="after")
    def _fits_method(self) -> "Distill":
        if self.feature_weight is not None and self.method in ("soft-targets", "decoupled"):
            raise ValueError(f"feature_weight does not apply to {self.method}, which looks at the outputs alone")
        if self.average_views and self.training.views is None:
            raise ValueError("average_views needs training.views: so many forms of each row there are")
        if self.average_views and self.method not in ("soft-targets", "decoupled"):
            raise ValueError(f"average_views is of outputs alone, but {self.method} looks inside the teacher too")
        if self.initialize == "teacher" and self.student is None:
            raise ValueError("initialize: teacher needs a student; without one the model keeps its own weights")
        if self.method == "attention" and self.student is not None and self.student.family == "mlp":
            raise ValueError("attention transfer compares maps of pictures, which an mlp does not have")
        return self

    @property
    def label(self) -> str:
        """The pass in a few words."""
        target = f" to {self.student.label}" if self.student else ""
        return f"distill{target}" + ("" if self.method == "soft-targets" else f" by {DISTILLATION[self.method]}")


class Prune(Options):
    """Remove weights or whole channels, and train again what is left."""

    technique: Literal["prune"] = Field(alias="pass")
    method: Literal["magnitude", "layerwise", "n-m", "structured"] = Field(
        "structured",
        description="magnitude: zero the smallest weights of the whole network (Han 2015), smaller to download, not "
        "faster; layerwise: of each layer; n-m: n of every m neighbours stay (2:4, Mishra 2021); structured: remove "
        "channels along the dependency graph (Fang 2023), smaller and faster.",
    )
    amount: float = Field(0.5, gt=0, lt=1, description="Fraction of the weights or channels to remove; not for n-m.")
    n: int = Field(2, ge=1, le=31, description="n-m alone: weights kept of every m.")
    m: int = Field(4, ge=2, le=32, description="n-m alone.")
    importance: Literal["magnitude", "taylor"] = Field(
        "magnitude", description="structured alone: norm of a channel, or its effect on the loss (Molchanov 2019)."
    )
    rates: Literal["uniform", "sensitivity"] = Field(
        "uniform",
        description="layerwise and structured: sensitivity measures each layer's loss of accuracy when pruned alone, "
        "and prunes the sensitive ones less.",
    )
    schedule: Literal["one-shot", "gradual", "iterative"] = Field(
        "one-shot",
        description="gradual: more and more during training (Zhu & Gupta 2017), for single weights; iterative: in "
        "rounds of pruning and training.",
    )
    rounds: int = Field(3, ge=2, le=100, description="iterative alone.")
    retrain: Literal["fine-tune", "weight-rewinding", "learning-rate-rewinding", "reinitialize"] = Field(
        "fine-tune",
        description="fine-tune: by training; weight-rewinding: weights and schedule return to epoch rewind_epoch of "
        "the original training (Frankle & Carbin 2019); learning-rate-rewinding: the schedule alone does (Renda 2020); "
        "reinitialize: new random weights and the whole training, the control.",
    )
    rewind_epoch: int = Field(0, ge=0, le=10000, description="Rewinding alone: the epoch returned to.")
    round_to: int = Field(8, ge=1, le=64, description="structured alone: kept channels are a multiple of this.")
    training: Training = Field(Training(epochs=5, learning_rate=0.01), description="fine-tune alone.")

    @model_validator(mode="after")
    def _options_fit(self) -> "Prune":
        given = self.model_fields_set
        kinds = {"n": "n-m", "m": "n-m", "importance": "structured", "round_to": "structured"}
        for key, method in kinds.items():
            if key in given and self.method != method and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to method: {method}, not to {self.method}")
        if self.method == "n-m" and self.n >= self.m:
            raise ValueError(f"n must be below m: of every m weights n stay, got {self.n}:{self.m}")
        if self.rates == "sensitivity" and self.method not in ("layerwise", "structured"):
            raise ValueError(
                f"rates: sensitivity sets rates a layer; {self.method} has none, use layerwise or structured"
            )
        if self.schedule != "one-shot" and self.method == "n-m":
            raise ValueError("an n-m pattern is reached at once: use schedule: one-shot")
        if self.schedule == "gradual" and self.method == "structured":
            raise ValueError("channels are removed between trainings, not during one: use schedule: iterative")
        if self.schedule == "gradual" and self.retrain != "fine-tune":
            raise ValueError("gradual pruning happens during training, after which nothing is left to rewind")
        if self.schedule == "gradual" and self.training.early_stop:
            raise ValueError("early_stop may return to an epoch before gradual pruning is done; leave it out")
        if self.rewind_epoch and self.retrain not in ("weight-rewinding", "learning-rate-rewinding"):
            raise ValueError(f"rewind_epoch belongs to rewinding, not to retrain: {self.retrain}")
        if self.retrain == "weight-rewinding" and self.method == "structured":
            raise ValueError("weight-rewinding returns single weights to earlier values; for channels use another")
        return self

    @property
    def label(self) -> str:
        """The pass in a few words."""
        amount = f"{self.n}:{self.m}" if self.method == "n-m" else f"{self.method} {100 * self.amount:g}%"
        details = [
            "taylor" if self.importance == "taylor" else "",
            "by sensitivity" if self.rates == "sensitivity" else "",
            "" if self.schedule == "one-shot" else self.schedule,
            "" if self.retrain == "fine-tune" else self.retrain.replace("-", " "),
        ]
        return " ".join(["prune", amount, *filter(None, details)])


class Factorize(Options):
    """Replace layers by cheaper ones that compute nearly the same, and fine-tune.

    Linear layers become two thinner ones in every method but depthwise-separable.
    """

    technique: Literal["factorize"] = Field(alias="pass")
    method: Literal["svd", "tucker", "cp", "depthwise-separable"] = Field(
        "cp",
        description="svd: linear layers and 1x1 convolutions alone; tucker: convolutions become three (Kim 2016); "
        "cp: four, two of them depthwise (Lebedev 2015); depthwise-separable: two, a compact filter (Howard 2017), "
        "which must be trained and wants a distill pass after it.",
    )
    energy: float | None = Field(
        None, gt=0, lt=1, description="Least fraction of each weight's squared norm to keep. Default: budget 0.5."
    )
    budget: float | None = Field(None, gt=0, lt=1, description="Fraction of all multiply-accumulates to keep.")
    training: Training = Training(epochs=5, learning_rate=0.01)

    @model_validator(mode="after")
    def _one_rank_rule(self) -> "Factorize":
        if self.energy is not None and self.budget is not None:
            raise ValueError("give energy or budget, not both: each decides the ranks")
        if self.method == "depthwise-separable" and (self.energy is not None or self.budget is not None):
            raise ValueError("depthwise-separable has no rank to choose; leave out energy and budget")
        return self

    @property
    def label(self) -> str:
        """The pass in a few words."""
        if self.method == "depthwise-separable":
            return "factorize depthwise-separable"
        rule = f"energy {self.energy:g}" if self.energy is not None else f"budget {100 * (self.budget or 0.5):g}%"
        return f"factorize {self.method} {rule}"


class Share(Options):
    """Weight sharing (Deep Compression, Han 2016): each layer's weights take a few values, which training moves."""

    technique: Literal["share"] = Field(alias="pass")
    bits: int = Field(5, ge=1, le=8, description="2^bits values for each linear layer; zeros of pruning come free.")
    conv_bits: int = Field(8, ge=1, le=8, description="The same for convolutions.")
    training: Training = Field(Training(epochs=3, learning_rate=0.01), description="Of the shared values.")

    @property
    def label(self) -> str:
        """The pass in a few words."""
        return f"share {self.bits} bits" + ("" if self.bits == self.conv_bits else f", convolutions {self.conv_bits}")


class QAT(Options):
    """Quantization-aware training: INT8 rounding is part of the training, and of the ONNX that it ends in."""

    technique: Literal["qat"] = Field(alias="pass")
    per_channel: bool = Field(True, description="One scale for each output channel instead of one for each weight.")
    reduce_range: Literal["auto"] | bool = Field("auto", description="As of quantize.")
    training: Training = Training(epochs=3, learning_rate=0.01)

    @property
    def label(self) -> str:
        """The pass in a few words."""
        return "qat" + ("" if self.per_channel else " per tensor")


class Quantize(Options):
    """Fewer bits by ONNX Runtime. Ends the chain: the result is ONNX, which no longer trains."""

    technique: Literal["quantize"] = Field(alias="pass")
    method: Literal["static", "dynamic", "fp16", "bf16", "int4"] = Field(
        "static",
        description="static: INT8 with calibrated activations (U8S8 QDQ); dynamic: INT8 whose ranges are found at run "
        "time over the whole batch, so that an answer depends a little on the rows beside it; fp16; bf16 where the "
        "runtime has the kernels; int4: weights alone, in blocks.",
    )
    per_channel: bool = Field(True, description="INT8: one scale for each output channel instead of one a weight.")
    calibration: Literal["minmax", "entropy", "percentile"] = Field("minmax", description="static alone.")
    samples: int = Field(256, ge=1, le=1_000_000, description="Training rows used to calibrate; static alone.")
    block_size: Literal[16, 32, 64, 128, 256] = Field(32, description="int4 alone: weights that share a scale.")
    reduce_range: Literal["auto"] | bool = Field(
        "auto",
        description="INT8: 7 bits for weights, as 8 saturate on x86 without VNNI; auto goes by the hardware profile, "
        "and by the machine that runs the step where that names no instruction sets.",
    )
    sensitive_layers: int = Field(
        0, ge=0, le=10000, description="Mixed precision: this many layers, the most sensitive, stay in float."
    )
    max_drop_points: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Accuracy-aware rollback: layers return to float until validation accuracy is within this many "
        "points of the float model's, with 99% confidence: n validation rows can prove no limit below 233/n points.",
    )

    @model_validator(mode="after")
    def _options_fit(self) -> "Quantize":
        if self.sensitive_layers and self.max_drop_points is not None:
            raise ValueError("give sensitive_layers or max_drop_points: both decide what stays in float")
        return self

    @property
    def label(self) -> str:
        """The pass in a few words."""
        details = [
            "per tensor" if not self.per_channel and self.method in ("static", "dynamic") else "",
            self.calibration if self.calibration != "minmax" and self.method == "static" else "",
            f"but {self.sensitive_layers} layers" if self.sensitive_layers else "",
            f"within {self.max_drop_points:g} points" if self.max_drop_points is not None else "",
        ]
        return " ".join(["quantize", self.method, *filter(None, details)])


Pass = Annotated[
    Distill | Prune | Factorize | Share | QAT | Quantize,
    Field(discriminator="technique"),
]
