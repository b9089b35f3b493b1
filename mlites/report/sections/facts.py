"""What a pass found, in words: known facts with their units, all others as they are."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mlites.report.words import brief, change, count, percent, points, scientific, significant, size, times

LONGEST_TABLE = 100  # rows
LONGEST_LIST = 8  # of names in a line; more become a table


@dataclass(frozen=True)
class Fact:
    """One figure."""

    label: str
    shown: str


@dataclass(frozen=True)
class Table:
    """Figures of many layers; ``more`` of its rows are not shown."""

    label: str
    columns: list[str]
    rows: list[list[str]]
    more: int = 0


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _gain(value: float) -> str:
    return points(-value)


def _chance(value: float) -> str:
    return significant(value, 2) if value >= 1e-4 else scientific(value)


Wording = tuple[str, Callable[[Any], str]]
KNOWN: dict[str, Wording] = {  # in the order in which a page tells them
    # distillation
    "teacher_validation_accuracy": ("the teacher's accuracy", percent),
    "control_validation_accuracy": ("the same student without the teacher", percent),
    "gain_points": ("gained by learning from the teacher", _gain),
    "p_value": ("p-value of this gain", _chance),
    "paid": ("distillation paid", _yes),
    "verdict": ("compared with no teacher", brief),
    "initialized_fraction": ("weights copied from the teacher", percent),
    "initialized": ("layers copied from the teacher", brief),
    "compared_layers": ("layers of student and teacher compared", brief),
    # pruning, factorization, sharing
    "pattern": ("weights kept", brief),
    "channels": ("channels", count),
    "weights": ("weights", count),
    "zeros": ("zeros", count),
    "sparsity": ("zeros among the weights", percent),
    "distinct_values": ("distinct values", count),
    "validation_accuracy_before": ("accuracy before this pass", percent),
    "validation_accuracy_before_tuning": ("accuracy before training again", percent),
    "removed": ("removed", percent),
    "rate": ("rate", percent),
    "rounds": ("rounds of pruning and training", brief),
    "rates": ("removed of each layer", percent),
    "ranks": ("ranks", brief),
    "kept_whole": ("layers left as they are", brief),
    "sensitivity": ("sensitivity of each layer", brief),
    # quantization and export
    "float_validation_accuracy": ("the float model's accuracy", percent),
    "simulated_validation_accuracy": ("accuracy with the rounding simulated", percent),
    "float_size_bytes": ("size of the float file", size),
    "weight_bits": ("bits of a weight", count),
    "reduce_range": ("weights held to 7 bits, as the processor's 8 saturate", _yes),
    "layers_quantized": ("layers quantized", count),
    "layers_kept_float": ("layers kept in float", brief),
    "layers_beyond_this_method": ("layers that this method does not quantize", brief),
    "rolled_back": ("rolled back", brief),
    "drop_points": ("against the float model", points),
    "drop_points_before_rollback": ("against the float model, every layer quantized", points),
    "drop_bound_points_before_rollback": ("against the float model, every layer quantized, 99% confidence", points),
    "drop_points_after": ("against the float model", points),
    "drop_bound_points_after": ("against the float model, 99% confidence", points),
    "evaluations": ("models tried", count),
    "sensitivity_evaluations": ("models tried to rank layers", count),
    "max_abs_difference": ("largest difference of a logit", scientific),
    "agreement": ("same class as the model before it", percent),
    "validation_accuracy": ("validation accuracy", percent),
}
ORDER = {key: place for place, key in enumerate(KNOWN)}
UNITS: dict[str, Callable[[Any], str]] = {
    "accuracy": percent,
    "bytes": size,
    "fraction": percent,
    "macs": count,
    "parameters": count,
    "points": lambda value: f"{significant(value)} points",
    "rate": percent,
    "seconds": lambda value: f"{significant(value)} s",
    "sparsity": percent,
    "speedup": times,
}


def word_facts(facts: Mapping[str, Any]) -> tuple[list[Fact], list[Table]]:
    """Figures and tables of one step, ``x_before`` and ``x_after`` (or ``x``) side by side.

    Their order and that of layers is the page's own, as a stored document has its keys by the alphabet.
    """
    figures, tables = [], []
    told: set[str] = set()
    for key in sorted(facts, key=_place):
        value = facts[key]
        if key in told:
            continue
        if pair := _pair(key, facts):
            told |= set(pair)
            label, word = _wording(pair[1].removesuffix("_after"))
            before, after = facts[pair[0]], facts[pair[1]]
            figures.append(Fact(label, f"{_word(word, before)} → {_word(word, after)}{_part(word, before, after)}"))
        elif key == "sensitivity" and (table := _sensitivity(value)):
            tables.append(table)
        else:
            label, word = _wording(key)
            found = _figure_or_table(label, word, value)
            (tables if isinstance(found, Table) else figures).append(found)  # type: ignore[arg-type]
    return figures, tables


def _place(key: str) -> tuple[int, str]:
    stem = key.removesuffix("_before").removesuffix("_after")
    return ORDER.get(key, ORDER.get(stem, len(ORDER))), key


def _numbered(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _layers(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(value.items(), key=lambda item: _numbered(str(item[0])))


def _pair(key: str, facts: Mapping[str, Any]) -> tuple[str, str] | None:
    """Both keys of a figure that changed, where this is one of them."""
    stem = key.removesuffix("_before").removesuffix("_after")
    after = next((one for one in (f"{stem}_after", stem) if one in facts), None)
    return (f"{stem}_before", after) if after and f"{stem}_before" in facts else None


def _wording(key: str) -> Wording:
    if key in KNOWN:
        return KNOWN[key]
    words = key.replace("_", " ")
    return words, next((unit for suffix, unit in UNITS.items() if key == suffix or key.endswith(f"_{suffix}")), brief)


def _word(word: Callable[[Any], str], value: Any) -> str:
    """A value in its words, in plain ones where it is of another kind than its name says."""
    if isinstance(value, bool):
        return _yes(value)
    try:
        return word(value)
    except (TypeError, ValueError, OverflowError):
        return brief(value)


def _part(word: Callable[[Any], str], before: Any, after: Any) -> str:
    counted = word in (count, size) and all(isinstance(one, int | float) for one in (before, after))
    words = change(before, after) if counted else ""
    return f" ({words})" if words else ""


def _figure_or_table(label: str, word: Callable[[Any], str], value: Any) -> Fact | Table:
    if isinstance(value, dict) and value:
        return _mapping_table(label, word, value)
    if isinstance(value, list) and value:
        if all(isinstance(one, dict) for one in value):
            keys = sorted({key for one in value for key in one}, key=_place)
            rows = [[_cell(key, one.get(key)) for key in keys] for one in value]
            return _table(label, [_wording(str(key))[0] for key in keys], rows)
        if all(isinstance(one, list) for one in value):
            return _table(label, [""] * max(map(len, value)), [[brief(cell) for cell in one] for one in value])
        if len(value) > LONGEST_LIST:
            return _table(label, ["layer" if all(isinstance(one, str) for one in value) else "value"],
                          [[brief(one)] for one in value])  # fmt: skip
        return Fact(label, ", ".join(map(brief, value)))
    if isinstance(value, list | dict):
        return Fact(label, "none")
    return Fact(label, _word(word, value))


def _mapping_table(label: str, word: Callable[[Any], str], value: Mapping[str, Any]) -> Table:
    """Layers down; across, the keys of what is known of each, or its one value."""
    if all(isinstance(one, dict) for one in value.values()):
        columns = sorted({key for one in value.values() for key in one}, key=_place)
        rows = [[name, *(_cell(key, one.get(key)) for key in columns)] for name, one in _layers(value)]
        return _table(label, ["layer", *(_wording(str(key))[0] for key in columns)], rows)
    return _table(label, ["layer", ""], [[name, _value(word, one)] for name, one in _layers(value)])


def _cell(key: str, value: Any) -> str:
    return _value(_wording(str(key))[1], value)


def _value(word: Callable[[Any], str], value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(brief, value))
    return brief(None) if value is None else _word(word, value)


def _table(label: str, columns: list[str], rows: list[list[str]]) -> Table:
    wide = len(columns)
    shown = [[cell for _, cell in zip_longest(range(wide), row[:wide], fillvalue="")] for row in rows[:LONGEST_TABLE]]
    return Table(label, columns, shown, len(rows) - len(shown))


def _sensitivity(value: Any) -> Table | None:
    """The analysis of a pruning: what each layer loses when it alone is pruned, and the rate it was given."""
    try:
        probed, protected = value["probed_rates"], set(value.get("protected", []))
        rows = [
            [
                str(name),
                percent(one["rate"], 0) + (" (protected)" if name in protected else ""),
                *(points(drop) for drop in one["drops_points"]),
            ]
            for name, one in _layers(value["layers"])
        ]
        columns = ["layer", "rate given", *(f"at {percent(rate, 0)}" for rate in probed)]
    except (TypeError, KeyError, AttributeError, ValueError):
        return None
    return _table("accuracy lost by pruning one layer alone", columns, rows)
