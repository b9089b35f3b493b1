"""The report: one HTML file that needs no network, no script and no font of its own."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from mlites.files import digest_json
from mlites.report import plots
from mlites.report.calls import Signature, curl_call, python_call, rollback_commands
from mlites.report.summary import CandidateSummary, DeploymentSummary, Latency, Summary

HERE = Path(__file__).parent
NOTHING = "\N{EN DASH}"
# Characters that HTML forbids or that cannot be encoded; a class name or an error message may hold any.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Shown(BaseModel):
    """Base of what the page shows of a document; fields it does not show are left unread."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Epoch(Shown):
    """One line of a training history; null where nothing finite was recorded."""

    epoch: int
    train_loss: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None


class Provenance(Shown):
    """One step that made a model."""

    step: str
    options: dict[str, Any] = {}
    seed: int | None = None
    history: list[Epoch] = []


class Confused(Shown):
    """The baseline's confusion matrix, rows the true classes."""

    confusion: list[list[int]] = []


class Verdict(Shown):
    """What the page shows of a verdict document."""

    candidate: str
    model: str | None = None
    provenance: list[Provenance] = []
    confusion: list[list[int]] = []
    agreement: float | None = None
    rounds: int | None = None
    baseline: Confused = Confused()


class Check(Shown):
    """One expectation about the data."""

    name: str
    column: str | None = None
    critical: bool = False
    success: bool
    observed: Any = None
    rule: str = ""


class DataDocument(Shown):
    """What the page shows of the data document."""

    source: str | None = None
    class_counts: dict[str, dict[str, int]] = {}
    duplicates_removed_across_splits: int | None = None
    checks: list[Check] = []


class Details(Shown):
    """What the page shows beyond summary.json. Documents may be handed in whole."""

    recipe_yaml: str = ""
    code_digest: str | None = None
    git_commit: str | None = None
    data: DataDocument | None = None
    signature: Signature | None = None
    verdicts: list[Verdict] = []


@dataclass(frozen=True)
class Cell:
    """One measured value in the table of candidates."""

    label: str
    value: float | None
    shown: str
    notes: tuple[str, ...] = ()
    misses: bool | None = None  # None where the budget does not judge it


@dataclass(frozen=True)
class Row:
    """One candidate in the table."""

    number: int
    candidate: CandidateSummary
    selected: bool
    cells: list[Cell]


@dataclass(frozen=True)
class CheckGroup:
    """Checks of one kind."""

    name: str
    checks: list[Check]
    failed: list[Check]

    @property
    def critical(self) -> bool:
        return any(check.critical for check in self.checks)

    @property
    def ruled(self) -> bool:
        return any(check.rule for check in self.checks)


@dataclass(frozen=True)
class Training:
    """One training history and who uses its result."""

    title: str
    options: str
    users: list[str]
    best: float | None
    epochs: int
    plot: Markup


def render(summary: Summary, details: Details) -> str:
    """The whole page; equal input gives equal bytes."""
    css = (HERE / "report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "size": size,
        "ms": milliseconds,
        "times": times,
        "brief": brief,
        "bar": plots.bar,
    }
    page = environment.get_template("report.html.jinja").render(
        css=css,
        style_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        s=summary,
        d=details,
        **_view(summary, details),
    )
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page)


def _view(summary: Summary, details: Details) -> dict[str, Any]:
    rows = _rows(summary)
    training = _training(details.verdicts)
    seconds = [step.seconds for step in summary.steps]
    deployment = summary.deployment if summary.status == "deployed" else None
    classes = summary.data.classes if summary.data else []
    return {
        "rows": rows,
        "measured": [row for row in rows if row.candidate.accuracy is not None],
        "baseline_cells": _baseline_cells(summary),
        "budget_cells": _budget_cells(summary),
        "chosen": next((row for row in rows if row.selected), None),
        "headline": _headline(summary),
        "fronts": _fronts(summary, rows),
        "bubble_key": _bubble_key(summary, rows),
        "training": training,
        "split_rows": _split_rows(summary),
        "matrices": _matrices(summary, details, classes),
        "named_classes": plots.NAMED_CLASSES,
        "confusions": _confusions(summary, details, classes),
        "agreement": next((one.agreement for one in details.verdicts if one.candidate == summary.selected), None),
        "groups": _check_groups(details.data.checks if details.data else []),
        "balance": _balance(details.data, classes),
        "deployment": deployment,
        **_commands(deployment, details.signature, classes),
        "longest": max(seconds, default=0.0) or 1.0,
        "total": sum(seconds),
    }


