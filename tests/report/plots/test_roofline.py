import math
from itertools import combinations
from xml.etree import ElementTree

import pytest

from mlites.report.plots.roofline import Roof, RooflinePoint, Slope, roofline_plot

ROOFS = [Roof("INT8 peak", 640.0), Roof("FP32 peak", 50.0)]
SLOPES = [Slope("from memory", 12.5)]


def point(number, intensity, rate, kind="other"):
    return RooflinePoint(number, f"candidate-{number}", intensity, rate, kind, f"hint {number}")


def draw(points, width=1040, height=430):
    return ElementTree.fromstring(str(roofline_plot(points, ROOFS, SLOPES, width, height)))


def lines(drawn):
    return [
        [float(one.get(key)) for key in ("x1", "y1", "x2", "y2")]
        for one in drawn.iter("line")
        if one.get("class") == "roof"
    ]


def centres(drawn):
    return {
        group.find("title").text: tuple(float(group.findall("circle")[-1].get(key)) for key in ("cx", "cy"))
        for group in drawn.iter("g")
    }


@pytest.mark.parametrize("width, height", [(1040, 430), (660, 420), (330, 380)])
def test_a_model_at_its_limit_lies_on_the_roof_and_others_below(width, height):
    at_slope, at_ceiling, below = point(1, 2.0, 25.0), point(2, 40.0, 50.0), point(3, 2.0, 5.0)
    drawn = draw([at_slope, at_ceiling, below], width, height)
    (x1, y1, x2, y2), *ceilings = lines(drawn)
    places = centres(drawn)
    across, down = places["hint 1"]
    assert down == pytest.approx(y1 + (y2 - y1) * (across - x1) / (x2 - x1), abs=0.2)
    assert places["hint 2"][1] == pytest.approx(ceilings[1][1], abs=0.1)
    assert places["hint 3"][1] > places["hint 1"][1] + 20


def test_ceilings_begin_where_bandwidth_reaches_them():
    drawn = draw([point(1, 4.0, 10.0), point(2, 51.2, 10.0)])  # 4 MACs a byte give 50 GMAC/s, 51.2 give 640
    _, *ceilings = lines(drawn)
    places = centres(drawn)
    assert ceilings[1][0] == pytest.approx(places["hint 1"][0], abs=0.1)
    assert ceilings[0][0] == pytest.approx(places["hint 2"][0], abs=0.1)


@pytest.mark.parametrize("width, count", [(1040, 8), (660, 30), (330, 8), (330, 30)])
def test_words_do_not_collide_and_the_chosen_one_is_named(width, count):
    points = [point(index, 1.5 ** (index % 6), 0.4 * 1.4 ** (index % 9)) for index in range(1, count + 1)]
    points[3] = point(4, 3.0, 7.0, "selected")
    boxes = []
    for one in draw(points, width, 400).iter("text"):
        if one.get("class").split()[0] in ("name", "roof-name") and not one.get("transform"):
            wide = 5.2 * len(one.text)
            start = float(one.get("x")) - {"end": wide, "middle": wide / 2}.get(one.get("text-anchor"), 0)
            boxes.append((start, start + wide, float(one.get("y")), one.text))
            assert start >= 0 and start + wide <= width, one.text
    for (left, right, y, _), (other_left, other_right, other_y, _) in combinations(boxes, 2):
        assert right <= other_left or other_right <= left or abs(y - other_y) >= 10
    assert "candidate-4" in [words for *_, words in boxes]


def test_both_axes_are_logarithmic():
    places = centres(draw([point(1, 1.0, 1.0), point(2, 10.0, 10.0), point(3, 100.0, 100.0)]))
    steps = [math.dist(places[f"hint {index}"], places[f"hint {index + 1}"]) for index in (1, 2)]
    assert steps[0] == pytest.approx(steps[1], abs=0.1)


def test_a_faster_cache_is_a_higher_slope_along_which_its_name_runs():
    slopes = [Slope("from memory", 12.5), Slope("from cache", 50.0)]
    drawn = ElementTree.fromstring(str(roofline_plot([point(1, 2.0, 5.0)], ROOFS, slopes, 1040, 430)))
    memory, cache, *_ = lines(drawn)
    angles = [math.atan2(y2 - y1, x2 - x1) for x1, y1, x2, y2 in (memory, cache)]
    assert angles[0] == pytest.approx(angles[1], abs=1e-3)
    assert cache[2] < memory[2], "the cache reaches the ceiling with fewer operations a byte"
    names = {one.text: one.get("transform") for one in drawn.iter("text") if one.get("transform")}
    assert set(names) == {"from memory, 12.5 GB/s", "from cache, 50 GB/s"}
    assert f"rotate({math.degrees(angles[1]):.2f})" in names["from cache, 50 GB/s"]
