from mlites.report.html import render
from mlites.report.sections.candidates import rank_rows
from mlites.report.sections.running import COLUMNS, list_runs, list_throughputs, not_narrow
from tests.report.page import Page


def shown(summary, name):
    (one,) = [one for one in list_runs(summary, rank_rows(summary)) if one.name == name]
    return dict(zip(COLUMNS, one.figures, strict=True))


def test_figures_stand_with_their_intervals_and_energy_with_its_label(run):
    summary, _ = run()
    found = shown(summary, "student-int8")
    assert (found["Latency p50"].shown, found["Latency p50"].notes) == ("18.2 µs", ("17.7 µs to 18.7 µs",))
    assert found["Throughput"].notes[1] == "batch 8, 2 streams"
    assert (found["Energy"].shown, found["Energy"].notes) == ("209 µJ", ("estimated",))
    assert found["Cold start"].notes == ("load 4.46 ms", "first 255 µs")


def test_the_source_of_the_energy_is_told_once(run):
    text = Page(render(*run())).text
    assert text.count("Energy estimated: 11.5 W of one busy core times the latency.") == 1


def test_what_was_not_measured_is_a_dash(run):
    summary, details = run()
    bare = dict.fromkeys(("energy", "cold_start_ms", "latency_interval_ms", "roofline"))
    empty = {"throughput": [], "operators": [], "per_class": [], "class_drops": [], "lines": []}
    candidates = [one.model_copy(update=bare | empty) for one in summary.candidates]
    old = summary.model_copy(update={"candidates": candidates})
    found = shown(old, "int8")
    assert [found[name].shown for name in ("Throughput", "Cold start", "Energy")] == ["–"] * 3  # noqa: RUF001
    assert found["Latency p50"].notes == ()
    Page(render(old, details))


def test_every_batch_size_and_number_of_streams_is_in_the_table(run):
    summary, _ = run()
    table = list_throughputs(summary, rank_rows(summary))
    assert table["kinds"] == ["batch 1, 1 stream", "batch 8, 1 stream", "batch 8, 2 streams", "batch 32, 1 stream"]
    assert [name for name, _ in table["rows"]][:2] == ["baseline", "student-int8"]


def test_candidates_whose_interval_stayed_wide_are_named(run):
    summary, details = run()
    assert not_narrow(summary.candidates) == ["sparse"]
    assert "The speed of sparse is less certain than the profile asks" in Page(render(summary, details)).text
