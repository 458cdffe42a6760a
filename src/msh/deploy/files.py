"""Network and subnetwork files: safetensors, read without running code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from msh.deploy.atomic import write_bytes
from msh.subnetworks import MultiSubnetwork

NETWORK_FORMAT = "msh-network-1"
SUBNETWORK_FORMAT = "msh-subnetwork-1"
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


def save_network(path: Path, network: MultiSubnetwork, notes: dict[str, str] | None = None) -> None:
    """Write a whole network: weights, owner maps, and every task's private tensors.

    Args:
        path: of the file.
        network: in any phase; a task in training is written as it is.
        notes: further metadata.
    """
    state = network.state_dict()
    metadata = {"format": NETWORK_FORMAT, "state": str(state.pop(EXTRA)), **(notes or {})}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_bytes(path, save(tensors, metadata))


def read_network(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    """(state dict for `MultiSubnetwork.load_state_dict`, metadata) of a network file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a network file.
    """
    tensors, metadata = open_safetensors(path)
    if metadata.get("format") != NETWORK_FORMAT:
        raise ValueError(f"{path} is not a network file: its format is {metadata.get('format')!r}")
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
    try:
        network.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error
    return metadata


def save_subnetwork(path: Path, network: MultiSubnetwork, task: str) -> None:
    """Write one frozen task: its own weights, one bit per weight for their places, and its private tensors.

    Args:
        path: of the file.
        network: that holds the task.
        task: a frozen one.
    Raises:
        ValueError: the task is not frozen.
    """
    sub = network.subnetwork(task)
    if sub.phase != "frozen":
        raise ValueError(f"task {task!r} is {sub.phase}: only a frozen task has a file")
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    masks = network.masks(task)
    for name, weight in network.weights():
        bits = np.packbits(masks[name].cpu().numpy().reshape(-1))
        tensors[f"mask.{name}"] = torch.from_numpy(bits)
        tensors[f"values.{name}"] = weight[masks[name]].cpu()
        shapes[name] = list(weight.shape)
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
