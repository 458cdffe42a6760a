"""A network as plain data: weights, owners, tasks and private tensors, without the modules that compute with them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from msh.checked import parsed
from msh.errors import suggestion
from msh.recipes import Recipe
from msh.subnetworks.allocation import FREE, choose_at_most
from msh.subnetworks.initial import give_back, norm_of
from msh.subnetworks.tensors import bag_key, belongs, name_of_key, raw_bytes, same_bits, unpack_bits, wide_enough

STATE_VERSION = 3
"""Of a description. Since 2, tasks may read some of another's weights; since 3, they read tasks by name."""
EXTRA_STATE = "_extra_state"
"""Key of a module's state dict under which the description is."""
OWNER_TYPES = (torch.uint8, torch.int16, torch.int32)
IN_TRAINING = ("values", "masks", "scores")
"""What a task in training has per prunable tensor."""

Phase = Literal["planned", "new", "masked", "compact", "frozen"]
TASK_NAME = re.compile(r"[A-Za-z0-9_-]+")


KINDS = ("private", "stem", "head")
"""Kinds of a task's private tensors, in the order in which they are named and hashed."""


def private_order(name: str) -> tuple[int, str]:
    """Sort key of the names of a task's private tensors."""
    kind, _, rest = name.partition(".")
    return KINDS.index(kind), rest


def check_task_name(task: str) -> None:
    """Raise unless a task may be called so: names are keys of states, and names of files.

    Raises:
        ValueError: the name is not allowed.
    """
    if not TASK_NAME.fullmatch(task):
        raise ValueError(f"task name {task!r} is not allowed: use letters, digits, '_' and '-'")


Masks = dict[str, Tensor]
"""Tensor name to bool (*shape)."""


@dataclass
class TaskState:
    """One task of a network.

    Attributes:
        name: of the task.
        owner: its id in the owner maps.
        phase: "planned" (weights allocated, no values yet), or as in `Subnetwork`.
        reads: earlier tasks whose weights it reads.
        reading: tensor name to uint8 (bytes,), a mask at a bit per weight: the weights it reads; empty where it reads
            all weights of the tasks in `reads`.
        private: its own tensors, named "private.NAME", "stem.NAME" and "head.NAME". Buffers of the backbone that the
            task has not changed may be missing: see `NetworkState.private`.
        values: in training, tensor name to its weights: (*shape) while masked, (k,) while compact.
        masks: while masked, tensor name to its candidates: bool (*shape).
        scores: while masked, tensor name to a score per weight (*shape), if scores are learned.
        kept: while scores choose, tensor name (or "" for all) to the number of weights it computes with.
        norms: while planned, tensor name to the Euclidean norm its weights will start with.
        granularity: what was pruned as one: "weight", "neuron" or "channel".
        recipe: how to rebuild "stem" and "head", and the task's "preprocessing" and "outputs", where known.
        digest: of the task in the network it comes from, where it was copied out of one.
    """

    name: str
    owner: int
    phase: Phase = "frozen"
    reads: tuple[str, ...] = ()
    reading: dict[str, Tensor] = field(default_factory=dict)
    private: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    granularity: str = "weight"
    recipe: Recipe = field(default_factory=dict)
    digest: str | None = None


@dataclass(frozen=True)
class Capacity:
    """Count a layer's weights by owner; or those of several layers together.

    Attributes:
        name: of the prunable tensor, or of the layers together.
        shape: of the tensor.
        owned: every task to its number of weights.
        free: number of weights that no task owns.
    """

    name: str
    shape: tuple[int, ...]
    owned: dict[str, int]
    free: int

    @property
    def taken(self) -> int:
        """Number of weights that some task owns."""
        return sum(self.owned.values())

    @property
    def size(self) -> int:
        """Number of weights that tasks can own."""
        return self.free + self.taken

    @classmethod
    def together(cls, name: str, layers: Sequence[Capacity]) -> Capacity:
        """Add up layers of one network."""
        owned = {task: sum(layer.owned[task] for layer in layers) for task in (layers[0].owned if layers else ())}
        free = sum(layer.free for layer in layers)
        return cls(name, (free + sum(owned.values()),), owned, free)


