"""Who owns which weight, and who reads whom, as network and plan files say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msh.deploy.files import READING, read_network, shapes_in
from msh.deploy.plans import Plan
from msh.subnetworks import FREE
from msh.subnetworks.persistence import read_description
from msh.subnetworks.tensors import name_of_key, unpack_bits

OWN_KINDS = ("private", "stem", "head")
CHUNK = 1 << 18
"""Weights that are looked at at a time."""


@dataclass(frozen=True)
class Owner:
    """A task of a network or plan.

    Attributes:
        task: its name.
        id: its owner id.
        phase: "new", "masked", "compact" or "frozen"; "planned" in a plan.
        reads: earlier tasks whose weights it may read.
        private: number of values in its stem, head, biases and normalisation; None in a plan.
    """

    task: str
    id: int
    phase: str
    reads: tuple[str, ...] = ()
    private: int | None = None


@dataclass(frozen=True)
class LayerCapacity:
    """How much of a layer each task owns.

    Attributes:
        name: of its tensor.
        shape: of its tensor.
        owned: every task to the number of its weights.
        free: number of weights that no task owns.
    """

    name: str
    shape: tuple[int, ...]
    owned: dict[str, int]
    free: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.free + sum(self.owned.values())

    @classmethod
    def together(cls, name: str, layers: Sequence[LayerCapacity]) -> LayerCapacity:
        """Several layers of one network as one of that name."""
        owned = {task: sum(layer.owned[task] for layer in layers) for task in (layers[0].owned if layers else ())}
        free = sum(layer.free for layer in layers)
        return cls(name, (free + sum(owned.values()),), owned, free)


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


@dataclass(frozen=True)
class Ownership:
    """Who owns which weight, and who reads whom.

    Attributes:
        owners: the tasks, in the order in which they were added.
        layers: tensor name to owner ids (*shape), `FREE` where no task owns the weight.
        reading: task to {tensor name: bool (*shape)}: the weights of others that it reads; a task that is not here
            reads all weights of the tasks in its `reads`.
    """

    owners: tuple[Owner, ...]
    layers: dict[str, Tensor]
    reading: dict[str, dict[str, Tensor]]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return [owner.task for owner in self.owners]

    @cached_property
    def capacity(self) -> list[LayerCapacity]:
        """For each layer, how much of it each task owns."""
        found = []
        for name, ids in self.layers.items():
            counts = _counts(ids)
            owned = {owner.task: counts.get(owner.id, 0) for owner in self.owners}
            found.append(LayerCapacity(name, tuple(ids.shape), owned, ids.numel() - sum(owned.values())))
        return found

    @cached_property
    def total(self) -> LayerCapacity:
        """The same for all layers together."""
        return LayerCapacity.together("all layers", self.capacity)

    @cached_property
    def used(self) -> dict[str, dict[str, int]]:
        """Task to {owner: number of its weights that the task computes with}; its own, and those that it reads."""
        found: dict[str, dict[str, int]] = {}
        for owner in self.owners:
            found[owner.task] = {owner.task: self.total.owned[owner.task]}
            if owner.task in self.reading:
                found[owner.task] |= self._chosen(owner)
            else:
                found[owner.task] |= {other: self.total.owned[other] for other in owner.reads}
        return found

    def _chosen(self, reader: Owner) -> dict[str, int]:
        counts: dict[int, int] = {}
        for name, mask in self.reading[reader.task].items():
            for owner, count in _counts(self.layers[name][mask]).items():
                counts[owner] = counts.get(owner, 0) + count
        names = {owner.id: owner.task for owner in self.owners}
        return {names[i]: counts[i] for i in sorted(counts) if i in names and i != reader.id}

    @cached_property
    def overlap(self) -> list[list[int]]:
        """Row and column for each task: the number of weights that both compute with; of one with itself, all it uses.

        Of an owner's weights two tasks have in common the fewer that one of them uses, where the other uses all of
        them; tasks that both chose what they read are compared weight by weight.
        """
        tasks = self.tasks
        if not tasks:
            return []
        used = torch.tensor([[self.used[task].get(other, 0) for other in tasks] for task in tasks])
        common = torch.stack([torch.minimum(row, used).sum(1) for row in used])
        chosen = [place for place, task in enumerate(tasks) if task in self.reading]
        if chosen:
            places = torch.tensor(chosen)
            common[places.unsqueeze(1), places] = self._chosen_in_common(chosen)
        return [[int(number) for number in row] for row in common]

    def _chosen_in_common(self, places: Sequence[int]) -> Tensor:
        """The part of `overlap` of tasks that chose what they read: (len(places), len(places))."""
        common = torch.zeros(len(places), len(places), dtype=torch.float64)
        for name, ids in self.layers.items():
            masks = []
            for place in places:
                own = ids == self.owners[place].id
                read = self.reading[self.owners[place].task].get(name)
                masks.append((own if read is None else own | read).view(-1))
            for start in range(0, ids.numel(), CHUNK):
                part = torch.stack([mask[start : start + CHUNK] for mask in masks]).float()
                common += part @ part.T  # exact: counts of a chunk fit a float's 24 bits
        return common.long()

    def picture(self, layer: str, cells: int = 1 << 16) -> Picture:
        """A layer's owner map as a matrix of bounded size.

        Args:
            layer: tensor name; of more than two dimensions, those after the first become one; of one, it is a column.
            cells: most weights that are shown. Of a larger layer, rows and columns are left out, evenly spaced: each
                cell is still the owner of one weight, and shares are those of the layer but for chance.
        """
        ids = self.layers[layer]
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


def _counts(ids: Tensor) -> dict[int, int]:
    """Owner id to its number of weights; free ones are left out."""
    counts = torch.bincount(ids.reshape(-1).int()) if ids.numel() else torch.zeros(0)
    return {place: int(count) for place, count in enumerate(counts) if place != FREE and count}


def read_ownership(path: Path) -> Ownership:
    """Read who owns what from a network file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a network file.
    """
    state, metadata = read_network(path)
    try:
        return _of_state(state, list(shapes_in(metadata)))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _of_state(state: Mapping[str, Any], names: Sequence[str]) -> Ownership:
    """What a state says; `names` are its layers in their order, where that is known."""
    keys = {name_of_key(key.removeprefix("owners.")): key for key in state if key.startswith("owners.")}
    layers: dict[str, Tensor] = {name: state[keys[name]] for name in names or keys}
    rows = read_description(state)["tasks"]
    tasks = {row["owner"]: row["task"] for row in rows}
    owners = [
        Owner(row["task"], row["owner"], row["phase"], tuple(tasks[i] for i in row["reads"] if i in tasks))
        for row in rows
    ]
    private = dict.fromkeys(tasks.values(), 0)
    reading: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        start, _, rest = key.partition(".")
        task, _, kind = rest.partition(".")
        if start != "subnetworks" or task not in private:
            continue
        if found := READING.fullmatch(key):
            name = name_of_key(found[1])
            reading.setdefault(task, {})[name] = unpack_bits(tensor, layers[name].shape)
        elif kind.partition(".")[0] in OWN_KINDS and tensor.is_floating_point():
            private[task] += tensor.numel()
    counted = (Owner(o.task, o.id, o.phase, o.reads, private[o.task]) for o in owners)
    return Ownership(tuple(counted), layers, reading)


def planned_ownership(plan: Plan) -> Ownership:
    """Who will own what, as a plan says it."""
    return Ownership(tuple(Owner(task, owner, "planned") for task, owner in plan.ids.items()), dict(plan.owners), {})
