"""Reader of the file formats before schema 2: a format each for networks, subnetworks and plans."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msh.checked import parsed
from msh.files.codec import decode_mask, decode_owners
from msh.files.state_file import Kind, Shapes, Size, StateFile, check_sizes, unpacked
from msh.subnetworks import FREE, NetworkState, TaskState
from msh.subnetworks.state import EXTRA_STATE
from msh.subnetworks.tensors import bag_key, name_of_key, pack_bits, raw_bytes

KIND_OF_FORMAT: dict[str, Kind] = {
    "msh-network-1": "network",
    "msh-subnetwork-2": "subnetwork",  # of tasks that read all weights of the tasks that they read
    "msh-subnetwork-3": "subnetwork",
    "msh-plan-1": "plan",
}
READING = re.compile(r"subnetworks\.[^.]+\.reading\.(.+)")
"""Key of the mask of what a task reads, in a network file."""
NETWORK_HEADER = ("format", "state", "shapes", "tied", "free_weights")
SUBNETWORK_HEADER = ("format", "task", "shapes", "reads", "digest")
PLAN_HEADER = {
    "tasks": list[str],
    "norms": dict[str, dict[str, float]],
    "settings": dict[str, Any],
    "input_shape": list[Size],
    "start": str,
    "shapes": Shapes,
    "tied": dict[str, str],
}


def read_version_1(tensors: dict[str, Tensor], metadata: Mapping[str, str], size: int) -> StateFile:
    """Read a file of an earlier format.

    Args:
        tensors: of the file, by key.
        metadata: of the file.
        size: of the file, in bytes.
    Raises:
        ValueError, KeyError: it is damaged.
    """
    shapes: dict[str, list[int]] = parsed(metadata, "shapes", Shapes)
    check_sizes(shapes, size)
    read = {"network": _network, "subnetwork": _subnetwork, "plan": _plan}[KIND_OF_FORMAT[metadata["format"]]]
    return replace(read(tensors, metadata, shapes), version=1)


def _network(tensors: dict[str, Tensor], metadata: Mapping[str, str], shapes: dict[str, list[int]]) -> StateFile:
    free_weights: bool = parsed(metadata, "free_weights", bool)
    if not free_weights:
        for name, shape in shapes.items():
            key = f"owners.{bag_key(name)}"
            owners = tensors[key] = decode_owners(tensors[key], shape, tensors.pop(f"owner type.{name}").dtype)
            tensors[f"backbone.{name}"] = unpacked(tensors.pop(f"owned.{name}"), owners != FREE, name)
        for key in [key for key in tensors if READING.fullmatch(key)]:
            name = name_of_key(key.partition(".reading.")[2])
            tensors[key] = pack_bits(decode_mask(tensors[key], shapes[name]))
    tied = parsed(metadata, "tied", dict[str, str])
    state = NetworkState.from_state_dict({**tensors, EXTRA_STATE: metadata["state"]}, list(shapes), tied)
    notes = {key: value for key, value in metadata.items() if key not in NETWORK_HEADER}
    return StateFile(state, "network", notes, free_weights)


def _subnetwork(tensors: dict[str, Tensor], metadata: Mapping[str, str], shapes: dict[str, list[int]]) -> StateFile:
    masks = {name: decode_mask(tensors.pop(f"mask.{name}"), shape) for name, shape in shapes.items()}
    weights = {name: unpacked(tensors.pop(f"values.{name}"), mask, name) for name, mask in masks.items()}
    coded = {name: tensors.pop(f"read.{name}") for name in shapes if f"read.{name}" in tensors}
    entry = TaskState(
        metadata["task"],
        1,
        reads=tuple(parsed(metadata, "reads", list[str])),
        reading={name: pack_bits(decode_mask(data, shapes[name])) for name, data in coded.items()},
        private=tensors,
        digest=metadata["digest"],
    )
    owners = {name: mask.to(torch.uint8) for name, mask in masks.items()}
    notes = {key: value for key, value in metadata.items() if key not in SUBNETWORK_HEADER}
    return StateFile(NetworkState(weights, owners, tasks={entry.name: entry}, active=entry.name), "subnetwork", notes)


def _plan(tensors: dict[str, Tensor], metadata: Mapping[str, str], shapes: dict[str, list[int]]) -> StateFile:
    header = {key: parsed(metadata, key, kind) for key, kind in PLAN_HEADER.items()}
    owners, weights = {}, {}
    for name, shape in shapes.items():
        dtype = tensors.pop(f"owner type.{name}").dtype
        owners[name] = decode_owners(tensors.pop(f"owners.{name}"), shape, dtype)
        weights[name] = tensors.pop(f"weight type.{name}").new_zeros(shape)
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for tensor in (*owners.values(), *(tensors[key] for key in sorted(tensors))):
        sha.update(raw_bytes(tensor))
    if sha.hexdigest() != metadata["digest"]:
        raise ValueError("its digest is not that of what it holds")
    state = NetworkState(
        weights=weights,
        owners=owners,
        norms={name: tensors.pop(f"initial_norms.{bag_key(name)}") for name in shapes},
        defaults={key.removeprefix("backbone."): tensor for key, tensor in tensors.items()},
        tasks={t: TaskState(t, i, "planned", norms=header["norms"][t]) for i, t in enumerate(header["tasks"], start=1)},
        tied=header["tied"],
    )
    notes = {key: json.dumps(header[key]) for key in ("settings", "input_shape")}
    return StateFile(state, "plan", notes | {"start": header["start"], "plan": metadata["digest"]})
