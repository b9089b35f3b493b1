from mlites.report import details as module
from mlites.report.html import render
from tests.report.page import Page


def test_shared_training_is_drawn_once(run):
    summary, details = run()
    titles = [
        one["aria-label"] for one in Page(render(summary, details)).all("svg") if "losses" in one.get("aria-label", "")
    ]
    assert [title.split(":")[0] for title in titles] == ["Teacher", "Prune", "Prune", "Distill", "Distill"]


def test_an_uncomfortable_training_history_is_still_drawn(run):
    summary, details = run()
    step = module.Provenance(step="prune", history=[module.Epoch(epoch=1, train_loss=float("nan"))])
    verdicts = [one.model_copy(update={"provenance": [step]}) for one in details.verdicts]
    assert "not recorded" in Page(render(summary, details.model_copy(update={"verdicts": verdicts}))).text
