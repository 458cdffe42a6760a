"""Read the file formats before schema 2: one format each for networks, subnetworks and plans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msh.checked import parsed
from msh.files.codec import decode_mask, decode_owners
from msh.files.header import KIND_OF_FORMAT, Shapes, Size, check_sizes
from msh.files.state_file import StateFile, unpacked
from msh.subnetworks import FREE, NetworkState, TaskState
from msh.subnetworks.description import EXTRA_STATE
from msh.subnetworks.state import read_tasks
from msh.subnetworks.tensors import bag_key, pack_bits, raw_bytes

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
        tensors: the file's, by key.
        metadata: the file's header.
        size: bytes of the file.
    Raises:
        ValueError, KeyError: it is damaged.
    """
    shapes: dict[str, list[int]] = parsed(metadata, "shapes", Shapes)
    check_sizes(shapes, size)
    read = {"network": _network, "subnetwork": _subnetwork, "plan": _plan}[KIND_OF_FORMAT[metadata["format"]]]
    return replace(read(tensors, metadata, shapes), version=1)


def _network(tensors: dict[str, Tensor], metadata: Mapping[str, str], shapes: dict[str, list[int]]) -> StateFile:
    free_weights: bool = parsed(metadata, "free_weights", bool)
    weights, owners = {}, {}
    for name, shape in shapes.items():
        owners[name] = tensors[f"owners.{bag_key(name)}"]
        if free_weights:
            weights[name] = tensors[f"backbone.{name}"]
        else:
            owners[name] = decode_owners(owners[name], shape, tensors[f"owner type.{name}"].dtype)
            weights[name] = unpacked(tensors[f"owned.{name}"], owners[name] != FREE, name)
    tasks, active = read_tasks({**tensors, EXTRA_STATE: metadata["state"]})
    for entry in tasks.values() if not free_weights else ():
        entry.reading = {name: pack_bits(decode_mask(data, shapes[name])) for name, data in entry.reading.items()}
    tied = parsed(metadata, "tied", dict[str, str])
    backbone = {key.removeprefix("backbone."): t for key, t in tensors.items() if key.startswith("backbone.")}
    state = NetworkState(
        weights,
        owners,
        norms={name: tensors[f"initial_norms.{bag_key(name)}"] for name in shapes},
        defaults={name: tensor for name, tensor in backbone.items() if name not in shapes and name not in tied},
        tasks=tasks,
        active=active,
        tied=tied,
    )
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
        raise ValueError("its content does not have its digest")
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
