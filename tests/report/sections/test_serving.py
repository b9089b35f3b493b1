from mlites.report.html import render
from mlites.report.summary import SweepSummary
from mlites.report.words import NOTHING
from tests.report.page import Page


def test_first_version_has_nothing_to_go_back_to(run):
    summary, details = run()
    first = summary.deployment.model_copy(update={"version": 1, "previous_version": None, "previous_release": None})
    page = Page(render(summary.model_copy(update={"deployment": first}), details))
    assert "This is the first version" in page.text and "/v2/repository/models/digits/unload" in page.text


def test_without_an_address_no_commands_are_made_up(run):
    summary, details = run()
    silent = summary.deployment.model_copy(update={"triton_url": None})
    page = Page(render(summary.model_copy(update={"deployment": silent}), details))
    assert "curl" not in page.text and "Serving" in page.text


SWEEP = {
    "arrival": {"pattern": "closed"},
    "rows_per_request": 1,
    "p95_ms": 5.0,
    "settings": [
        {"max_batch_size": 8, "max_queue_delay_us": 100, "instances": 1, "threads": 1, "callers": 8, "meets": True,
         "rows_per_second": 1905.4, "p50_ms": 1.7, "p95_ms": 3.61, "p99_ms": 8.4, "mean_batch": 2.74},
        {"max_batch_size": 32, "max_queue_delay_us": 0, "instances": 2, "threads": 1, "callers": 8, "meets": False,
         "rows_per_second": 1300.0, "p50_ms": 4.6, "p95_ms": 14.2, "p99_ms": 20.4, "mean_batch": 2.5},
        {"max_batch_size": 64, "max_queue_delay_us": 0, "instances": 1, "threads": 1, "error": "no <memory>"},
    ],
    "reason": "the highest throughput of 2 settings",
}  # fmt: skip


def swept(run, **changes):
    summary, details = run()
    sweep = SweepSummary.model_validate({**SWEEP, **changes})
    served = summary.deployment.model_copy(update={"sweep": sweep})
    return Page(render(summary.model_copy(update={"deployment": served}), details))


def test_settings_stand_in_a_table_with_the_one_in_service_first(run):
    page = swept(run)
    start = page.text.index("Settings Tried on a Triton without other callers")
    words = page.text[start : start + 900]
    assert "callers that ask again when they are answered (8 at once), 1 row each" in words
    assert "the 95th percentile may be 5.00 ms. Chosen: the highest throughput of 2 settings." in words
    assert words.index("8 rows in service 100 µs 1 1 1.91 k rows/s 1.70 ms 3.61 ms 8.40 ms 2.7 ✓ within") < words.index(
        "32 rows 0 µs 2 1 1.30 k rows/s 4.60 ms 14.2 ms 20.4 ms 2.5 ✕ beyond"
    )
    assert f"64 rows 0 µs 1 1 {' '.join(5 * [NOTHING])} not loaded" in words
    assert {"title": "no <memory>"} in page.all("span")


def test_independent_callers_are_told_by_their_rate(run):
    page = swept(run, arrival={"pattern": "poisson", "rate_per_second": 200}, rows_per_request=4, p95_ms=None)
    assert "200 requests a second from independent callers, 4 rows each. Chosen" in page.text


def test_without_a_sweep_there_is_no_table(run):
    assert "Tried on a Triton" not in Page(render(*run())).text