@dataclass
class NetworkState:
    """All of a network: the one representation behind modules, files, plans and checkpoints.

    Owners partition the weights: each has one owner id, `FREE` or that of a task.

    Attributes:
        weights: prunable tensor name to the dense tensor (*shape), every task's weights and the free ones; a name is
            missing where only owners are known.
        owners: prunable tensor name to owner ids (*shape), in the network's order.
        norms: prunable tensor name to the Euclidean norm, (), it had when the backbone came.
        defaults: the backbone's other tensors: what private tensors start from, and what all tasks share unchanged.
        tasks: by name, in the order in which they were added.
        active: the task computed when none is named.
        tied: further name of a prunable tensor to its name above.
        padding: name of an embedding to the row that no task can own and that stays 0.
        buffers: names of `defaults` that tasks have of their own only where they have changed them.
        shared: names of `defaults` that every task uses as they are.
        recipe: how to build the backbone again, where known.
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
    recipe: Recipe = field(default_factory=dict)

    # ---- who owns what

    def task(self, name: str) -> TaskState:
        """Look a task up.

        Raises:
            ValueError: there is no such task.
        """
        if name not in self.tasks:
            raise ValueError(
                f"there is no task {name!r}; the tasks are {', '.join(self.tasks)}{suggestion(name, self.tasks)}"
            )
        return self.tasks[name]

    def sizes(self) -> dict[str, int]:
        """Tensor name to the number of weights that tasks can own."""
        return {name: ids.numel() - self._padded(name) for name, ids in self.owners.items()}

    def _padded(self, name: str) -> int:
        return prod(self.owners[name].shape[1:]) if name in self.padding else 0

    def free(self) -> Masks:
        """The weights that no task owns."""
        found = {name: ids == FREE for name, ids in self.owners.items()}
        for name, row in self.padding.items():
            found[name][row] = False
        return found

    def owned(self, task: str) -> Masks:
        """A task's weights: the candidates while it is masked."""
        entry = self.task(task)
        if entry.phase == "masked":
            return {name: mask.clone() for name, mask in entry.masks.items()}
        return {name: ids == entry.owner for name, ids in self.owners.items()}

    def read(self, task: str) -> Masks:
        """The weights of other tasks that a task reads."""
        return {name: self.read_mask(task, name) for name in self.owners}

    def read_mask(self, task: str, name: str) -> Tensor:
        """The weights of a tensor that a task reads: bool (*shape)."""
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
        """The tasks that read a task's weights."""
        return [other.name for other in self.tasks.values() if task in other.reads]

    def capacity(self) -> list[Capacity]:
        """Count each layer's weights by owner."""
        names = {entry.owner: task for task, entry in self.tasks.items()}
        layers = []
        for name, ids in self.owners.items():
            counts = count_ids(ids)
            owned = dict.fromkeys(self.tasks, 0) | {names[i]: n for i, n in counts.items() if i in names}
            owned = {task: owned[task] for task in self.tasks}
            free = ids.numel() - self._padded(name) - sum(owned.values())
            layers.append(Capacity(name, tuple(ids.shape), owned, free))
        return layers

    def total(self) -> Capacity:
        """Count the weights of all layers together by owner."""
        return Capacity.together("all layers", self.capacity())

    def read_counts(self, task: str) -> dict[str, int]:
        """Each task that a task reads, to the number of its weights that are read."""
        entry = self.task(task)
        named = {self.tasks[other].owner: other for other in entry.reads if other in self.tasks}
        counts = dict.fromkeys(named.values(), 0)
        for name, ids in self.owners.items():
            read = ids[self.read_mask(task, name)] if entry.reading else ids
            for i, number in count_ids(read).items():
                if i in named:
                    counts[named[i]] += number
        return counts

    def next_ids(self, tasks: Iterable[str]) -> dict[str, int]:
        """Owner ids for tasks: their own where they are there, else the lowest not in use, in the order of names."""
        unused = (i for i in count(1) if i not in {entry.owner for entry in self.tasks.values()})
        return {t: self.tasks[t].owner if t in self.tasks else next(unused) for t in sorted(set(tasks))}

    # ---- what a task computes with

    def weight(self, task: str, name: str) -> Tensor:
        """Compute the weight a task uses in a layer: (*shape), 0 where it neither owns nor reads."""
        entry, dense = self.task(task), self.weights[name]
        nothing = dense.new_zeros(())
        if entry.phase not in ("masked", "compact") and not entry.reads:
            return torch.where(self.owners[name] == entry.owner, dense, nothing)
        read = self.read_mask(task, name)
        if entry.phase == "masked":
            found = torch.where(entry.masks[name], entry.values[name], torch.where(read, dense, nothing))
            return (found if not entry.kept else found * self._chosen(entry)[name]).to(dense.dtype)
        own = self.owners[name] == entry.owner
        if entry.phase == "compact":
            found = torch.where(read, dense, nothing)
            found[own] = entry.values[name].to(dense.dtype)
            return found
        return torch.where(own | read, dense, nothing)

    def _chosen(self, entry: TaskState) -> Masks:
        held = self.held(entry.name)
        return {n: mask | ~held[n] for n, mask in choose_at_most(entry.scores, entry.kept, held).items()}

    def private(self, task: str) -> dict[str, Tensor]:
        """List a task's tensors except its weights, unchanged buffers included: private, then stem, then head."""
        found = {f"private.{name}": self.defaults[name] for name in self.buffers} | self.task(task).private
        return {name: found[name] for name in sorted(found, key=private_order)}

    def digest(self, task: str) -> str:
        """SHA-256 of all that decides a task's outputs: weights it owns or reads, their places, private tensors."""
        entry, sha = self.task(task), hashlib.sha256()
        for name, ids in self.owners.items():
            sha.update(name.encode())
            reading = [entry.reading[name]] if entry.reading else []
            for part in (self.weight(task, name), ids == entry.owner, *reading):
                sha.update(raw_bytes(part))
        for name, tensor in self.private(task).items():
            sha.update(name.encode())
            sha.update(raw_bytes(tensor))
        return sha.hexdigest()

    # ---- tasks out of a state, and into it

    def only(self, task: str) -> NetworkState:
        """Copy a frozen task into a state of its own, with owner id 1; tasks it reads are named only.

        Raises:
            ValueError: there is no such task, or it is not frozen.
        """
        entry = self.task(task)
        if entry.phase != "frozen":
            raise ValueError(f"task {task!r} is {entry.phase}: only a frozen task has a file")
        masks, private = self.owned(task), self.private(task)
        alone = replace(entry, owner=1, private=private, digest=self.digest(task))
        return NetworkState(
            weights={n: torch.where(mask, self.weights[n], self.weights[n].new_zeros(())) for n, mask in masks.items()},
            owners={name: mask.to(torch.uint8) for name, mask in masks.items()},
            norms=self.norms,
            defaults={name: self.defaults[name] for name in self.shared},
            tasks={task: alone},
            active=task,
            tied=self.tied,
            padding=self.padding,
            shared=self.shared,
            recipe=self.recipe,
        )

    def planned(self) -> NetworkState:
        """The allocation alone: all tasks planned, with the norms of their weights, which have no values."""
        rows = {}
        for entry in self.tasks.values():
            norms = {name: float(norm_of(w, self.owners[name] == entry.owner)) for name, w in self.weights.items()}
            rows[entry.name] = TaskState(
                entry.name, entry.owner, "planned", norms=norms, granularity=entry.granularity, recipe=entry.recipe
            )
        empty = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        return replace(self, weights=empty, tasks=rows, active=None)

    def release(self, task: str) -> None:
        """Forget a task, in place: its weights are overwritten with fresh random ones and become free.

        Raises:
            ValueError: there is no such task, or other tasks read its weights.
        """
        entry = self.task(task)
        if readers := ", ".join(map(repr, self.readers(task))):
            raise ValueError(f"task {task!r} cannot be released: {readers} read its weights")
        for place, (name, weight) in enumerate(self.weights.items()):
            if entry.phase == "planned":
                self.owners[name][self.owners[name] == entry.owner] = FREE
            else:
                give_back(weight, self.owners[name], entry.owner, self.norms[name], place)
        del self.tasks[task]
        self.active = None if self.active == task else self.active

    def take(
        self,
        others: Iterable[tuple[str, NetworkState]],
        ids: Mapping[str, int] | None = None,
        base: str = "the network",
    ) -> None:
        """Take up frozen tasks of other states, in place; the order in which they come makes no difference.

        A task that is planned here gets its values; any other takes weights that are free. Where something is wrong,
        nothing has changed.

        Args:
            others: (how errors call it, such as a file; the state), looked at one by one.
            ids: task to owner id, in the order that added tasks will have; `next_ids` when None.
            base: how errors call this state.
        Raises:
            ValueError: a task is there twice, is of another backbone, owns weights that another task owns or that were
                not planned for it, reads a task that is not there, or does not come out as it was.
        """
        if ids is None:
            others = list(others)
            ids = self.next_ids(task for _, other in others for task in other.tasks)
        merged = replace(self, tasks=dict(self.tasks))
        merged.weights = {n: w.clone(memory_format=torch.contiguous_format) for n, w in self.weights.items()}
        most = max([*(entry.owner for entry in self.tasks.values()), *ids.values()], default=FREE)
        merged.owners = {
            n: wide_enough(o.clone(memory_format=torch.contiguous_format), most) for n, o in self.owners.items()
        }
        labels = {task: base for task, entry in self.tasks.items() if entry.phase != "planned"}
        added: dict[str, TaskState] = {}
        for label, other in others:
            for task in other.tasks:
                if task in labels:
                    raise ValueError(f"{labels[task]} and {label} both hold task {task!r}")
                added[task] = merged._place(label, other, task, ids[task], labels)
                labels[task] = label
        planned = {task: added.get(task, entry) for task, entry in self.tasks.items()}
        merged.tasks = planned | {task: added[task] for task in ids if task in added}
        for task in added:
            merged._check_taken(task, labels)
            merged.tasks[task] = replace(merged.tasks[task], digest=None)
        merged.active = next((task for task in reversed(merged.tasks) if task in added), self.active)
        vars(self).update(vars(merged))

    def _place(self, label: str, other: NetworkState, task: str, owner: int, labels: Mapping[str, str]) -> TaskState:
        """Write a task's weights into this state, in place; returns its row."""
        check_task_name(task)
        entry, masks = other.task(task), other.owned(task)
        self._check_fits(label, other, entry)
        for name, planned in (self.owned(task) if task in self.tasks else {}).items():
            if not torch.equal(masks[name], planned):
                raise ValueError(f"{label}: task {task!r} owns other weights of layer {name!r} than planned")
        names_of = {e.owner: e.name for e in self.tasks.values()}
        for name, mask in masks.items():
            owners, weight = self.owners[name].view(-1), self.weights[name].view(-1)
            places = mask.view(-1).nonzero().squeeze(1)
            taken = owners[places]
            taken = taken[(taken != FREE) & (taken != owner)]
            if taken.numel():
                holder = names_of[int(taken[0])]
                raise ValueError(
                    f"{labels.get(holder, 'the plan')} (task {holder!r}) and {label} (task {task!r}) own the same "
                    f"weights, {int((taken == taken[0]).sum())} of layer {name!r}: train both on one plan"
                )
            owners[places], weight[places] = owner, other.weights[name].view(-1)[places]
        same = {f"private.{name}" for name in self.buffers if _is_default(self, name, entry)}
        placed = replace(entry, owner=owner, private={n: t for n, t in entry.private.items() if n not in same})
        self.tasks[task] = placed
        return placed

    def _check_fits(self, label: str, other: NetworkState, entry: TaskState) -> None:
        """Raise where a task is not of this backbone."""
        own = {f"private.{name}": tensor for name, tensor in self.defaults.items() if name not in self.shared}
        expected = own | self.weights
        private = {f"private.{name}": tensor for name, tensor in other.defaults.items() if name not in other.shared}
        private |= {name: tensor for name, tensor in entry.private.items() if name.startswith("private.")}
        found = private | other.weights
        for name in sorted(expected.keys() | found.keys()):
            shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (found, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{label}: task {entry.name!r} was trained with another backbone: its {name!r} has shape "
                    f"{shapes[0]}, the network's {shapes[1]}"
                )
        for name, weight in other.weights.items():
            if weight.dtype != self.weights[name].dtype:
                raise ValueError(
                    f"{label}: task {entry.name!r} has weights of {weight.dtype}, and the network of "
                    f"{self.weights[name].dtype}: rounded ones are not merged (files.dtype=float32 writes exact ones)"
                )

    def _check_taken(self, task: str, labels: Mapping[str, str]) -> None:
        """Raise unless a task that was taken up computes as it did where it comes from."""
        entry = self.tasks[task]
        if missing := [other for other in entry.reads if other not in labels]:
            raise ValueError(f"{labels[task]}: task {task!r} reads task {missing[0]!r}, which is not there")
        ids = torch.tensor([self.tasks[other].owner for other in entry.reads])
        for name in entry.reading:
            if bool((self.read_mask(task, name) & ~belongs(self.owners[name], ids)).any()):
                raise ValueError(f"{labels[task]}: task {task!r} reads weights of layer {name!r} of no task it names")
        if entry.digest is not None and self.digest(task) != entry.digest:
            raise ValueError(
                f"{labels[task]}: task {task!r} is not what it was in its network: its weights were rounded "
                "(files.dtype=float32 writes exact ones), or those that it reads have other values here"
            )

    # ---- as a module's state dict, and as JSON

    def describe(self) -> str:
        """The tasks as JSON: all that no tensor says. Plain text, so that reading it runs no code."""
        rows = []
        for e in self.tasks.values():
            row = {"task": e.name, "owner": e.owner, "reads": list(e.reads), "phase": e.phase, "kept": e.kept}
            more = {"granularity": e.granularity, "recipe": e.recipe, "norms": e.norms, "digest": e.digest}
            usual: dict[str, Any] = {"granularity": "weight", "recipe": {}, "norms": {}, "digest": None}
            rows.append(row | {key: value for key, value in more.items() if value != usual[key]})
        return json.dumps({"version": STATE_VERSION, "tasks": rows, "active": self.active})

    def state_dict(self) -> dict[str, Any]:
        """As `MultiSubnetwork.load_state_dict` takes it; tensors are shared."""
        state: dict[str, Any] = {f"backbone.{n}": t for n, t in (self.weights | self.defaults).items()}
        state |= {f"backbone.{again}": self.weights[name] for again, name in self.tied.items() if name in self.weights}
        for kind, tensors in (("owners", self.owners), ("initial_norms", self.norms)):
            state |= {f"{kind}.{bag_key(name)}": tensor for name, tensor in tensors.items()}
        for task, entry in self.tasks.items():
            for name, tensor in entry.private.items():
                kind, _, rest = name.partition(".")
                state[f"subnetworks.{task}.{kind}.{bag_key(rest) if kind == 'private' else rest}"] = tensor
            for kind in ("reading", *IN_TRAINING):
                tensors = getattr(entry, kind)
                state |= {f"subnetworks.{task}.{kind}.{bag_key(name)}": t for name, t in tensors.items()}
        return state | {EXTRA_STATE: self.describe()}

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], names: Sequence[str] | None = None, tied: Mapping[str, str] | None = None
    ) -> NetworkState:
        """Convert a module's state dict; tensors are shared.

        Args:
            state: of a `MultiSubnetwork`, of this release or an earlier one.
            names: of the prunable tensors, in the network's order; that of the keys when None.
            tied: further name of a tensor to its name.
        Raises:
            KeyError: a tensor is missing.
            ValueError: the description is damaged, or of a later release.
        """
        tied = dict(tied or {})
        tasks, active = read_description(state.get(EXTRA_STATE))
        if names is None:
            names = [name_of_key(key.removeprefix("owners.")) for key in state if key.startswith("owners.")]
        defaults = {key.removeprefix("backbone."): t for key, t in state.items() if key.startswith("backbone.")}
        found = cls(
            weights={name: state[f"backbone.{name}"] for name in names},
            owners={name: state[f"owners.{bag_key(name)}"] for name in names},
            norms={name: state[f"initial_norms.{bag_key(name)}"] for name in names},
            defaults={name: t for name, t in defaults.items() if name not in names and name not in tied},
            tasks=tasks,
            active=active,
            tied=tied,
        )
        for key, tensor in state.items():
            start, _, rest = key.partition(".")
            task, _, rest = rest.partition(".")
            kind, _, rest = rest.partition(".")
            if start != "subnetworks" or task not in tasks:
                continue
            if kind in KINDS:
                tasks[task].private[f"{kind}.{name_of_key(rest) if kind == 'private' else rest}"] = tensor
            elif kind in ("reading", *IN_TRAINING):
                getattr(tasks[task], kind)[name_of_key(rest)] = tensor
        return found

    def check(self) -> None:
        """Check that the parts fit together; what a stranger's file says is not to be relied on before.

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
            if owners.numel():
                lowest, highest = owners.aminmax()
                if not FREE <= int(lowest) <= int(highest) <= most:
                    raise ValueError(f"layer {name!r} has owners that are no task's")
            if name in self.padding and not 0 <= self.padding[name] < owners.shape[0]:
                raise ValueError(f"layer {name!r} has no row {self.padding[name]}")
        named = {"tied": self.tied.values(), "padding": self.padding, "shared": self.shared, "a buffer": self.buffers}
        for kind, names in named.items():
            there = self.defaults if kind in ("shared", "a buffer") else self.owners
            if unknown := [name for name in names if name not in there]:
                raise ValueError(f"{unknown[0]!r} is said to be {kind}, and is not there")
        for entry in self.tasks.values():
            self._check_task(entry)

    def _check_task(self, entry: TaskState) -> None:
        check_task_name(entry.name)
        if entry.phase == "planned" and entry.norms.keys() != self.owners.keys():
            raise ValueError(f"task {entry.name!r} is planned without the norms of its layers")
        for name, packed in entry.reading.items():
            size = self.owners[name].numel() if name in self.owners else -1
            if packed.shape != (-(-size // 8),) or packed.dtype != torch.uint8:
                raise ValueError(f"task {entry.name!r}: what it reads of {name!r} is no mask of it")
        if entry.reading and entry.reading.keys() != self.owners.keys():
            raise ValueError(f"task {entry.name!r} lacks the masks of what it reads of some layers")
        in_training = {"masked": ("values", "masks"), "compact": ("values",)}.get(entry.phase, ())
        for kind in in_training:
            if getattr(entry, kind).keys() != self.owners.keys():
                raise ValueError(f"task {entry.name!r} is {entry.phase}, and lacks {kind} of some layers")
        for name in entry.private:
            private_order(name)


def count_ids(ids: Tensor) -> dict[int, int]:
    """Owner id to its number of weights; free ones are left out."""
    counts = torch.bincount(ids.reshape(-1).int()).tolist() if ids.numel() else []
    return {i: number for i, number in enumerate(counts) if i != FREE and number}


def _is_default(state: NetworkState, name: str, entry: TaskState) -> bool:
    """Tell whether a task's buffer equals the backbone's, bit by bit."""
    own = entry.private.get(f"private.{name}")
    return own is not None and same_bits(own, state.defaults[name])


# ---- descriptions


class _Version(TypedDict):
    version: int


class Row(TypedDict):
    """A task in a description."""

    task: str
    owner: Annotated[int, Field(ge=1, lt=2**31)]
    reads: list[str] | list[int]
    phase: Literal["planned", "new", "masked", "compact", "frozen"]
    kept: NotRequired[dict[str, int]]
    granularity: NotRequired[str]
    recipe: NotRequired[dict[str, Any]]
    norms: NotRequired[dict[str, float]]
    digest: NotRequired[str | None]


class Description(TypedDict):
    """Content of the JSON that `NetworkState.describe` writes."""

    version: int
    tasks: list[Row]
    active: str | None


def read_description(text: str | None) -> tuple[dict[str, TaskState], str | None]:
    """(rows of the tasks, without tensors; the active one) of a description.

    Raises:
        ValueError: there is none, or it is damaged, or of a later release.
    """
    if text is None:
        raise ValueError(f"the state is not of a MultiSubnetwork: it has no {EXTRA_STATE}")
    header = {EXTRA_STATE: text}
    version = parsed(header, EXTRA_STATE, _Version)["version"]
    if version > STATE_VERSION:
        raise ValueError(f"the state has version {version}; this release reads up to {STATE_VERSION}")
    described: Description = parsed(header, EXTRA_STATE, Description)
    rows = described["tasks"]
    names = {row["owner"]: row["task"] for row in rows}
    if len(names) < len(rows) or len(set(names.values())) < len(rows):
        raise ValueError(f"{EXTRA_STATE} is damaged: a task, or an owner id, is there twice")
    if described["active"] not in (None, *names.values()):
        raise ValueError(f"{EXTRA_STATE} is damaged: there is no task {described['active']!r}, which it calls active")
    tasks = {}
    for row in rows:
        check_task_name(row["task"])
        try:
            reads = tuple(other if isinstance(other, str) else names[other] for other in row["reads"])
        except KeyError as error:
            raise ValueError(
                f"{EXTRA_STATE} is damaged: task {row['task']!r} reads {error}, which is no task"
            ) from None
        tasks[row["task"]] = TaskState(
            row["task"],
            row["owner"],
            row["phase"],
            reads,
            kept=row.get("kept", {}),
            norms=row.get("norms", {}),
            granularity=row.get("granularity", "weight"),
            recipe=row.get("recipe", {}),
            digest=row.get("digest"),
        )
    return tasks, described["active"]
