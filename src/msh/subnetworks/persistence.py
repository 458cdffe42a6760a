"""How a network's state is described, saved and loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, cast

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from msh.checked import parsed
from msh.subnetworks.subnetwork import check_task_name
from msh.subnetworks.tensors import bag_key, raw_bytes, trainable

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork
    from msh.subnetworks.subnetwork import Subnetwork

STATE_VERSION = 2
"""Since 2, tasks may read some of another's weights, and score their own."""
EXTRA_STATE = "_extra_state"
"""Key of a network's state under which `describe` is."""


def register_hooks(network: MultiSubnetwork) -> None:
    """Let the network's `state_dict` and `load_state_dict` carry tasks with their phases."""
    hooked = cast(Any, network)
    hooked.register_state_dict_pre_hook(before_save)
    hooked.register_load_state_dict_pre_hook(adopt_state)
    hooked.register_load_state_dict_post_hook(after_load)


def describe(network: MultiSubnetwork) -> str:
    """The tasks as JSON: names, owner ids, what they read, phases, how many weights scores choose."""
    rows = [
        {"task": sub.task, "owner": sub.owner, "reads": list(sub.reads), "phase": sub.phase, "kept": sub.kept}
        for sub in map(network.subnetwork, network.tasks)
    ]
    return description(rows, network.active)


def description(rows: Iterable[Mapping[str, Any]], active: str | None) -> str:
    """Tasks as JSON: see `describe`.

    Args:
        rows: task, owner, reads, phase and kept of each.
        active: the task that is active, or None.
    """
    return json.dumps({"version": STATE_VERSION, "tasks": list(rows), "active": active})


class Version(TypedDict):
    """Of a description."""

    version: int


class Row(TypedDict):
    """A task in a description."""

    task: str
    owner: Annotated[int, Field(ge=1, lt=2**31)]
    reads: list[int]
    phase: Literal["new", "masked", "compact", "frozen"]
    kept: NotRequired[dict[str, int]]


class Description(TypedDict):
    """What `describe` writes."""

    version: int
    tasks: list[Row]
    active: str | None


def read_description(state: Mapping[str, Any], prefix: str = "") -> Description:
    """What `describe` wrote into a state.

    Raises:
        ValueError: the state is not of a network, is damaged, or is of a later release.
    """
    if f"{prefix}{EXTRA_STATE}" not in state:
        raise ValueError(f"the state is not of a MultiSubnetwork: it has no {EXTRA_STATE}")
    version = parsed(state, f"{prefix}{EXTRA_STATE}", Version)["version"]
    if version > STATE_VERSION:
        raise ValueError(f"the state has version {version}; this release reads up to {STATE_VERSION}")
    described: Description = parsed(state, f"{prefix}{EXTRA_STATE}", Description)
    tasks = [row["task"] for row in described["tasks"]]
    if len(set(tasks)) < len(tasks) or len({row["owner"] for row in described["tasks"]}) < len(tasks):
        raise ValueError(f"{EXTRA_STATE} is damaged: a task, or an owner id, is there twice")
    if described["active"] not in (None, *tasks):
        raise ValueError(f"{EXTRA_STATE} is damaged: there is no task {described['active']!r}, which it calls active")
    for task in tasks:
        check_task_name(task)
    return described


def digest(
    weights: Iterable[tuple[str, Tensor, Tensor]], private: Mapping[str, Tensor], reading: Mapping[str, Tensor]
) -> str:
    """SHA-256 of all that decides a task's outputs.

    Args:
        weights: (tensor name, (*shape): what the task computes with, bool (*shape): what it owns), in the
            network's order.
        private: as `Subnetwork.private_tensors` gives it.
        reading: tensor name to uint8, (bytes,), as `Subnetwork.reading` has it; nothing where it reads all.
    """
    sha = hashlib.sha256()
    for name, weight, own in weights:
        sha.update(name.encode())
        for part in (weight, own, *([reading[name]] if reading else [])):
            sha.update(raw_bytes(part))
    for name, tensor in private.items():
        sha.update(name.encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def readers_of(owner: int, reads: Mapping[str, Iterable[int]]) -> list[str]:
    """The tasks that read an owner's weights.

    Args:
        owner: id.
        reads: task to the owner ids that it reads.
    """
    return [task for task, ids in reads.items() if owner in ids]


def check_unread(task: str, readers: Iterable[str]) -> None:
    """Raise where other tasks read a task that is to be released.

    Raises:
        ValueError: naming them.
    """
    if named := ", ".join(map(repr, readers)):
        raise ValueError(f"task {task!r} cannot be released: {named} read its weights")


def adopt_state(network: MultiSubnetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: give every subnetwork the phase and the shapes that the state has."""
    described = read_description(state, prefix)
    rows = {row["task"]: row for row in described["tasks"]}
    if list(rows) != network.tasks:
        raise ValueError(f"the state holds the tasks {list(rows)}, the network {network.tasks}: add the same first")
    for name in network.names.prunable:
        saved = state[f"{prefix}owners.{bag_key(name)}"]
        network.owners.set(name, torch.zeros_like(saved, device=network.owners[name].device))
    for task, row in rows.items():
        sub = network.subnetwork(task)
        sub.make_trainable()
        sub.drop_training_state()
        sub.reading.clear()
        sub.owner, sub.reads, sub.phase = row["owner"], tuple(row["reads"]), row["phase"]
        sub.kept = dict(row.get("kept", {}))
        if sub.phase == "frozen":
            sub.make_untrainable()
        _adopt_buffers(network, sub, state, f"{prefix}subnetworks.{task}.private.")
    device = next(network.weights())[1].device
    trains = {"values": True, "scores": True, "masks": False, "reading": False}
    start = f"{prefix}subnetworks."
    for key in [key for key in state if key.startswith(start)]:
        task, bag, name = key.removeprefix(start).split(".", 2)
        if bag in trains and task in rows:
            empty = torch.zeros_like(state[key], device=device)
            getattr(network.subnetwork(task), bag).set(name, trainable(empty) if trains[bag] else empty)
    network.active = described["active"]


def _adopt_buffers(network: MultiSubnetwork, sub: Subnetwork, state: dict[str, Any], start: str) -> None:
    """Give a subnetwork the private buffers that a state has, and no others: those unchanged are the backbone's."""
    for name in network.names.transient:
        state.pop(start + bag_key(name), None)  # earlier releases saved these too
    for name in network.names.buffers:
        if start + bag_key(name) not in state:
            sub.private.drop(name)
        elif name not in sub.private:
            sub.private.set(name, network.backbone.get_buffer(name).detach().clone())


def before_save(network: MultiSubnetwork, *_: Any) -> None:
    """Before saving: undo what optimizers did outside masks."""
    for task in network.tasks:
        network.settle(task)


def after_load(network: MultiSubnetwork, _: Any) -> None:
    """After loading: rebuild what is not saved."""
    for task in network.tasks:
        network.derive(network.subnetwork(task))
    network.forget_modules()
