"""Network and subnetwork files: safetensors, read without running code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from msh.checked import parsed
from msh.deploy.atomic import write_bytes
from msh.deploy.codec import decode_mask, decode_owners, encode_mask, encode_owners
from msh.deploy.headers import Names, Shapes, check_sizes
from msh.subnetworks import FREE, MultiSubnetwork, Part, split
from msh.subnetworks.merging import check_state
from msh.subnetworks.persistence import EXTRA_STATE, read_description
from msh.subnetworks.subnetwork import check_task_name, private_order
from msh.subnetworks.tensors import bag_key, name_of_key, pack_bits, unpack_bits

NETWORK_FORMAT = "msh-network-1"
SUBNETWORK_FORMAT = "msh-subnetwork-3"
SUBNETWORK_FORMATS = (SUBNETWORK_FORMAT, "msh-subnetwork-2")
"""Those that are read: 2 is of tasks that read all weights of the tasks that they read."""
HEADER = ("format", "task", "shapes", "reads", "digest")
"""Metadata of a subnetwork file that says what it holds, and nothing of where it comes from."""
READING = re.compile(r"subnetworks\.[^.]+\.reading\.(.+)")
"""Name of the mask of what a task reads, in a network's state."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that a subnetwork file's weights can have."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, on the CPU; metadata) of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a safetensors file.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; errors are those of `open_safetensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def open_format(path: Path, kind: str, *expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`open_safetensors`, of a file whose metadata names a format that is expected.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another format.
    """
    tensors, metadata = open_safetensors(path)
    if metadata.get("format") not in expected:
        raise ValueError(f"{path} is not a {kind} file: its format is {metadata.get('format')!r}")
    return tensors, metadata


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; the same content gives the same bytes (the library writes metadata in any order)."""
    content = save(tensors, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_bytes(path, len(text).to_bytes(8, "little") + text + content[start:])


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
    write_state(path, network.state_dict(), network.names.prunable, network.names.tied, notes, free_weights)


def write_state(
    path: Path,
    state: Mapping[str, Any],
    names: Sequence[str],
    tied: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
    free_weights: bool = True,
) -> None:
    """Write a network file from a network's state; the arguments are those of `save_network`, and

    Args:
        state: of the network.
        names: of its prunable tensors, in its order.
        tied: a further name of a prunable tensor to its name among these.
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items() if key != EXTRA_STATE}
    shapes = {name: list(tensors[f"backbone.{name}"].shape) for name in names}
    metadata = {
        "format": NETWORK_FORMAT,
        "state": str(state[EXTRA_STATE]),
        "shapes": json.dumps(shapes),
        "tied": json.dumps(dict(tied)),
        "free_weights": json.dumps(free_weights),
        **(notes or {}),
    }
    if not free_weights:
        _pack(tensors, shapes, tied)
    write_safetensors(path, tensors, metadata)


def _pack(tensors: dict[str, Tensor], shapes: Mapping[str, Sequence[int]], tied: Mapping[str, str]) -> None:
    """Replace dense weights by those that are owned, and owner maps and masks by coded ones."""
    for again in tied:
        tensors.pop(f"backbone.{again}", None)
    for name in shapes:
        key = f"owners.{bag_key(name)}"
        owned = tensors[key] != FREE
        tensors[f"owned.{name}"] = tensors.pop(f"backbone.{name}")[owned]
        tensors[f"owner type.{name}"] = tensors[key].new_zeros(0)
        tensors[key] = encode_owners(tensors[key])
    for key, name in _reading(tensors):
        tensors[key] = encode_mask(unpack_bits(tensors[key], shapes[name]))


def _reading(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    """(key, tensor name) of the masks of what tasks read."""
    return [(key, name_of_key(found[1])) for key in tensors if (found := READING.fullmatch(key))]


def _unpack(tensors: dict[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
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


def has_free_weights(metadata: Mapping[str, str]) -> bool:
    """Whether a network file has the values of weights that no task owns."""
    return bool(parsed(metadata, "free_weights", bool))


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(state dict for `MultiSubnetwork.load_state_dict`, metadata) of a network file.

    Where the file has no free weights (`has_free_weights`), they are 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a network file.
    """
    tensors, metadata = open_format(path, "network", NETWORK_FORMAT)
    with _damages(path):
        shapes = shapes_in(metadata)
        check_sizes(shapes, path.stat().st_size)
        if not has_free_weights(metadata):
            _unpack(tensors, shapes)
        state = {**tensors, EXTRA_STATE: metadata["state"]}
        check_state(state, shapes, parsed(metadata, "tied", Names))
        return state, metadata


def shapes_in(metadata: Mapping[str, str]) -> dict[str, list[int]]:
    """Tensor name to shape of a network file's prunable tensors, in the network's order."""
    found: dict[str, list[int]] = parsed(metadata, "shapes", Shapes)
    return found


@contextmanager
def _damages(path: Path) -> Iterator[None]:
    """Let whatever goes wrong with a file's content be an error that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def tasks_in(state: Mapping[str, Any]) -> list[str]:
    """Names of the tasks in a state dict, in order."""
    return [row["task"] for row in read_description(state)["tasks"]]


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
        if not has_free_weights(metadata):
            _keep_free(state, network)
        network.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error


def _keep_free(state: dict[str, Any], network: MultiSubnetwork) -> None:
    """Let the free weights of a state be those that the network has now."""
    for name, weight in network.weights():
        free = state[f"owners.{bag_key(name)}"] == FREE
        state[f"backbone.{name}"] = torch.where(free, weight.cpu(), state[f"backbone.{name}"])
    for again, name in network.names.tied.items():
        state[f"backbone.{again}"] = state[f"backbone.{name}"]


def save_subnetwork(
    path: Path,
    network: MultiSubnetwork,
    task: str,
    dtype: torch.dtype | None = None,
    notes: dict[str, str] | None = None,
) -> None:
    """Write one frozen task: its own weights, their places, and its private tensors.

    Args:
        path: of the file.
        network: that holds the task.
        task: a frozen one.
        dtype: of the weights in the file: float32, float16 or bfloat16; the network's own when None. A narrower
            one rounds them, and the digest of the file's task is no longer that of the network's.
        notes: further metadata.
    Raises:
        ValueError: the task is not frozen, or the type is not allowed.
    """
    part = split(network.state_dict(), network.names.prunable, task)
    write_part(path, replace(part, notes=notes or {}), dtype)


def write_part(path: Path, part: Part, dtype: torch.dtype | None = None) -> None:
    """Write a subnetwork file; the arguments are those of `save_subnetwork`, and

    Args:
        part: the task.
    Raises:
        ValueError: the type is not allowed.
    """
    if dtype not in (None, *DTYPES.values()):
        raise ValueError(f"dtype = {dtype} is not allowed: {', '.join(DTYPES)} are")
    tensors: dict[str, Tensor] = {}
    for name, values in part.values.items():
        tensors[f"mask.{name}"] = encode_mask(part.masks[name])
        tensors[f"values.{name}"] = values.cpu().to(dtype or values.dtype)
    for name, mask in part.reading.items():
        tensors[f"read.{name}"] = encode_mask(mask)
    for name, tensor in part.private.items():
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    metadata = {
        "format": SUBNETWORK_FORMAT,
        "task": part.task,
        "shapes": json.dumps({name: list(mask.shape) for name, mask in part.masks.items()}),
        "reads": json.dumps(part.reads),
        "digest": part.digest,
        **part.notes,
    }
    write_safetensors(path, tensors, metadata)


def read_subnetwork(path: Path) -> Part:
    """Read what `save_subnetwork` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a subnetwork file.
    """
    tensors, metadata = open_format(path, "subnetwork", *SUBNETWORK_FORMATS)
    with _damages(path):
        shapes = parsed(metadata, "shapes", Shapes)
        check_sizes(shapes, path.stat().st_size)
        masks = {name: decode_mask(tensors.pop(f"mask.{name}"), shape) for name, shape in shapes.items()}
        values = {name: tensors.pop(f"values.{name}") for name in shapes}
        for name, mask in masks.items():
            if values[name].shape != (count := int(mask.sum()),):
                raise ValueError(f"layer {name!r} keeps {count} weights, and has {values[name].numel()} values")
        coded = {name: tensors.pop(f"read.{name}") for name in shapes if f"read.{name}" in tensors}
        reading = {name: decode_mask(data, shapes[name]) for name, data in coded.items()}
        private = {name: tensors[name] for name in sorted(tensors, key=private_order)}
        check_task_name(metadata["task"])
        reads, task, digest = parsed(metadata, "reads", list[str]), metadata["task"], metadata["digest"]
        notes = {key: value for key, value in metadata.items() if key not in HEADER}
        return Part(task, masks, values, private, tuple(reads), reading, digest, notes)
