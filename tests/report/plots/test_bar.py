from xml.etree import ElementTree

import pytest

from mlites.report.plots.bar import bar, bullet


def test_bars_stay_in_their_box():
    assert 'width="100"' in bar(7.0) and 'width="0"' in bar(-1.0) and 'width="25"' in bar(0.25, "cached")


@pytest.mark.parametrize(
    ("value", "limit", "least", "kind"),
    [(3.0, 4.0, False, "right"), (5.0, 4.0, False, "wrong"), (5.0, 4.0, True, "right"), (3.0, 4.0, True, "wrong")],
)
def test_a_value_lies_on_its_side_of_the_limit(value, limit, least, kind):
    drawn = ElementTree.fromstring(bullet(value, (value - 0.5, value + 0.5), limit, least))
    dot, (wall, span) = drawn.find("circle"), drawn.iter("line")
    assert dot.get("class") == kind
    assert (float(dot.get("cx")) > float(wall.get("x1"))) == (value > limit)
    assert float(span.get("x1")) < float(dot.get("cx")) < float(span.get("x2"))


@pytest.mark.parametrize(("value", "limit"), [(0.0, 0.0), (-3.0, 0.0), (-2.0, 5.0), (1e9, 1e-3), (0.0, 4.0)])
def test_a_value_far_off_stays_in_the_picture(value, limit):
    drawn = ElementTree.fromstring(bullet(value, None, limit, False))
    assert 0 <= float(drawn.find("circle").get("cx")) <= 120
    assert all(float(one.get("width")) >= 0 for one in drawn.iter("rect"))
