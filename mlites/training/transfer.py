"""Transfer learning: a network trained on other data gets a new head, which learns first, then all layers together.

Source: Howard & Ruder (2018), "Universal Language Model Fine-tuning for Text Classification", section 3: earlier
layers learn slower (discriminative fine-tuning), here in four groups; unfrozen in two stages, not one by one.
"""

import copy
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlites.errors import InputError
from mlites.recipe import Transfer
from mlites.training.loop import TrainingData, train
from mlites.training.resume import Epoch
from mlites.training.workers import Workers

BODY_GROUPS = 3  # of layers below the head; with one group a layer, the first ones of a deep network would stand still
WIDTH = {nn.Linear: "out_features", nn.Conv1d: "out_channels", nn.Conv2d: "out_channels"}


def transfer(
    module: nn.Module,
    data: TrainingData,
    options: Transfer,
    seed: int,
    *,
    classes_count: int,
    checkpoint: Path | None = None,
    workers: Workers | None = None,
) -> tuple[nn.Module, list[Epoch]]:
    """Train a copy of a pretrained network for other classes.

    The last linear layer is drawn anew. While it learns alone, the layers below are as in evaluation: their batch
    normalization keeps the statistics of the old data. Then all layers learn, each group ``layer_decay`` times as fast
    as the one after it, and the statistics follow the new data.

    Args:
        module: any network whose logits come out of one linear layer or 1x1 convolution; left unchanged.
        data: rows of the shape that the network takes, labels below ``classes_count``.
        options: epochs of the head, decay of the rates, training of all layers; the head has their settings, too.
        seed: of the new head's weights and of all draws in training.
        classes_count: width of the new head.
        checkpoint: folder that outlives a killed run.
        workers: who train it together.

    Returns:
        The network, on the CPU in evaluation mode, and one entry an epoch, the head's first.

    Raises:
        InputError: the network does not take such rows, or its output is not a layer that can be replaced.
    """
    module = copy.deepcopy(module)
    route = find_route(module, data.inputs[:2])
    replace_head_(module, route.head, classes_count, seed)
    _check_answers(module, data.inputs[:2], route.head, classes_count)
    if checkpoint:
        checkpoint.mkdir(parents=True, exist_ok=True)
    history: list[Epoch] = []
    if options.head_epochs:
        head = options.training.model_copy(update={"epochs": options.head_epochs, "early_stop": None})
        below = {name for name, _ in module.named_parameters() if name.rpartition(".")[0] != route.head}
        file = checkpoint and checkpoint / "head.safetensors"
        history += train(module, data, head, seed, rates=dict.fromkeys(below, 0.0), checkpoint=file, workers=workers)
    rates = layer_rates(module, route, options.layer_decay)
    file = checkpoint and checkpoint / "all.safetensors"
    for entry in train(module, data, options.training, seed, rates=rates, checkpoint=file, workers=workers):
        history.append({**entry, "epoch": entry["epoch"] + options.head_epochs})
    return module, history


class Route(NamedTuple):
    """Names of a network's layers in the order in which they first run, and of the one that gives its output."""

    layers: tuple[str, ...]
    head: str


def find_route(module: nn.Module, rows: Tensor) -> Route:
    """Run rows (n, *input_shape) through a copy and see which layers they pass.

    Raises:
        InputError: the network fails on them, or its output does not come out of one layer that can be replaced.
    """
    trial = copy.deepcopy(module).eval()
    for parameter in trial.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # the way back is followed through autograd
    order: dict[str, None] = {}
    made_by: dict[Any, str] = {}
    names = {layer: name for name, layer in trial.named_modules()}

    def enter(layer: nn.Module, _inputs: tuple[Any, ...]) -> None:
        order.setdefault(names[layer])

    def leave(layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        made_by[getattr(output, "grad_fn", None)] = names[layer]

    for layer in names:
        layer.register_forward_pre_hook(enter)
        if list(layer.parameters()) and not list(layer.children()):
            layer.register_forward_hook(leave)
    output = _answer(trial, rows)
    return Route(tuple(order), _head(trial, output, made_by))


def replace_head_(module: nn.Module, name: str, classes_count: int, seed: int) -> None:
    """Give the layer ``name`` as many outputs as there are classes, with weights drawn from the seed."""
    layer: Any = module.get_submodule(name)
    setattr(layer, WIDTH[type(layer)], classes_count)
    layer.weight = nn.Parameter(layer.weight.new_empty(classes_count, *layer.weight.shape[1:]))
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.new_empty(classes_count))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer.reset_parameters()


