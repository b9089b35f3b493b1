import re

from mlites.report import details as module
from mlites.report.html import render
from mlites.report.sections.candidates import rank_rows
from mlites.report.sections.passes import list_chains
from tests.report.page import Page


def chains(summary, details):
    return {one.row.candidate.name: one for one in list_chains(summary, rank_rows(summary), details.verdicts)}


def test_steps_have_the_recipes_words_and_figures_with_their_change(run):
    chain = chains(*run())["pruned-int8"]
    titles = ["teacher", "prune structured 50%", "export to ONNX", "quantize static"]
    assert [step.title for step in chain.steps] == titles
    assert chain.columns == ["Validation accuracy", "Parameters", "MACs", "Size of the file"]
    teacher, pruned, _, quantized = chain.steps
    assert [figure.shown for figure in teacher.trail] == ["99.30%", "77.8 k", "1.02 M", "–"]  # noqa: RUF001
    assert [figure.note for figure in teacher.trail] == [""] * 4
    assert [figure.shown for figure in pruned.trail[1:3]] == ["23.4 k", "306 k"]
    assert [figure.note for figure in pruned.trail[:3]] == ["−1.99 points", "−70.0%", "−70.0%"]  # noqa: RUF001
    assert (quantized.trail[3].shown, quantized.trail[3].note) == ("81.4 KiB", "−72.3%")  # noqa: RUF001


def test_what_was_measured_is_said_beside_what_was_counted(run):
    assert chains(*run())["pruned-int8"].measured == (
        "Measured: 3.04× the teacher's speed with 30.0% of its multiply-accumulates "  # noqa: RUF001
        "and 1.38× the speed of its own FP32 form."  # noqa: RUF001
    )


def test_the_page_tells_each_pass_and_opens_the_selected_chain_alone(run):
    content = render(*run())
    page = Page(content)
    assert re.findall(r'class="chain" open>\s*<summary><bdi>([^<]*)', content) == ["student-int8"]
    for words in (
        "What each pass did", "the same student without the teacher 97.22%", "gained by learning from the teacher",
        "distillation paid no", "p-value of this gain 0.40", "zeros among the weights 90.00%", "channels 112 → 64",
        "layers kept in float stem, output", "its channels are added to a shortcut", "60% ±0 points",
        "accuracy lost by pruning one layer alone", "25% (protected)", "warm up seconds 1.50 s", "something new",
    ):  # fmt: skip
        assert words in page.text, words


def test_a_teachers_own_earlier_steps_keep_their_names(run):
    summary, details = run()
    earlier = [module.Provenance(step="train"), module.Provenance(step="prune"), module.Provenance(step="quantize")]
    verdicts = [
        one.model_copy(update={"provenance": earlier, "passes": ["quantize static"]}) for one in details.verdicts
    ]
    found = chains(summary, details.model_copy(update={"verdicts": verdicts}))["int8"]
    assert [step.title for step in found.steps] == ["teacher", "prune", "quantize static"]
    assert found.columns == [] and found.told == []


def test_candidates_that_were_never_measured_have_no_passes_to_tell(failed_run):
    summary, details = failed_run
    assert sorted(chains(summary, details)) == ["int8", "int8-dynamic", "pruned"]
    assert chains(summary, module.Details()) == {}


def test_figures_of_another_kind_are_left_out_of_the_trail(run):
    summary, details = run()
    odd = [module.Provenance(step="train", metrics={"validation_accuracy": "high", "macs": True, "parameters": 7})]
    verdicts = [one.model_copy(update={"provenance": odd}) for one in details.verdicts]
    found = chains(summary, details.model_copy(update={"verdicts": verdicts}))["int8"]
    assert found.columns == ["Parameters"] and found.steps[0].trail[0].shown == "7"
