"""Write and read state files: networks, subnetworks and plans as safetensors, read without running code."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from msh.checked import parsed
from msh.compat import with_versions
from msh.errors import invalid
from msh.files.atomic import write_bytes
from msh.files.codec import decode_mask, decode_owners, encode_mask, encode_owners
from msh.files.header import (
    FORMAT,
    HEADER,
    VERSION,
    Kind,
    Layout,
    check_kind,
    check_sizes,
    damages,
    opened,
)
from msh.subnetworks import FREE, MultiSubnetwork, NetworkState, TaskState
from msh.subnetworks.description import read_description
from msh.subnetworks.tensors import count_true, pack_bits, unpack_bits, wide_enough

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that a subnetwork file's weights can have."""
LAYOUT = ("tied", "padding", "buffers", "shared")
"""Fields of a `NetworkState` that the layout holds."""


@dataclass(frozen=True)
class StateFile:
    """Content of a state file.

    Attributes:
        state: the network, whole or in part.
        kind: see `Kind`.
        notes: additional metadata, such as the plan that a task was trained on.
        free_weights: True if the file has the values of weights that no task owns; they are 0 otherwise.
        version: schema it was read from.
    """

    state: NetworkState
    kind: Kind
    notes: dict[str, str]
    free_weights: bool = False
    version: int = int(VERSION)

    def write(self, path: Path, dtype: torch.dtype | None = None) -> None:
        """Write the file.

        Args:
            path: where to write.
            dtype: type of the weights in the file: float16 or bfloat16; their own when None or float32. A narrower type
                rounds them, so that a task no longer has the digest it has in the network.
        Raises:
            ValueError: the type is not allowed.
        """
        if dtype not in (None, *DTYPES.values()):
            raise invalid("dtype", f"one of {', '.join(DTYPES)}", dtype)
        state = self.state
        layout: dict[str, Any] = {"shapes": {name: list(owners.shape) for name, owners in state.owners.items()}}
        layout |= {key: getattr(state, key) for key in LAYOUT} | {"free_weights": self.free_weights}
        layout |= {"draws": state.draws} if state.draws else {}
        metadata = {"format": FORMAT, "version": VERSION, "kind": self.kind, "state": state.describe()}
        metadata |= {"layout": json.dumps(layout), "recipe": json.dumps(state.recipe)}
        metadata |= {"counts": state.holdings().describe(), **self.notes}
        write_safetensors(path, dict(self._tensors(dtype)), metadata)

    def _tensors(self, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        state = self.state
        for name, owners in state.owners.items():
            weight = state.weights[name]
            weight = weight if dtype in (None, torch.float32) else weight.to(dtype)
            if self.free_weights:
                yield f"weights.{name}", weight
            else:
                yield f"values.{name}", weight[_has_value(owners, state.tasks)]
            if len(state.tasks) == 1:
                yield f"mask.{name}", encode_mask(owners != FREE)
            else:
                yield f"owners.{name}", encode_owners(owners)
        for kind in ("norms", "defaults"):
            yield from ((f"{kind}.{name}", tensor) for name, tensor in getattr(state, kind).items())
        for task, entry in state.tasks.items():
            for key, tensor in entry.tensors():
                kind, _, name = key.partition(".")
                coded = encode_mask(unpack_bits(tensor, state.owners[name].shape)) if kind == "reading" else tensor
                yield f"tasks.{task}.{key}", coded


def _has_value(owners: Tensor, tasks: Mapping[str, TaskState], but: Collection[str] = ("planned", "compact")) -> Tensor:
    """Mark the weights whose value is in the dense tensor, bool (*shape): the owned ones but for tasks in some phases.

    Compact tasks have theirs in `TaskState.values`.
    """
    mask = owners != FREE
    for entry in tasks.values():
        if entry.phase in but:
            mask &= owners != entry.owner
    return mask


# ---- safetensors


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read (tensors by name, on the CPU; metadata) from a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a safetensors file.
    """
    with opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; the same content gives the same bytes (the library writes metadata in any order)."""
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(apart, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_bytes(path, len(text).to_bytes(8, "little") + text + content[start:])


# ---- reading


def read_state(path: Path, *kinds: Kind) -> StateFile:
    """Read a state file with any schema.

    Args:
        path: the file.
        kinds: accepted kinds; all when none is named.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, from a later release, or has another kind.
    """
    from msh.files.version1 import read_version_1

    tensors, metadata = open_safetensors(path)
    check_kind(metadata, path, kinds)
    with damages(path):
        if metadata["format"] != FORMAT:
            file = read_version_1(tensors, metadata, path.stat().st_size)
        elif metadata.get("version") != VERSION:
            raise ValueError(f"schema version {metadata.get('version')}; this release reads up to {VERSION}")
        else:
            file = _read_version_2(tensors, metadata, path.stat().st_size)
        file.state.check()
        if file.kind != "subnetwork" and file.state.norms.keys() != file.state.owners.keys():
            raise ValueError("it lacks the initial norms of some layers")
        return file


def _read_version_2(tensors: dict[str, Tensor], metadata: Mapping[str, str], size: int) -> StateFile:
    layout = parsed(metadata, "layout", Layout)
    shapes, free_weights = layout.pop("shapes"), layout.pop("free_weights")
    check_sizes(shapes, size)
    tasks, active = read_description(metadata.get("state"))
    most = max((entry.owner for entry in tasks.values()), default=FREE)
    id_type = wide_enough(torch.zeros(0, dtype=torch.uint8), most).dtype
    weights, owners = {}, {}
    for name, shape in shapes.items():
        if len(tasks) == 1:
            owners[name] = decode_mask(tensors.pop(f"mask.{name}"), shape).to(id_type) * most
        else:
            owners[name] = decode_owners(tensors.pop(f"owners.{name}"), shape, id_type)
        if free_weights:
            weights[name] = tensors.pop(f"weights.{name}")
        else:
            values, mask = tensors.pop(f"values.{name}"), _has_value(owners[name], tasks)
            if values.shape != (count_true(mask),):  # earlier releases wrote some at a compact task's weights, too
                mask = _has_value(owners[name], tasks, ("planned",))
            weights[name] = unpacked(values, mask, name)
    state = NetworkState(
        weights, owners, tasks=tasks, active=active, recipe=parsed(metadata, "recipe", dict[str, Any]), **layout
    )
    by_start: dict[str, dict[str, Tensor]] = {"norms": state.norms, "defaults": state.defaults}
    for key, tensor in tensors.items():
        start, _, name = key.partition(".")
        if start == "tasks":
            task, _, name = name.partition(".")
            part, _, layer = name.partition(".")
            tasks[task].put(name, pack_bits(decode_mask(tensor, shapes[layer])) if part == "reading" else tensor)
        else:
            by_start[start][name] = tensor
    notes = {key: value for key, value in metadata.items() if key not in HEADER}
    return StateFile(state, check_kind(metadata, Path(), ()), notes, free_weights)


def unpacked(values: Tensor, mask: Tensor, name: str) -> Tensor:
    """Expand a layer's values (k,) to a dense weight (*shape): they fill the mask, bool (*shape); 0 elsewhere.

    Raises:
        ValueError: the mask has not k True.
    """
    if values.shape != (count := count_true(mask),):
        raise ValueError(f"layer {name!r} has {count} owned weights, and values of shape {tuple(values.shape)}")
    weight = values.new_zeros(mask.shape)
    weight[mask] = values
    return weight


# ---- networks and subnetworks


def save_network(
    path: Path, network: MultiSubnetwork, notes: dict[str, str] | None = None, free_weights: bool = True
) -> None:
    """Write a whole network: weights, owners, and every task's private tensors.

    Args:
        path: where to write.
        network: in any phase; a task in training is written as it is.
        notes: additional metadata.
        free_weights: also write the values of weights that no task owns. Without them the file is no larger than
            the tasks' subnetwork files together, and a network that loads it keeps its own free weights.
    """
    for task in network.tasks:
        network.settle(task)
    StateFile(network.state, "network", notes or {}, free_weights).write(path)


def save_subnetwork(
    path: Path,
    network: MultiSubnetwork,
    task: str,
    dtype: torch.dtype | None = None,
    notes: dict[str, str] | None = None,
) -> None:
    """Write a network's frozen task: its weights and their indices, private tensors, head and stem.

    Raises:
        ValueError: the task is not frozen, or the type is not allowed: see `StateFile.write`.
    """
    StateFile(network.view(task).only(task), "subnetwork", notes or {}).write(path, dtype)


def fill_network(path: Path, network: MultiSubnetwork, file: StateFile) -> None:
    """Fill a network from a file; it keeps its free weights, and a backbone's initial tensors, that the file lacks.

    Args:
        path: the file's, for messages.
        network: has the file's backbone and tasks.
        file: a network or subnetwork file, from `read_state`.
    Raises:
        ValueError: the file has another backbone or other tasks.
    """
    try:
        state = file.state
        if not file.free_weights:
            now = {name: weight.cpu() for name, weight in network.weights()}
            known = {name: _has_value(owners, state.tasks) for name, owners in state.owners.items()}
            weights = {name: torch.where(known[name], weight, now[name]) for name, weight in state.weights.items()}
            state = replace(state, weights=weights)
        tensors = state.state_dict()
        if any(entry.base not in (None, network.state.base_digest()) for entry in state.tasks.values()):
            raise ValueError("its task changes a pretrained backbone with other values")
        if file.kind == "subnetwork":
            tensors = {k: t for k, t in network.state_dict().items() if k.startswith("backbone.")} | tensors
        network.load_state_dict(with_versions(tensors, network))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error