def layer_rates(module: nn.Module, route: Route, layer_decay: float) -> dict[str, float]:
    """Factors on the learning rates: 1 for the head, then one ``layer_decay`` more for each group of layers below it.

    The layers with kernels or matrices are split in the order in which they run into three groups as equal as can be;
    what has vectors alone, such as batch normalization, goes with the layer before it.
    """
    names = [name for name, _ in module.named_parameters()]
    owners: dict[str, list[str]] = {}
    ranks = {name: rank for rank, name in enumerate(route.layers)}
    for name in names:
        owner = name.rpartition(".")[0]
        while owner not in ranks:  # attention reads its projection's weights without running it
            owner = owner.rpartition(".")[0]
        owners.setdefault(owner, []).append(name)
    del owners[route.head]
    shapes = {name: parameter.dim() for name, parameter in module.named_parameters()}
    ordered = sorted(owners, key=ranks.__getitem__)
    weighted = [owner for owner in ordered if any(shapes[name] > 1 for name in owners[owner])]
    groups = min(BODY_GROUPS, len(weighted))
    rates: dict[str, float] = {}
    seen = 0
    for owner in ordered:
        seen += owner in weighted
        above = len(weighted) - max(seen, 1)
        distance = 1 + above * groups // max(len(weighted), 1)
        rates |= dict.fromkeys(owners[owner], layer_decay**distance)
    return rates


def _answer(module: nn.Module, rows: Tensor) -> Tensor:
    try:
        output = module(rows)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"the pretrained network fails on rows of shape {tuple(rows.shape[1:])}: {reason}; "
            f"transfer needs rows of the shape that it was trained on"
        ) from error
    if not isinstance(output, Tensor):
        raise _irreplaceable(f"it answers with a {type(output).__name__} instead of one tensor of logits")
    return output


def _head(module: nn.Module, output: Tensor, made_by: dict[Any, str]) -> str:
    """Name of the one layer from which the output is reached without passing another."""
    found, seen, waiting = Counter[str](), set(), [output.grad_fn]
    owners = {id(parameter): name for name, parameter in module.named_parameters()}
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made_by:
            found[made_by[node]] += 1
        elif hasattr(node, "variable"):
            raise _irreplaceable(f"its output is computed from the parameter {owners[id(node.variable)]} itself")
        else:
            waiting.extend(before for before, _ in node.next_functions)
    if not found:
        raise _irreplaceable("no layer with weights leads to its output")
    if len(found) > 1 or found.total() > 1:
        raise _irreplaceable(
            f"its output is put together from the answers of {', '.join(sorted(found.elements())[:4])}"
        )
    name = next(iter(found))
    layer: Any = module.get_submodule(name)
    if type(layer) not in WIDTH or (not isinstance(layer, nn.Linear) and {*layer.kernel_size, layer.groups} != {1}):
        raise _irreplaceable(f"its output comes out of {name} ({type(layer).__name__})")
    for other, parameter in module.named_parameters(remove_duplicate=False):
        if parameter is layer.weight and other != f"{name}.weight":
            raise _irreplaceable(f"the weights of its output layer {name} are those of {other}, too")
    return name


def _check_answers(module: nn.Module, rows: Tensor, head: str, classes_count: int) -> None:
    try:
        with torch.no_grad():
            shape = tuple(module.eval()(rows).shape)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise _irreplaceable(f"with {classes_count} outputs of its layer {head} it fails: {reason}") from error
    if shape != (len(rows), classes_count):
        raise _irreplaceable(f"with {classes_count} outputs of its layer {head}, {len(rows)} rows give shape {shape}")


def _irreplaceable(reason: str) -> InputError:
    return InputError(
        f"transfer replaces the linear layer or 1x1 convolution that gives a network's logits, but this network has no "
        f"such layer: {reason}"
    )
