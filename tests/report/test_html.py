import base64
import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest

from mlites.report import details as module
from mlites.report import html
from mlites.report.details import Details
from mlites.report.html import render
from mlites.report.summary import CandidateSummary, Nearest, Summary
from tests.report.page import Page

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{ 7*7 }}\x00\x1b\ud800&#x202e;"


SHAPES = ["deployed", "rejected", "failed", "broken", "one", "forty", "hundred"]


@pytest.fixture(params=SHAPES)
def shape(request, run, failed_run, many):
    return {
        "deployed": run,
        "rejected": lambda: run("rejected"),
        "failed": lambda: failed_run,
        "broken": lambda: run("rejected", broken=3),
        "one": lambda: run(candidates=many(1), classes=["cat", "dog"]),
        "forty": lambda: run(candidates=many(40)),
        "hundred": lambda: run(classes=[f"class number {index}" for index in range(100)]),
    }[request.param]()


def test_page_is_well_formed_and_self_contained(shape):
    content = render(*shape)
    page = Page(content)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "img", "base", "form"} == set()
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "style", "data", "action"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", content, re.S)[1]
    assert "url(" not in style and "@import" not in style and "<" not in style
    assert "&lt;svg" not in content and "Undefined" not in content


def test_policy_allows_the_one_style_sheet_and_nothing_else(run):
    content = render(*run())
    style = re.search(r"<style>(.*?)</style>", content, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(one["content"] for one in Page(content).all("meta") if "http-equiv" in one)
    assert f"style-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert "unsafe" not in policy and "script-src" not in policy


def test_headings_anchors_and_pictures_can_be_followed_without_eyes(shape):
    page = Page(render(*shape))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["href"][1:] for one in page.all("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(one.get("aria-label") or one.get("aria-hidden") for one in page.all("svg"))
    assert all(one.get("scope") in ("col", "row") for one in page.all("th"))
    assert all(one.get("aria-labelledby") in ids for one in page.all("section"))


def test_equal_input_gives_equal_bytes_also_from_a_file(shape):
    summary, details = shape
    again = Summary.model_validate_json(json.dumps(summary.model_dump(mode="json")))
    stored = Details.model_validate_json(json.dumps(details.model_dump(mode="json")))
    assert render(summary, details) == render(again, stored) == render(summary, details)


def rows(content):
    """Candidate -> numbers of its row, in the order of the columns."""
    found = {}
    for row in re.findall(r'<tr role="row" class="candidate.*?</tr>', content, re.S):
        name = re.search(r'data-candidate="([^"]*)"', row)[1]
        found[name] = [float(value) for value in re.findall(r'<data value="([^"]*)"', row)]
    return found


def test_table_holds_every_candidate_with_the_summarys_numbers(shape):
    summary, details = shape
    table = rows(render(summary, details))
    assert set(table) == {one.name for one in summary.candidates}
    for one in summary.candidates:
        latency = one.latency_ms.p95 if one.latency_ms else None
        fewer = summary.baseline.macs / one.macs if one.macs else None
        expected = [one.accuracy, one.speedup, fewer, latency, one.size_bytes, one.peak_memory_bytes]
        assert table[one.name] == [value for value in expected if value is not None]


def test_a_rejected_run_says_that_nothing_changed_and_why(run):
    page = Page(render(*run("rejected")))
    assert "Rejected Nothing was deployed; what Triton served before, it still serves." in page.text
    assert "speed-up 7.2x is below 40x" in page.text and "the budget asks for 40x" in page.text
    assert "Call it" not in page.text and "Take it back" not in page.text


def test_candidates_that_could_not_be_judged_are_listed_with_their_error(run):
    page = Page(render(*run(broken=2)))
    assert "2 candidates could not be judged. broken-0 failed at validate: model.onnx: not an ONNX file" in page.text
    assert page.text.count("✕ failed") == 2


def test_marks_of_the_machine_stand_at_the_top_once_and_in_the_provenance(run):
    page = Page(render(*run()))
    mark = "other processes took 12% of the cores' time while this was measured"
    assert page.text.count(mark) == 2
    assert page.text.index(mark) < page.text.index("Accuracy, speed and size")
    for words in ("server-1core, provider cpu, 1 thread, batch 1", "12.0% of the cores' time while measured"):
        assert words in page.text


def test_marks_that_differ_in_a_percentage_alone_are_one_line_at_the_top(run):
    summary, details = run()
    busy = [
        one.model_copy(update={"marks": [f"busy machine: others took {share}%"]})
        for one, share in zip(summary.candidates, range(20, 80, 7), strict=False)
    ]
    page = Page(render(summary.model_copy(update={"candidates": busy}), details))
    assert page.text.count(f"others took 20% to {20 + 7 * (len(busy) - 1)}%") == 2


def test_a_mark_that_not_all_candidates_share_stands_in_the_row_too(run):
    summary, details = run()
    first = summary.candidates[0].model_copy(update={"marks": [*summary.candidates[0].marks, "lacks avx512_vnni"]})
    page = Page(render(summary.model_copy(update={"candidates": [first, *summary.candidates[1:]]}), details))
    assert page.text.count("lacks avx512_vnni") == 3


def test_a_failed_run_says_what_failed_and_where(failed_run):
    page = Page(render(*failed_run))
    assert "Failed The run stopped at the step validate-pruned-int8" in page.text
    assert "MemoryError: cannot allocate 12.0 GiB" in page.text
    assert page.text.count("not measured") == 5 and page.text.count("not judged") == 3
    assert "✕ failed" in page.text


def test_a_run_that_knows_nothing_has_a_page(failed_run):
    summary, _ = failed_run
    empty = summary.model_copy(
        update={"candidates": [CandidateSummary(name="a", passes=["quantize static"])], "baseline": None, "data": None}
        | {"environment": None, "steps": [], "failed_step": None, "error": None}
    )
    page = Page(render(empty, Details()))
    assert "Failed The run stopped. Below" in page.text and "No checks were recorded." in page.text
    assert "Nothing about the data is known" in page.text


def test_hostile_text_stays_text(run):
    summary, details = run(classes=[HOSTILE, "b"])
    candidates = [one.model_copy(update={"reasons": [HOSTILE], "warnings": [HOSTILE]}) for one in summary.candidates]
    candidates[0] = candidates[0].model_copy(update={"name": HOSTILE, "passes": [HOSTILE]})
    environment = summary.environment.model_copy(update={"cpu": HOSTILE, "packages": {HOSTILE: HOSTILE}})
    deployment = summary.deployment.model_copy(
        update={"model": HOSTILE, "triton_url": f"http://{HOSTILE}", "repository": HOSTILE, "grpc_url": HOSTILE}
    )
    line = {"line": HOSTILE, "value": 1.0, "limit": 2.0, "unit": HOSTILE, "verdict": "fail", "note": HOSTILE}
    operators = [{"name": HOSTILE, "op_type": HOSTILE, "share": 0.5, "us": 1.0, "hint": HOSTILE}]
    energy = {"millijoules": 1.0, "kind": "estimated", "source": HOSTILE}
    added = CandidateSummary.model_validate(
        {"name": HOSTILE, "passes": [HOSTILE], "lines": [line], "operators": operators, "energy": energy}
        | {"marks": [HOSTILE], "failed": {"step": HOSTILE, "error": HOSTILE}}
    )
    taken = ("lines", "operators", "energy", "marks", "failed")
    candidates[0] = candidates[0].model_copy(update={key: getattr(added, key) for key in taken})
    nearest = [{"line": HOSTILE, "sentence": HOSTILE}]
    summary = summary.model_copy(update={"nearest": [Nearest.model_validate(one) for one in nearest]})
    summary = summary.model_copy(
        update={"run": HOSTILE, "recipe": HOSTILE, "selected": HOSTILE, "reason": HOSTILE, "candidates": candidates}
        | {"environment": environment, "deployment": deployment}
        | {"steps": [one.model_copy(update={"name": HOSTILE}) for one in summary.steps]}
    )
    check = {"name": HOSTILE, "column": HOSTILE, "success": False, "observed": {HOSTILE: HOSTILE}, "rule": HOSTILE}
    data = details.data.model_copy(update={"source": HOSTILE, "checks": [module.Check.model_validate(check)]})
    layers = {HOSTILE: {"rate": 0.5, "drops_points": [1.0]}}
    metrics = {
        HOSTILE: HOSTILE, "kept_whole": {HOSTILE: HOSTILE}, "ranks": [[HOSTILE]], "rounds": [{HOSTILE: HOSTILE}],
        "sensitivity": {"probed_rates": [0.5], "layers": layers}, "layers_kept_float": [HOSTILE] * 20,
        "validation_accuracy": 0.9,
    }  # fmt: skip
    step = module.Provenance(step=HOSTILE, options={"method": HOSTILE}, metrics=metrics)
    verdicts = [one.model_copy(update={"candidate": HOSTILE, "provenance": [step]}) for one in details.verdicts[:1]]
    details = details.model_copy(
        update={"recipe_yaml": HOSTILE, "git_commit": HOSTILE, "data": data, "verdicts": verdicts}
    )
    for status in ("deployed", "rejected", "failed"):
        content = render(
            summary.model_copy(update={"status": status, "error": HOSTILE, "failed_step": HOSTILE}), details
        )
        page = Page(content)
        assert not page.all("script") and not page.all("img") and len(page.all("style")) == 1
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert "{{ 7*7 }}" in page.text and "alert(1)" in page.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", content)
        content.encode()


def test_names_as_long_as_they_may_be_are_shown_whole(run, many):
    name = "a" * 63
    summary, details = run(candidates=[(name, *many(1)[0][1:])], classes=["x" * 90, "y"])
    page = Page(render(summary, details))
    assert name in page.text and "x" * 90 in page.text


def test_many_trainings_and_steps_are_folded_away(run, many):
    summary, details = run(candidates=many(40))
    steps = [step.model_copy(update={"name": f"s{index}"}) for index, step in enumerate(summary.steps * 3)]
    page = Page(render(summary.model_copy(update={"steps": steps}), details))
    assert "32 more" in page.text and f"All {len(steps)}, in order" in page.text


def luminance(colour):
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_the_contrast_of_wcag_aa(dark):
    css = Path(html.__file__).with_name("report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[int(dark)]))
    pairs = [(text, ground) for text in ("ink", "soft", "accent", "good", "bad", "warn") for ground in ("page", "card")]
    pairs += [("good", "good-soft"), ("bad", "bad-soft"), ("accent", "accent-soft"), ("soft", "trough")]
    pairs += [("ink", "code"), ("soft", "good-soft"), ("ink", "good-soft"), ("on", "good"), ("bad", "good-soft")]
    pairs += [("warn", "warn-soft"), ("warn", "good-soft")]
    for text, ground in pairs:
        light, deep = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, (text, ground)
