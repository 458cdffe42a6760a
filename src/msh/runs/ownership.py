"""Owner maps and overlaps of a network, as reports draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from msh.subnetworks import NetworkState, TaskState

CHUNK = 1 << 18
"""Weights that are compared at a time."""


@dataclass(frozen=True)
class Picture:
    """A layer's owner map as a matrix of bounded size.

    Attributes:
        ids: owner ids (rows, columns); a row is an output unit, a column one of its inputs.
        rows: number of rows of the whole layer.
        columns: number of columns of the whole layer.
    """

    ids: Tensor
    rows: int
    columns: int

    @property
    def whole(self) -> bool:
        """Whether every weight is shown."""
        return self.ids.shape == (self.rows, self.columns)


def private_count(entry: TaskState) -> int | None:
    """Number of values in a task's stem, head, biases and normalisation; None while it is planned."""
    if entry.phase == "planned":
        return None
    return sum(tensor.numel() for tensor in entry.private.values() if tensor.is_floating_point())


def used_by_task(state: NetworkState) -> dict[str, dict[str, int]]:
    """Task to {owner: number of its weights that the task computes with}: its own, and those that it reads."""
    owned = state.total().owned
    found = {}
    for task, entry in state.tasks.items():
        read = state.read_counts(task) if entry.reading else {other: owned[other] for other in entry.reads}
        found[task] = {
            task: owned[task],
            **{other: count for other, count in read.items() if count or not entry.reading},
        }
    return found


def mask_overlap(state: NetworkState) -> list[list[int]]:
    """Row and column for each task: the number of weights that both compute with; of one with itself, all it uses.

    Of an owner's weights two tasks share the fewer that one of them uses, where the other uses all of them; tasks that
    both chose what they read are compared weight by weight.
    """
    tasks, uses = [*state.tasks], used_by_task(state)
    if not tasks:
        return []
    numbers = torch.tensor([[uses[task].get(other, 0) for other in tasks] for task in tasks])
    common = torch.stack([torch.minimum(row, numbers).sum(1) for row in numbers])
    chosen = [place for place, task in enumerate(tasks) if state.tasks[task].reading]
    if chosen:
        places = torch.tensor(chosen)
        common[places.unsqueeze(1), places] = _chosen_in_common(state, [tasks[place] for place in chosen])
    return [[int(number) for number in row] for row in common]


def _chosen_in_common(state: NetworkState, tasks: Sequence[str]) -> Tensor:
    """The part of `mask_overlap` of tasks that chose what they read: (tasks, tasks)."""
    common = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for name, ids in state.owners.items():
        masks = [((ids == state.tasks[task].owner) | state.read_mask(task, name)).view(-1) for task in tasks]
        for start in range(0, ids.numel(), CHUNK):
            part = torch.stack([mask[start : start + CHUNK] for mask in masks]).float()
            common += part @ part.T  # exact: counts of a chunk fit a float's 24 bits
    return common.long()


def layer_picture(state: NetworkState, layer: str, cells: int = 1 << 16) -> Picture:
    """Show a layer's owner map as a matrix of bounded size.

    Args:
        state: the network.
        layer: tensor name; of more than two dimensions, those after the first become one; of one, it is a column.
        cells: most weights that are shown. Of a larger layer, rows and columns are left out, evenly spaced: each
            cell is still the owner of one weight, and shares are those of the layer but for chance.
    """
    ids = state.owners[layer]
    ids = ids.flatten(1) if ids.dim() > 1 else ids.unsqueeze(1)
    rows, columns = ids.shape
    shorter = min(rows, columns, isqrt(cells))
    longer = min(max(rows, columns), cells // max(1, shorter))
    wanted = (shorter, longer) if rows <= columns else (longer, shorter)
    return Picture(ids[spaced(rows, wanted[0])][:, spaced(columns, wanted[1])], rows, columns)


def spaced(size: int, most: int) -> Tensor:
    """Places, (min(size, most),), spaced evenly over 0, ..., size - 1; the last of them among them."""
    kept = min(size, most)
    return size - 1 - torch.arange(kept).flip(0) * size // max(1, kept)
