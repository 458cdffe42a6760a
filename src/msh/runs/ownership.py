"""Compute owner maps and overlaps between masks, for reports and trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from msh.errors import invalid, one_of
from msh.subnetworks import NetworkState, TaskState

CHUNK = 1 << 18
"""Number of weights to compare at a time."""


@dataclass(frozen=True)
class LayerMap:
    """A layer's owner map, as a matrix with a bounded size.

    Attributes:
        ids: owner ids (shown rows, shown columns); a row is an output unit, a column one of its inputs.
        rows: in the whole layer.
        columns: in the whole layer.
    """

    ids: Tensor
    rows: int
    columns: int

    @property
    def whole(self) -> bool:
        """True where every weight is shown."""
        return self.ids.shape == (self.rows, self.columns)


def private_count(entry: TaskState) -> int | None:
    """Count the values in a task's stem, head, biases and normalisation; None while it is planned."""
    if entry.phase == "planned":
        return None
    return sum(tensor.numel() for tensor in entry.private.values() if tensor.is_floating_point())


def used_by_task(state: NetworkState) -> dict[str, dict[str, int]]:
    """Map each task to {owner: number of the owner's weights that the task computes with}, itself first."""
    owned = state.total().owned
    uses = {}
    for task, entry in state.tasks.items():
        read = state.read_counts(task) if entry.reading else {other: owned[other] for other in entry.reads}
        others = {other: count for other, count in read.items() if count or not entry.reading}
        uses[task] = {task: owned[task], **others}
    return uses


def mask_overlap(state: NetworkState) -> list[list[int]]:
    """Count the weights that two tasks both compute with: (tasks, tasks); on the diagonal, all that a task uses.

    Where one task uses all weights of an owner, it shares as many with another as that one uses. Tasks that both
    select the weights they read are compared weight by weight.
    """
    tasks, uses = [*state.tasks], used_by_task(state)
    if not tasks:
        return []
    counts = torch.tensor([[uses[task].get(other, 0) for other in tasks] for task in tasks])  # (tasks, owners)
    common = torch.stack([torch.minimum(row, counts).sum(1) for row in counts])  # (tasks, tasks)
    selecting = [index for index, task in enumerate(tasks) if state.tasks[task].reading]
    if selecting:
        indices = torch.tensor(selecting)
        common[indices.unsqueeze(1), indices] = _selected_overlap(state, [tasks[index] for index in selecting])
    return [[int(count) for count in row] for row in common]


def _selected_overlap(state: NetworkState, tasks: Sequence[str]) -> Tensor:
    """Compute `mask_overlap` for tasks that select the weights they read: (tasks, tasks)."""
    common = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for name, ids in state.owners.items():
        masks = [((ids == state.tasks[task].owner) | state.read_mask(task, name)).view(-1) for task in tasks]
        for start in range(0, ids.numel(), CHUNK):
            part = torch.stack([mask[start : start + CHUNK] for mask in masks]).float()  # (tasks, weights)
            common += part @ part.T  # exact: counts of a chunk fit a float's 24 bits
    return common.long()


def layer_map(state: NetworkState, layer: str, cells: int = 1 << 16) -> LayerMap:
    """Return a layer's owner map as a matrix of bounded size.

    Args:
        state: the network's.
        layer: tensor name. A tensor's dimensions after the first become one; a vector is a column.
        cells: most weights to show. Of a larger layer, evenly spaced rows and columns are left out: each cell is still
            one weight's owner, and shares are the layer's but for chance.
    """
    ids = state.owners[layer]
    ids = ids.flatten(1) if ids.dim() > 1 else ids.unsqueeze(1)  # (rows, columns)
    rows, columns = ids.shape
    shorter = min(rows, columns, isqrt(cells))
    longer = min(max(rows, columns), cells // max(1, shorter))
    wanted = (shorter, longer) if rows <= columns else (longer, shorter)
    return LayerMap(ids[spaced(rows, wanted[0])][:, spaced(columns, wanted[1])], rows, columns)


def spaced(size: int, most: int) -> Tensor:
    """Return indices, (min(size, most),), spaced evenly over 0, ..., size - 1; the last one is among them."""
    count = min(size, most)
    return size - 1 - torch.arange(count).flip(0) * size // max(1, count)


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
