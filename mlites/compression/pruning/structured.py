"""Structured pruning: whole channels leave the network, along with all that depends on them.

Source: Fang, Ma, Song, Mi & Wang (2023), "DepGraph: Towards Any Structural Pruning"; channels ranked by their L2 norm
over the group.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from mlites.compression.cost import count_cost
from mlites.errors import InputError

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.PReLU)


@dataclass(frozen=True)
class _Group:
    """Layers that must lose the same channels.

    Attributes:
        root: layer whose output channels count the group's.
        name: of the root.
        layers: names of the layers with weights whose own channels go; others only read them.
        importance: of each channel, (channels,).
        obstacle: name of a layer that cannot lose channels, if there is one.
    """

    root: nn.Module
    name: str
    layers: tuple[str, ...]
    importance: Tensor
    obstacle: str | None


def prune_structured(
    module: nn.Module, input_shape: Sequence[int], amount: float, round_to: int = 8
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the channels of least norm, so that the fraction ``amount`` of all that can go is gone.

    Each group of dependent layers loses its share, rounded to what keeps a multiple of ``round_to``; what rounding
    keeps too much in one group the next one makes up for. The outputs stay whole, and so do groups with a layer whose
    channels cannot be taken one by one: grouped (not depthwise) convolutions, group normalization, attention,
    recurrent layers, parameters of the user's own. They are listed in the facts.

    Args:
        module: left unchanged.
        input_shape: of one row.
        amount: fraction of the channels in (0, 1).
        round_to: kept channels are a multiple of this, and at least this many, where the layer has as many.

    Returns:
        The pruned copy, and facts: channels_before, channels_after, parameters_before, parameters_after, macs_before,
        macs_after, kept_whole (names of layers).

    Raises:
        InputError: nothing can be pruned, or rounding leaves nothing to remove.
        ValueError: amount outside its range.
    """
    if not 0 < amount < 1:
        raise ValueError(f"amount must be above 0 and below 1, got {amount}")
    example = torch.zeros(2, *input_shape)
    frozen: set[str] = set()
    while True:
        pruned = copy.deepcopy(module).eval()
        groups = _groups(pruned, example)
        free = [group for group in groups if group.obstacle is None and group.name not in frozen]
        if not free:
            reasons = sorted({group.obstacle for group in groups if group.obstacle} | frozen)
            why = f"all hang on layers that stay whole: {_first(reasons)}" if reasons else "there is no hidden layer"
            raise InputError(f"no channels can be pruned: {why}; leave structured pruning out for this network")
        plan = _plan([len(group.importance) for group in free], amount, round_to)
        if [len(group.importance) for group in free] == plan:
            raise InputError(
                f"nothing to prune: amount {amount:g} of layers this narrow, kept at multiples of round_to {round_to}, "
                f"removes no channel; raise amount or lower round_to"
            )
        _remove_(pruned, example, free, plan)
        if _works(pruned, example, module):
            break
        stuck = [group for group in free if not _works_alone(module, example, group, round_to)]
        if not stuck:
            raise InputError(
                f"pruning breaks this network, though no single layer does: {_first([group.name for group in free])}"
            )
        frozen |= {group.name for group in stuck}
    before, after = count_cost(module, input_shape), count_cost(pruned, input_shape)
    whole = sorted({name for group in groups if group not in free for name in group.layers})
    return pruned.train(module.training), {
        "channels_before": sum(len(group.importance) for group in free),
        "channels_after": sum(plan),
        "parameters_before": before["parameters"],
        "parameters_after": after["parameters"],
        "macs_before": before["macs"],
        "macs_after": after["macs"],
        "kept_whole": whole,
    }


