"""Loading a state into a network: tasks take the phases and shapes that the state has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from msh.subnetworks.state import EXTRA_STATE, read_description
from msh.subnetworks.tensors import bag_key, name_of_key, trainable

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork
    from msh.subnetworks.subnetwork import Subnetwork

BAGS = {"values": True, "scores": True, "masks": False, "reading": False}
"""What a task may have per prunable tensor, to whether it trains."""


def register_hooks(network: MultiSubnetwork) -> None:
    """Let the network's `state_dict` and `load_state_dict` carry tasks with their phases."""
    hooked = cast(Any, network)
    hooked.register_state_dict_pre_hook(_settle)
    hooked.register_load_state_dict_pre_hook(_adopt)
    hooked.register_load_state_dict_post_hook(_derive)


def _settle(network: MultiSubnetwork, *_: Any) -> None:
    """Before saving: undo what optimizers did outside masks."""
    for task in network.tasks:
        network.settle(task)


def _adopt(network: MultiSubnetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: give every subnetwork the phase and the shapes that the state has."""
    rows, network_active = read_description(state.get(f"{prefix}{EXTRA_STATE}"))
    if list(rows) != network.tasks:
        raise ValueError(f"the state holds the tasks {list(rows)}, the network {network.tasks}: add the same first")
    for prunable in network.names.prunable:
        saved = state[f"{prefix}owners.{bag_key(prunable)}"]
        network.owners.set(prunable, torch.zeros_like(saved, device=network.owners[prunable].device))
    device = next(network.weights())[1].device
    for task, row in rows.items():
        sub, start = network.subnetwork(task), f"{prefix}subnetworks.{task}."
        sub.make_trainable()
        sub.drop_training_state()
        sub.reading.clear()
        sub.owner, sub.reads, sub.phase, sub.kept = row.owner, row.reads, row.phase, dict(row.kept)
        sub.granularity, sub.recipe = row.granularity, row.recipe or sub.recipe
        if sub.phase == "frozen":
            sub.make_untrainable()
        _adopt_buffers(network, sub, state, f"{start}private.")
        for name, tensor in [*sub.private.items()]:
            saved = state.get(f"{start}private.{bag_key(name)}")
            if saved is None or not (saved.is_floating_point() and tensor.is_floating_point()):
                continue
            if saved.dtype != tensor.dtype:  # master weights train in another type
                cast_to = tensor.detach().to(saved.dtype)
                sub.private.set(name, nn.Parameter(cast_to) if isinstance(tensor, nn.Parameter) else cast_to)
        for key in [key for key in state if key.startswith(start)]:
            bag, rest = str(key).removeprefix(start).split(".", 1)
            if bag in BAGS:
                empty = torch.zeros_like(state[key], device=device)
                getattr(sub, bag).set(name_of_key(rest), trainable(empty) if BAGS[bag] else empty)
    network.active = network_active


def _adopt_buffers(network: MultiSubnetwork, sub: Subnetwork, state: dict[str, Any], start: str) -> None:
    """Give a subnetwork the private buffers that a state has, and no others: those unchanged are the backbone's."""
    for name in network.names.transient:
        state.pop(start + bag_key(name), None)  # earlier releases saved these too
    for name in network.names.buffers:
        if start + bag_key(name) not in state:
            sub.private.drop(name)
        elif name not in sub.private:
            sub.private.set(name, network.backbone.get_buffer(name).detach().clone())


def _derive(network: MultiSubnetwork, _: Any) -> None:
    """After loading: rebuild what is not saved."""
    for task in network.tasks:
        network.derive(network.subnetwork(task))
    network.forget_modules()
