"""How a network's state is described, saved and loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.tensors import TensorBag, bag_key, raw_bytes, trainable

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

STATE_VERSION = 2
"""Since 2, tasks may read some of another's weights, and score their own."""


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
    return json.dumps({"version": STATE_VERSION, "tasks": rows, "active": network.active})


def digest(sub: Subnetwork, weights: Iterable[tuple[str, Tensor]], owners: TensorBag) -> str:
    """SHA-256 of what decides a task's outputs.

    Args:
        sub: the task's.
        weights: (tensor name, (*shape): what it computes with).
        owners: tensor name to owner ids (*shape).
    """
    sha = hashlib.sha256()
    for name, weight in weights:
        sha.update(name.encode())
        sha.update(raw_bytes(weight))
        sha.update(raw_bytes(owners[name] == sub.owner))
        if sub.selective:
            sha.update(raw_bytes(sub.reading[name]))
    for name, tensor in sub.private_tensors().items():
        sha.update(name.encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def adopt_state(network: MultiSubnetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: give every subnetwork the phase and the shapes that the state has."""
    if f"{prefix}_extra_state" not in state:
        raise ValueError("the state is not of a MultiSubnetwork: it has no _extra_state")
    described = json.loads(state[f"{prefix}_extra_state"])
    if described["version"] > STATE_VERSION:
        raise ValueError(f"the state has version {described['version']}; this release reads up to {STATE_VERSION}")
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
        device = next(network.weights())[1].device
        for bag, trains in (("values", True), ("scores", True), ("masks", False), ("reading", False)):
            start = f"{prefix}subnetworks.{task}.{bag}."
            for key in [key for key in state if key.startswith(start)]:
                empty = torch.zeros_like(state[key], device=device)
                getattr(sub, bag).set(key.removeprefix(start), trainable(empty) if trains else empty)
    network.active = described["active"]


def before_save(network: MultiSubnetwork, *_: Any) -> None:
    """Before saving: undo what optimizers did outside masks."""
    for task in network.tasks:
        network.settle(task)


def after_load(network: MultiSubnetwork, _: Any) -> None:
    """After loading: rebuild what is not saved."""
    for task in network.tasks:
        network.derive(network.subnetwork(task))
    network._shown = None
