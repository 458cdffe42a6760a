"""Compute owner matrices and mask overlaps of a network, for reports and trackers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING

from msh.errors import invalid, one_of

if TYPE_CHECKING:
    from torch import Tensor

    from msh.subnetworks import NetworkState

CHUNK = 1 << 18
"""Number of weights to compare at a time."""


def mask_overlap(state: NetworkState) -> list[list[int]]:
    """Count the weights that two tasks both use, (tasks, tasks); on the diagonal, all weights a task uses.

    Where tasks read all weights of an owner, they share the smaller of their two counts. Tasks that selected which
    weights to read are compared weight by weight.
    """
    tasks, uses = [*state.tasks], state.holdings().used
    if not tasks:
        return []
    import torch

    counts = torch.tensor([[uses[task].get(owner, 0) for owner in tasks] for task in tasks])  # (tasks, owners)
    common = torch.stack([torch.minimum(row, counts).sum(1) for row in counts])  # (tasks, tasks)
    selective = [index for index, task in enumerate(tasks) if state.tasks[task].reading]
    if selective:
        index = torch.tensor(selective)
        common[index.unsqueeze(1), index] = _common_weights(state, [tasks[i] for i in selective])
    return [[int(count) for count in row] for row in common]


def _common_weights(state: NetworkState, tasks: Sequence[str]) -> Tensor:
    """Compare masks weight by weight: (tasks, tasks)."""
    import torch

    common = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for name, ids in state.owners.items():
        masks = [((ids == state.tasks[task].owner) | state.read_mask(task, name)).view(-1) for task in tasks]
        for start in range(0, ids.numel(), CHUNK):
            part = torch.stack([mask[start : start + CHUNK] for mask in masks]).float()  # (tasks, weights)
            common += part @ part.T  # exact: counts of a chunk fit a float's 24 bits
    return common.long()


def owner_matrix(state: NetworkState, layer: str, cells: int = 1 << 16) -> Tensor:
    """Sample a layer's owner ids as a matrix of bounded size.

    Args:
        state: the network.
        layer: tensor name; dimensions after the first are joined, and a one-dimensional tensor is a column.
        cells: most weights that are kept. In a larger layer, rows and columns are left out, evenly spaced: each cell
            is the owner of one weight, and shares are the layer's up to sampling error.
    Returns:
        (rows, columns): rows are output units, columns their inputs.
    """
    ids = state.owners[layer]
    ids = ids.flatten(1) if ids.dim() > 1 else ids.unsqueeze(1)  # (rows, columns)
    rows, columns = ids.shape
    shorter = min(rows, columns, isqrt(cells))
    longer = min(max(rows, columns), cells // max(1, shorter))
    height, width = (shorter, longer) if rows <= columns else (longer, shorter)
    return ids[spaced(rows, height)][:, spaced(columns, width)]


def spaced(size: int, most: int) -> list[int]:
    """Space min(size, most) indices evenly over 0, ..., size - 1, the last one included."""
    number = min(size, most)
    return [size - 1 - index * size // number for index in reversed(range(number))]


def chosen_layers(names: Sequence[str], wanted: int | str | Sequence[str]) -> list[str]:
    """Choose the layers whose owner maps are drawn.

    Args:
        names: all layers.
        wanted: names; or how many layers, evenly spaced from the first to the last.
    Raises:
        ValueError: a layer does not exist, or the number is negative.
    """
    if not isinstance(wanted, int):
        chosen = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
        for name in chosen:
            one_of("owner_maps", name, names)
        return chosen
    if wanted < 0:
        raise invalid("owner_maps", ">= 0, or names of layers", wanted)
    count = min(wanted, len(names))
    return [names[round(index * (len(names) - 1) / max(1, count - 1))] for index in range(count)]
