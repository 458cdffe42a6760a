"""Load a state dict into a network: tasks take the phases and shapes that the state dict has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from msh.subnetworks.description import BAGS
from msh.subnetworks.state import read_tasks
from msh.subnetworks.tensors import bag_key, trainable

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork
    from msh.subnetworks.subnetwork import Subnetwork


def register_hooks(network: MultiSubnetwork) -> None:
    """Let the network's `state_dict` and `load_state_dict` carry tasks with their phases."""
    hooked = cast(Any, network)
    hooked.register_state_dict_pre_hook(_settle)
    hooked.register_load_state_dict_pre_hook(_adopt)
    hooked.register_load_state_dict_post_hook(_derive)


def _settle(network: MultiSubnetwork, *_: Any) -> None:
    """Before saving: undo changes that optimizers made outside masks."""
    for task in network.tasks:
        network.settle(task)


def _adopt(network: MultiSubnetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: give every subnetwork the phase and the tensor shapes of the state dict."""
    tasks, network_active = read_tasks(state, prefix)
    if list(tasks) != network.tasks:
        raise ValueError(f"the state holds the tasks {list(tasks)}, the network {network.tasks}: add the same first")
    for name in network.names.prunable:
        saved = state[f"{prefix}owners.{bag_key(name)}"]
        network.owners.set(name, torch.zeros_like(saved, device=network.owners[name].device))
    device = next(network.weights())[1].device
    for task, entry in tasks.items():
        sub = network.subnetwork(task)
        sub.make_trainable()
        sub.drop_training_state()
        sub.reading.clear()
        sub.owner, sub.reads, sub.phase, sub.kept = entry.owner, entry.reads, entry.phase, dict(entry.kept)
        sub.granularity, sub.blocks, sub.recipe = entry.granularity, entry.blocks, entry.recipe or sub.recipe
        if sub.phase == "frozen":
            sub.make_untrainable()
        for name in network.names.transient:
            state.pop(f"{prefix}subnetworks.{task}.private.{bag_key(name)}", None)  # earlier releases saved these too
        _adopt_private(network, sub, entry.private)
        for kind in BAGS:
            for name, saved in getattr(entry, kind).items():
                empty = torch.zeros_like(saved, device=device)
                getattr(sub, kind).set(name, trainable(empty) if kind in ("values", "scores") else empty)
    network.active = network_active


def _adopt_private(network: MultiSubnetwork, sub: Subnetwork, saved: Mapping[str, Tensor]) -> None:
    """Give a subnetwork private tensors with the saved types, and only the saved buffers: the rest are unchanged."""
    for name in network.names.buffers:
        if f"private.{name}" not in saved:
            sub.private.drop(name)
        elif name not in sub.private:
            sub.private.set(name, network.backbone.get_buffer(name).detach().clone())
    for name, tensor in [*sub.private.items()]:
        like = saved.get(f"private.{name}", tensor)
        if like.dtype != tensor.dtype and like.is_floating_point() and tensor.is_floating_point():  # master weights
            cast_to = tensor.detach().to(like.dtype)
            sub.private.set(name, nn.Parameter(cast_to) if isinstance(tensor, nn.Parameter) else cast_to)


def _derive(network: MultiSubnetwork, _: Any) -> None:
    """After loading: rebuild the tensors that are not saved."""
    for task in network.tasks:
        network.derive(network.subnetwork(task))
    network.forget_modules()
