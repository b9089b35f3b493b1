import pytest

from mlites.report.words import brief, change, count, duration, milliseconds, points, significant, size, smaller


@pytest.mark.parametrize(
    "shown, expected",
    [
        (size(0), "0 B"), (size(1023), "1023 B"), (size(1024), "1 KiB"), (size(31_377), "30.6 KiB"),
        (size(5 * 2**20), "5 MiB"), (size(3.5 * 2**30), "3.50 GiB"), (milliseconds(0.0182), "18.2 µs"),
        (milliseconds(1.5), "1.50 ms"), (milliseconds(1234.5), "1,234 ms"), (duration(0.02), "20 ms"),
        (duration(59.94), "59.9 s"), (duration(125), "2 min 05 s"), (duration(7260), "2 h 01 min"),
        (points(0.83), "−0.83 points"), (points(-0.1), "+0.10 points"), (points(0.001), "±0 points"),  # noqa: RUF001
        (smaller(4.0), "75% smaller"), (smaller(0.8), "25% larger"), (significant(0), "0"),
        (brief(None), "–"), (brief(0.05561), "0.05561"), (brief({"b": 1, "a": [2]}), '{"a": [2], "b": 1}'),  # noqa: RUF001
    ],
)  # fmt: skip
def test_numbers_are_worded(shown, expected):
    assert shown == expected


def test_counts_and_changes_are_worded():
    counts = {999: "999", 77_860: "77.9 k", 1_021_568: "1.02 M", 2.5e9: "2.50 G", 0: "0"}
    assert {number: count(number) for number in counts} == counts
    minus = "\N{MINUS SIGN}"
    assert (change(200, 100), change(100, 150), change(7, 7)) == (f"{minus}50.0%", "+50.0%", "unchanged")
    assert (change(0, 5), change(1, 20)) == ("", "20.0\N{MULTIPLICATION SIGN}")
