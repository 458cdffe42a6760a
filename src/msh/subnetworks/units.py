"""Budgets in whole units: how many of each layer a budget holds, and which of them a task keeps.

A task that keeps units owns, in each tensor, the rectangle of its own rows and of the columns that its own units of the
layer before feed: its subnetwork is a smaller dense network. A unit belongs to one task at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from msh.subnetworks.allocation import FREE, Budget, CapacityError, EmptyLayerError
from msh.subnetworks.empty import least_density
from msh.subnetworks.tracing import UnitGraph, Units


def count_weights(graph: UnitGraph, counts: Mapping[str, int]) -> int:
    """Weights of a subnetwork with so many units of each layer."""
    total = 0
    for name, layer in graph.layers.items():
        columns = layer.shape[1] if layer.source is None else counts[layer.source.layer] * layer.source.block
        total += counts[name] * columns * layer.kernel
    return total


def fit_units(graph: UnitGraph, weights: int) -> dict[str, int] | None:
    """Units of each layer that a number of weights holds.

    Every layer gets the same share of its units, at least one unit, the share as large as fits; of what is left, layers
    get one unit more where it fits, those with the smallest share first. More than one would widen the layers with the
    cheapest units far beyond the others: early convolutions, which have few weights and compute the most.

    Args:
        graph: of the backbone.
        weights: at most as many are used.
    Returns:
        Tensor name to units; None if not even one unit of each layer fits.
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
    """Serve the tasks' budgets in order, on paper, in whole units.

    A number or a share of weights is met from below, as closely as `fit_units` says; an equal share is one of each
    layer's free units.

    Args:
        graph: of the backbone.
        budgets: task name to its budget, of scope "tensor", in the order they will be served.
        free: tensor name to its number of free units; all of them when None.
    Returns:
        Task name to {tensor name: units}.
    Raises:
        CapacityError: a budget does not hold one unit of each layer, or more units than the tasks before it leave.
        ValueError: a budget is over the whole network.
    """
    left = {name: layer.units for name, layer in graph.layers.items()} if free is None else dict(free)
    plan: dict[str, dict[str, int]] = {}
    for position, (task, budget) in enumerate(budgets.items()):
        if budget.scope != "tensor":
            raise ValueError(f"task {task!r}: scope = {budget.scope!r} is not allowed with whole units: 'tensor' is")
        wanted = _wanted(graph, task, budget, left, len(budgets) - position)
        for name, count in wanted.items():
            if not 1 <= count <= left[name]:
                raise CapacityError(
                    f"task {task!r} wants {max(1, count)} of the {graph.layers[name].units} units of layer {name!r}, "
                    f"but only {left[name]} are free; lower its density, or give the network more units"
                )
        plan[task] = wanted
        left = {name: left[name] - wanted[name] for name in left}
    return plan


def _wanted(graph: UnitGraph, task: str, budget: Budget, left: Mapping[str, int], tasks_left: int) -> dict[str, int]:
    if budget.share is not None:
        return budget.counts({}, left, tasks_left)
    sizes = {name: layer.units * layer.shape[1] * layer.kernel for name, layer in graph.layers.items()}
    weights = replace(budget, scope="network").counts(sizes, {})[""]
    found = fit_units(graph, weights)
    if found is None:
        name, layer = next(iter(graph.layers.items()))
        least = count_weights(graph, dict.fromkeys(graph.layers, 1))
        cure = f"weights must be >= {least}, got {weights}"
        if budget.density is not None:
            cure = f"density must be >= {least_density(least, sum(sizes.values()))}, got {budget.density}"
        raise EmptyLayerError(
            f"task {task!r} wants {weights} weights, but one unit of each layer from {name!r} on takes {least} "
            f"({left[name]} of the {layer.units} units of {name!r} are free); {cure}"
        )
    return found


def candidate_units(graph: UnitGraph, masks: Mapping[str, Tensor], owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Units that a masked task may still keep: no task owns any of their weights, and the task has all that it needs.

    Args:
        graph: of the backbone.
        masks: tensor name to bool (*shape), the task's candidates.
        owners: tensor name to owner ids (*shape).
    Returns:
        Tensor name to bool (units,).
    """
    found: dict[str, Tensor] = {}
    for name, layer in graph.layers.items():
        mask = masks[name]
        needless = ~columns(layer.source, found, layer.shape[1], mask.device)
        held = mask | needless.view(1, -1, *[1] * len(layer.shape[2:]))
        found[name] = (held & (owners[name] == FREE)).flatten(1).all(1)
    return found


def unit_scores(graph: UnitGraph, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score units by the sum of their candidate weights' scores.

    Args:
        graph: of the backbone.
        scores: tensor name to a score per weight (*shape), unitless.
        masks: tensor name to bool (*shape), the task's candidates.
    Returns:
        Tensor name to (units,).
    """
    return {name: torch.where(masks[name], scores[name], 0.0).flatten(1).sum(1) for name in graph.layers}


def unit_masks(graph: UnitGraph, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that belong to units.

    Args:
        graph: of the backbone.
        units: tensor name to bool (units,).
    Returns:
        Tensor name to bool (*shape): rows of its units, in columns that units fed.
    """
    masks = {}
    for name, layer in graph.layers.items():
        rows = units[name]
        mask = rows[:, None] & columns(layer.source, units, layer.shape[1], rows.device)
        masks[name] = mask.view(*mask.shape, *[1] * len(layer.shape[2:])).expand(layer.shape).contiguous()
    return masks


def columns(source: Units | None, units: Mapping[str, Tensor], width: int, device: torch.device) -> Tensor:
    """Bool, (width,): places that the units kept of a source take; all of them where the source is the inputs."""
    if source is None:
        return torch.ones(width, dtype=torch.bool, device=device)
    return units[source.layer].repeat_interleave(source.block)


def owned_units(graph: UnitGraph, task: str, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units of a task that was allocated in whole units.

    Args:
        graph: of the backbone.
        task: its name, for the message.
        masks: tensor name to bool (*shape), its weights.
    Returns:
        Tensor name to bool (units,).
    Raises:
        ValueError: its weights are not those of whole units.
    """
    units = {name: masks[name].flatten(1).any(1) for name in graph.layers}
    for name, mask in unit_masks(graph, units).items():
        if not torch.equal(mask, masks[name]) or not bool(mask.any()):
            raise ValueError(
                f"task {task!r} was not allocated in whole units: see layer {name!r}; "
                "prune it with granularity neuron or channel"
            )
    return units
