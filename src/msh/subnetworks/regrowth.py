"""Replace some of a compact task's elements by free ones, at constant density."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from msh.subnetworks.allocation import FREE, top_k_mask
from msh.subnetworks.forms import flat_index
from msh.subnetworks.granularity import WEIGHTS, Granularity
from msh.subnetworks.network import MultiSubnetwork, dense_values
from msh.subnetworks.tensors import count_true


def share_at(share: float, time: float) -> float:
    """Decay the share of a task's elements that is replaced, from `share` at time 0 to 0 at time 1, by a cosine.

    Source: Dettmers and Zettlemoyer 2019; Evci et al. 2020, RigL, sec. 3 (2).
    """
    return share / 2 * (1 + math.cos(math.pi * min(time, 1.0)))


@torch.no_grad()
def choose_regrown(
    network: MultiSubnetwork,
    task: str,
    share: float,
    granularity: Granularity = WEIGHTS,
    gradients: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Choose the weights that a compact task owns after it has replaced its weakest elements.

    In every tensor, the elements of the least magnitude are dropped. As many are grown among free and dropped ones:
    those whose weights have the largest gradients, or random ones; blocks first where a row or column has none left.

    Args:
        network: holds the task.
        task: a compact task.
        share: of its elements in each tensor, rounded down, in [0, 1].
        granularity: elements that are replaced as one.
        gradients: tensor name to dL/dw (*shape), from `dense_leaves`; None grows at random.
        generator: on the CPU, for random growth; a fixed seed when None.
    Returns:
        Tensor name to bool (*shape); as many weights as before in every tensor.
    Raises:
        ValueError: the task is not compact.
    Source: Mocanu et al. 2018, SET; Evci et al. 2020, RigL.
    """
    network.in_phase(task, "compact")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    own = network.masks(task)
    magnitudes = {name: values.abs() for name, values in dense_values(network, task).items()}
    strength = granularity.scores(magnitudes, own)
    owned, open_to = granularity.owned(own), granularity.replaceable(network, task)
    growth = None
    if gradients is not None:
        growth = granularity.scores({name: g.abs() for name, g in gradients.items()}, granularity.weights(open_to))
    elements = {}
    for name, mask in owned.items():
        loose = mask & open_to[name]
        replaced = min(int(share * count_true(mask)), count_true(loose))
        kept = mask & ~loose | top_k_mask(strength[name], count_true(loose) - replaced, loose)
        wish = growth[name] if growth is not None else torch.rand(mask.shape, generator=generator).to(mask.device)
        elements[name] = kept | granularity.grow(name, wish, open_to[name] & ~kept, kept, mask & ~kept)
    return granularity.weights(elements)


@torch.no_grad()
def move(
    network: MultiSubnetwork,
    task: str,
    masks: Mapping[str, Tensor],
    granularity: Granularity = WEIGHTS,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Let a compact task own these weights instead; those that it keeps keep their values.

    Parameters stay the same objects, with the same shapes. A new weight starts from 0, except in a new unit's row:
    that is drawn with the root mean square of the tensor's values, or no gradient would reach it.

    Args:
        network: holds the task.
        task: a compact task.
        masks: tensor name to bool (*shape), from `choose_regrown`.
        granularity: of the masks.
        generator: on the CPU, for drawn values; a fixed seed when None.
    Returns:
        Tensor name to int64 (k,): the index that each value had before, -1 for new ones; see `move_state`.
    Raises:
        ValueError: the task is not compact, or a mask has another number of weights, or marks others' weights.
    """
    sub, before = network.in_phase(task, "compact"), network.masks(task)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    origins = {}
    for name, mask in masks.items():
        owners, old = network.owners[name], before[name]
        if count_true(mask) != count_true(old) or bool((mask & (owners != FREE) & ~old).any()):
            raise ValueError(f"task {task!r}: new weights of layer {name!r} must be free, and as many as before")
        values, place = sub.values[name], torch.full(old.shape, -1, dtype=torch.int64, device=old.device)
        place[old] = torch.arange(count_true(old), device=old.device)
        origins[name] = origin = place.take(flat_index(mask))
        rms = values.square().mean().sqrt()
        drawn = torch.randn(len(origin), generator=generator).to(values) * rms
        fresh = granularity.fresh(name, old, mask).masked_select(mask)  # (k,)
        values.copy_(torch.where(origin < 0, torch.where(fresh, drawn, 0.0), values[origin.clamp(min=0)]))
        owners[old], owners[mask] = FREE, sub.owner
    network.derive(sub)
    network.forget_modules(task)
    return origins


@torch.no_grad()
def move_state(network: MultiSubnetwork, task: str, origins: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Let an optimizer's state follow a task's weights; that of new weights is 0.

    An optimizer with state of another shape than its parameters (as LBFGS has) starts again without any.

    Args:
        network: holds the task.
        task: a compact task.
        origins: from `move`.
        optimizer: trains the task's values.
    """
    values = {name: network.subnetwork(task).values[name] for name in origins}
    if not all(_is_per_weight(p, part) for p in values.values() for part in optimizer.state.get(p, {}).values()) or any(
        isinstance(part, list) for state in optimizer.state.values() for part in state.values()
    ):
        optimizer.state.clear()
    for name, origin in origins.items():
        for part in optimizer.state.get(values[name], {}).values():
            if isinstance(part, Tensor) and part.dim():
                part.copy_(torch.where(origin < 0, torch.zeros_like(part), part[origin.clamp(min=0)]))


def _is_per_weight(parameter: Tensor, part: object) -> bool:
    """Tell whether a part of an optimizer's state is a number, or has an entry per weight of the parameter."""
    if isinstance(part, Tensor):
        return part.dim() == 0 or part.shape == parameter.shape
    return part is None or isinstance(part, int | float)
