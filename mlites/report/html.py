"""The report: one HTML file that needs no network, no script and no font of its own."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlites.report.details import Details
from mlites.report.plots.bar import bar
from mlites.report.plots.confusion import NAMED_CLASSES
from mlites.report.sections import (
    budget,
    candidates,
    classes,
    cost,
    data,
    front,
    mistakes,
    passes,
    roofline,
    running,
    serving,
    tradeoffs,
    training,
    verdict,
)
from mlites.report.summary import Summary
from mlites.report.words import NOTHING, brief, duration, merged, percent

HERE = Path(__file__).parent
# Characters that HTML forbids or that cannot be encoded; a class name or an error message may hold any.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def render(summary: Summary, details: Details) -> str:
    """The whole page; equal input gives equal bytes."""
    css = (HERE / "report.css").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            css=css,
            style_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
            s=summary,
            d=details,
            **_view(summary, details),
        )
    )
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader([HERE, HERE / "sections"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "brief": brief, "bar": bar}
    return environment


def _view(summary: Summary, details: Details) -> dict[str, Any]:
    rows = candidates.rank_rows(summary)
    seconds = [step.seconds for step in summary.steps]
    deployment = summary.deployment if summary.status == "deployed" else None
    names = summary.data.classes if summary.data else []
    chosen = summary.selected_candidate
    return {
        "headline": verdict.headline(summary),
        "rows": rows,
        "measured": [row for row in rows if row.candidate.accuracy is not None],
        "baseline_cells": candidates.baseline_cells(summary),
        "budget_cells": candidates.budget_cells(summary),
        "fronts": front.draw_fronts(summary, rows),
        "bubble_key": front.draw_key(summary, rows),
        "tradeoffs": tradeoffs.draw_tradeoffs(summary, rows),
        "judged": budget.judged_lines(chosen.lines) if chosen else [],
        "matrix": budget.compare_lines(rows),
        "runs": running.list_runs(summary, rows),
        "run_columns": running.COLUMNS,
        "energy_sources": running.energy_sources(summary),
        "not_narrow": running.not_narrow(summary.candidates),
        "throughputs": running.list_throughputs(summary, rows),
        "rooflines": roofline.draw_rooflines(summary, rows),
        "reaches": roofline.list_reaches(summary, rows),
        "reach_columns": roofline.COLUMNS,
        "profiles": roofline.list_profiles(summary, rows),
        "class_changes": classes.draw_classes(summary, names),
        "calibration": classes.draw_calibration(summary, details),
        "marks": merged(mark for one in summary.candidates for mark in one.marks),
        "failed": [one for one in summary.candidates if one.failed],
        "costs": cost.draw_costs(summary, rows),
        "chains": passes.list_chains(summary, rows, details.verdicts),
        "training": training.list_trainings(details.verdicts),
        "split_rows": data.order_splits(summary),
        "matrices": mistakes.draw_matrices(summary, details, names),
        "nothing": NOTHING,
        "named_classes": NAMED_CLASSES,
        "confusions": mistakes.list_confusions(summary, details, names),
        "agreement": next((one.agreement for one in details.verdicts if one.candidate == summary.selected), None),
        "groups": data.group_checks(details.data.checks if details.data else []),
        "balance": data.balance_classes(details.data, names),
        "deployment": deployment,
        "settings": serving.list_settings(deployment.sweep if deployment else None),
        "setting_columns": serving.COLUMNS,
        "sweep_words": serving.describe_sweep(deployment.sweep if deployment else None),
        **serving.list_commands(deployment, details.signature, names),
        "longest": max(seconds, default=0.0) or 1.0,
        "total": sum(seconds),
    }