def _commands(
    deployment: DeploymentSummary | None, signature: Signature | None, classes: list[str]
) -> dict[str, str | None]:
    """Commands to paste, those for which the run knows enough."""
    if deployment is None or not deployment.triton_url:
        return {"curl": None, "python": None, "rollback": None}
    return {
        "curl": curl_call(deployment, signature) if signature else None,
        "python": python_call(deployment, signature, classes) if signature else None,
        "rollback": rollback_commands(deployment),
    }


# ---- words ----------------------------------------------------------------------------------------------------------


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(decimals, 9)}f}"


def percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}%"


def milliseconds(value: float) -> str:
    return f"{significant(value)} ms" if value >= 1 else f"{significant(1000 * value)} µs"


def times(ratio: float) -> str:
    return f"{significant(ratio)}{plots.TIMES}"


def size(count: float) -> str:
    """Bytes in the binary unit that leaves a number below 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:g} {unit}" if count == int(count) else f"{significant(count)} {unit}"
        count /= 1024
    return f"{significant(count)} GiB"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def points(drop: float) -> str:
    """A loss of accuracy as a signed difference."""
    return "±0 points" if abs(drop) < 0.005 else f"{-drop:+.2f} points".replace("-", "\N{MINUS SIGN}")


def smaller(ratio: float) -> str:
    return f"{1 - 1 / ratio:.0%} smaller" if ratio >= 1 else f"{1 / ratio - 1:.0%} larger"


def brief(value: Any) -> str:
    """Any observed value in at most 160 characters."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return significant(value, 4)
    words = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return plots.shorten(words, 160)


# ---- verdict and table ----------------------------------------------------------------------------------------------


def _headline(summary: Summary) -> list[dict[str, str]]:
    """The selected candidate in four numbers, those that it has."""
    one, base = summary.selected_candidate, summary.baseline
    if one is None or base is None or one.accuracy is None or one.latency_ms is None or one.size_bytes is None:
        return []
    kept = one.accuracy / base.accuracy if base.accuracy else 1.0
    facts = [
        {
            "number": percent(kept, 1),
            "label": "of the accuracy kept",
            "note": f"{percent(one.accuracy)} against {percent(base.accuracy)}",
        }
    ]
    if one.speedup is not None:
        slower = one.speedup < 1
        facts.append(
            {
                "number": times(1 / one.speedup if slower else one.speedup),
                "label": "slower" if slower else "faster",
                "note": f"p50 {milliseconds(one.latency_ms.p50)} against {milliseconds(base.latency_ms.p50)}",
            }
        )
    if one.size_ratio is not None:
        number, label = smaller(one.size_ratio).split()
        facts.append(
            {"number": number, "label": label, "note": f"{size(one.size_bytes)} against {size(base.size_bytes)}"}
        )
    if one.peak_memory_bytes is not None:
        against = f"against {size(base.peak_memory_bytes)}" if base.peak_memory_bytes is not None else ""
        facts.append({"number": size(one.peak_memory_bytes), "label": "peak memory", "note": against})
    return facts


def _rows(summary: Summary) -> list[Row]:
    """Best first: selected, within budget, on the front, then by speed; not measured last."""

    def rank(one: CandidateSummary) -> tuple[bool, bool, bool, bool, float]:
        measured, chosen = one.accuracy is not None, one.name == summary.selected
        return (not measured, not chosen, not one.within_budget, not one.on_front, -(one.speedup or 0.0))

    ordered = sorted(summary.candidates, key=rank)
    return [
        Row(number, one, one.name == summary.selected, _cells(one, summary)) for number, one in enumerate(ordered, 1)
    ]


def _cells(one: CandidateSummary, summary: Summary) -> list[Cell]:
    budget, latency = summary.budget, one.latency_ms
    drop, interval = one.accuracy_drop_points, one.speedup_interval
    memory = one.peak_memory_bytes
    return [
        Cell(
            "Accuracy",
            one.accuracy,
            NOTHING if one.accuracy is None else percent(one.accuracy),
            () if drop is None else (points(drop),),
            None if drop is None else drop > budget.accuracy_drop_points,
        ),
        Cell(
            "Speed-up",
            one.speedup,
            NOTHING if one.speedup is None else times(one.speedup),
            (f"{significant(interval[0])} to {significant(interval[1])}",) if interval else (),
            None if budget.speedup is None or one.speedup is None else one.speedup < budget.speedup,
        ),
        Cell(
            "p95",
            latency.p95 if latency else None,
            milliseconds(latency.p95) if latency else NOTHING,
            _percentiles(latency) if latency else (),
            None if budget.p95_ms is None or latency is None else latency.p95 > budget.p95_ms,
        ),
        Cell(
            "Size",
            one.size_bytes,
            NOTHING if one.size_bytes is None else size(one.size_bytes),
            () if one.size_ratio is None else (smaller(one.size_ratio),),
            None if budget.size_kib is None or one.size_bytes is None else one.size_bytes > budget.size_kib * 1024,
        ),
        Cell(
            "Memory",
            memory,
            NOTHING if memory is None else size(memory),
            (),
            None if budget.peak_memory_mib is None or memory is None else memory > budget.peak_memory_mib * 2**20,
        ),
    ]


