"""One look at a served model, as a line of text and as a picture on a terminal."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mlites.serving.metrics import Served
from mlites.serving.watch import Sight

NOTHING = "-"
BAR = 24  # characters of a share of 100%
MOST_CLASSES = 20


def line(sight: Sight) -> str:
    """Everything in one line."""
    where = f"{sight.pointer.model} {sight.pointer.channel} version {sight.pointer.version}"
    parts = [sight.at.strftime("%H:%M:%S"), where]
    if sight.served:
        parts.append(_counted(sight.served))
    if sight.raw:
        parts.append(f"raw: {_counted(sight.raw)}")
    if sight.drift:
        parts.append(f"drift PSI {sight.drift.psi:.3f} (p {sight.drift.p_value:.2g}) over {sight.drift.rows} rows")
    else:
        parts.append(f"drift: {_why_not(sight)}")
    return "  ".join([*parts, "ALARM" if sight.alarms else "well"])


def _why_not(sight: Sight) -> str:
    if not sight.judgeable:
        return "not judged, the release says nothing of what to expect"
    return f"{sight.sampled.rows} logged rows, too few to judge"


def _counted(served: Served) -> str:
    rate = (
        f"{served.requests_per_second:.1f}/s" if served.requests_per_second is not None else f"{served.requests} in all"
    )
    quantiles = f", p95 {served.p95_ms:.2f}" if served.p95_ms is not None else ""
    return f"{rate}, {served.failures} failed, mean {_ms(served.mean_ms)}{quantiles} ms"


def draw(sight: Sight) -> RenderableType:
    """A panel: figures, shares of the classes, alarms."""
    facts = Table.grid(padding=(0, 3))
    for name, served in (("requests", sight.served), ("raw requests", sight.raw)):
        if served:
            facts.add_row(name, _counted(served))
            facts.add_row("", f"queue {_ms(served.queue_ms)} ms, mean batch {_ms(served.mean_batch)} rows")
            quantiles = [f"{key} {_ms(getattr(served, f'{key}_ms'))}" for key in ("p50", "p95", "p99")]
            facts.add_row("", f"{', '.join(quantiles)} ms, of the last minutes")
    if sight.sampled.rows:
        facts.add_row(
            "logged calls",
            f"{sight.sampled.rows} rows in {sight.sampled.minutes:g} min, p95 {_ms(sight.sampled.p95_ms)} ms at the "
            f"caller, mean probability {sight.sampled.mean_probability:.1%}",
        )
    parts: list[RenderableType] = [facts]
    if sight.drift:
        drift = sight.drift
        judged = f"PSI {drift.psi:.3f} (by chance up to {drift.chance:.3f}), chi-square p {drift.p_value:.2g}"
        shares = Table("class", "reference", "served", "", title=judged, title_justify="left", box=None)
        widest = sorted(drift.shares.items(), key=lambda one: -max(one[1]))[:MOST_CLASSES]
        for name, (before, now) in widest:
            style = "yellow" if abs(now - before) > 0.5 * max(before, now) else ""
            shares.add_row(name, f"{before:.1%}", f"{now:.1%}", Text("█" * round(BAR * now), style=style))
        parts.append(shares)
    else:
        parts.append(Text(f"drift: {_why_not(sight)}"))
    parts += [Text(f"alarm: {alarm}", style="bold red") for alarm in sight.alarms] or [Text("all is well", "green")]
    title = (
        f"{sight.pointer.model} {sight.pointer.channel}: version {sight.pointer.version}, release "
        f"{sight.pointer.digest[:12]}"
    )
    return Panel(Group(*parts), title=title, subtitle=sight.at.strftime("%H:%M:%S UTC"))


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