def _groups(module: nn.Module, example: Tensor) -> list[_Group]:
    """Groups of layers in which channels can go, none of them an output of the network."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # the graph is traced through autograd
    outputs = _output_layers(module, example)
    graph = _trace(module, example)
    names = {layer: name for name, layer in module.named_modules()}
    groups = []
    for group in graph.get_all_groups(ignored_layers=outputs, root_module_types=WEIGHTED):
        root = group[0].dep.target.module
        layers, obstacle = [], None
        importance, parts = torch.zeros(graph.get_out_channels(root)), 0
        for item in group:
            layer, positions = item.dep.target.module, torch.tensor(item.idxs)
            if isinstance(layer, nn.Parameter):
                obstacle = "a parameter outside of any layer"
            if layer not in names or not list(layer.parameters(recurse=False)):
                continue
            outgoing = graph.is_out_channel_pruning_fn(item.dep.handler)
            if outgoing:
                layers.append(names[layer])
            if not _separable(layer):
                obstacle = f"{names[layer]} ({type(layer).__name__})"
            elif isinstance(layer, WEIGHTED) and len(positions):
                squares = _squares(layer, outgoing)
                if int(positions.max()) >= len(squares):
                    obstacle = f"{names[layer]} ({type(layer).__name__})"
                    continue
                norms = torch.zeros_like(importance).index_add_(0, torch.tensor(item.root_idxs), squares[positions])
                importance += norms / norms.mean().clamp_min(1e-30)
                parts += 1
        groups.append(_Group(root, names[root], tuple(dict.fromkeys(layers)), importance / max(parts, 1), obstacle))
    return groups


def _trace(module: nn.Module, example: Tensor) -> Any:
    try:
        return DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    except Exception as error:
        raise InputError(f"this network cannot be traced for pruning: {_one_line(error)}") from error


def _output_layers(module: nn.Module, example: Tensor) -> list[nn.Module]:
    """Layers from which the output is reached without passing another: their channels are the classes."""
    made_by: dict[Any, nn.Module] = {}

    def note(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[output.grad_fn] = layer

    hooks = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, WEIGHTED)]
    try:
        output = module(example)
    except Exception as error:
        raise InputError(
            f"this network does not run on rows of shape {tuple(example.shape[1:])}: {_one_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    found, seen, waiting = [], set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made_by:
            found.append(made_by[node])
        else:
            waiting.extend(before for before, _ in node.next_functions)
    return found


def _separable(layer: nn.Module) -> bool:
    """Whether channels of a layer with weights can be taken one by one."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        return layer.groups == 1 or (layer.groups == layer.in_channels == layer.out_channels)
    return isinstance(layer, (nn.Linear, *PER_CHANNEL))


def _squares(layer: nn.Module, outgoing: bool) -> Tensor:
    """Squared norm of the weights of each output channel, or of those that read each input channel."""
    weight = layer.weight.detach()  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    depthwise = not isinstance(layer, nn.Linear) and layer.groups > 1  # type: ignore[operator]
    axis = 0 if outgoing != transposed or depthwise else 1
    return weight.transpose(0, axis).flatten(1).square().sum(1)


def _plan(counts: list[int], amount: float, round_to: int) -> list[int]:
    """How many channels each group keeps."""
    kept, owed = [], 0.0
    for count in counts:
        target = count * (1 - amount) + owed
        keep = min(count, max(min(round_to, count), round_to * round(target / round_to)))
        owed = target - keep
        kept.append(keep)
    return kept


def _remove_(module: nn.Module, example: Tensor, groups: list[_Group], plan: list[int]) -> None:
    graph = _trace(module, example)
    for group, keep in zip(groups, plan, strict=True):
        weakest = group.importance.argsort(stable=True)[: len(group.importance) - keep].sort().values
        if len(weakest):
            function = graph.get_pruner_of_module(group.root).prune_out_channels
            graph.get_pruning_group(group.root, function, weakest.tolist()).prune()


def _works(pruned: nn.Module, example: Tensor, original: nn.Module) -> bool:
    """Whether it still runs and gives outputs of the same shape."""
    training = original.training
    try:
        with torch.no_grad():
            return bool(pruned(example).shape == original.eval()(example).shape)
    except Exception:  # whatever a network of the user's raises when a size does not fit
        return False
    finally:
        original.train(training)


def _works_alone(module: nn.Module, example: Tensor, group: _Group, round_to: int) -> bool:
    trial = copy.deepcopy(module).eval()
    same = next(other for other in _groups(trial, example) if other.name == group.name)
    keep = max(1, len(same.importance) - max(1, min(round_to, len(same.importance) - 1)))
    try:
        _remove_(trial, example, [same], [keep])
    except Exception:
        return False
    return _works(trial, example, module)


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
