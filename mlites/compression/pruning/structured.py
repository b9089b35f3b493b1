"""Structured pruning: whole channels leave the network, along with all that depends on them.

Source: Fang, Ma, Song, Mi & Wang (2023), "DepGraph: Towards Any Structural Pruning"; channels ranked by their L2 norm
over the group, or by any other score of single weights.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from mlites.compression.cost import count_cost
from mlites.errors import InputError

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.PReLU)

Width = Callable[[str, int], float]


@dataclass(frozen=True)
class _Group:
    """Layers that must lose the same channels.

    Attributes:
        root: layer whose output channels count the group's.
        name: of the root.
        layers: names of the layers with weights whose own channels go; others only read them.
        importance: of each channel, (channels,).
        obstacle: the layer that cannot lose channels, if there is one, and why.
    """

    root: nn.Module
    name: str
    layers: tuple[str, ...]
    importance: Tensor
    obstacle: str | None


@dataclass(frozen=True)
class Narrowed:
    """A network without some of its channels.

    Attributes:
        module: the pruned copy, in evaluation mode.
        before: group of dependent layers, named for its first, -> its channels.
        after: the same, after pruning.
        whole: layer that keeps all its channels because they cannot go one by one -> the reason.
    """

    module: nn.Module
    before: dict[str, int]
    after: dict[str, int]
    whole: dict[str, str]


def prune_structured(
    module: nn.Module,
    input_shape: Sequence[int],
    amount: float,
    round_to: int = 8,
    *,
    scores: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the least important channels, so that the fraction ``amount`` of all that can go is gone.

    Args:
        module: left unchanged.
        input_shape: of one row.
        amount: fraction of the channels in (0, 1).
        round_to: kept channels are a multiple of this, and at least this many, where the layer has as many.
        scores: as in ``narrow``.

    Returns:
        The pruned copy, and facts: those of ``narrowing_facts``.

    Raises:
        InputError: nothing can be pruned, or rounding leaves nothing to remove.
        ValueError: amount outside its range.
    """
    if not 0 < amount < 1:
        raise ValueError(f"amount must be above 0 and below 1, got {amount}")
    result = narrow(module, input_shape, lambda _, channels: channels * (1 - amount), round_to, scores)
    check_narrower(result, amount, round_to)
    return result.module.train(module.training), narrowing_facts(result, module, input_shape)


def narrow(
    module: nn.Module,
    input_shape: Sequence[int],
    width: Width,
    round_to: int,
    scores: Mapping[str, Tensor] | None = None,
) -> Narrowed:
    """Remove the least important channels of each group of dependent layers until it is about as wide as asked.

    Kept channels are rounded to multiples of ``round_to``; what rounding keeps too much in one group the next one makes
    up for. The outputs stay whole, and so do groups with a layer whose channels cannot be taken one by one: grouped
    (not depthwise) convolutions, group normalization, attention, recurrent layers, parameters of the user's own.

    Args:
        module: left unchanged.
        input_shape: of one row.
        width: (group, its channels) -> wanted channels; a group asked to stay as wide stays whole.
        round_to: kept channels are a multiple of this, and at least this many, where the layer has as many.
        scores: weight's name -> importance of each of its entries, in one unit for all layers, summed over a channel;
            default: squared weights, each layer's divided by their mean.

    Raises:
        InputError: no group can be pruned; layers and reasons are named.
    """
    example = torch.zeros(2, *input_shape)
    frozen: dict[str, str] = {}
    while True:
        pruned = copy.deepcopy(module).eval()
        groups = _groups(pruned, example, scores)
        free = [group for group in groups if group.obstacle is None and group.name not in frozen]
        if not free:
            reasons = sorted({group.obstacle for group in groups if group.obstacle} | set(frozen))
            why = f"all hang on layers that stay whole: {_first(reasons)}" if reasons else "there is no hidden layer"
            raise InputError(f"no channels can be pruned: {why}; leave structured pruning out for this network")
        before = {group.name: len(group.importance) for group in free}
        wanted = [width(name, channels) for name, channels in before.items()]
        plan = _plan(wanted, list(before.values()), round_to)
        _remove_(pruned, example, free, plan)
        if _works(pruned, example, module):
            break
        stuck = [group for group in free if not _works_alone(module, example, group, round_to)]
        if not stuck:
            raise InputError(
                f"pruning breaks this network, though no single layer does: {_first([group.name for group in free])}"
            )
        frozen |= {group.name: "the network no longer runs without some of its channels" for group in stuck}
    whole = {
        name: group.obstacle or frozen[group.name] for group in groups if group not in free for name in group.layers
    }
    return Narrowed(pruned, before, dict(zip(before, plan, strict=True)), dict(sorted(whole.items())))


