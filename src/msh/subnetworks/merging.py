"""Tasks into and out of a network's state: what files hold, without the modules that compute with it.

A state here is a `state_dict` with all that no tensor says in its description (`persistence.describe`). Functions leave
the states they are given as they are; what they return shares tensors with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor

from msh.names import suggestion
from msh.subnetworks.allocation import FREE
from msh.subnetworks.forms import frozen_weight
from msh.subnetworks.initial import give_back
from msh.subnetworks.persistence import (
    EXTRA_STATE,
    Row,
    check_unread,
    description,
    digest,
    read_description,
    readers_of,
)
from msh.subnetworks.subnetwork import KINDS, check_task_name, private_order
from msh.subnetworks.tensors import bag_key, belongs, pack_bits, unpack_bits, wide_enough

State = dict[str, Any]
OWNER_TYPES = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Part:
    """One frozen task apart from its network.

    Attributes:
        task: its name.
        masks: tensor name to bool (*shape): the weights it owns; names in the network's order.
        values: tensor name to (k,): these weights, in the order of their flat places.
        private: stem, head, biases, normalisation: as `Subnetwork.private_tensors` names them.
        reads: tasks whose weights it reads too.
        reading: tensor name to bool (*shape): which of them it reads; empty where it reads all.
        digest: of the task in its network.
        notes: what else is known of it, such as the plan that it keeps to.
    """

    task: str
    masks: dict[str, Tensor]
    values: dict[str, Tensor]
    private: dict[str, Tensor]
    reads: tuple[str, ...]
    reading: dict[str, Tensor]
    digest: str
    notes: dict[str, str] = field(default_factory=dict)


def check_state(state: State, shapes: Mapping[str, Sequence[int]], tied: Mapping[str, str]) -> None:
    """Raise unless a state has all that the functions here look for.

    Args:
        state: of a network.
        shapes: prunable tensor's name to its shape.
        tied: a further name of a prunable tensor to its name among these.
    Raises:
        ValueError: naming a tensor that is missing, or of another shape or type.
    """
    rows = read_description(state)["tasks"]
    most = max((row["owner"] for row in rows), default=FREE)
    for name, given in shapes.items():
        shape, key = tuple(given), bag_key(name)
        weight = _has(state, f"backbone.{name}", shape)
        owners = _has(state, f"owners.{key}", shape)
        norm = _has(state, f"initial_norms.{key}", ())
        if not weight.is_floating_point() or owners.dtype not in OWNER_TYPES or not shape:
            raise ValueError(f"layer {name!r} has weights of {weight.dtype}, owners of {owners.dtype}, shape {shape}")
        if not bool(norm.isfinite()):
            raise ValueError(f"layer {name!r} has the initial norm {float(norm)}")
        if owners.numel() and not FREE <= int(owners.min()) <= int(owners.max()) <= most:
            raise ValueError(f"layer {name!r} has owners that are no task's")
    for row in rows:
        if _reading(state, list(shapes), row["task"]):
            for name, given in shapes.items():
                packed = f"subnetworks.{row['task']}.reading.{bag_key(name)}"
                if _has(state, packed, (-(-prod(given) // 8),)).dtype != torch.uint8:
                    raise ValueError(f"{packed!r} is not of bytes")
    if unknown := [name for name in tied.values() if name not in shapes]:
        raise ValueError(f"{unknown[0]!r} is said to be tied, and is not there")


def _has(state: State, key: str, shape: tuple[int, ...]) -> Tensor:
    tensor = state.get(key)
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        found = None if tensor is None else tuple(tensor.shape)
        raise ValueError(f"{key!r} has shape {found}, and not {shape}")
    return tensor


def split(state: State, names: Sequence[str], task: str) -> Part:
    """Copy a frozen task out of a network.

    Args:
        state: of the network.
        names: of its prunable tensors, in its order.
        task: a frozen one.
    Raises:
        ValueError: there is no such task, or it is not frozen.
    """
    rows = {row["task"]: row for row in read_description(state)["tasks"]}
    row = _row(rows, task)
    if row["phase"] != "frozen":
        raise ValueError(f"task {task!r} is {row['phase']}: only a frozen task has a file")
    masks = {name: _owners(state, name) == row["owner"] for name in names}
    private = _private(state, task)
    return Part(
        task=task,
        masks=masks,
        values={name: state[f"backbone.{name}"][mask] for name, mask in masks.items()},
        private=private,
        reads=tuple(name for name, other in rows.items() if other["owner"] in row["reads"]),
        reading={name: unpack_bits(packed, masks[name].shape) for name, packed in _reading(state, names, task).items()},
        digest=_digest(state, names, row, private),
    )


def release(state: State, names: Sequence[str], tied: Mapping[str, str], task: str) -> State:
    """Forget a task: its weights are overwritten with fresh random ones and become free.

    Args:
        state: of the network.
        names: of its prunable tensors, in its order.
        tied: a further name of a prunable tensor to its name among these.
        task: any.
    Returns:
        The state without the task; of all others nothing has changed.
    Raises:
        ValueError: there is no such task, or other tasks read its weights.
    """
    described = read_description(state)
    rows = {row["task"]: row for row in described["tasks"]}
    owner = _row(rows, task)["owner"]
    check_unread(task, readers_of(owner, {name: row["reads"] for name, row in rows.items()}))
    left = {key: value for key, value in state.items() if not key.startswith(f"subnetworks.{task}.")}
    for place, name in enumerate(names):
        weight, owners = state[f"backbone.{name}"].clone(), _owners(state, name).clone()
        give_back(weight, owners, owner, state[f"initial_norms.{bag_key(name)}"], place)
        left[f"backbone.{name}"], left[f"owners.{bag_key(name)}"] = weight, owners
    for again, name in tied.items():
        if f"backbone.{again}" in state:
            left[f"backbone.{again}"] = left[f"backbone.{name}"]
    active = None if described["active"] == task else described["active"]
    return left | {EXTRA_STATE: description((row for name, row in rows.items() if name != task), active)}


def merge(
    state: State,
    names: Sequence[str],
    tied: Mapping[str, str],
    parts: Iterable[tuple[str, Part]],
    ids: Mapping[str, int],
) -> State:
    """Put tasks that were trained apart into one network.

    The order in which they come makes no difference.

    Args:
        state: of the network that takes them up.
        names: of its prunable tensors, in its order.
        tied: a further name of a prunable tensor to its name among these.
        parts: (what errors call it, such as a file; the task), looked at one by one.
        ids: task to its owner id, in the order that the tasks will have; for instance `lowest_ids`.
    Returns:
        The state with these tasks, frozen, the last of them active; of all others nothing has changed.
    Raises:
        ValueError: a task is there twice, is of another backbone, owns weights that another task owns, reads a task
            that is not there, or does not come out as it was.
    """
    described = read_description(state)
    held = {row["task"]: "the network" for row in described["tasks"]}
    names_of = {row["owner"]: row["task"] for row in described["tasks"]} | {ids[task]: task for task in ids}
    merged = dict(state)
    for name in names:
        merged[f"backbone.{name}"] = state[f"backbone.{name}"].clone(memory_format=torch.contiguous_format)
        owners = _owners(state, name).clone(memory_format=torch.contiguous_format)
        merged[f"owners.{bag_key(name)}"] = wide_enough(owners, max(names_of, default=0))
    added: dict[str, Part] = {}
    for label, part in parts:
        if part.task in held:
            raise ValueError(f"{held[part.task]} and {label} both hold task {part.task!r}")
        _check_fits(merged, names, tied, label, part)
        held[part.task] = label
        _place(merged, part, ids[part.task], held, names_of)
        added[part.task] = replace(part, masks={}, values={}, reading={})  # these are in the state now
    ids_of = {task: owner for owner, task in names_of.items()}
    rows = [*described["tasks"]]
    for part in (added[task] for task in ids if task in added):
        rows.append(_row_of(part, merged, names, held, ids_of))
    merged |= {f"backbone.{again}": merged[f"backbone.{name}"] for again, name in tied.items()}
    return merged | {EXTRA_STATE: description(rows, rows[-1]["task"] if rows else None)}


def _row_of(part: Part, state: State, names: Sequence[str], held: Mapping[str, str], owners: Mapping[str, int]) -> Row:
    """What a state says of a task whose tensors are in it; raises unless the task is what it was."""
    if missing := [other for other in part.reads if other not in held]:
        raise ValueError(f"{held[part.task]}: task {part.task!r} reads task {missing[0]!r}, which is not there")
    reads = sorted(owners[other] for other in part.reads)
    row: Row = {"task": part.task, "owner": owners[part.task], "reads": reads, "phase": "frozen", "kept": {}}
    for name, packed in _reading(state, names, part.task).items():
        layer = _owners(state, name)
        if bool((unpack_bits(packed, layer.shape) & ~belongs(layer, torch.tensor(reads))).any()):
            raise ValueError(
                f"{held[part.task]}: task {part.task!r} reads weights of layer {name!r} of no task it names"
            )
    if _digest(state, names, row, part.private) != part.digest:
        raise ValueError(
            f"{held[part.task]}: task {part.task!r} is not what it was in its network: its weights were rounded "
            "(files.dtype=float32 does not), or those that it reads are others here"
        )
    return row


def lowest_ids(state: State, tasks: Iterable[str]) -> dict[str, int]:
    """Owner ids for tasks that a network does not have: the lowest that are not in use, in the order of their names."""
    taken = {row["owner"] for row in read_description(state)["tasks"]}
    unused = (i for i in count(1) if i not in taken)
    return {task: next(unused) for task in sorted(set(tasks))}


def _row(rows: Mapping[str, Row], task: str) -> Row:
    if task not in rows:
        raise ValueError(f"there is no task {task!r}; the tasks are {', '.join(rows)}{suggestion(task, rows)}")
    return rows[task]


def _owners(state: State, name: str) -> Tensor:
    owners: Tensor = state[f"owners.{bag_key(name)}"]
    return owners


def _private(state: State, task: str) -> dict[str, Tensor]:
    """A task's own tensors, named and ordered as in `Subnetwork.private_tensors`."""
    found, start = {}, f"subnetworks.{task}."
    for key in state:
        kind, _, rest = key.removeprefix(start).partition(".")
        if key.startswith(start) and kind in KINDS:
            found[f"{kind}.{rest.replace('/', '.') if kind == 'private' else rest}"] = state[key]
    return {name: found[name] for name in sorted(found, key=private_order)}


