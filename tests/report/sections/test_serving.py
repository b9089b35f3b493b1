from mlites.report.html import render
from tests.report.page import Page


def test_first_version_has_nothing_to_go_back_to(run):
    summary, details = run()
    first = summary.deployment.model_copy(update={"version": 1, "previous_version": None})
    page = Page(render(summary.model_copy(update={"deployment": first}), details))
    assert "This is the first version" in page.text and "/v2/repository/models/digits/unload" in page.text


def test_without_an_address_no_commands_are_made_up(run):
    summary, details = run()
    silent = summary.deployment.model_copy(update={"triton_url": None})
    page = Page(render(summary.model_copy(update={"deployment": silent}), details))
    assert "curl" not in page.text and "Serving" in page.text
