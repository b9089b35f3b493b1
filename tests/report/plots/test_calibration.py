from xml.etree import ElementTree

import pytest

from mlites.report.plots.calibration import Reliability, calibration_plot


def test_dots_lie_at_confidence_and_accuracy_with_the_area_of_their_rows():
    bins = [(25, 0.5, 0.5), (100, 0.9, 0.8)]
    drawn = ElementTree.fromstring(str(calibration_plot([Reliability("small", "first", bins)])))
    diagonal = next(one for one in drawn.iter("line") if one.get("class") == "diagonal")
    x1, y1, x2, y2 = (float(diagonal.get(key)) for key in ("x1", "y1", "x2", "y2"))
    first, second = drawn.iter("circle")
    assert float(first.get("cx")) == pytest.approx((x1 + x2) / 2, abs=0.05)
    assert float(first.get("cy")) == pytest.approx((y1 + y2) / 2, abs=0.05)
    assert float(second.get("cy")) > y1 + (y2 - y1) * 0.9, "too sure of itself lies below the diagonal"
    assert float(second.get("r")) == pytest.approx(2 * float(first.get("r")), abs=0.02)
    assert [one.text for one in drawn.iter("title")][1] == "small: 80.0% of 100 rows right, 90.0% sure"


def test_every_word_stays_in_the_picture():
    drawn = ElementTree.fromstring(str(calibration_plot([Reliability("small", "first", [(1, 1.0, 0.0)])])))
    width = float(drawn.get("viewBox").split()[2])
    for one in drawn.iter("text"):
        wide = 6.4 * len(one.text)
        start = float(one.get("x")) - {"end": wide, "middle": wide / 2}.get(one.get("text-anchor"), 0)
        assert start >= 0 and start + wide <= width, one.text