def _percentiles(latency: Latency) -> tuple[str, ...]:
    return f"p50 {milliseconds(latency.p50)}", f"p99 {milliseconds(latency.p99)}"


def _baseline_cells(summary: Summary) -> list[Cell]:
    base = summary.baseline
    if base is None:
        return []
    memory = base.peak_memory_bytes
    return [
        Cell("Accuracy", base.accuracy, percent(base.accuracy)),
        Cell("Speed-up", 1.0, f"1{plots.TIMES}"),
        Cell("p95", base.latency_ms.p95, milliseconds(base.latency_ms.p95), _percentiles(base.latency_ms)),
        Cell("Size", base.size_bytes, size(base.size_bytes)),
        Cell("Memory", memory, NOTHING if memory is None else size(memory)),
    ]


def _budget_cells(summary: Summary) -> list[Cell]:
    budget, base = summary.budget, summary.baseline
    most = budget.accuracy_drop_points
    drop = f"≤ {most:g} point{'s' if most != 1 else ''} lost"
    accuracy = Cell("Accuracy", most, f"≥ {percent(base.accuracy - most / 100)}", (drop,)) if base else None
    limits = [
        ("Speed-up", budget.speedup, "≥ {:g}" + plots.TIMES),
        ("p95", budget.p95_ms, "≤ {:g} ms"),
        ("Size", budget.size_kib, "≤ {:g} KiB"),
        ("Memory", budget.peak_memory_mib, "≤ {:g} MiB"),
    ]
    return [
        accuracy or Cell("Accuracy", most, drop),
        *(Cell(label, limit, NOTHING if limit is None else words.format(limit)) for label, limit, words in limits),
    ]


# ---- front ----------------------------------------------------------------------------------------------------------


