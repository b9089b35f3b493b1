"""Great Expectations over a split dataset: schema, ranges, nulls, labels, balance, leakage and drift."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlites.data.profile import LARGEST_FEATURES, Columns, Drift, Profile, measure_drift
from mlites.data.raw import RawData
from mlites.data.splits import Splits, leaked_rows

LARGEST_MAGNITUDE = 1e30  # beyond it float32 overflows while it is being normalised
PSI_NOTICEABLE, PSI_LARGE = 0.1, 0.25  # the customary thresholds of the population stability index
SMALLEST_CLASS_SHARE = 0.1
LARGEST_CONTRADICTORY_SHARE = 0.01
LARGEST_DUPLICATE_SHARE = 0.1
LARGEST_SHARE_GAP = 0.05
BLANK_SHARE = 0.01


@dataclass(frozen=True)
class Check:
    """One evaluated expectation.

    Attributes:
        name: what is expected, in words.
        column: watched column or measure that it is about; None for the whole table.
        critical: whether its failure stops the run.
        success: whether the data meet it.
        observed: what was found.
        rule: the bound, in words.
        expectation: its type in Great Expectations.
    """

    name: str
    column: str | None
    critical: bool
    success: bool
    observed: str
    rule: str
    expectation: str

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Findings:
    """The checks in the order they were made, and the drift that some of them judge."""

    checks: tuple[Check, ...]
    drift: dict[str, Drift]


def validate(raw: RawData, splits: Splits, columns: Columns, names: list[str], reference: Profile | None) -> Findings:
    """Evaluate every expectation; failing is a finding, not an exception.

    Args:
        raw: for classes, scale and whether it is a table.
        splits: what would become the dataset.
        columns: watched columns (n,) of all rows.
        names: class of each of these rows.
        reference: profile of earlier data.
    """
    import pandas as pd

    gx = _great_expectations()
    label = "class"
    while label in columns:
        label += "_"
    measures, expected = _measure(raw, splits, columns, label, names, reference)
    rows = pd.DataFrame({**columns, label: names})
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("dataset")
    checks: list[Check] = []
    frames = {"rows": (rows, _row_expectations(raw, columns, label, reference)), "measures": (measures, expected)}
    for name, (frame, expectations) in frames.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        suite = gx.ExpectationSuite(name=name, expectations=expectations)
        outcome = batch.get_batch({"dataframe": frame}).validate(suite, result_format="BASIC")
        checks += [_to_check(result, frame) for result in outcome.results]
    drift, class_drift = _drift(columns, label, names, reference)
    return Findings(tuple(checks), {**drift, label: class_drift} if class_drift else drift)


def _great_expectations() -> Any:
    """Imported here alone: it takes five seconds."""
    with warnings.catch_warnings():  # it imports modules that the standard library has deprecated
        warnings.simplefilter("ignore")
        import great_expectations
        import great_expectations.expectations
    return great_expectations


def _drift(
    columns: Columns, label: str, names: list[str], reference: Profile | None
) -> tuple[dict[str, Drift], Drift | None]:
    """Empty where there is no reference or it describes other columns, which is a check of its own."""
    if reference is None or set(reference.columns) != set(columns):
        return {}, None
    classes, counts = np.unique(np.asarray(names), return_counts=True)
    return measure_drift(reference, columns, {str(one): int(n) for one, n in zip(classes, counts, strict=True)})


def _row_expectations(raw: RawData, columns: Columns, label: str, reference: Profile | None) -> list[Any]:
    """On the watched columns of real rows."""
    gxe = _great_expectations().expectations
    made: list[Any] = []

    def expect(kind: Any, name: str, rule: str, critical: bool, **settings: Any) -> None:
        made.append(kind(severity="critical" if critical else "warning", meta={"name": name, "rule": rule}, **settings))

    if reference is None:
        schema, rule = [*columns, label], "the columns that were read"
    else:
        schema, rule = [*reference.columns, label], "the reference's columns"
    expect(gxe.ExpectTableColumnsToMatchSet, "columns", rule, True, column_set=schema, exact_match=True)
    expect(gxe.ExpectTableRowCountToBeBetween, "rows", "at least 100", False, min_value=100)
    known = list(raw.classes) if reference is None else list(reference.classes)
    rule = f"exactly the {len(known)} classes of the {'labels' if reference is None else 'reference'}"
    expect(gxe.ExpectColumnValuesToNotBeNull, "labels are present", "no null", True, column=label)
    expect(gxe.ExpectColumnDistinctValuesToEqualSet, "label set", rule, True, column=label, value_set=known)
    for name in columns:
        low, high = _range(raw, name)
        expect(gxe.ExpectColumnValuesToNotBeNull, "no nulls", "no null", True, column=name)
        rule = f"{low:g} to {high:g}" if low < high else f"{low:g}"
        expect(gxe.ExpectColumnValuesToBeBetween, "range", rule, True, column=name, min_value=low, max_value=high)
        if raw.inputs.ndim == 2:
            rule = "at least 2 different values"
            expect(gxe.ExpectColumnUniqueValueCountToBeBetween, "not constant", rule, False, column=name, min_value=2)
    if raw.inputs.ndim == 4:
        rule = f"contrast above 0 in at least {1 - BLANK_SHARE:.0%} of the images"
        bound = {"column": "contrast", "min_value": 0, "strict_min": True, "mostly": 1 - BLANK_SHARE}
        expect(gxe.ExpectColumnValuesToBeBetween, "images are not blank", rule, False, **bound)
    return made


def _range(raw: RawData, column: str) -> tuple[float, float]:
    if raw.inputs.ndim == 4:
        return 0, round(1 / raw.scale) * (2 if column == "detail" else 1)  # detail adds two directions
    if raw.inputs.shape[1] > LARGEST_FEATURES and column in ("missing values", "infinite values"):
        return 0, 0
    return -LARGEST_MAGNITUDE, LARGEST_MAGNITUDE


def _measure(
    raw: RawData, splits: Splits, columns: Columns, label: str, names: list[str], reference: Profile | None
) -> tuple[Any, list[Any]]:
    """One row of numbers about the whole dataset, and what is expected of each."""
    import pandas as pd

    gxe = _great_expectations().expectations
    row: dict[str, Any] = {}
    made: list[Any] = []

    def expect(measure: str, name: str, value: Any, rule: str, critical: bool, **bound: Any) -> None:
        row[measure] = value
        kind = gxe.ExpectColumnValuesToBeInSet if "value_set" in bound else gxe.ExpectColumnValuesToBeBetween
        severity = "critical" if critical else "warning"
        made.append(kind(column=measure, severity=severity, meta={"name": name, "rule": rule}, **bound))

    total = len(names)
    shares = {
        split: np.bincount(labels, minlength=len(raw.classes)) / len(labels)
        for split, (_, labels) in splits.parts.items()
    }
    counts = np.unique(np.asarray(names), return_counts=True)[1]
    gap = max(float(np.abs(shares[split] - shares["train"]).max()) for split in ("validation", "test"))
    expect(
        "rows leaked", "no leak between splits", leaked_rows(splits.parts), "0 rows in two splits", True, max_value=0
    )
    for split, share in shares.items():
        missing = int((share == 0).sum())
        name = f"every class is in {split}"
        expect(f"classes missing in {split}", name, missing, "0 classes missing", split != "test", max_value=0)
    ratio = float(counts.min() / counts.max())
    rule = f"smallest class has at least {SMALLEST_CLASS_SHARE:.0%} of the largest's rows"
    expect("smallest to largest class", "class balance", ratio, rule, False, min_value=SMALLEST_CLASS_SHARE)
    rule = f"a class's share differs between splits by at most {LARGEST_SHARE_GAP:g}"
    expect("largest gap in class share", "splits are alike", gap, rule, False, max_value=LARGEST_SHARE_GAP)
    for measure, name, found, most in (
        ("contradictory share", "equal inputs have equal labels", splits.contradictions, LARGEST_CONTRADICTORY_SHARE),
        ("duplicate share", "few duplicates", splits.duplicates, LARGEST_DUPLICATE_SHARE),
        ("removed share", "source keeps its test set apart", splits.removed, 0.0),
    ):
        expect(measure, name, found / total, f"at most {most:.0%} of the rows", False, max_value=most)
    if reference is not None:
        shape = str(list(raw.inputs.shape[1:]))
        expected = str(list(reference.input_shape))
        expect("input shape", "input shape", shape, f"the reference's {expected}", True, value_set=[expected])
    drift, class_drift = _drift(columns, label, names, reference)
    for column, one in [*drift.items(), *([(label, class_drift)] if class_drift else [])]:
        for bound, critical in ((PSI_NOTICEABLE, False), (PSI_LARGE, True)):
            allowed = max(bound, one.noise)
            rule, name = f"PSI at most {allowed:.3g}", "no large drift" if critical else "no noticeable drift"
            expect(f"drift of {column}", name, one.psi, rule, critical, max_value=allowed)
    return pd.DataFrame([row]), made


def _to_check(result: Any, frame: Any) -> Check:
    config = result.expectation_config
    if not result.result:
        raise RuntimeError(f"Great Expectations could not evaluate {config.type}: {result.exception_info}")
    column = config.kwargs.get("column")
    return Check(
        name=config.meta["name"],
        column=column,
        critical=config.severity.value == "critical",
        success=bool(result.success),
        observed=_show(frame[column].iloc[0]) if len(frame) == 1 else _observed(result.result),
        rule=config.meta["rule"],
        expectation=config.type,
    )


def _observed(result: dict[str, Any]) -> str:
    """What Great Expectations reports, in words; its fields differ by expectation."""
    if "element_count" in result:
        count = result["unexpected_count"]
        some = ", ".join(dict.fromkeys(_show(value) for value in result["partial_unexpected_list"][:5]))
        return f"{count:,} of {result['element_count']:,} rows break it" + (f", such as {some}" if some else "")
    value = result.get("observed_value")
    if value is None:
        surplus, absent = result["partial_unexpected_list"], result["partial_missing_list"]
        return ", ".join([*map(_show, surplus), *(f"no {one}" for one in absent)][:10]) or "as expected"
    if isinstance(value, list):
        return ", ".join(map(str, value[:10])) + (", ..." if len(value) > 10 else "")
    return _show(value)


def _show(value: Any) -> str:
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
