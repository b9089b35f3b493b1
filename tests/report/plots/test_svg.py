from mlites.report.plots.svg import shorten


def test_shorten_keeps_what_fits():
    assert shorten("abc", 3) == "abc" and shorten("abcdef", 4) == "abc…"
