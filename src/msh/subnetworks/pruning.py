"""Iterative pruning of a task in training: score, cut, keep the scale, rewind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msh.subnetworks.allocation import at_most, choose_at_most
from msh.subnetworks.criteria import MAGNITUDE, Criterion
from msh.subnetworks.empty import check_layers
from msh.subnetworks.forms import felt_by
from msh.subnetworks.granularity import WEIGHTS, Granularity, Masks
from msh.subnetworks.initial import norm_of, rescale_to
from msh.subnetworks.network import MultiSubnetwork, dense_leaves
from msh.subnetworks.tensors import count_true, keep_only

if TYPE_CHECKING:
    from torch.optim import Optimizer


def candidate_counts(
    network: MultiSubnetwork, task: str, wanted: Mapping[str, int], granularity: Granularity = WEIGHTS
) -> dict[str, int]:
    """Count the elements that a task may still keep, in each tensor or, as in `wanted`, in all (key "")."""
    counts = {name: count_true(mask) for name, mask in granularity.candidates(network, task).items()}
    return {"": sum(counts.values())} if "" in wanted else counts


@torch.no_grad()
def select(
    network: MultiSubnetwork,
    task: str,
    kept: Mapping[str, int],
    criterion: Criterion = MAGNITUDE,
    gradients: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    granularity: Granularity = WEIGHTS,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """Select the weights that a masked task keeps.

    Pruned weights are no candidates; other tasks' weights are candidates only under `reuse=learned`.

    Args:
        network: holds the task.
        task: a masked task.
        kept: tensor name to the number of elements kept there, or {"": number over the whole network}.
        criterion: scores the weights; the highest are kept.
        gradients: tensor name to dL/dw (*shape), if the criterion needs them.
        generator: on the CPU, for the criterion; a fixed seed when None.
        granularity: elements that are kept as one.
        allow_empty: allow `kept` or the scores to leave some layers no weight.
    Returns:
        Tensor name to bool (*shape).
    Raises:
        ValueError: a number kept exceeds the candidates, or the criterion lacks gradients.
        EmptyLayerError: the task would neither own nor read a weight of a layer.
    """
    scores = score(network, task, criterion, gradients, generator, granularity)
    allowed = granularity.candidates(network, task)
    masks = granularity.choose(scores, kept, allowed)
    if not allow_empty:
        check_layers(network, task, masks, kept, scores, allowed)
    return granularity.weights(masks)


@torch.no_grad()
def score(
    network: MultiSubnetwork,
    task: str,
    criterion: Criterion = MAGNITUDE,
    gradients: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    granularity: Granularity = WEIGHTS,
) -> dict[str, Tensor]:
    """Score a masked task's weights; the arguments are those of `select`.

    Returns:
        Tensor name to float (*shape), higher is kept; unitless. With units, (units,).
    Raises:
        ValueError: the task is not masked, or the criterion lacks gradients or learned scores.
    """
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    sub = network.in_phase(task, "masked")
    if criterion.learned and not sub.scored:
        raise ValueError(f"criterion {criterion.name!r} needs learned scores: call start_scores for task {task!r}")
    source = sub.scores if criterion.learned else sub.values
    scores = {
        name: criterion(source[name], None if gradients is None else gradients[name], generator)
        for name in network.names.prunable
    }
    return granularity.scores(scores, network.masks(task))


def select_apart(
    scores: Mapping[str, Mapping[str, Tensor]],
    kept: Mapping[str, Mapping[str, int]],
    budgets: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Masks],
    shared: Masks | None = None,
    granularity: Granularity = WEIGHTS,
) -> dict[str, dict[str, Tensor]]:
    """Select the weights of several masked tasks, such that each can end with a budget that no other task shares.

    First each task in turn reserves its best weights, as many as its budget, among those not yet reserved. Then each
    keeps the best weights that no other task has reserved. Weights kept beyond the budget may overlap.

    Args:
        scores: task to {tensor name: (*shape)}, higher is kept.
        kept: task to {tensor name, or "" for all: number kept}; fewer where other tasks' reserves leave fewer.
        budgets: task to {tensor name, or "" for all: number kept at the end}, at most the number kept now.
        candidates: task to {tensor name: bool (*shape)}: all free weights, or the last result of this function.
        shared: tensor name to bool (*shape): weights that are only read, which any number of tasks may keep.
        granularity: of scores and candidates.
    Returns:
        Task to {tensor name: bool (*shape)}.
    Raises:
        ValueError: the candidates do not suffice for every budget.
    Source: Renn et al. 2022, arXiv 2207.08821: a weight taken by an earlier task scores 0.
    """
    if len(budgets) == 1:  # no other task reserves weights
        ((task, budget),) = budgets.items()
        counts = {name: max(budget[name], k) for name, k in at_most(kept[task], candidates[task]).items()}
        return {task: granularity.choose(scores[task], counts, candidates[task])}
    reserved: dict[str, Masks] = {}
    for task, budget in budgets.items():
        rest = _without(candidates[task], reserved.values(), shared)
        reserved[task] = granularity.choose(scores[task], budget, rest)
    chosen = {}
    for task in budgets:
        others = [masks for other, masks in reserved.items() if other != task]
        rest = _without(candidates[task], others, shared)
        chosen[task] = choose_at_most(scores[task], kept[task], rest, granularity.choose)
    return chosen


def _without(candidates: Masks, taken: Iterable[Masks], shared: Masks | None) -> dict[str, Tensor]:
    rest = dict(candidates)
    for masks in taken:
        rest = {name: rest[name] & ~masks[name] for name in rest}
    return rest if shared is None else {name: rest[name] | (candidates[name] & shared[name]) for name in rest}


@torch.no_grad()
def cut(
    network: MultiSubnetwork,
    task: str,
    masks: Mapping[str, Tensor],
    rescale: bool = True,
    granularity: Granularity = WEIGHTS,
) -> None:
    """Narrow a masked task to these weights.

    Args:
        network: holds the task.
        task: a masked task.
        masks: from `select`.
        rescale: scale the survivors so that each tensor keeps its norm. Without it the signals of a network of
            density d and depth n start smaller by d to the power n / 2. Where the task also selected weights to
            read, its own weights take their share of the norm.
        granularity: of the masks; with units, the norm of the kept units stays.
    """
    values = network.subnetwork(task).values
    before, held = network.masks(task), network.held(task)
    scaled = {name: granularity.rescaled(name, before[name], mask) for name, mask in masks.items()}
    norms = {name: norm_of(values[name], scaled[name]) / (own_share(before[name], held[name]) or 1.0) for name in masks}
    network.restrict(task, masks)
    if rescale:
        for name, own in network.masks(task).items():
            rescale_to(values[name], own, norms[name] * own_share(own, masks[name]))


@torch.no_grad()
def cut_state(network: MultiSubnetwork, task: str, optimizer: Optimizer) -> None:
    """Set an optimizer's state to 0 outside a masked task's candidates: no step there changes what the task computes.

    Args:
        network: holds the task.
        task: a masked task, after a `cut`.
        optimizer: trains the task's values; state of another shape than theirs stays.
    """
    sub = network.in_phase(task, "masked")
    for name, mask in sub.masks.items():
        for part in optimizer.state.get(sub.values[name], {}).values():
            if isinstance(part, Tensor) and part.shape == mask.shape:
                keep_only(mask, part)


def prune(
    network: MultiSubnetwork,
    task: str,
    kept: Mapping[str, int],
    criterion: Criterion = MAGNITUDE,
    gradients: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    rescale: bool = True,
    granularity: Granularity = WEIGHTS,
    allow_empty: bool = False,
) -> None:
    """Prune a masked task to a number of weights: `select`, then `cut`.

    Source: Han et al. 2015; Zhu and Gupta 2017.
    """
    masks = select(network, task, kept, criterion, gradients, generator, granularity, allow_empty)
    cut(network, task, masks, rescale, granularity)


def own_share(own: Tensor, held: Tensor) -> float:
    """Compute the share of a tensor's norm for a task's own weights, beside the weights it selected to read."""
    return math.sqrt(count_true(own) / max(1, count_true(held)))


def loss_gradients(network: MultiSubnetwork, task: str, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Compute a loss's gradient for all weights a masked task holds, own and read; no `.grad` changes.

    Args:
        network: holds the task.
        task: a masked task; or a compact one, for the gradients of all weights, free ones included.
        loss: computes the scalar loss of this task by calling the network.
    Returns:
        Tensor name to (*shape).
    """
    sub, names = network.subnetwork(task), network.names.prunable
    compact = sub.phase == "compact"
    with dense_leaves(network, task) if compact else felt_by(sub, network.held(task)) as leaves:
        values = leaves if leaves is not None else sub.values
        gradients = torch.autograd.grad(loss(), [values[name] for name in names], allow_unused=True)
    return {n: g if g is not None else torch.zeros_like(values[n]) for n, g in zip(names, gradients, strict=True)}


