"""Hold a network as plain data: weights, owners, tasks and private tensors, without the modules that use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from msh.errors import one_of
from msh.recipes import Recipe, base_of
from msh.subnetworks.allocation import FREE
from msh.subnetworks.blocks import choose_held
from msh.subnetworks.description import (
    EXTRA_STATE,
    PARTS,
    STATE_VERSION,
    Capacity,
    Families,
    Holdings,
    TaskState,
    check_task_name,
    read_description,
)
from msh.subnetworks.initial import give_back, norm_of
from msh.subnetworks.tensors import (
    bag_key,
    belongs,
    name_of_key,
    only_at,
    raw_bytes,
    same_bits,
    unpack_bits,
    wide_enough,
)

OWNER_TYPES = (torch.uint8, torch.int16, torch.int32)
Masks = dict[str, Tensor]
"""Tensor name to bool (*shape)."""


@dataclass
class NetworkState:
    """A whole network: the one representation behind modules, files, plans and checkpoints.

    Owners partition the weights: each has one owner id, `FREE` or that of a task.

    Attributes:
        weights: prunable tensor name to the dense tensor (*shape), every task's weights and the free ones; a name is
            missing where only owners are known.
        owners: prunable tensor name to owner ids (*shape), in the network's order.
        norms: prunable tensor name to its Euclidean norm, (), when the backbone was wrapped.
        defaults: the backbone's other tensors: private tensors start from them, and tasks share the unchanged ones.
        tasks: by name, in the order in which they were added.
        active: the task computed when none is named.
        tied: further name to the name above, for tied prunable tensors.
        padding: embedding name to the row that no task can own and that stays 0.
        buffers: names in `defaults`; a task has a private copy only where it changed them.
        shared: names in `defaults` that every task uses unchanged.
        draws: prunable tensor name to the family of its fresh values, where they are not uniform.
        recipe: how to rebuild the backbone, where known.
    """

    weights: dict[str, Tensor]
    owners: dict[str, Tensor]
    norms: dict[str, Tensor] = field(default_factory=dict)
    defaults: dict[str, Tensor] = field(default_factory=dict)
    tasks: dict[str, TaskState] = field(default_factory=dict)
    active: str | None = None
    tied: dict[str, str] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    draws: Families = field(default_factory=dict)
    recipe: Recipe = field(default_factory=dict)

    # ---- owners

    def task(self, name: str) -> TaskState:
        """Look a task up.

        Raises:
            ValueError: there is no such task.
        """
        if name not in self.tasks:  # else no list of the names is made
            one_of("task", name, self.tasks)
        return self.tasks[name]

    def sizes(self) -> dict[str, int]:
        """Count each tensor's weights that tasks can own."""
        padded = {name: self.owners[name][row].numel() for name, row in self.padding.items()}
        return {name: owners.numel() - padded.get(name, 0) for name, owners in self.owners.items()}

    def free(self) -> Masks:
        """Mark the weights that no task owns."""
        masks = {name: owners == FREE for name, owners in self.owners.items()}
        for name, row in self.padding.items():
            masks[name][row] = False
        return masks

    def owned(self, task: str) -> Masks:
        """Mark a task's weights: the candidates while it is masked."""
        entry = self.task(task)
        if entry.phase == "masked":
            return {name: mask.clone() for name, mask in entry.masks.items()}
        return {name: owners == entry.owner for name, owners in self.owners.items()}

    def read(self, task: str) -> Masks:
        """Mark the other tasks' weights that a task reads."""
        return {name: self.read_mask(task, name) for name in self.owners}

    def read_mask(self, task: str, name: str) -> Tensor:
        """Mark the weights that a task reads in a tensor: bool (*shape)."""
        entry = self.task(task)
        if name in entry.reading:
            return unpack_bits(entry.reading[name], self.owners[name].shape)
        ids = [self.tasks[other].owner for other in entry.reads if other in self.tasks]
        return belongs(self.owners[name], torch.tensor(ids))

    def held(self, task: str) -> Masks:
        """Join a task's weights and, under `reuse=learned`, the other tasks' weights it may still read."""
        own = self.owned(task)
        return {name: own[name] | self.read_mask(task, name) for name in own} if self.task(task).reading else own

    def readers(self, task: str) -> list[str]:
        """List the tasks that read a task's weights."""
        return [other.name for other in self.tasks.values() if task in other.reads]

    def capacity(self) -> list[Capacity]:
        """Count each layer's weights by owner."""
        sizes, layers = self.sizes(), []
        for name, owners in self.owners.items():
            counts = count_ids(owners)
            owned = {task: counts.get(entry.owner, 0) for task, entry in self.tasks.items()}
            layers.append(Capacity(name, tuple(owners.shape), owned, sizes[name] - sum(owned.values())))
        return layers

    def total(self) -> Capacity:
        """Count all layers' weights together by owner."""
        return Capacity.together("all layers", self.capacity())

    def read_counts(self, task: str) -> dict[str, int]:
        """Count, for each task that a task reads, the weights it reads."""
        entry = self.task(task)
        counts = {other: 0 for other in entry.reads if other in self.tasks}
        for name, owners in self.owners.items():
            numbers = count_ids(owners[self.read_mask(task, name)] if entry.reading else owners)
            for other in counts:
                counts[other] += numbers.get(self.tasks[other].owner, 0)
        return counts

    def holdings(self) -> Holdings:
        """Count each task's weights, those it reads, and its private values."""
        selective = [task for task, entry in self.tasks.items() if entry.reading]
        return Holdings(
            self.tasks,
            self.capacity(),
            {task: {other: count for other, count in self.read_counts(task).items() if count} for task in selective},
            {task: {name: int(self.read_mask(task, name).sum()) for name in self.owners} for task in selective},
            {task: entry.private_count for task, entry in self.tasks.items()},
        )

    def next_ids(self, tasks: Iterable[str]) -> dict[str, int]:
        """Assign owner ids in name order: a present task keeps its id, others get the lowest unused ones."""
        used = {entry.owner for entry in self.tasks.values()}
        unused = (i for i in count(1) if i not in used)
        return {t: self.tasks[t].owner if t in self.tasks else next(unused) for t in sorted(set(tasks))}

    # ---- a task's tensors

    def weight(self, task: str, name: str) -> Tensor:
        """Compute the weight a task uses in a layer: (*shape), 0 where it neither owns nor reads."""
        entry, dense = self.task(task), self.weights[name]
        held = self.owners[name] == entry.owner
        if entry.phase not in ("masked", "compact") and not entry.reads:
            return only_at(held, dense)
        read = self.read_mask(task, name)
        if entry.phase == "masked":
            weight = torch.where(entry.masks[name], entry.values[name], only_at(read, dense))
            return (weight * self._chosen(entry)[name] if entry.kept else weight).to(dense.dtype)
        weight = only_at(read if entry.phase == "compact" else held | read, dense)
        if entry.phase == "compact":
            weight[held] = entry.values[name].to(dense.dtype)
        return weight

    def _chosen(self, entry: TaskState) -> Masks:
        held = self.held(entry.name)
        return {n: mask | ~held[n] for n, mask in choose_held(entry.blocks, entry.scores, entry.kept, held).items()}

    def private(self, task: str) -> dict[str, Tensor]:
        """List a task's tensors except its weights, unchanged buffers included: private, then stem, then head."""
        tensors = {f"private.{name}": self.defaults[name] for name in self.buffers} | self.task(task).private
        return {key: tensors[key] for part in PARTS for key in sorted(tensors) if key.startswith(f"{part}.")}

    def digest(self, task: str) -> str:
        """SHA-256 of all that decides a task's outputs: weights it owns or reads, their indices, private tensors."""
        entry, sha = self.task(task), hashlib.sha256()
        for name, owners in self.owners.items():
            sha.update(name.encode())
            reading = [entry.reading[name]] if entry.reading else []
            for part in (self.weight(task, name), owners == entry.owner, *reading):
                sha.update(raw_bytes(part))
        for name, tensor in self.private(task).items():
            sha.update(name.encode())
            sha.update(raw_bytes(tensor))
        return sha.hexdigest()

    def base_names(self) -> list[str]:
        """List the shared tensors to which prunable ones are added: see `msh.recipes.freeze_base`."""
        added = {base_of(name) for name in self.owners}
        return [name for name in self.shared if name in added]

    def base_digest(self) -> str | None:
        """SHA-256 of the tensors to which prunable ones are added; None if there are none."""
        sha, names = hashlib.sha256(), self.base_names()
        for name in names:
            sha.update(f"{name} {self.defaults[name].dtype}".encode())
            sha.update(raw_bytes(self.defaults[name]))
        return sha.hexdigest() if names else None

    # ---- copying, releasing and taking tasks

    def only(self, task: str) -> NetworkState:
        """Copy a frozen task into a separate state, with owner id 1; tasks it reads, and its base, are named only.

        Raises:
            ValueError: there is no such task, or it is not frozen.
        """
        entry = self.task(task)
        if entry.phase != "frozen":
            raise ValueError(f"task {task!r} is {entry.phase}: only a frozen task has a file")
        masks, base = self.owned(task), entry.base or self.base_digest()
        shared = tuple(name for name in self.shared if name not in self.base_names())
        return replace(
            self,
            weights={name: only_at(mask, self.weights[name]) for name, mask in masks.items()},
            owners={name: mask.to(torch.uint8) for name, mask in masks.items()},
            defaults={name: self.defaults[name] for name in shared},
            tasks={task: replace(entry, owner=1, private=self.private(task), digest=self.digest(task), base=base)},
            active=task,
            buffers=(),
            shared=shared,
        )

    def planned(self) -> NetworkState:
        """Copy the allocation alone: all tasks planned, with the norms of their weights instead of values."""
        tasks = {}
        for e in self.tasks.values():
            norms = {name: float(norm_of(w, self.owners[name] == e.owner)) for name, w in self.weights.items()}
            blank = TaskState(e.name, e.owner, "planned", granularity=e.granularity, blocks=e.blocks, recipe=e.recipe)
            tasks[e.name] = replace(blank, norms=norms)
        empty = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        return replace(self, weights=empty, tasks=tasks, active=None)

    def without_planned(self) -> NetworkState:
        """Copy the state without its planned tasks: their weights are free."""
        tasks = {task: entry for task, entry in self.tasks.items() if entry.phase != "planned"}
        ids = torch.tensor([FREE, *(entry.owner for entry in tasks.values())])
        owners = {name: only_at(belongs(ids_of, ids), ids_of) for name, ids_of in self.owners.items()}
        return replace(self, owners=owners, tasks=tasks)

    def release(self, task: str) -> None:
        """Remove a task, in place: its weights become free and are overwritten with fresh random ones.

        Raises:
            ValueError: there is no such task, or other tasks read its weights.
        """
        entry = self.task(task)
        if readers := ", ".join(map(repr, self.readers(task))):
            raise ValueError(f"task {task!r} cannot be released: {readers} read its weights")
        for index, (name, weight) in enumerate(self.weights.items()):
            if entry.phase == "planned":
                self.owners[name][self.owners[name] == entry.owner] = FREE
            else:
                family = self.draws.get(name, "uniform")
                give_back(weight, self.owners[name], entry.owner, self.norms[name], index, family)
        del self.tasks[task]
        self.active = None if self.active == task else self.active

    def take(self, others: Iterable[tuple[str, NetworkState]], ids: Mapping[str, int] | None = None) -> None:
        """Take over frozen tasks from other states, in place; their order makes no difference.

        A task that is planned here gets its values; any other takes free weights. After an error nothing has changed.

        Args:
            others: (label for errors, such as a file; state), consumed one by one.
            ids: task to owner id, in the order that added tasks will have; `next_ids` when None.
        Raises:
            ValueError: a task is there twice, has another backbone, owns weights that another task owns or that were
                not planned for it, reads a missing task, or its digest differs here.
        """
        if ids is None:
            others = list(others)
            ids = self.next_ids(task for _, other in others for task in other.tasks)
        most = max([*(entry.owner for entry in self.tasks.values()), *ids.values()], default=FREE)
        weights, owners = (
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            for tensors in (self.weights, self.owners)
        )
        owners = {name: wide_enough(tensor, most) for name, tensor in owners.items()}
        merged = replace(self, weights=weights, owners=owners, tasks=dict(self.tasks))
        labels = {task: "the network" for task, entry in self.tasks.items() if entry.phase != "planned"}
        added: list[str] = []
        for label, other in others:
            for task in other.tasks:
                if task in labels:
                    raise ValueError(f"{labels[task]} and {label} both hold task {task!r}")
                merged._place(label, other, task, ids[task], labels)
                labels[task] = label
                added.append(task)
        order = dict.fromkeys([*self.tasks, *(task for task in ids if task in added)])
        merged.tasks = {task: merged.tasks[task] for task in order}
        for task in added:
            merged._check_taken(task, labels)
            merged.tasks[task].digest = None
        trained = [task for task, entry in merged.tasks.items() if entry.phase != "planned"]
        merged.active = trained[-1] if added else self.active
        vars(self).update(vars(merged))

    def _place(self, label: str, other: NetworkState, task: str, owner: int, labels: Mapping[str, str]) -> None:
        """Write a task's weights and private tensors into this state, in place."""
        check_task_name(task)
        entry, masks = other.task(task), other.owned(task)
        self._check_fits(label, other, entry)
        for name, planned in (self.owned(task) if task in self.tasks else {}).items():
            if not torch.equal(masks[name], planned):
                raise ValueError(f"{label}: task {task!r} owns other weights of layer {name!r} than planned")
        for name, mask in masks.items():
            owners, weight = self.owners[name].view(-1), self.weights[name].view(-1)
            index = mask.reshape(-1).nonzero().squeeze(1)  # (k,)
            rivals = owners[index]
            rivals = rivals[(rivals != FREE) & (rivals != owner)]
            if rivals.numel():
                rival = next((e.name for e in self.tasks.values() if e.owner == int(rivals[0])), "")
                raise ValueError(
                    f"{labels.get(rival, 'the plan')} (task {rival!r}) and {label} (task {task!r}) own the same "
                    f"weights, {int((rivals == rivals[0]).sum())} of layer {name!r}: train both on one plan"
                )
            owners[index], weight[index] = owner, other.weights[name].reshape(-1)[index]
        start = {f"private.{name}": self.defaults[name] for name in self.buffers}
        changed = {k: t for k, t in entry.private.items() if k not in start or not same_bits(t, start[k])}
        self.tasks[task] = replace(entry, owner=owner, private=changed, base=None)

    def _check_fits(self, label: str, other: NetworkState, entry: TaskState) -> None:
        """Raise unless a task's tensors have this backbone's names, shapes and types, and its base this one's bits."""
        expected, tensors = (
            {f"private.{name}": tensor for name, tensor in state.defaults.items() if name not in state.shared}
            | state.weights
            for state in (self, other)
        )
        tensors |= {key: tensor for key, tensor in entry.private.items() if key.startswith("private.")}
        where = f"{label}: task {entry.name!r}"
        for key in sorted(expected.keys() | tensors.keys()):
            shape, wanted = (tuple(part[key].shape) if key in part else None for part in (tensors, expected))
            if shape != wanted:
                raise ValueError(
                    f"{where} was trained with another backbone: its {key!r} has shape {shape}, the network's {wanted}"
                )
        if entry.base not in (None, self.base_digest()):
            raise ValueError(f"{where} changes a pretrained backbone with other values than the network's")
        for name, weight in other.weights.items():
            if weight.dtype != (dtype := self.weights[name].dtype):
                raise ValueError(
                    f"{where} has weights of {weight.dtype}, and the network of {dtype}: rounded weights cannot be "
                    "merged (files.dtype=float32 writes exact ones)"
                )

    def _check_taken(self, task: str, labels: Mapping[str, str]) -> None:
        """Raise unless a task computes here as it did in its network."""
        entry = self.tasks[task]
        if missing := [other for other in entry.reads if other not in labels]:
            raise ValueError(f"{labels[task]}: task {task!r} reads task {missing[0]!r}, which is missing")
        ids = torch.tensor([self.tasks[other].owner for other in entry.reads])
        for name in entry.reading:
            if bool((self.read_mask(task, name) & ~belongs(self.owners[name], ids)).any()):
                raise ValueError(f"{labels[task]}: task {task!r} reads weights of layer {name!r} of no task it names")
        if entry.digest is not None and self.digest(task) != entry.digest:
            raise ValueError(
                f"{labels[task]}: task {task!r} differs from its digest: its weights were rounded "
                "(files.dtype=float32 writes exact ones), or the weights that it reads have other values here"
            )

    # ---- as a module's state dict, and as JSON

    def describe(self) -> str:
        """Write the tasks, without their tensors, as JSON, so that reading it runs no code."""
        usual, seldom = vars(TaskState("", 1)), ("granularity", "blocks", "recipe", "norms", "digest", "base")
        rows = [
            {"task": e.name, "owner": e.owner, "reads": e.reads, "phase": e.phase, "kept": e.kept}
            | {key: vars(e)[key] for key in seldom if vars(e)[key] != usual[key]}
            for e in self.tasks.values()
        ]
        version = STATE_VERSION if any("base" in row for row in rows) else 3
        return json.dumps({"version": version, "tasks": rows, "active": self.active})

    def state_dict(self) -> dict[str, Any]:
        """Name the tensors as `MultiSubnetwork.load_state_dict` takes them; they are shared, not copied."""
        state: dict[str, Any] = {f"backbone.{n}": t for n, t in (self.weights | self.defaults).items()}
        state |= {f"backbone.{again}": self.weights[name] for again, name in self.tied.items() if name in self.weights}
        for kind, tensors in (("owners", self.owners), ("initial_norms", self.norms)):
            state |= {f"{kind}.{bag_key(name)}": tensor for name, tensor in tensors.items()}
        for task, entry in self.tasks.items():
            for key, tensor in entry.tensors():
                kind, _, name = key.partition(".")
                state[f"subnetworks.{task}.{kind}.{name if kind in ('stem', 'head') else bag_key(name)}"] = tensor
        return state | {EXTRA_STATE: self.describe()}

    def check(self) -> None:
        """Raise unless the parts fit together; a stranger's file must pass before use.

        Raises:
            ValueError: naming a tensor that is missing, or has a wrong shape, type or value.
        """
        most = max((entry.owner for entry in self.tasks.values()), default=FREE)
        for name, owners in self.owners.items():
            weight, norm = self.weights.get(name), self.norms.get(name)
            if weight is None or weight.shape != owners.shape:
                raise ValueError(f"layer {name!r} has owners of shape {tuple(owners.shape)}, weights of another")
            if not weight.is_floating_point() or owners.dtype not in OWNER_TYPES or not owners.dim():
                raise ValueError(f"layer {name!r} has weights of {weight.dtype}, owners of {owners.dtype}")
            if norm is not None and not (norm.shape == () and norm.is_floating_point() and bool(norm.isfinite())):
                raise ValueError(f"layer {name!r} has no finite initial norm")
            lowest, highest = owners.aminmax() if owners.numel() else (FREE, FREE)
            if not FREE <= int(lowest) <= int(highest) <= most:
                raise ValueError(f"layer {name!r} has owners that are no task's")
            if name in self.padding and not 0 <= self.padding[name] < owners.shape[0]:
                raise ValueError(f"layer {name!r} has no row {self.padding[name]}")
        named = {"tied": self.tied.values(), "padding": self.padding, "shared": self.shared, "a buffer": self.buffers}
        named["drawn"] = self.draws
        for kind, names in named.items():
            tensors = self.defaults if kind in ("shared", "a buffer") else self.owners
            if unknown := [name for name in names if name not in tensors]:
                raise ValueError(f"{unknown[0]!r} is listed as {kind}, and is missing")
        for entry in self.tasks.values():
            self._check_task(entry)

    def _check_task(self, entry: TaskState) -> None:
        check_task_name(entry.name)
        if unknown := [key for key in entry.private if key.partition(".")[0] not in PARTS]:
            raise ValueError(f"task {entry.name!r} has a tensor {unknown[0]!r} of no known kind")
        for name, sides in entry.blocks.items():
            shape = self.owners[name].shape if name in self.owners else ()
            if len(shape) < 2 or any(side > length for side, length in zip(sides, shape, strict=False)):
                raise ValueError(f"task {entry.name!r} has blocks of {sides} in {name!r}, of shape {tuple(shape)}")
        for name, packed in entry.reading.items():
            size = self.owners[name].numel() if name in self.owners else -1
            if packed.shape != (-(-size // 8),) or packed.dtype != torch.uint8:
                raise ValueError(f"task {entry.name!r}: `reading` has no mask for {name!r}")
        needed = {"masked": ("values", "masks"), "compact": ("values",), "planned": ("norms",)}.get(entry.phase, ())
        for kind in (*needed, *(["reading"] if entry.reading else [])):
            if getattr(entry, kind).keys() != self.owners.keys():
                raise ValueError(f"task {entry.name!r} is {entry.phase}, and lacks {kind} of some layers")


def count_ids(owners: Tensor) -> dict[int, int]:
    """Count weights by owner id, without the free ones."""
    counts = torch.bincount(owners.reshape(-1).int()).tolist() if owners.numel() else []
    return {i: number for i, number in enumerate(counts) if i != FREE and number}


def read_tasks(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, TaskState], str | None]:
    """Read (tasks, active task) from a module's state dict, also an earlier release's; tensors are shared.

    Args:
        state: key to tensor.
        prefix: before the network's keys.
    Raises:
        ValueError: the description is missing, damaged, or from a later release; or a tensor has no known kind.
    """
    tasks, active = read_description(state.get(f"{prefix}{EXTRA_STATE}"))
    start = f"{prefix}subnetworks."
    for key, tensor in state.items():
        task, _, rest = key.removeprefix(start).partition(".")
        kind, _, name = rest.partition(".")
        if key.startswith(start) and task in tasks:
            tasks[task].put(rest if kind in ("stem", "head") else f"{kind}.{name_of_key(name)}", tensor)
    return tasks, active
