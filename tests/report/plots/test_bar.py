from mlites.report.plots.bar import bar


def test_bars_stay_in_their_box():
    assert 'width="100"' in bar(7.0) and 'width="0"' in bar(-1.0) and 'width="25"' in bar(0.25, "cached")
