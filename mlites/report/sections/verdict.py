"""What became of the run, in four numbers."""

from mlites.report.summary import Summary
from mlites.report.words import milliseconds, percent, size, smaller, times


def headline(summary: Summary) -> list[dict[str, str]]:
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
