from xml.etree import ElementTree

import pytest

from mlites.report.plots.spans import Span, spans_plot

SPANS = [
    Span("shirt", 4.0, (1.0, 7.0), True, "9 of 90", "shirt lost 4 points"),
    Span("coat", -2.0, None, False, "1 of 90", "coat won 2 points"),
]


def draw(spans=SPANS, limit=2.0, width=660):
    return ElementTree.fromstring(str(spans_plot("losses", spans, limit, "points", width)))


def test_values_intervals_and_limit_share_one_axis():
    drawn = draw()
    first, second = drawn.iter("g")
    (bar,), (limit,) = first.iter("line"), [one for one in drawn.iter("line") if one.get("class") == "limit"]
    low, value, high = (float(one) for one in (bar.get("x1"), first.find("circle").get("cx"), bar.get("x2")))
    at = float(limit.get("x1"))
    scale = (high - low) / 6
    assert value == pytest.approx((low + high) / 2, abs=0.05)
    assert at == pytest.approx(value - 2 * scale, abs=0.05)
    assert float(second.find("circle").get("cx")) == pytest.approx(value - 6 * scale, abs=0.05)
    assert second.find("line") is None
    assert (first.find("circle").get("class"), second.find("circle").get("class")) == ("wrong", "right")


def test_without_a_limit_there_is_none_and_zero_is_marked():
    drawn = draw(limit=None)
    assert not [one for one in drawn.iter("line") if one.get("class") == "limit"]
    assert len([one for one in drawn.iter("line") if one.get("class") == "axis"]) == 1


@pytest.mark.parametrize("width", [330, 660, 1040])
def test_long_names_are_cut_and_stay_in_the_picture(width):
    spans = [Span("a very long name of a class of things", 0.0, None, False, "−12 +10 of 1000", "")]  # noqa: RUF001
    for one in draw(spans, width=width).iter("text"):
        wide = 5.2 * len(one.text)
        start = float(one.get("x")) - {"end": wide, "middle": wide / 2}.get(one.get("text-anchor"), 0)
        assert start >= 0 and start + wide <= width, one.text
