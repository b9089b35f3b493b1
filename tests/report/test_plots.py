import math
import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from mlites.report.plots import (
    Curve,
    Point,
    accuracy_axis,
    bar,
    bubble_key,
    confusion_plot,
    curves_plot,
    front_plot,
    linear_ticks,
    log_ticks,
    shorten,
)


def texts(drawn):
    return [one for one in ElementTree.fromstring(str(drawn)).iter("text")]


def points(rows):
    first = Point(0, "teacher", 1.0, None, 0.98, 1_000_000, "baseline", "the teacher")
    return [first, *rows]


def crowd(count):
    return points(
        Point(
            index + 1,
            f"candidate-{index}",
            1.5 + 0.17 * (index % 7) + 0.05 * index,
            (1.4 + 0.05 * index, 2.6 + 0.05 * index),
            0.97 + 0.0003 * (index % 11),
            20_000 + 9_000 * index,
            "selected" if index == 4 else "front" if index % 5 == 0 else "other",
            f"candidate {index}",
        )
        for index in range(count)
    )


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.9712, 0.9891), (3, 4000), (-2, 7)])
def test_linear_ticks_are_round_and_inside(low, high):
    ticks = linear_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 8 and low <= ticks[0] and ticks[-1] <= high
    steps = {round(after - before, 9) for before, after in pairwise(ticks)}
    assert len(steps) == 1
    mantissa = steps.pop() / 10 ** math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 2.5, 5)


@pytest.mark.parametrize("low, high", [(0.4, 30), (1, 2.2), (0.9, 5), (0.001, 5000)])
def test_log_ticks_are_inside_and_not_too_many(low, high):
    ticks = log_ticks(low, high, 8)
    assert 2 <= len(ticks) <= 9 and low <= ticks[0] and ticks[-1] <= high and ticks == sorted(ticks)


def test_a_collapsed_candidate_does_not_flatten_the_others():
    axis = accuracy_axis([0.99, 0.985, 0.98, 0.1], 0, 400, 8)
    assert axis(0.98) - axis(0.99) > 40  # linear would leave 4 pixels
    assert axis(0.99) < axis(0.98) < axis(0.1) <= 400
    assert all(0 <= axis(tick) <= 400 for tick in axis.ticks)


def test_accuracy_axis_never_promises_more_than_all():
    assert max(accuracy_axis([1.0, 0.999], 0, 400, 8).ticks) <= 1


@pytest.mark.parametrize("width, height, count", [(1040, 470, 8), (330, 380, 8), (330, 380, 40), (660, 430, 40)])
def test_labels_of_the_front_do_not_collide(width, height, count):
    drawn = front_plot(crowd(count), width, height, 0.972, 2.0)
    boxes = []
    for one in texts(drawn):
        if one.get("class", "").split()[0] in ("name", "limit-name"):
            wide = 5.2 * len(one.text)  # narrower than any sans-serif sets it
            start = float(one.get("x")) - {"end": wide, "middle": wide / 2}.get(one.get("text-anchor"), 0)
            boxes.append((start, start + wide, float(one.get("y"))))
            assert start >= 0 and start + wide <= width
    for (left, right, y), (other_left, other_right, other_y) in combinations(boxes, 2):
        assert right <= other_left or other_right <= left or abs(y - other_y) >= 10


@pytest.mark.parametrize("least", [1.2, 40.0])
def test_words_of_the_budget_stay_in_the_picture(least):
    drawn = front_plot(crowd(3), 330, 380, 0.97, least)
    word = next(one for one in texts(drawn) if one.text.startswith(f"≥ {least:g}"))
    assert 0 <= float(word.get("x")) <= 330 - 5.2 * len(word.text)


def test_selected_and_baseline_are_always_named():
    words = [one.text for one in texts(front_plot(crowd(40), 330, 380, None, None))]
    assert "teacher" in words and "candidate-4" in words


def test_bubbles_have_the_area_of_the_file():
    rows = [Point(i, f"c{i}", 2.0 * i, None, 0.97, size, "other", "") for i, size in ((1, 1_000_000), (2, 250_000))]
    drawn = ElementTree.fromstring(str(front_plot(points(rows), 1040, 470, None, None)))
    radii = [float(one.get("r")) for one in drawn.iter("circle")]
    assert radii[0] == pytest.approx(2 * radii[1])


def test_front_line_joins_what_nothing_beats_in_accuracy_and_speed():
    rows = [
        Point(1, "good", 4.0, None, 0.97, 10, "front", ""),
        Point(2, "beaten", 3.0, None, 0.96, 10, "other", ""),
        Point(3, "fast", 9.0, None, 0.95, 10, "front", ""),
    ]
    drawn = ElementTree.fromstring(str(front_plot(points(rows), 1040, 470, None, None)))
    path = next(one.get("d") for one in drawn.iter("path") if one.get("class") == "front-line")
    centres = [float(one.get("cx")) for one in drawn.iter("circle")]
    assert [round(float(stop)) for stop in re.findall(r"H([\d.]+)", path)] == [round(centres[0]), round(centres[2])]


def test_curves_survive_missing_and_infinite_values():
    drawn = str(
        curves_plot(
            "t",
            [1, 2, 3],
            Curve("accuracy", [None, None, None], "first"),
            [Curve("a", [2.0, float("nan"), 1.0], "first"), Curve("b", [float("inf"), None, None], "second")],
        )
    )
    assert "not recorded" in drawn and "nan" not in drawn and "inf" not in drawn


def test_one_epoch_is_a_dot():
    drawn = ElementTree.fromstring(str(curves_plot("t", [1], Curve("a", [0.5], "first"), [Curve("l", [1.0], "first")])))
    assert len(list(drawn.iter("circle"))) == 2


def test_confusion_matrix_shows_every_count():
    counts = [[30, 2, 0], [0, 31, 1], [4, 0, 12345]]
    drawn = confusion_plot("t", counts, ["cat", "dog", "a much longer name than fits"])
    words = [one.text for one in texts(drawn)]
    assert {"30", "2", "31", "1", "4", "12k"} <= set(words)
    hints = [one.text for one in ElementTree.fromstring(str(drawn)).iter("title")]
    assert "true cat, predicted dog: 2 (6.2%)" in hints and len(hints) == 6


@pytest.mark.parametrize("count", [2, 10, 13, 24, 25, 100])
def test_confusion_matrix_stays_readable(count):
    counts = [[9 if row == column else int(column == 0) for column in range(count)] for row in range(count)]
    drawn = confusion_plot("t", counts, [f"class {index}" for index in range(count)])
    assert all(float(one.get("font-size", 11)) >= 8.5 for one in texts(drawn))
    cells = [one for one in ElementTree.fromstring(str(drawn)).iter("rect") if one.get("class") in ("right", "wrong")]
    assert len(cells) == 2 * count - 1 and min(float(one.get("width")) for one in cells) > 2.5


def test_bars_stay_in_their_box():
    assert 'width="100"' in bar(7.0) and 'width="0"' in bar(-1.0) and 'width="25"' in bar(0.25, "cached")


def test_legend_of_sizes_escapes_its_words():
    assert "&lt;b&gt;" in bubble_key([10], 10, lambda _: "<b>")


def test_shorten_keeps_what_fits():
    assert shorten("abc", 3) == "abc" and shorten("abcdef", 4) == "abc…"