def _reading(state: State, names: Sequence[str], task: str) -> dict[str, Tensor]:
    """Tensor name to the packed mask of what a task reads; empty where it reads all."""
    keys = {name: f"subnetworks.{task}.reading.{bag_key(name)}" for name in names}
    return {name: state[key] for name, key in keys.items() if key in state}


def _digest(state: State, names: Sequence[str], row: Row, private: Mapping[str, Tensor]) -> str:
    return digest(_weights(state, names, row), private, _reading(state, names, row["task"]))


def _weights(state: State, names: Sequence[str], row: Row) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(tensor name, what a frozen task computes with (*shape), what it owns (*shape))."""
    reading, ids = _reading(state, names, row["task"]), torch.tensor(row["reads"])
    for name in names:
        owners = _owners(state, name)
        own = readable = owners == row["owner"]
        if row["reads"]:
            readable = own | (unpack_bits(reading[name], owners.shape) if name in reading else belongs(owners, ids))
        yield name, frozen_weight(state[f"backbone.{name}"], readable), own


def _check_fits(state: State, names: Sequence[str], tied: Mapping[str, str], label: str, part: Part) -> None:
    """Raise where a task is not of the network's backbone, or its name would not do."""
    check_task_name(part.task)
    shared = {f"backbone.{name}" for name in (*names, *tied)}
    own = {key for key in state if key.startswith("backbone.")} - shared
    expected = {key.replace("backbone.", "private.", 1): state[key] for key in own}
    expected |= {name: state[f"backbone.{name}"] for name in names}
    found = {name: tensor for name, tensor in part.private.items() if name.startswith("private.")} | part.masks
    expected |= {f"reading.{name}": part.masks[name] for name in part.masks if part.reading}
    found |= {f"reading.{name}": mask for name, mask in part.reading.items()}
    unchanged = {name for name in expected.keys() - found.keys() if name.startswith("private.")}
    for name in sorted((expected.keys() | found.keys()) - unchanged):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{label}: task {part.task!r} is of another backbone: its {name!r} has shape {shapes[0]}, "
                f"and the network's {shapes[1]}"
            )
    for name, values in part.values.items():
        if values.dtype != expected[name].dtype:
            raise ValueError(
                f"{label}: task {part.task!r} has weights of {values.dtype}, and the network of "
                f"{expected[name].dtype}: rounded ones are not merged (files.dtype=float32 writes them as they are)"
            )


def _place(state: State, part: Part, owner: int, held: Mapping[str, str], names_of: Mapping[int, str]) -> None:
    """Write a task's tensors into a state, in place; all but its row."""
    for name, mask in part.masks.items():
        owners, weight = _owners(state, name).view(-1), state[f"backbone.{name}"].view(-1)
        places = mask.view(-1).nonzero().squeeze(1)
        taken = owners[places]
        taken = taken[taken != FREE]
        if taken.numel():
            other = names_of[int(taken[0])]
            raise ValueError(
                f"{held[other]} (task {other!r}) and {held[part.task]} (task {part.task!r}) own the same weights, "
                f"{int((taken == taken[0]).sum())} of layer {name!r}: train both on allocations of one plan"
            )
        owners[places], weight[places] = owner, part.values[name]
    for name, mask in part.reading.items():
        state[f"subnetworks.{part.task}.reading.{bag_key(name)}"] = pack_bits(mask)
    for name, tensor in part.private.items():
        kind, _, own = name.partition(".")
        state[f"subnetworks.{part.task}.{kind}.{bag_key(own) if kind == 'private' else own}"] = tensor
