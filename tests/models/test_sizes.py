"""The structure of replaced layers is recorded whole, and read with suspicion."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mlites.errors import InputError
from mlites.models.sizes import DEEPEST, changed_sizes, restore_sizes_


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 3))


@pytest.fixture
def replaced() -> nn.Module:
    """Every field of a part differs from its default somewhere."""
    module = network()
    module[0] = nn.Sequential(
        nn.Conv2d(3, 6, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), bias=False),
        nn.Sequential(nn.Conv2d(6, 6, (3, 1), groups=3, stride=(1, 2), padding=(1, 0)), nn.Conv2d(6, 8, 1)),
    )
    module[1] = nn.BatchNorm2d(8)
    module[3] = nn.Sequential(nn.Linear(64, 5, bias=False), nn.Linear(5, 3))
    return module


def test_structure_survives_json_and_gives_the_same_layers(replaced: nn.Module) -> None:
    record = json.loads(json.dumps(changed_sizes(replaced, network())))
    assert set(record) == {"0", "3"}
    assert record["3"] == {
        "kind": "sequential",
        "parts": [
            {"kind": "linear", "in": 64, "out": 5, "bias": False},
            {"kind": "linear", "in": 5, "out": 3, "bias": True},
        ],
    }
    module = network()
    restore_sizes_(module, record)
    assert str(module) == str(replaced)
    assert all(tensor.is_meta for layer in (module[0], module[3]) for tensor in layer.state_dict().values())
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in replaced.state_dict().items()
    }


def test_sizes_beside_a_replaced_layer_are_recorded_too(replaced: nn.Module) -> None:
    replaced[0][1][1], replaced[1], replaced[3][0] = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Linear(32, 5, bias=False)
    record = changed_sizes(replaced, network())
    assert record["1"] == {"kind": "batchnorm2d", "features": 4} and set(record) == {"0", "1", "3"}
    module = network()
    restore_sizes_(module, record)
    assert str(module) == str(replaced)


def test_parts_that_are_not_recorded_are_refused_on_saving() -> None:
    for part in (nn.ReLU(), nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(3, 8, 3, padding_mode="circular")):
        module = network()
        module[0] = nn.Sequential(part)
        with pytest.raises(ValueError, match=r"layer '0' was replaced by a sequence with .*, which is not recorded"):
            changed_sizes(module, network())


def nested(depth: int, part: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "sequential", "parts": [nested(depth - 1, part) if depth > 1 else part]}


def first(record: dict[str, Any]) -> dict[str, Any]:
    return record["0"]["parts"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: first(r).update(out=0), "out of a part must be 1 to 1048576, got 0"),
        (lambda r: first(r).update(out=1 << 21), "out of a part must be 1 to 1048576, got 2097152"),
        (lambda r: first(r).update(out=True), "out of a part must be 1 to 1048576, got True"),
        (lambda r: first(r).update(out=6.0), "out of a part must be 1 to 1048576, got 6.0"),
        (lambda r: first(r).update(out=7), "a part gives 7 values, the next one takes 6"),
        (lambda r: first(r).update(groups=2), "2 groups do not divide a part's channels"),
        (lambda r: first(r).update(groups=0), "groups of a part must be 1 to"),
        (lambda r: first(r).update(bias=1), "bias of a part must be true or false, got 1"),
        (lambda r: first(r).update(kernel_size=[1, 4096]), "kernel_size of a part must be two numbers from 1 to 1024"),
        (lambda r: first(r).update(kernel_size=[0, 3]), "kernel_size of a part must be two numbers from 1 to 1024"),
        (lambda r: first(r).update(kernel_size=3), "kernel_size of a part must be two numbers from 1 to 1024, got 3"),
        (lambda r: first(r).update(kernel_size=[3]), "kernel_size of a part must be two numbers"),
        (lambda r: first(r).update(stride=[0, 1]), "stride of a part must be two numbers from 1 to 1024, got [0, 1]"),
        (lambda r: first(r).update(padding=[-1, 0]), "padding of a part must be two numbers from 0 to 1024"),
        (lambda r: first(r).update(padding="same"), "padding of a part must be two numbers from 0 to 1024, got same"),
        (lambda r: first(r).update(dilation=[1, 1 << 30]), "dilation of a part must be two numbers from 1"),
        (lambda r: first(r).update(kind="linear"), "parts must be of kind conv2d or sequential, got 'linear'"),
        (lambda r: first(r).update(kind="os.system"), "parts must be of kind conv2d or sequential, got 'os.system'"),
        (lambda r: first(r).update(kind=["conv2d"]), "parts must be of kind conv2d or sequential, got"),
        (lambda r: first(r).update(padding_mode="zeros"), "parts of kind conv2d must have in, out, kernel_size"),
        (lambda r: first(r).pop("dilation"), "parts of kind conv2d must have in, out, kernel_size"),
        (lambda r: r["0"].update(parts=[]), "a sequential must have 1 to 16 parts and nothing else"),
        (lambda r: r["0"].update(parts=first(r)), "a sequential must have 1 to 16 parts and nothing else"),
        (lambda r: r["0"].update(parts=[first(r)] * 17), "a sequential must have 1 to 16 parts and nothing else"),
        (lambda r: r["0"].update(more=1), "a sequential must have 1 to 16 parts and nothing else"),
        (lambda r: r["0"].update(parts=[None]), "parts must be of kind conv2d or sequential, got 'None'"),
        (lambda r: r.update({"0": nested(DEEPEST + 1, first(r))}), "parts within parts may be 8 deep, not deeper"),
        (lambda r: r.update({"1": r["0"]}), "layer '1' is BatchNorm2d in the architecture, which no sequential"),
        (lambda r: r.update({"": r["0"]}), "layer '' is the whole network in the architecture, which no sequential"),
        (lambda r: r.update({"3": r["0"]}), "layer '3': parts must be of kind linear or sequential, got 'conv2d'"),
        (lambda r: r.update({"0.0": first(r)}), "layer '0.0' has a recorded size but is not part of the architecture"),
        (lambda r: r.update({"9": r["0"]}), "layer '9' has a recorded size but is not part of the architecture"),
        (lambda r: r["0"].update(kind="spline"), "kind must be one of linear, "),
    ],
)
def test_hostile_record_is_refused_in_one_line(
    replaced: nn.Module, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    record = json.loads(json.dumps(changed_sizes(replaced, network())))
    change(record)
    with pytest.raises(InputError) as caught:
        restore_sizes_(network(), record)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_largest_record_allocates_nothing() -> None:
    largest = {
        "kind": "conv2d",
        "in": 1 << 20,
        "out": 1 << 20,
        "kernel_size": [1024, 1024],
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "bias": True,
    }
    module, state = network(), torch.random.get_rng_state()
    restore_sizes_(module, {"0": nested(DEEPEST, largest)})
    assert sum(tensor.numel() for tensor in module.state_dict().values() if tensor.is_meta) > 1 << 59
    assert torch.equal(torch.random.get_rng_state(), state)
