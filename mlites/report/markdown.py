"""The verdict as Markdown, for places that show no HTML page."""

import re

from mlites.report.sections.budget import judged_lines
from mlites.report.summary import Summary
from mlites.report.words import merged

MARKED = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def markdown(summary: Summary) -> str:
    """What became of the run, the selected candidate against every line of the budget, and the other candidates."""
    chosen = summary.selected_candidate
    parts = [f"# {summary.status.capitalize()}: {_text(summary.selected or 'nothing')}", _text(summary.reason or "")]
    if chosen and chosen.lines:
        rows = [
            [
                one.name + (f" ({one.note})" if one.note else ""),
                one.value,
                one.limit,
                one.margin,
                one.interval,
                one.verdict,
            ]
            for one in judged_lines(chosen.lines)
        ]
        parts += ["## Budget", _table(["line", "value", "limit", "margin", "95% interval", "verdict"], rows)]
    rows = [
        [one.name, "failed" if one.failed else "within" if one.within_budget else "over", "; ".join(one.reasons)]
        for one in summary.candidates
    ]
    parts += ["## Candidates", _table(["candidate", "budget", "reasons"], rows)]
    marks = merged(mark for one in summary.candidates for mark in one.marks)
    if marks:
        parts += ["## Mind of the machine", "\n".join(f"- {_text(mark)}" for mark in marks)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(words: str) -> str:
    """Words as they are: what Markdown or HTML would take for marks is escaped, and lines are joined."""
    return MARKED.sub(r"\\\1", " ".join(words.split())).replace("&", "&amp;")
