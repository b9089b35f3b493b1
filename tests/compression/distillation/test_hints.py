"""The student's middle predicts the teacher's middle, whatever their shapes."""

import numpy as np
import pytest
import torch

from mlites.compression.distillation.features import Layer, Trace, trace
from mlites.compression.distillation.hints import compare_hints, hint_loss
from mlites.models.build import build_model
from mlites.recipe import MLP, ResNet
from tests.compression.distillation.networks import Transformer


def traced(family: str, **options: object) -> Trace:
    architecture = {"resnet": ResNet, "mlp": MLP}[family].model_validate({"family": family, **options})
    return trace(build_model(architecture, (1, 8, 8), 3), torch.randn(2, 1, 8, 8), "student")


def test_loss_is_the_mean_squared_difference() -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 4, 3, 2, 2))
    found = hint_loss([torch.tensor(ours)], [torch.tensor(theirs)])
    assert float(found) == pytest.approx(((ours - theirs) ** 2).sum() / ours.size, rel=1e-12)


def test_middle_block_meets_the_teachers_middle_block_of_its_size() -> None:
    """blocks.3 ends after 20 of the teacher's 43 layers with weights, blocks.4 after 24."""
    comparison = compare_hints(traced("resnet", depth=20, width=8), traced("resnet", depth=8, width=4))
    assert [tap.layer for tap in comparison.student + comparison.teacher] == ["blocks.1", "blocks.3"]
    regressor = comparison.student_views[0]
    assert regressor(torch.randn(5, 8, 4, 4)).shape == (5, 16, 4, 4)
    assert sum(parameter.numel() for parameter in regressor.parameters()) == 8 * 16 + 2 * 16
    assert not list(comparison.teacher_views.parameters())


def test_regressor_can_express_the_teachers_map_when_it_is_a_mix_of_the_students() -> None:
    """Trained alone on a linear mix of the student's channels, its loss goes to nothing."""
    regressor = (
        compare_hints(traced("resnet", depth=20, width=8), traced("resnet", depth=8, width=4)).student_views[0].train()
    )
    maps, mix = torch.randn(64, 8, 4, 4), torch.randn(16, 8)
    target = torch.einsum("oc,nchw->nohw", mix, maps)
    optimizer = torch.optim.Adam(regressor.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = hint_loss([regressor(maps)], [target])
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3 * float(target.var())


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [
        ((4, 8, 8), (6, 4, 4), (6, 4, 4)),
        ((4, 4, 2), (6, 8, 8), (6, 4, 2)),
        ((5,), (6, 4, 4), (6,)),
        ((4, 4, 4), (7,), (7,)),
        ((8, 4), (8, 6), (8, 6)),
        ((8, 4), (5, 6), (6,)),
        ((8, 4), (6, 4, 4), (6,)),
    ],
)
def test_any_two_shapes_meet(ours: tuple[int, ...], theirs: tuple[int, ...], met: tuple[int, ...]) -> None:
    student, teacher = (Trace("network", 3, (Layer("one", shape, False, 0.5),), None) for shape in (ours, theirs))
    comparison = compare_hints(teacher, student)
    (view,), (other) = comparison.student_views, comparison.teacher_views[0]
    assert view(torch.randn(3, *ours)).shape == other(torch.randn(3, *theirs)).shape == (3, *met)


def test_middle_of_an_mlp_and_of_a_transformer_are_inner_layers() -> None:
    transformer = trace(Transformer(), torch.randn(2, 1, 8, 8), "teacher")
    comparison = compare_hints(transformer, traced("mlp", hidden=(16, 8, 8)))
    assert [tap.layer for tap in comparison.student + comparison.teacher] == ["hidden.1", "blocks.0"]
    assert comparison.student_views[0](torch.randn(5, 8)).shape == (5, 8)