def _fronts(summary: Summary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same plot drawn for wide, middle and narrow pages; the style sheet shows one."""
    base = summary.baseline
    shown = [point for row in rows if (point := _point(row)) is not None]
    if base is None or not shown:
        return []
    start = plots.Point(
        0, base.name, 1.0, None, base.accuracy, base.size_bytes, "baseline",
        f"{base.name}, the baseline: {percent(base.accuracy)}, {size(base.size_bytes)}",
    )  # fmt: skip
    least = base.accuracy - summary.budget.accuracy_drop_points / 100
    return [
        {"width": name, "plot": plots.front_plot([start, *shown], wide, high, least, summary.budget.speedup)}
        for name, wide, high in (("wide", 1040, 470), ("middle", 660, 430), ("narrow", 330, 380))
    ]


def _point(row: Row) -> plots.Point | None:
    one = row.candidate
    if one.accuracy is None or one.speedup is None or one.size_bytes is None:
        return None
    hint = f"{one.name}: {percent(one.accuracy)}, {times(one.speedup)} faster, {size(one.size_bytes)}"
    return plots.Point(
        number=row.number,
        name=one.name,
        speedup=one.speedup,
        interval=one.speedup_interval,
        accuracy=one.accuracy,
        size_bytes=one.size_bytes,
        kind="selected" if row.selected else "front" if one.on_front else "other",
        hint=hint,
    )


def _bubble_key(summary: Summary, rows: Sequence[Row]) -> Markup:
    sizes = [row.candidate.size_bytes for row in rows if row.candidate.size_bytes is not None]
    if summary.baseline is None or not sizes:
        return Markup()
    largest = max(summary.baseline.size_bytes, *sizes)
    round_size = 1 << (largest.bit_length() - 1)
    return plots.bubble_key([round_size // 16, round_size // 4, round_size], largest, size)


# ---- training -------------------------------------------------------------------------------------------------------


def _training(verdicts: Iterable[Verdict]) -> list[Training]:
    """Every training once, though candidates that share passes share it."""
    found: dict[str, tuple[Provenance, list[str]]] = {}
    for verdict in verdicts:
        chain: list[Any] = []
        for step in verdict.provenance:
            chain.append(step.model_dump(mode="json"))
            if step.history:
                found.setdefault(digest_json(_finite(chain)), (step, []))[1].append(verdict.candidate)
    return [_trained(step, users) for step, users in found.values()]


def _finite(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_constant=str)


def _trained(step: Provenance, users: list[str]) -> Training:
    history = step.history
    scores = [one.validation_accuracy for one in history if one.validation_accuracy is not None]
    title = "Teacher" if step.step == "train" else step.step.capitalize()
    plot = plots.curves_plot(
        f"{title}: validation accuracy and losses over {len(history)} epochs",
        [one.epoch for one in history],
        plots.Curve("validation accuracy", [one.validation_accuracy for one in history], "first"),
        [
            plots.Curve("training loss", [one.train_loss for one in history], "second"),
            plots.Curve("validation loss", [one.validation_loss for one in history], "first"),
        ],
    )
    return Training(title, _options(step), users, max(scores, default=None), len(history), plot)


def _options(step: Provenance) -> str:
    """The few options that tell one training of a kind from another."""
    words = []
    for key in ("method", "amount", "student", "architecture"):
        value = step.options.get(key)
        if isinstance(value, dict):
            value = _network(value)
        if value is not None:
            words.append(f"{value:.0%}" if key == "amount" and isinstance(value, float) else str(value))
    return " · ".join(words)


def _network(architecture: dict[str, Any]) -> str:
    family, sizes = architecture.get("family", "network"), [v for k, v in architecture.items() if k != "family"]
    flat = [str(one) for value in sizes for one in (value if isinstance(value, list) else [value])]
    return f"{family} {'x'.join(flat)}".strip()


# ---- mistakes -------------------------------------------------------------------------------------------------------


def _chosen_verdict(summary: Summary, details: Details) -> Verdict | None:
    return next((one for one in details.verdicts if one.candidate == summary.selected), None) or next(
        iter(details.verdicts), None
    )


def _fits(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bool:
    return len(counts) == len(classes) > 0 and all(len(row) == len(classes) for row in counts)


def _matrices(summary: Summary, details: Details, classes: list[str]) -> list[dict[str, Any]]:
    verdict = _chosen_verdict(summary, details)
    if verdict is None:
        return []
    baseline = summary.baseline.name if summary.baseline else "baseline"
    found = [(verdict.candidate, "", verdict.confusion), (baseline, "baseline", verdict.baseline.confusion)]
    return [
        {
            "name": name,
            "note": note,
            "plot": plots.confusion_plot(f"Confusion matrix of {name}; rows are the true classes", counts, classes),
        }
        for name, note, counts in found
        if _fits(counts, classes)
    ]


def _confusions(summary: Summary, details: Details, classes: list[str]) -> list[dict[str, Any]]:
    """The mistakes made most often, with the baseline's count of the same."""
    verdict = _chosen_verdict(summary, details)
    if verdict is None or not _fits(verdict.confusion, classes):
        return []
    base = verdict.baseline.confusion if _fits(verdict.baseline.confusion, classes) else None
    pairs = [
        (count, row, column)
        for row, counts in enumerate(verdict.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        {
            "true": classes[row],
            "predicted": classes[column],
            "count": count,
            "share": count / sum(verdict.confusion[row]),
            "baseline": base[row][column] if base else None,
        }
        for count, row, column in pairs[:8]
    ]


# ---- data -----------------------------------------------------------------------------------------------------------


def _check_groups(checks: Iterable[Check]) -> list[CheckGroup]:
    """By kind, those with failures first."""
    kinds: dict[str, list[Check]] = {}
    for check in checks:
        kinds.setdefault(check.name, []).append(check)
    groups = [CheckGroup(name, found, [one for one in found if not one.success]) for name, found in kinds.items()]
    return sorted(groups, key=lambda group: not group.failed)


def _split_rows(summary: Summary) -> list[tuple[str, int]]:
    rows, order = summary.data.rows if summary.data else {}, ("train", "validation", "test")
    return sorted(rows.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]))


def _balance(data: DataDocument | None, classes: list[str]) -> list[dict[str, Any]]:
    """Rows of each class over all splits."""
    if data is None or not data.class_counts:
        return []
    totals = {name: sum(counts.get(name, 0) for counts in data.class_counts.values()) for name in classes}
    largest = max(totals.values(), default=0) or 1
    return [{"name": name, "rows": totals[name], "share": totals[name] / largest} for name in classes]
