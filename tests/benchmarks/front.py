"""The whole front of a recipe, and what the local runner costs: `make bench`, `make bench RECIPE=fashion-mnist`."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlites.report.summary import Summary


def run(recipe: str) -> tuple[Summary, float]:
    """Run a recipe through the command line; its summary and the wall time in seconds."""
    begin = time.monotonic()
    result = subprocess.run([str(Path(sys.executable).with_name("mlites")), "run", recipe], check=False)
    seconds = time.monotonic() - begin
    if result.returncode not in (0, 3):
        raise SystemExit(result.returncode)
    return Summary.model_validate(json.loads(Path("runs/latest/summary.json").read_text())), seconds


def show(summary: Summary, console: Console) -> None:
    """Print every candidate against the baseline."""
    assert summary.baseline is not None
    base = summary.baseline
    figures = f"{base.accuracy:.2%}, p50 {base.latency_ms.p50:.3f} ms, {base.size_bytes / 1024:.0f} KiB"
    title = f"{summary.recipe}: baseline {figures}"
    table = Table("candidate", "kept", "faster", "95% interval", "smaller", "p95 ms", "front", "budget", title=title)
    for one in sorted(summary.candidates, key=lambda one: -(one.speedup or 0)):
        if one.failed:
            table.add_row(one.name, *[""] * 6, f"failed in {one.failed.step}: {one.failed.error}")
            continue
        values: Any = one
        table.add_row(
            one.name,
            f"{values.accuracy / base.accuracy:.2%}",
            f"{values.speedup:.2f}x",
            f"{values.speedup_interval[0]:.2f} to {values.speedup_interval[1]:.2f}",
            f"{1 - 1 / values.size_ratio:.1%}",
            f"{values.latency_ms.p95:.3f}",
            "yes" if one.on_front else "",
            "within" if one.within_budget else "over",
        )
    console.print(table)


def main() -> None:
    """Run twice: the second run is served from the cache."""
    console = Console(width=120)
    for recipe in sys.argv[1:] or ["digits"]:
        first, wall = run(recipe)
        ran = sum(not step.cached for step in first.steps)
        again, cached_wall = run(recipe)
        show(again, console)
        console.print(
            f"first run: {wall:.1f} s, {ran} steps ran, {(first.overhead_seconds or 0) / ran:.2f} s of overhead a step"
        )
        console.print(f"second run, from the cache: {cached_wall:.1f} s")


if __name__ == "__main__":
    main()
