"""Refuse masks that leave a task no weight in a layer: only biases pass such a layer."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from torch import Tensor

from msh.errors import requirement
from msh.subnetworks.allocation import EmptyLayerError
from msh.subnetworks.tensors import count_true, selected

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

ALLOW = "allow empty layers with pruning.allow_empty_layers=true (in Python allow_empty=True)"
DIGITS = 4
"""Significant digits of the densities that errors recommend."""


def empty_layers(network: MultiSubnetwork, task: str, masks: Mapping[str, Tensor]) -> list[str]:
    """List the layers in which a masked task would neither own nor read a weight.

    Args:
        network: holds the task.
        task: a masked task.
        masks: tensor name to bool, the weights (*shape) or units (units,) that the task will hold.
    """
    sub = network.subnetwork(task)
    reads = network.reading(task) if sub.reads and not sub.selective else {}  # else in masks
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    return [name for name in empty if name not in reads or not bool(reads[name].any())]


def check_layers(
    network: MultiSubnetwork,
    task: str,
    masks: Mapping[str, Tensor],
    kept: Mapping[str, int],
    scores: Mapping[str, Tensor] | None = None,
    candidates: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise if masks leave a masked task no weight in a layer.

    Args:
        network: holds the task.
        task: a masked task.
        masks: as for `empty_layers`.
        kept: tensor name, or "" for all, to the number kept.
        scores: tensor name to (*shape), which chose the masks; the message then has the smallest sufficient density.
        candidates: tensor name to bool (*shape), the weights they chose among.
    Raises:
        EmptyLayerError: naming task, layer, the number kept, and the smallest that works.
    """
    empty = empty_layers(network, task, masks)
    if not empty:
        return
    problem = f"task {task!r} would keep no weight of layer {empty[0]!r}"
    if "" not in kept:
        raise EmptyLayerError(f"{problem}: {requirement('the number kept', '>= 1', kept[empty[0]])}; or {ALLOW}")
    total = sum(network.sizes().values())
    asked = f"by their scores, the {kept['']} weights kept of the whole network (density {kept[''] / total:.4g})"
    least = None if scores is None or candidates is None else _least_over_all(scores, candidates)
    enough = ""
    if least is not None:
        enough = f"; with these scores density must be >= {least_density(least, total)} ({least} weights)"
    raise EmptyLayerError(
        f"{problem}: {asked} are in other layers{enough}; raise it, pass pruning.scope=erk or epl, or {ALLOW}"
    )


def _least_over_all(scores: Mapping[str, Tensor], candidates: Mapping[str, Tensor]) -> int | None:
    """Count the highest scores over all layers that include one of each layer; None if a layer has no candidate."""
    ranked = [selected(score, candidates[name]) for name, score in scores.items()]
    if not all(layer.numel() for layer in ranked):
        return None
    needed = []
    for index, layer in enumerate(ranked):
        best = layer.max()
        above = sum(count_true(other > best) for other in ranked)
        ties = sum(count_true(other == best) for other in ranked[:index])  # they go to earlier layers
        needed.append(above + ties + 1)
    return max(needed)


def least_density(weights: int, total: int) -> float:
    """Find the smallest density that keeps this number of weights, rounded up to `DIGITS` digits."""
    return next(d for d in decimals_from((weights - 0.5) / total) if round(d * total) >= weights)


def decimals_from(least: float) -> list[float]:
    """List the first two numbers with `DIGITS` significant digits that are >= this one."""
    exact = Decimal(least)
    unit = Decimal(1).scaleb(exact.adjusted() + 1 - DIGITS)
    first = (exact / unit).to_integral_value(ROUND_CEILING)
    return [float(first * unit), float((first + 1) * unit)]