def check_narrower(result: Narrowed, amount: float, round_to: int) -> None:
    """Refuse a pruning that removed nothing.

    Raises:
        InputError: no group lost a channel.
    """
    if result.before == result.after:
        raise InputError(
            f"nothing to prune: amount {amount:g} of layers this narrow, kept at multiples of round_to {round_to}, "
            f"removes no channel; raise amount or lower round_to"
        )


def narrowing_facts(result: Narrowed, original: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    """What pruning removed: channels, parameters and MACs before and after, rates a group, layers kept whole."""
    before, after = count_cost(original, input_shape), count_cost(result.module, input_shape)
    return {
        "channels_before": sum(result.before.values()),
        "channels_after": sum(result.after.values()),
        "parameters_before": before["parameters"],
        "parameters_after": after["parameters"],
        "macs_before": before["macs"],
        "macs_after": after["macs"],
        "rates": {name: round(1 - result.after.get(name, width) / width, 4) for name, width in result.before.items()},
        "kept_whole": result.whole,
    }


def _groups(module: nn.Module, example: Tensor, scores: Mapping[str, Tensor] | None = None) -> list[_Group]:
    """Groups of layers in which channels can go, none of them an output of the network."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # the graph is traced through autograd
    outputs = _output_layers(module, example)
    graph = _trace(module, example)
    names = {layer: name for name, layer in module.named_modules()}
    groups = []
    for group in _dependent_layers(graph, outputs):
        root = group[0].dep.target.module
        layers, obstacle = [], None
        importance, parts = torch.zeros(graph.get_out_channels(root)), 0
        for item in group:
            layer, positions = item.dep.target.module, torch.tensor(item.idxs)
            if isinstance(layer, nn.Parameter):
                obstacle = obstacle or "a parameter outside of any layer"
            if layer not in names or not list(layer.parameters(recurse=False)):
                continue
            outgoing = graph.is_out_channel_pruning_fn(item.dep.handler)
            if outgoing:
                layers.append(names[layer])
            if not _separable(layer):
                obstacle = obstacle or _named(names[layer], layer)
            elif isinstance(layer, WEIGHTED) and len(positions):
                weight = layer.get_parameter("weight").detach()
                each = weight.square() if scores is None else scores[f"{names[layer]}.weight"]
                sums = _by_channel(layer, each, outgoing)
                if int(positions.max()) >= len(sums):
                    obstacle = obstacle or _named(names[layer], layer)
                    continue
                part = torch.zeros_like(importance).index_add_(0, torch.tensor(item.root_idxs), sums[positions])
                importance += part / part.mean().clamp_min(1e-30) if scores is None else part
                parts += 1
        groups.append(_Group(root, names[root], tuple(dict.fromkeys(layers)), importance / max(parts, 1), obstacle))
    return groups


def _dependent_layers(graph: Any, outputs: list[nn.Module]) -> Iterator[Any]:
    """Torch-Pruning's groups; of one that joins narrower layers, as a concatenation does, a group for each of them.

    Pruned as a whole it could lose one of them altogether, and rounding would not see their widths.
    """
    for group in graph.get_all_groups(ignored_layers=outputs, root_module_types=WEIGHTED):
        width, joined = graph.get_out_channels(group[0].dep.target.module), dict[nn.Module, None]()
        for item in group:
            layer = item.dep.target.module
            outgoing = isinstance(layer, WEIGHTED) and graph.is_out_channel_pruning_fn(item.dep.handler)
            if outgoing and getattr(layer, "groups", 1) == 1 and graph.get_out_channels(layer) < width:
                joined[layer] = None
        if not joined:
            yield group
        while joined:
            layer = next(iter(joined))
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            part = graph.get_pruning_group(layer, prune, list(range(graph.get_out_channels(layer))))
            for item in part:
                if graph.get_out_channels(item.dep.target.module) == graph.get_out_channels(layer):
                    joined.pop(item.dep.target.module, None)
            joined.pop(layer, None)
            yield part


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


def _named(name: str, layer: nn.Module) -> str:
    groups = getattr(layer, "groups", 1)
    return f"{name} ({type(layer).__name__}{f' of {groups} groups' if groups != 1 else ''})"


def _by_channel(layer: nn.Module, scores: Tensor, outgoing: bool) -> Tensor:
    """Sum of the scores of the weights of each output channel, or of those that read each input channel."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    depthwise = not isinstance(layer, nn.Linear) and layer.groups > 1  # type: ignore[operator]
    axis = 0 if outgoing != transposed or depthwise else 1
    return scores.transpose(0, axis).flatten(1).sum(1)


def _plan(wanted: list[float], counts: list[int], round_to: int) -> list[int]:
    """How many channels each group keeps."""
    kept, owed = [], 0.0
    for width, count in zip(wanted, counts, strict=True):
        if width >= count:
            kept.append(count)
            continue
        target = width + owed
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
