from itertools import pairwise
from xml.etree import ElementTree

import pytest

from mlites.report.plots.parallel import Strand, Trait, parallel_plot

STRANDS = [
    Strand(0, "teacher", "baseline", "the teacher"),
    Strand(1, "small", "selected", "small: 4x"),
    Strand(2, "large", "other", "large"),
]


def draw(traits, strands=STRANDS, width=1040, height=380):
    return ElementTree.fromstring(str(parallel_plot(strands, traits, width, height)))


def trait(name, *values, logarithmic=True):
    return Trait(name, lambda value: f"{value:g}x", values, logarithmic)


def strand_of(drawn, hint):
    return next(one for one in drawn.iter("g") if one.find("title").text == hint)


def test_better_is_up_on_every_axis_and_equal_ratios_are_equal_distances():
    drawn = draw([trait("accuracy", 0.9, 0.8, 0.95, logarithmic=False), trait("speed", 1, 4, 2)])
    heights = {
        hint: [float(dot.get("cy")) for dot in strand_of(drawn, hint).iter("circle")]
        for hint in ("the teacher", "small: 4x", "large")
    }
    assert heights["large"][0] < heights["the teacher"][0] < heights["small: 4x"][0]
    assert heights["small: 4x"][1] < heights["large"][1] < heights["the teacher"][1]
    gaps = [
        before[1] - after[1]
        for before, after in pairwise(heights[key] for key in ("the teacher", "large", "small: 4x"))
    ]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.05)


def test_the_ends_of_each_axis_tell_the_best_and_the_worst():
    words = [one.text for one in draw([trait("speed", 1, 4, 2), trait("size", 1, 8, 3)]).iter("text")]
    assert {"speed", "size", "4x", "1x", "8x"} <= set(words)


def test_a_figure_that_is_missing_leaves_a_gap_and_nothing_else():
    traits = [trait("a", 1, 2, 3), trait("b", 1, None, 3), trait("c", 1, 2, 3), trait("d", 1, 2, 3)]
    drawn = draw(traits)
    gap = strand_of(drawn, "small: 4x")
    assert len(list(gap.iter("circle"))) == 3
    (piece,) = gap.iter("polyline")
    assert len(piece.get("points").split()) == 2
    unknown = draw([trait("a", 1, 2, 3), trait("b", None, None, None)])
    assert len(list(strand_of(unknown, "large").iter("circle"))) == 1


def test_models_that_are_all_equal_are_drawn_in_the_middle():
    drawn = draw([trait("a", 2, 2, 2), trait("b", 1, 2, 3)])
    assert {
        dot.get("cy") for hint in ("large", "small: 4x") for dot in list(strand_of(drawn, hint).iter("circle"))[:1]
    } == {"200"}


@pytest.mark.parametrize("width, count", [(1040, 8), (660, 40), (330, 8), (330, 40)])
def test_names_beside_the_plot_do_not_collide_and_stay_inside(width, count):
    strands = [STRANDS[0]] + [
        Strand(
            index,
            f"candidate-{index}",
            "selected" if index == 3 else "front" if index % 2 else "other",
            f"hint {index}",
        )
        for index in range(1, count + 1)
    ]
    values = [1.0 + 0.01 * (index % 7) for index in range(count + 1)]
    drawn = draw([trait("accuracy", *values), trait("speed", *values)], strands, width)
    names = [one for one in drawn.iter("text") if one.get("class").startswith("name")]
    downs = sorted(float(one.get("y")) for one in names)
    assert all(after - before >= 14.9 for before, after in pairwise(downs))
    assert all(0 < down <= 380 for down in downs)
    assert all(float(one.get("x")) + 5.2 * len(one.text) <= width for one in names)
    shown = [one.text for one in names]
    assert ("3" if width < 400 else "candidate-3") in shown and ("base" if width < 400 else "teacher") in shown
