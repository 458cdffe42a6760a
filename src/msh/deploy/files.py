"""Network and subnetwork files: safetensors, read without running code."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from msh.deploy.atomic import write_bytes
from msh.deploy.codec import decode_mask, decode_owners, encode_mask, encode_owners
from msh.subnetworks import FREE, MultiSubnetwork
from msh.subnetworks.tensors import bag_key, pack_bits, unpack_bits

NETWORK_FORMAT = "msh-network-1"
SUBNETWORK_FORMAT = "msh-subnetwork-3"
WITHOUT_READING = "msh-subnetwork-2"
"""An earlier format, of tasks that read all weights of the tasks that they read."""
READING = re.compile(r"subnetworks\.[^.]+\.reading\.(.+)")
"""Name of the mask of what a task reads, in a network's state."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that a subnetwork file's weights can have."""
EXTRA = "_extra_state"


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, on the CPU; metadata) of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def _open_format(path: Path, kind: str, *expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = open_safetensors(path)
    if metadata.get("format") not in expected:
        raise ValueError(f"{path} is not a {kind} file: its format is {metadata.get('format')!r}")
    return tensors, metadata


def save_network(
    path: Path, network: MultiSubnetwork, notes: dict[str, str] | None = None, free_weights: bool = True
) -> None:
    """Write a whole network: weights, owner maps, and every task's private tensors.

    Args:
        path: of the file.
        network: in any phase; a task in training is written as it is.
        notes: further metadata.
        free_weights: also write the values of weights that no task owns. Without them the file is no larger than
            the tasks' subnetwork files together, and whoever loads it keeps the free weights that they have.
    """
    state = network.state_dict()
    metadata = {"format": NETWORK_FORMAT, "state": str(state.pop(EXTRA)), **(notes or {})}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    if not free_weights:
        metadata["shapes"] = json.dumps(_pack(tensors, network))
    write_bytes(path, save(tensors, metadata))


def _pack(tensors: dict[str, Tensor], network: MultiSubnetwork) -> dict[str, list[int]]:
    """Replace dense weights by those that are owned, and owner maps by coded ones; returns the shapes."""
    for again in network.names.tied:
        del tensors[f"backbone.{again}"]
    for name in network.names.prunable:
        key = f"owners.{bag_key(name)}"
        owned = tensors[key] != FREE
        tensors[f"owned.{name}"] = tensors.pop(f"backbone.{name}")[owned]
        tensors[f"owner type.{name}"] = tensors[key].new_zeros(0)
        tensors[key] = encode_owners(tensors[key])
    shapes = {name: list(weight.shape) for name, weight in network.weights()}
    for key, name in _reading(tensors):
        tensors[key] = encode_mask(unpack_bits(tensors[key], shapes[name]))
    return shapes


def _reading(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    """(key, tensor name) of the masks of what tasks read."""
    return [(key, found[1].replace("/", ".")) for key in tensors if (found := READING.fullmatch(key))]


def _unpack(tensors: dict[str, Tensor], shapes: dict[str, list[int]]) -> None:
    for name, shape in shapes.items():
        key = f"owners.{bag_key(name)}"
        owners = decode_owners(tensors[key], shape, tensors.pop(f"owner type.{name}").dtype)
        values = tensors.pop(f"owned.{name}")
        if values.shape != (count := int((owners != FREE).sum()),):
            raise ValueError(f"layer {name!r} has {count} owned weights, and values of shape {tuple(values.shape)}")
        weight = values.new_zeros(shape)
        weight[owners != FREE] = values
        tensors[key], tensors[f"backbone.{name}"] = owners, weight
    for key, name in _reading(tensors):
        tensors[key] = pack_bits(decode_mask(tensors[key], shapes[name]))


def read_network(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    """(state dict for `MultiSubnetwork.load_state_dict`, metadata) of a network file.

    Where the file has no free weights (its metadata has "shapes"), they are 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a network file.
    """
    tensors, metadata = _open_format(path, "network", NETWORK_FORMAT)
    if "shapes" in metadata:
        try:
            _unpack(tensors, json.loads(metadata["shapes"]))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return {**tensors, EXTRA: metadata["state"]}, metadata


def tasks_in(state: dict[str, object]) -> list[str]:
    """Names of the tasks in a state dict, in order."""
    return [row["task"] for row in json.loads(str(state[EXTRA]))["tasks"]]


def load_network(path: Path, network: MultiSubnetwork) -> dict[str, str]:
    """Fill a network that has the file's backbone and tasks; returns the file's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is of another backbone or other tasks.
    """
    state, metadata = read_network(path)
    fill_network(path, network, state, metadata)
    return metadata


def fill_network(path: Path, network: MultiSubnetwork, state: dict[str, Any], metadata: dict[str, str]) -> None:
    """Fill a network with what `read_network` gave.

    Args:
        path: of the file, for the message.
        network: that has the file's backbone and tasks.
        state: of the file.
        metadata: of the file.
    Raises:
        ValueError: the state is of another backbone or other tasks.
    """
    try:
        if "shapes" in metadata:
            _keep_free(state, network)
        network.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error


def _keep_free(state: dict[str, Any], network: MultiSubnetwork) -> None:
    """Let the free weights of a state be those that the network has now."""
    for name, weight in network.weights():
        free = state[f"owners.{bag_key(name)}"] == FREE
        state[f"backbone.{name}"] = torch.where(free, weight.cpu(), state[f"backbone.{name}"])
    for again, name in network.names.tied.items():
        state[f"backbone.{again}"] = state[f"backbone.{name}"]


def save_subnetwork(path: Path, network: MultiSubnetwork, task: str, dtype: torch.dtype | None = None) -> None:
    """Write one frozen task: its own weights, their places, and its private tensors.

    Args:
        path: of the file.
        network: that holds the task.
        task: a frozen one.
        dtype: of the weights in the file: float32, float16 or bfloat16; the network's own when None. A narrower
            one rounds them, and the digest of the file's task is no longer that of the network's.
    Raises:
        ValueError: the task is not frozen, or the type is not allowed.
    """
    sub = network.subnetwork(task)
    if sub.phase != "frozen":
        raise ValueError(f"task {task!r} is {sub.phase}: only a frozen task has a file")
    if dtype not in (None, *DTYPES.values()):
        raise ValueError(f"dtype = {dtype} is not allowed: {', '.join(DTYPES)} are")
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    masks = network.masks(task)
    for name, weight in network.weights():
        tensors[f"mask.{name}"] = encode_mask(masks[name])
        tensors[f"values.{name}"] = weight[masks[name]].cpu().to(dtype or weight.dtype)
        shapes[name] = list(weight.shape)
    for name, mask in network.reading(task).items() if sub.selective else ():
        tensors[f"read.{name}"] = encode_mask(mask)
    for name, tensor in sub.private_tensors().items():
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    readable = {network.subnetwork(other).owner: other for other in network.tasks}
    metadata = {
        "format": SUBNETWORK_FORMAT,
        "task": task,
        "shapes": json.dumps(shapes),
        "reads": json.dumps([readable[owner] for owner in sub.reads]),
        "digest": network.digest(task),
    }
    write_bytes(path, save(tensors, metadata))


@dataclass(frozen=True)
class SubnetworkFile:
    """One task's part of a network, as a file holds it.

    Attributes:
        task: its name.
        masks: tensor name to bool (*shape): the weights it owns.
        values: tensor name to (k,): these weights, in the order of their flat places.
        private: stem, head, biases, normalisation: as `Subnetwork.private_tensors` names them.
        reads: tasks whose weights it reads too.
        reading: tensor name to bool (*shape): which of them it reads; empty where it reads all.
        digest: of the task in the network that it was saved from.
    """

    task: str
    masks: dict[str, Tensor]
    values: dict[str, Tensor]
    private: dict[str, Tensor]
    reads: tuple[str, ...]
    reading: dict[str, Tensor]
    digest: str


def read_subnetwork(path: Path) -> SubnetworkFile:
    """Read what `save_subnetwork` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a subnetwork file.
    """
    tensors, metadata = _open_format(path, "subnetwork", SUBNETWORK_FORMAT, WITHOUT_READING)
    try:
        shapes = json.loads(metadata["shapes"])
        masks = {name: decode_mask(tensors.pop(f"mask.{name}"), shape) for name, shape in shapes.items()}
        values = {name: tensors.pop(f"values.{name}") for name in shapes}
        for name, mask in masks.items():
            if values[name].shape != (count := int(mask.sum()),):
                raise ValueError(f"layer {name!r} keeps {count} weights, and has {values[name].numel()} values")
        coded = {name: tensors.pop(f"read.{name}") for name in shapes if f"read.{name}" in tensors}
        reading = {name: decode_mask(data, shapes[name]) for name, data in coded.items()}
        reads = tuple(json.loads(metadata["reads"]))
        return SubnetworkFile(metadata["task"], masks, values, tensors, reads, reading, metadata["digest"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
