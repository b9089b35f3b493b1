"""What the candidates are measured on: a hardware profile."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlites.recipe.options import Name, Options

# As in /proc/cpuinfo: what ONNX Runtime's and PyTorch's kernels choose between. "vnni" stands for either form of it.
X86 = Literal[
    "avx",
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
]
Arm = Literal["neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"]  # asimddp: INT8 dot products
ISA = Literal[X86, Arm, "vnni"]
VNNI = {"avx_vnni", "avx512_vnni"}
SMALLEST_MEMORY_MIB = 64  # a process that only loads ONNX Runtime has some 50

Batch = Annotated[int, Field(ge=1, le=4096)]
Streams = Annotated[int, Field(ge=1, le=256)]


class Arrival(Options):
    """How requests come while throughput is measured."""

    pattern: Literal["closed", "poisson"] = Field(
        "closed", description="closed: each caller asks again as soon as it is answered; poisson: independent callers."
    )
    rate_per_second: float | None = Field(None, gt=0, le=1e6, description="Requests a second, of pattern poisson.")

    @model_validator(mode="after")
    def _rate_goes_with_poisson(self) -> "Arrival":
        if (self.pattern == "poisson") != (self.rate_per_second is not None):
            raise ValueError("rate_per_second belongs to pattern poisson, which needs it; closed callers set none")
        return self


class Toleration(Options):
    """A taint of cluster nodes that the measurement may run on, in Kubernetes' words."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Cluster(Options):
    """Where a cluster measures: on nodes of the target's kind."""

    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: tuple[Toleration, ...] = ()


def _with_profile(schema: dict[str, Any]) -> None:
    what = "Shipped profile, or YAML file, that the other fields change: see `mlites.recipe.profiles`."
    schema["properties"]["profile"] = {"type": "string", "title": "Profile", "description": what}


class Hardware(Options):
    """What the candidates are measured on and how: in full, by the name of a shipped profile, or by a YAML file."""

    model_config = ConfigDict(json_schema_extra=_with_profile)

    name: Name = "this-machine"
    description: str = Field("", max_length=500, description="What the target is, in words.")
    cores: int | None = Field(
        None, ge=1, le=1024, description="Cores of the target; measuring keeps to as many. Default: all there are."
    )
    threads: int = Field(1, ge=1, le=256, description="Threads of one ONNX Runtime session.")
    isa: tuple[ISA, ...] = Field((), description="Instruction sets that the target has, as in /proc/cpuinfo, or vnni.")
    without_isa: tuple[ISA, ...] = Field((), description="Instruction sets that the target lacks.")
    memory_mib: int | None = Field(
        None, ge=SMALLEST_MEMORY_MIB, description="Memory of the target that an inferring process may fill, MiB."
    )
    batch: Batch = Field(1, description="Rows in one inference, of the latency that is judged.")
    batches: tuple[Batch, ...] = Field((), description="Further batch sizes whose throughput is measured.")
    streams: tuple[Streams, ...] = Field(
        (), description="Numbers of concurrent sessions whose throughput is measured; they share the threads."
    )
    arrival: Arrival = Arrival()
    provider: Literal["cpu", "cuda"] = Field("cpu", description="Execution provider of ONNX Runtime.")
    provider_options: dict[str, str] = Field(default_factory=dict, description="The provider's own, as text.")
    emulated: str = Field(
        "", max_length=500, description="What of the target is imitated here and not had; reports say it."
    )
    seconds: float = Field(
        2.0, gt=0, le=600, description="Least time to measure each of candidate and teacher, interleaved."
    )
    longest_seconds: float | None = Field(
        None, gt=0, le=3600, description="Most time for each, where the interval stays wide; default: 10 times seconds."
    )
    precision: float = Field(
        0.01, gt=0.005, lt=1, description="Half width of the speedup's 95% interval that is narrow enough, fraction."
    )
    cluster: Cluster = Cluster()

    @field_validator("provider_options", mode="before")
    @classmethod
    def _as_text(cls, options: object) -> object:
        if not isinstance(options, dict):
            return options
        return {key: str(value) if isinstance(value, int) else value for key, value in options.items()}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Hardware":
        if self.cores is not None and self.threads > self.cores:
            raise ValueError(f"threads must be at most the target's cores: {self.cores}, got {self.threads}")
        for key in ("batches", "streams"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} names a number twice: {', '.join(map(str, values))}")
        if both := set(self.isa) & without(self.without_isa):
            raise ValueError(f"the target cannot both have and lack {', '.join(sorted(both))}: see isa and without_isa")
        families = {family for family, names in (("x86", X86), ("Arm", Arm)) if set(get_args(names)) & set(self.isa)}
        if len(families) > 1:
            raise ValueError(f"isa must be of one kind of processor, got {', '.join(self.isa)}")
        if self.provider == "cpu" and self.provider_options:
            raise ValueError("provider_options belong to provider cuda; cpu goes by threads")
        if self.longest_seconds is not None and self.longest_seconds < self.seconds:
            raise ValueError(
                f"longest_seconds must be at least seconds: {self.seconds:g}, got {self.longest_seconds:g}"
            )
        return self

    @property
    def most_seconds(self) -> float:
        """Time that measuring one model may take where its interval stays wide."""
        return 10 * self.seconds if self.longest_seconds is None else self.longest_seconds


def without(names: Iterable[str]) -> set[str]:
    """All instruction sets that lack where these do.

    >>> sorted(without(["vnni"]))
    ['avx512_vnni', 'avx_vnni', 'vnni']
    """
    lacking = set(names)
    if "vnni" in lacking:
        return lacking | VNNI
    return lacking | {"vnni"} if lacking >= VNNI else lacking
