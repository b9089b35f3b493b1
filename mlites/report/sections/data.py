"""The data and the checks that it passed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlites.report.details import Check, DataDocument
from mlites.report.summary import Summary


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


def group_checks(checks: Iterable[Check]) -> list[CheckGroup]:
    """By kind, those with failures first."""
    kinds: dict[str, list[Check]] = {}
    for check in checks:
        kinds.setdefault(check.name, []).append(check)
    groups = [CheckGroup(name, found, [one for one in found if not one.success]) for name, found in kinds.items()]
    return sorted(groups, key=lambda group: not group.failed)


def order_splits(summary: Summary) -> list[tuple[str, int]]:
    rows, order = summary.data.rows if summary.data else {}, ("train", "validation", "test")
    return sorted(rows.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]))


def balance_classes(data: DataDocument | None, classes: list[str]) -> list[dict[str, Any]]:
    """Rows of each class over all splits."""
    if data is None or not data.class_counts:
        return []
    totals = {name: sum(counts.get(name, 0) for counts in data.class_counts.values()) for name in classes}
    largest = max(totals.values(), default=0) or 1
    return [{"name": name, "rows": totals[name], "share": totals[name] / largest} for name in classes]
