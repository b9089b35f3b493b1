"""The lint finds what kfp.local computes wrongly and lets pass what it computes rightly."""

from pathlib import Path
from typing import Any, List  # noqa: UP035

import pytest
import yaml
from kfp import compiler, dsl

from pipelines.lint import lint


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def flag() -> bool:
    return True


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def number() -> float:
    return 1.0


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def text() -> str:
    return "it's"


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def items() -> List[str]:  # noqa: UP006
    return ["a"]


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def use(item: str, other: str = "") -> str:
    return item + other


@dsl.container_component
def shell():  # type: ignore[no-untyped-def]
    return dsl.ContainerSpec(image="busybox", command=["true"])


def _compiled(pipeline: Any, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    spec: dict[str, Any] = next(yaml.safe_load_all(path.read_text()))
    return spec


def test_a_bool_condition_with_both_branches_passes(tmp_path: Path) -> None:
    @dsl.pipeline(name="good")
    def pipeline() -> None:
        with dsl.If(flag().output == True):  # noqa: E712
            first = use(item="a")
        with dsl.Else():
            second = use(item="b")
        use(item=dsl.OneOf(first.output, second.output))

    assert lint(_compiled(pipeline, tmp_path)) == []


@pytest.mark.parametrize(("component", "value"), [(number, 1), (text, "it's")])
def test_a_condition_on_a_number_or_a_text_is_refused(tmp_path: Path, component: Any, value: object) -> None:
    @dsl.pipeline(name="bad")
    def pipeline() -> None:
        with dsl.If(component().output == value):
            use(item="a")

    (fault,) = lint(_compiled(pipeline, tmp_path))
    assert "return a bool" in fault and "condition-1" in fault


def test_an_outer_parameter_in_a_loop_is_refused(tmp_path: Path) -> None:
    @dsl.pipeline(name="bad")
    def pipeline() -> None:
        outer = text()
        with dsl.ParallelFor(items().output) as item:
            use(item=item, other=outer.output)

    (fault,) = lint(_compiled(pipeline, tmp_path))
    assert "loop item" in fault and "text" in fault


def test_a_loop_over_its_items_alone_passes(tmp_path: Path) -> None:
    @dsl.pipeline(name="good")
    def pipeline() -> None:
        with dsl.ParallelFor(items().output) as item:
            use(item=item)

    assert lint(_compiled(pipeline, tmp_path)) == []


def test_a_container_component_is_refused(tmp_path: Path) -> None:
    @dsl.pipeline(name="bad")
    def pipeline() -> None:
        shell()

    (fault,) = lint(_compiled(pipeline, tmp_path))
    assert "exec-shell" in fault and "Python component" in fault


def test_a_remote_pipeline_root_is_refused(tmp_path: Path) -> None:
    @dsl.pipeline(name="bad", pipeline_root="s3://bucket/root")
    def pipeline() -> None:
        flag()

    (fault,) = lint(_compiled(pipeline, tmp_path))
    assert "pipeline root" in fault
