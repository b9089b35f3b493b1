from xml.etree import ElementTree

from mlites.report.plots.curves import Curve, curves_plot


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
