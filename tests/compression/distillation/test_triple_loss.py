"""Hidden states are compared by direction, across widths."""

import numpy as np
import pytest
import torch
from torch import nn

from mlites.compression.distillation.features import trace
from mlites.compression.distillation.triple_loss import compare_hidden_states, cosine_loss
from mlites.errors import InputError
from tests.compression.distillation.networks import Staged, Transformer


def test_loss_equals_the_formula() -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 6, 4))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    found = cosine_loss([torch.tensor(ours)], [torch.tensor(theirs)])
    assert float(found) == pytest.approx(1 - cosines.mean(), rel=1e-9)


def test_same_direction_costs_nothing_and_opposite_two() -> None:
    states = torch.randn(5, 3)
    assert float(cosine_loss([states], [4 * states])) == pytest.approx(0, abs=1e-6)
    assert float(cosine_loss([states], [-states])) == pytest.approx(2, abs=1e-6)


def test_projection_stands_only_between_different_widths() -> None:
    rows = torch.randn(2, 1, 8, 8)
    narrow, wide = trace(Staged((4, 6)), rows, "net"), trace(Transformer(width=8), rows, "net")
    view = compare_hidden_states(wide, narrow).student_views[0]
    assert view(torch.randn(3, 6)).shape == (3, 8)
    assert not list(compare_hidden_states(wide, wide).student_views.parameters())


def test_single_layer_is_refused() -> None:
    rows = torch.randn(2, 1, 8, 8)
    single = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), rows, "student")
    with pytest.raises(InputError, match=r"the student \(Sequential\) has a single layer with weights"):
        compare_hidden_states(trace(Staged(), rows, "teacher"), single)
