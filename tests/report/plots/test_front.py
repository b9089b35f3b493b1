import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from mlites.report.plots.front import Point, accuracy_axis, bubble_key, front_plot


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


def test_legend_of_sizes_escapes_its_words():
    assert "&lt;b&gt;" in bubble_key([10], 10, lambda _: "<b>")
