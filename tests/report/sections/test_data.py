import re

from mlites.report import details as module
from mlites.report.html import render
from tests.report.page import Page


def test_failed_checks_come_first_and_open(run):
    content = render(*run())
    names = re.findall(r'class="check-name">([^<]*)<', content)
    assert names == ["few duplicates", "enough rows", "labels are classes", "values in range", "no missing values"]
    assert content.index("<details open>") < content.index("few duplicates") < content.index("enough rows")
    assert "✕ 1 of 1 failed" in content and "at most 1% of the rows" in content


def test_a_huge_group_of_checks_is_cut_with_its_failures_kept(run):
    summary, details = run()
    checks = [module.Check(name="range", column=f"c{index}", success=index != 299) for index in range(300)]
    page = Page(
        render(summary, details.model_copy(update={"data": details.data.model_copy(update={"checks": checks})}))
    )
    assert "c299" in page.text and "and 200 more" in page.text
