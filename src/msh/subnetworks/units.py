"""Plan and select whole units: the number per layer that a budget allows, and the units that a task keeps.

A task that keeps units computes, in each tensor, a rectangle: their rows at the columns that its units in the previous
layer feed. Its subnetwork is a smaller dense network. Where units belong to one task at most, it owns whole rectangles;
where tasks share units, it owns the weights in its rectangles that were free, and the others are 0 to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from msh.errors import invalid, requirement
from msh.subnetworks.allocation import FREE, Budget, CapacityError, EmptyLayerError, choose
from msh.subnetworks.empty import least_density
from msh.subnetworks.unit_graph import Layer, UnitGraph, UnitSource


def count_weights(graph: UnitGraph, counts: Mapping[str, int]) -> int:
    """Count a subnetwork's weights from its units per layer."""
    total = 0
    for name, layer in graph.layers.items():
        columns = layer.shape[1] if layer.source is None else counts[layer.source.layer] * layer.source.block
        total += counts[name] * columns * layer.kernel
    return total


def fit_units(graph: UnitGraph, weights: int) -> dict[str, int] | None:
    """Convert a weight count to units per layer.

    Every layer gets the largest common share that fits, at least one unit. Then each layer gets one more
    unit if it fits, the smallest share first. More than one would widen the layers with the cheapest units too far:
    early convolutions, which have few weights and compute the most.

    Args:
        graph: of the backbone.
        weights: upper bound on the weights used.
    Returns:
        Tensor name to units; None if one unit per layer does not fit.
    """
    widest = max(layer.units for layer in graph.layers.values())

    def share(step: int) -> dict[str, int]:
        return {name: max(1, layer.units * step // widest) for name, layer in graph.layers.items()}

    low, high = 0, widest
    if count_weights(graph, share(low)) > weights:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_weights(graph, share(middle)) <= weights else (low, middle - 1)
    counts = share(low)

    for name in sorted(counts, key=lambda name: counts[name] / graph.layers[name].units):
        more = counts | {name: counts[name] + 1}
        if more[name] <= graph.layers[name].units and count_weights(graph, more) <= weights:
            counts = more
    return counts


def plan_units(
    graph: UnitGraph, budgets: Mapping[str, Budget], free: Mapping[str, int] | None = None
) -> dict[str, dict[str, int]]:
    """Plan the tasks' budgets in order, in whole units.

    A density or weight count is met from below: see `fit_units`; an equal share divides each layer's free units.

    Args:
        graph: of the backbone.
        budgets: task name to its budget, of scope "tensor", in the order of training.
        free: tensor name to its number of free units; all of them when None.
    Returns:
        Task name to {tensor name: units}.
    Raises:
        CapacityError: a budget has less than one unit per layer, or more units than earlier tasks leave free.
        ValueError: a budget has another scope.
    """
    remaining = {name: layer.units for name, layer in graph.layers.items()} if free is None else dict(free)
    plan: dict[str, dict[str, int]] = {}
    for position, (task, budget) in enumerate(budgets.items()):
        if budget.scope != "tensor":
            raise invalid("scope", f"tensor with whole units (task {task!r})", budget.scope)
        wanted = _wanted(graph, task, budget, remaining, len(budgets) - position)
        for name, count in wanted.items():
            if not 1 <= count <= remaining[name]:
                raise CapacityError(
                    f"task {task!r} wants {max(1, count)} of the {graph.layers[name].units} units of layer {name!r}, "
                    f"but only {remaining[name]} are free; lower its density, or give the network more units"
                )
        plan[task] = wanted
        remaining = {name: remaining[name] - wanted[name] for name in remaining}
    return plan


def _wanted(
    graph: UnitGraph, task: str, budget: Budget, remaining: Mapping[str, int], tasks_left: int
) -> dict[str, int]:
    if budget.share is not None:
        return budget.counts({}, remaining, tasks_left)
    sizes = {name: layer.units * layer.shape[1] * layer.kernel for name, layer in graph.layers.items()}
    weights = replace(budget, scope="network").counts(sizes, {})[""]
    units = fit_units(graph, weights)
    if units is None:
        name, layer = next(iter(graph.layers.items()))
        least = count_weights(graph, dict.fromkeys(graph.layers, 1))
        cure = requirement("weights", f">= {least}", weights)
        if budget.density is not None:
            cure = requirement("density", f">= {least_density(least, sum(sizes.values()))}", budget.density)
        raise EmptyLayerError(
            f"task {task!r} wants {weights} weights, but one unit of each layer from {name!r} on takes {least} "
            f"({remaining[name]} of the {layer.units} units of {name!r} are free); {cure}"
        )
    return units


def candidate_units(graph: UnitGraph, masks: Mapping[str, Tensor], owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mark the units that a masked task may still keep: it has all their weights, and no task owns any of them.

    Args:
        graph: of the backbone.
        masks: tensor name to bool (*shape), the task's candidates.
        owners: tensor name to owner ids (*shape).
    Returns:
        Tensor name to bool (units,).
    """
    units: dict[str, Tensor] = {}
    for name, layer in graph.layers.items():
        mask = layer.turned(masks[name])
        unused = ~columns(layer.source, units, layer.shape[1], mask.device)  # (columns,)
        held = mask | unused.view(1, -1, *[1] * len(layer.shape[2:]))
        units[name] = (held & (layer.turned(owners[name]) == FREE)).flatten(1).all(1)
    return units


def unit_scores(graph: UnitGraph, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score units by summing their candidate weights' scores.

    Args:
        graph: of the backbone.
        scores: tensor name to a score per weight (*shape), unitless.
        masks: tensor name to bool (*shape), the task's candidates.
    Returns:
        Tensor name to (units,).
    """
    return {
        name: layer.turned(torch.where(masks[name], scores[name], 0.0)).flatten(1).sum(1)
        for name, layer in graph.layers.items()
    }


def unit_masks(graph: UnitGraph, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Expand units to their weights.

    Args:
        graph: of the backbone.
        units: tensor name to bool (units,).
    Returns:
        Tensor name to bool (*shape): the units' rows, at the columns that kept units feed.
    """
    masks = {}
    for name, layer in graph.layers.items():
        rows = layer.rows(units[name])
        mask = rows[:, None] & columns(layer.source, units, layer.shape[1], rows.device)  # (units, columns)
        mask = mask.view(*mask.shape, *[1] * len(layer.shape[2:])).expand(layer.shape)
        masks[name] = layer.turned(mask).contiguous()
    return masks


def columns(source: UnitSource | None, units: Mapping[str, Tensor], width: int, device: torch.device) -> Tensor:
    """Mark the columns that a source's kept units feed: bool, (width,); all where the source is the inputs."""
    if source is None:
        return torch.ones(width, dtype=torch.bool, device=device)
    return units[source.layer].repeat_interleave(source.block)


def units_in_use(graph: UnitGraph, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the units that a task computes with: they have one of its weights, or feed one, or their layer is whole.

    Args:
        graph: of the backbone.
        masks: tensor name to bool (*shape), its weights.
    Returns:
        Tensor name to bool (units,); the masks lie within `unit_masks` of these.
    """
    units = {}
    for name, layer in graph.layers.items():
        units[name] = layer.by_unit(layer.turned(masks[name]).flatten(1).any(1)).any(1) | bool(layer.whole)
    for name, layer in graph.layers.items():
        if layer.source is not None:
            feeding = layer.turned(masks[name]).transpose(0, 1).flatten(1).any(1)  # (columns,)
            units[layer.source.layer] |= feeding.view(-1, layer.source.block).any(1)
    for members in graph.groups.values():
        together = torch.stack([units[name] for name in members]).any(0)
        units |= dict.fromkeys(members, together)
    return units


def choose_in_rectangles(
    graph: UnitGraph, scores: Mapping[str, Tensor], kept: Mapping[str, int], candidates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Keep the highest-scoring weights of few units.

    Units are ranked by the sum of their candidates' scores, so that a unit with more free weights precedes one that is
    as good but mostly taken. Every layer gets the smallest common share of its units between which each tensor has
    enough candidates. Then each layer in turn gives up the units that the tensors do not need, given the other layers'.

    Args:
        graph: of the backbone.
        scores: tensor name to (*shape), higher is kept; unitless.
        kept: tensor name to the number kept there.
        candidates: tensor name to bool (*shape); only these can be kept.
    Returns:
        Tensor name to bool (*shape).
    Raises:
        ValueError: a number kept exceeds the candidates, or a candidate's score is NaN.
    """
    groups = graph.groups
    counts = {name: layer.units for name, layer in graph.layers.items()}
    rank = {name: torch.zeros(count, device=candidates[name].device) for name, count in counts.items()}
    for members in groups.values():
        parts = [(graph.layers[name], scores[name], candidates[name]) for name in members]
        rank |= dict.fromkeys(members, _ranks(parts))
    affected = {first: [*members] for first, members in groups.items()}
    """First layer of a group to the layers whose candidates depend on its units."""
    for name, layer in graph.layers.items():
        if layer.source is not None:
            affected[graph.layers[layer.source.layer].group].append(name)

    between = {name: _between(graph, name, candidates[name], rank) for name in graph.small}

    def suffices(wanted: Mapping[str, int], names: Iterable[str]) -> bool:
        """Tell whether these tensors have enough candidates between so many of each layer's best units."""
        for name in names:
            source = graph.layers[name].source
            feeding = 1 if source is None else wanted[source.layer]
            if int(between[name][wanted[name] - 1, feeding - 1]) < kept[name]:
                return False
        return True

    widest = max(counts[first] for first in groups)

    def share(step: int) -> dict[str, int]:
        return counts | {n: -(-counts[n] * step // widest) for members in groups.values() for n in members}

    common = _least(1, widest, lambda step: suffices(share(step), graph.small))
    counts = share(common)

    def with_fewer(first: str, few: int) -> bool:
        return suffices(counts | dict.fromkeys(groups[first], few), affected[first])

    for first, members in groups.items():
        counts |= dict.fromkeys(members, _least(1, counts[first], partial(with_fewer, first)))
    within = unit_masks(graph, {name: rank[name] < count for name, count in counts.items()})
    return choose(scores, kept, {name: within[name] & mask for name, mask in candidates.items()})


def _between(graph: UnitGraph, name: str, candidates: Tensor, rank: Mapping[str, Tensor]) -> Tensor:
    """Count a tensor's candidates between each number of its layer's best units and each number of those that feed it.

    Args:
        graph: of the backbone.
        name: the tensor's.
        candidates: bool, (*shape).
        rank: tensor name to the rank of its units, (units,), 0 for the best.
    Returns:
        (units, feeding units), or (units, 1) where the backbone's inputs feed it: at [n - 1, m - 1] the number between
        n and m units.
    """
    layer, source = graph.layers[name], graph.layers[name].source
    block = layer.shape[1] if source is None else source.block
    held = layer.turned(candidates).reshape(layer.parts, layer.units, layer.size, -1, block * layer.kernel)
    kind = torch.int32 if candidates.numel() < 2**31 else torch.int64
    counts = held.sum((0, 2, 4), dtype=kind)[rank[name].argsort(stable=True)]  # (units, feeding units)
    if source is not None:
        counts = counts.index_select(1, rank[source.layer].argsort(stable=True))
    return counts.cumsum(1, dtype=kind).cumsum(0, dtype=kind)


def _least(low: int, high: int, works: Callable[[int], bool]) -> int:
    """Find the smallest number that works by bisection; the highest is taken to work."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle + 1, high)
    return low


def _ranks(tensors: Sequence[tuple[Layer, Tensor, Tensor]]) -> Tensor:
    """Rank a group's units by the sum of their candidates' scores, 0 for the highest: (units,); those without last.

    Args:
        tensors: each layer of the group, with its scores and candidates, both (*shape).
    """
    sums, some = [], []  # a tensor (units,) per layer
    for layer, scores, mask in tensors:
        held = layer.turned(torch.where(mask, scores.detach(), 0.0))
        sums.append(layer.by_unit(held.flatten(1).sum(1)).sum(1))
        some.append(layer.by_unit(layer.turned(mask).flatten(1).any(1)).any(1))
    total = torch.stack(sums).sum(0)
    total[~torch.stack(some).any(0)] = -math.inf
    ranks = torch.empty_like(total, dtype=torch.int64)
    ranks[total.argsort(descending=True, stable=True)] = torch.arange(len(total), device=total.device)
    return ranks
