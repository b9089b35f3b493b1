from xml.etree import ElementTree

import pytest

from mlites.report.plots.confusion import confusion_plot


def texts(drawn):
    return [one for one in ElementTree.fromstring(str(drawn)).iter("text")]


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