def keep_state(network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
    """Copy a masked task's weights, private tensors and masks, named as in its state dict, for `go_back`."""
    network.settle(task)
    return {name: tensor.detach().clone() for name, tensor in network.subnetwork(task).state_dict().items()}


def go_back(network: MultiSubnetwork, task: str, earlier: Mapping[str, Tensor]) -> None:
    """Restore a masked task's weights, private tensors and masks from `keep_state`, in the same parameters.

    Raises:
        ValueError: the task is not masked.
    """
    sub = network.in_phase(task, "masked")
    sub.load_state_dict(earlier)
    network.derive(sub)


def snapshot(network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
    """Copy a masked task's parameters, by their names in the subnetwork, for `rewind`."""
    network.settle(task)
    return {name: p.detach().clone() for name, p in network.subnetwork(task).named_parameters()}


@torch.no_grad()
def rewind(
    network: MultiSubnetwork,
    task: str,
    earlier: Mapping[str, Tensor],
    rescale: bool = True,
    granularity: Granularity = WEIGHTS,
) -> None:
    """Reset a masked task's surviving weights, and its private parameters, to earlier values.

    Args:
        network: holds the task.
        task: a masked task.
        earlier: `snapshot` of the same task at initialisation or an early epoch.
        rescale: give each tensor the norm it had in the snapshot.
        granularity: of the task's masks; with units, their rows keep their norm.
    Source: Frankle and Carbin 2019; Renda et al. 2020.
    """
    sub = network.subnetwork(task)
    for name, parameter in sub.named_parameters():
        parameter.copy_(earlier[name])
    for name, mask in network.masks(task).items():
        values = sub.values[name]
        norm = granularity.rewound_norm(name, values, mask)
        keep_only(mask, values)
        if rescale and not sub.reads:
            rescale_to(values, mask, norm)
    network.restrict(task, network.held(task))
