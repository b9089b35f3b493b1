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
from mlites.report.sections import candidates, cost, data, front, mistakes, passes, serving, training, verdict
from mlites.report.summary import Summary
from mlites.report.words import NOTHING, brief, duration, percent

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
    classes = summary.data.classes if summary.data else []
    return {
        "headline": verdict.headline(summary),
        "rows": rows,
        "measured": [row for row in rows if row.candidate.accuracy is not None],
        "baseline_cells": candidates.baseline_cells(summary),
        "budget_cells": candidates.budget_cells(summary),
        "fronts": front.draw_fronts(summary, rows),
        "bubble_key": front.draw_key(summary, rows),
        "costs": cost.draw_costs(summary, rows),
        "chains": passes.list_chains(summary, rows, details.verdicts),
        "training": training.list_trainings(details.verdicts),
        "split_rows": data.order_splits(summary),
        "matrices": mistakes.draw_matrices(summary, details, classes),
        "nothing": NOTHING,
        "named_classes": NAMED_CLASSES,
        "confusions": mistakes.list_confusions(summary, details, classes),
        "agreement": next((one.agreement for one in details.verdicts if one.candidate == summary.selected), None),
        "groups": data.group_checks(details.data.checks if details.data else []),
        "balance": data.balance_classes(details.data, classes),
        "deployment": deployment,
        **serving.list_commands(deployment, details.signature, classes),
        "longest": max(seconds, default=0.0) or 1.0,
        "total": sum(seconds),
    }
