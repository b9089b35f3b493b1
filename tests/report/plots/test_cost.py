from itertools import combinations
from xml.etree import ElementTree

import pytest

from mlites.report.plots.cost import CostPoint, cost_plot


def points(*rows):
    first = CostPoint(0, "teacher", 1.0, 1.0, None, "baseline", "the teacher")
    made = [
        CostPoint(index, f"candidate-{index}", fewer, speedup, (speedup * 0.9, speedup * 1.1), kind, f"hint {index}")
        for index, (fewer, speedup, kind) in enumerate(rows, 1)
    ]
    return [first, *made]


def diagonal(drawn):
    (found,) = [one for one in drawn.iter("line") if one.get("class") == "diagonal"]
    return [tuple(float(found.get(key)) for key in pair) for pair in (("x1", "y1"), ("x2", "y2"))]


@pytest.mark.parametrize("width, height", [(1040, 400), (660, 400), (330, 360)])
def test_a_model_as_much_faster_as_it_computes_less_lies_on_the_diagonal_and_others_off_it(width, height):
    rows = [(8.0, 8.0, "front"), (8.0, 2.0, "other"), (2.0, 8.0, "selected")]
    drawn = ElementTree.fromstring(str(cost_plot(points(*rows), width, height)))
    (left, low), (right, high) = diagonal(drawn)
    centres = {
        group.find("title").text: [float(group.findall("circle")[-1].get(key)) for key in ("cx", "cy")]
        for group in drawn.iter("g")
        if group.find("circle") is not None
    }
    height_at = {name: low + (high - low) * (x - left) / (right - left) - y for name, (x, y) in centres.items()}
    assert height_at["hint 1"] == pytest.approx(0, abs=0.1)
    assert height_at["hint 2"] < -20 and height_at["hint 3"] > 20


def test_equal_ratios_are_equal_distances_on_both_axes():
    rows = [(2.0, 3.0, "other"), (4.0, 9.0, "other"), (8.0, 27.0, "other")]
    drawn = ElementTree.fromstring(str(cost_plot(points(*rows), 1040, 400)))
    for key in ("cx", "cy"):
        places = sorted(float(one.get(key)) for one in drawn.iter("circle"))
        assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.05)


def test_intervals_are_drawn_at_their_ends():
    drawn = ElementTree.fromstring(str(cost_plot(points((4.0, 2.0, "other")), 1040, 400)))
    (bar,) = [one for one in drawn.iter("line") if one.get("class") == "interval"]
    (circle,) = drawn.iter("circle")
    assert bar.get("x1") == bar.get("x2") == circle.get("cx")
    assert float(bar.get("y2")) < float(circle.get("cy")) < float(bar.get("y1"))


@pytest.mark.parametrize("width, height, count", [(1040, 400, 8), (330, 360, 8), (330, 360, 40), (660, 400, 40)])
def test_labels_do_not_collide_and_the_chosen_one_is_named(width, height, count):
    rows = [(1.0 + 0.3 * (index % 9), 0.6 + 0.2 * (index % 13), "other") for index in range(count)]
    rows[3] = (*rows[3][:2], "selected")
    drawn = ElementTree.fromstring(str(cost_plot(points(*rows), width, height)))
    boxes = []
    for one in drawn.iter("text"):
        if one.get("class", "").split()[0] == "name":
            wide = 5.2 * len(one.text)  # narrower than any sans-serif sets it
            start = float(one.get("x")) - {"end": wide, "middle": wide / 2}.get(one.get("text-anchor"), 0)
            boxes.append((start, start + wide, float(one.get("y"))))
            assert start >= 0 and start + wide <= width
    for (left, right, y), (other_left, other_right, other_y) in combinations(boxes, 2):
        assert right <= other_left or other_right <= left or abs(y - other_y) >= 10
    assert "candidate-4" in [one.text for one in drawn.iter("text")]


def test_the_picture_tells_its_points_without_eyes():
    drawn = ElementTree.fromstring(str(cost_plot(points((4.0, 2.0, "other")), 1040, 400)))
    assert drawn.get("aria-label") == "Measured speed against multiply-accumulates saved. hint 1."
