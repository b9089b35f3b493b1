"""Tracing sees the layers of any network, and capturing reads them without a trace of its own."""

import pytest
import torch
from torch import Tensor, nn

from mlites.compression.distillation.features import Pool, Resize, Tap, capture, caught, pooled_width, trace
from mlites.errors import InputError
from tests.compression.distillation.networks import Staged, Transformer, Unsteady

ROWS = torch.randn(2, 1, 8, 8)


def test_trace_knows_shapes_order_and_progress() -> None:
    found = {layer.name: layer for layer in trace(Staged(), ROWS, "student").layers}
    assert found["stem"].shape == (4, 8, 8) and found["second"].shape == (6, 4, 4) and found["head"].shape == (3,)
    assert found["first"].composite and not found["stem"].composite
    weighted = 1 + 4 + 6 + 1
    assert found["first"].progress == pytest.approx(5 / weighted)
    assert found["head"].progress == 1


def test_layer_that_runs_twice_is_left_out() -> None:
    assert "relu" not in {layer.name for layer in trace(Staged(), ROWS, "student").layers}


def test_first_tensor_of_a_tuple_counts() -> None:
    found = {layer.name: layer for layer in trace(Transformer(), ROWS, "student").layers}
    assert found["blocks.0"].shape == (8, 8) and found["blocks.0.heads"].shape == (8, 8)


def test_output_without_an_entry_a_row_is_left_out() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens_first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, pictures: Tensor) -> Tensor:
            logits: Tensor = self.head(self.tokens_first(pictures[:, 0].transpose(0, 1)).mean(0))
            return logits

    for rows in (ROWS[:, :, :2], ROWS):  # two tokens look like two rows, at first sight
        assert [layer.name for layer in trace(Turned(), rows, "student").layers] == ["head"]


def test_embedding_is_what_the_last_layer_takes() -> None:
    assert trace(Staged((4, 6)), ROWS, "student").embedding == (Tap("head", "input"), (6,))
    assert trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), ROWS, "student").embedding is None


def test_trace_and_capture_leave_no_hook_and_no_mode_behind() -> None:
    module = Transformer().train()
    trace(module, ROWS, "student")
    with capture(module, [Tap("blocks.1"), Tap("head", "input")]) as found:
        module(ROWS)
    assert module.training and found[Tap("head", "input")].shape == (2, 8)
    for layer in module.modules():
        assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_captured_values_are_the_layers_own() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3))
    with capture(module, [Tap("1"), Tap("2", "input")]) as found:
        module(ROWS)
    expected = module[1](ROWS.flatten(1))
    torch.testing.assert_close(found[Tap("1")], expected)
    torch.testing.assert_close(found[Tap("2", "input")], expected)


def test_layer_that_does_not_run_in_training_is_named() -> None:
    module = Unsteady().train()
    with capture(module, [Tap("quiet")]) as found:
        module(ROWS)
    with pytest.raises(InputError, match=r"^layer quiet did not run in training though it does in evaluation"):
        caught(found, [Tap("quiet")])


def test_layer_without_a_tensor_is_named() -> None:
    class Silent(nn.Module):
        def forward(self, _pictures: Tensor) -> str:
            return "nothing"

    module = nn.ModuleDict({"silent": Silent()})
    with capture(module, [Tap("silent")]), pytest.raises(InputError, match="layer silent has no tensor as its output"):
        module["silent"](ROWS)


class Answer(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _rows: Tensor) -> object:
        return self.answer


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(7, 3), r"^the teacher \(Linear\) fails on rows of shape \(1, 8, 8\): mat1 and mat2 shapes"),
        (Answer(("a", "b")), r"^the teacher \(Answer\) must answer 2 rows with logits \(2, classes\), got tuple$"),
        (Answer(torch.zeros(2, 3, 4)), r"got a tensor \(2, 3, 4\)$"),
    ],
)
def test_network_that_gives_no_logits_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(module, ROWS, "teacher")


def test_network_without_inner_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"the student \(Sequential\) has no layer between its input and its output"):
        trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), ROWS, "student").hidden()


@pytest.mark.parametrize(("before", "after"), [((8, 8), (4, 4)), ((7, 5), (3, 2))])
def test_resize_is_the_mean_over_areas(before: tuple[int, int], after: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *before)
    torch.testing.assert_close(Resize(before, after)(maps), nn.functional.adaptive_avg_pool2d(maps, after))


@pytest.mark.parametrize("shape", [(5,), (7, 5), (5, 2, 3)])
def test_pool_gives_one_vector_a_row(shape: tuple[int, ...]) -> None:
    values = torch.randn(4, *shape)
    axes = {1: (), 2: (1,), 3: (2, 3)}[len(shape)]
    torch.testing.assert_close(Pool()(values), values.mean(axes) if axes else values)
    assert Pool()(values).shape == (4, pooled_width(shape))
