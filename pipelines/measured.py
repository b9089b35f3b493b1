"""What `mlites measure` prints: a table, and below it what else was found and what one should mind."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 240  # where nobody watches, no column is cut
COLUMNS = ("p50 ms", "p95 ms", "p99 ms", "faster", "95% interval", "KiB", "peak MiB", "cold ms")
LABELLED = ("accuracy", "ECE", "agrees")

Document = dict[str, Any]


def show(document: Document) -> None:
    """Print a document of `mlites.hardware.measure.measure`; lines and colours come on a terminal alone."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    models, machine = [one for one in document["models"] if "error" not in one], document["machine"]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    _print(console, f"{machine['cpu']}, profile {machine['profile']}, {threads}, batch {machine['batch']}")
    names = _short_names([one["file"] for one in models])
    if models:
        console.print(_table(names, models, lines=console.is_terminal))
    for name, one in zip(names, models, strict=True):
        for line in _more(one):
            _print(console, f"{name}: {line}")
    for line in machine["warnings"]:
        _print(console, f"mind: {line}")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _short_names(files: list[str]) -> list[str]:
    """Paths from the folder that all of them share, which would only widen the table.

    >>> _short_names(["out/a/model.onnx", "out/b/model.onnx"]), _short_names(["out/a/model.onnx"])
    (['a/model.onnx', 'b/model.onnx'], ['model.onnx'])
    """
    paths = [Path(file).absolute() for file in files]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [str(path.relative_to(shared)) for path in paths]


def _table(names: list[str], models: list[Document], *, lines: bool) -> Table:
    table = Table(box=box.ROUNDED if lines else None, pad_edge=lines)
    table.add_column("file", overflow="fold", min_width=12)
    labelled = any(one["accuracy"] is not None for one in models)
    for column in (*COLUMNS, *(LABELLED if labelled else ())):
        table.add_column(column, justify="right", overflow="fold")
    for name, one in zip(names, models, strict=True):
        latency, (low, high) = one["latency_ms"], one["speedup_interval"]
        cold = one["cold_start_ms"]["load"] + one["cold_start_ms"]["first"]
        cells = [escape(name), *(f"{latency[key]:.4g}" for key in ("p50", "p95", "p99"))]
        cells += [f"{one['speedup']:.3f}x", f"{low:.3f} to {high:.3f}", f"{one['size_bytes'] / 1024:.1f}"]
        cells += [f"{one['peak_memory_bytes'] / 2**20:.1f}", f"{cold:.1f}"]
        if labelled:
            cells += [_share(one["accuracy"]), _share(one["ece"]), _share(one["agreement"])]
        table.add_row(*cells)
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _more(one: Document) -> Iterator[str]:
    """What the table has no column for."""
    for entry in one["throughput"]:
        low, high = entry["interval"]
        sessions = f"{entry['streams']} session{'' if entry['streams'] == 1 else 's'}"
        rows = f"{entry['rows_per_second']:.0f} rows a second ({low:.0f} to {high:.0f})"
        yield f"batch {entry['batch']}, {sessions}: {rows}, p99 {entry['response_ms']['p99']:.4g} ms"
    if roofline := one["roofline"]:
        yield (
            f"bound by {roofline['bound']}: {roofline['macs'] / 1e6:.4g} million multiply-accumulates and "
            f"{roofline['bytes'] / 1024:.4g} KiB, which take {roofline['limit_ms']:.4g} ms at this machine's peaks, "
            f"calls {roofline['overhead_ms']:.4g} ms"
        )
    if energy := one["energy"]:
        yield f"{energy['millijoules']:.4g} mJ an inference, {energy['kind']}: {energy['source']}"
    for operator in one["operators"]:
        hint = f": {operator['hint']}" if operator["hint"] else ""
        yield f"{operator['share']:.0%} of its operators' time in {operator['op_type']} {operator['name']}{hint}"
    if not one["speedup_narrow"]:
        low, high = one["speedup_interval"]
        yield f"its speedup stays uncertain after {one['measured_seconds']:.0f} s: 95% interval {low:.3f} to {high:.3f}"
