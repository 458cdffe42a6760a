"""Load a state dict into a network: tasks take the phases and shapes that the state dict has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from msh.subnetworks.allocation import FREE
from msh.subnetworks.description import BAGS, EXTRA_STATE
from msh.subnetworks.state import read_tasks
from msh.subnetworks.tensors import bag_key, only_at, trainable

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
    _name_again(network.backbone, state, f"{prefix}backbone.")
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


def _name_again(backbone: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Add the tensors of modules with several names under each: torch asks for all, files have the first alone."""
    firsts: dict[int, str] = {}
    for path, module in backbone.named_modules(remove_duplicate=False):
        first = firsts.setdefault(id(module), path)
        if first != path:
            here = f"{prefix}{first}."
            for key in [key for key in state if key.startswith(here)]:
                state.setdefault(f"{prefix}{path}.{key.removeprefix(here)}", state[key])


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


def in_training(state: Mapping[str, Any], tasks: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Reduce a network's state dict to the tasks in training: other tensors stay as they are while these train.

    Args:
        state: the network's state dict; may be part of a larger one, whose other keys stay.
        tasks: masked or compact.
        prefix: before the network's keys.
    Returns:
        The tasks' tensors (0 where a masked one only reads), a mask of the weights that each compact one owns, and the
        description of all tasks: see `completed`.
    """
    entries, _ = read_tasks(state, prefix)
    reduced = {key: value for key, value in state.items() if not key.startswith(prefix)}
    reduced[f"{prefix}{EXTRA_STATE}"] = state[f"{prefix}{EXTRA_STATE}"]
    for task in tasks:
        entry, start = entries[task], f"{prefix}subnetworks.{task}."
        reduced |= {key: value for key, value in state.items() if key.startswith(start)}
        for name, values in entry.values.items():
            if entry.phase == "compact":
                owners = state[f"{prefix}owners.{bag_key(name)}"]
                reduced[f"{prefix}owned.{task}.{bag_key(name)}"] = owners == entry.owner
            elif entry.reads:
                reduced[f"{start}values.{bag_key(name)}"] = only_at(entry.masks[name], values)
    return reduced


def completed(reduced: Mapping[str, Any], network: MultiSubnetwork, prefix: str = "") -> dict[str, Any]:
    """Complete what `in_training` has left of a state dict with the network's other tensors.

    Args:
        reduced: from `in_training`; may be part of a larger state dict, of which other keys stay.
        network: holds the same tasks; all but those in training are as they were then.
        prefix: before the network's keys.
    Raises:
        ValueError: a task in training owns weights that another task has here.
    """
    saved, _ = read_tasks(reduced, prefix)
    masks = {key: mask for key, mask in reduced.items() if key.startswith(f"{prefix}owned.")}
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    again = [task for task in saved if any(key.startswith(f"{prefix}subnetworks.{task}.") for key in reduced)]
    starts = tuple(f"{prefix}subnetworks.{task}." for task in again)
    state = {key: value for key, value in state.items() if not key.startswith(starts)}
    for name in network.names.prunable:
        key = f"{prefix}owners.{bag_key(name)}"
        owners = state[key] = state[key].clone()
        for task in again:
            owners[owners == saved[task].owner] = FREE
        for task in again:
            mask = masks.get(f"{prefix}owned.{task}.{bag_key(name)}")
            if mask is None:
                continue
            mask = mask.to(owners.device)
            if bool((owners[mask] != FREE).any()):
                raise ValueError(f"task {task!r} owns weights of layer {name!r} that another task has by now")
            owners[mask] = saved[task].owner
    return state | {key: value for key, value in reduced.items() if key not in masks}
