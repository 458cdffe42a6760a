"""State files: networks, subnetworks and plans as safetensors, read without running code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict

from msh.checked import check_promised, parsed
from msh.files.atomic import write_bytes
from msh.files.codec import decode_mask, decode_owners, encode_mask, encode_owners
from msh.subnetworks import FREE, MultiSubnetwork, NetworkState, TaskState
from msh.subnetworks.state import IN_TRAINING, KINDS, read_description
from msh.subnetworks.tensors import pack_bits, unpack_bits, wide_enough

FORMAT, VERSION = "msh", "2"
Kind = Literal["network", "subnetwork", "plan"]
"""What a state file is made for: a whole network; one frozen task; tasks that are planned and have no values."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that a subnetwork file's weights can have."""
HEADER = ("format", "version", "kind", "state", "layout", "recipe")
"""Metadata that says what a file holds; the rest are notes on where it comes from."""

Size = Annotated[int, Field(ge=0, lt=2**48)]
Shapes = dict[str, list[Size]]
"""Tensor name to shape."""


class Layout(TypedDict):
    """Layout of a file's tensors."""

    shapes: Shapes
    tied: dict[str, str]
    padding: dict[str, int]
    buffers: list[str]
    shared: list[str]
    free_weights: bool


@dataclass(frozen=True)
class StateFile:
    """Content of a state file.

    Attributes:
        state: the network, whole or in part.
        kind: what the file is made for.
        notes: further metadata, such as the plan that a task keeps to.
        free_weights: whether it has the values of weights that no task owns; they are 0 otherwise.
        version: of the schema it was read from.
    """

    state: NetworkState
    kind: Kind
    notes: dict[str, str]
    free_weights: bool = False
    version: int = int(VERSION)

    def write(self, path: Path, dtype: torch.dtype | None = None) -> None:
        """Write the file.

        Args:
            path: of the file.
            dtype: of the weights in it: float16 or bfloat16; their own when None or float32. A narrower one rounds
                them, and the digest of a task is then no longer that of the network's.
        Raises:
            ValueError: the type is not allowed.
        """
        if dtype not in (None, *DTYPES.values()):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
        state = self.state
        layout: Layout = {
            "shapes": {name: list(owners.shape) for name, owners in state.owners.items()},
            "tied": state.tied,
            "padding": state.padding,
            "buffers": list(state.buffers),
            "shared": list(state.shared),
            "free_weights": self.free_weights,
        }
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "state": state.describe(),
            "layout": json.dumps(layout),
            "recipe": json.dumps(state.recipe),
            **self.notes,
        }
        write_safetensors(path, dict(self._tensors(dtype)), metadata)

    def _tensors(self, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        state = self.state
        planned = [entry.owner for entry in state.tasks.values() if entry.phase == "planned"]
        for name, owners in state.owners.items():
            weight = state.weights[name]
            weight = weight if dtype in (None, torch.float32) else weight.to(dtype)
            if self.free_weights:
                yield f"weights.{name}", weight
            else:
                yield f"values.{name}", weight[_has_value(owners, planned)]
            if len(state.tasks) == 1:
                yield f"mask.{name}", encode_mask(owners != FREE)
            else:
                yield f"owners.{name}", encode_owners(owners)
        for kind, tensors in (("norms", state.norms), ("defaults", state.defaults)):
            for name, tensor in tensors.items():
                yield f"{kind}.{name}", tensor
        for task, entry in state.tasks.items():
            for name, tensor in entry.private.items():
                yield f"tasks.{task}.{name}", tensor
            for name, packed in entry.reading.items():
                yield f"tasks.{task}.reading.{name}", encode_mask(unpack_bits(packed, state.owners[name].shape))
            for kind in IN_TRAINING:
                for name, tensor in getattr(entry, kind).items():
                    yield f"tasks.{task}.{kind}.{name}", tensor


def _has_value(owners: Tensor, planned: Sequence[int]) -> Tensor:
    found = owners != FREE
    for owner in planned:
        found &= owners != owner
    return found


# ---- safetensors


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


def kind_of(metadata: Mapping[str, str]) -> str | None:
    """The kind of a state file, of this schema or an earlier one; None of any other file."""
    from msh.files.version1 import KIND_OF_FORMAT

    if metadata.get("format") == FORMAT:
        return metadata.get("kind")
    return KIND_OF_FORMAT.get(metadata.get("format", ""))


def check_kind(metadata: Mapping[str, str], path: Path, *kinds: Kind) -> None:
    """Raise unless a file is a state file of one of the kinds; of any when none is named.

    Raises:
        ValueError: it is another file.
    """
    kind = kind_of(metadata)
    if kind is None or (kinds and kind not in kinds):
        found = f"a {kind} file" if kind else f"its format is {metadata.get('format')!r}"
        raise ValueError(f"{path} is not a {' or '.join(kinds or ('state',))} file: {found}")


def task_names(metadata: Mapping[str, str], path: Path) -> list[str]:
    """Names of the tasks of a network or subnetwork file, from its metadata alone.

    Raises:
        ValueError: it is damaged.
    """
    with damages(path):
        if "state" not in metadata and "task" in metadata:
            return [metadata["task"]]
        return list(read_description(metadata.get("state"))[0])


def read_state(path: Path, *kinds: Kind) -> StateFile:
    """Read a state file of any schema.

    Args:
        path: of the file.
        kinds: those that will do; all when none is named.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a later release, or of another kind.
    """
    from msh.files.version1 import read_version_1

    tensors, metadata = open_safetensors(path)
    check_kind(metadata, path, *kinds)
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
    layout: Layout = parsed(metadata, "layout", Layout)
    recipe = parsed(metadata, "recipe", dict[str, Any])
    shapes = layout["shapes"]
    check_sizes(shapes, size)
    tasks, active = read_description(metadata.get("state"))
    most = max((entry.owner for entry in tasks.values()), default=FREE)
    planned = [entry.owner for entry in tasks.values() if entry.phase == "planned"]
    owners, weights = {}, {}
    for name, shape in shapes.items():
        like = wide_enough(torch.zeros(0, dtype=torch.uint8), most)
        if len(tasks) == 1:
            owners[name] = decode_mask(tensors.pop(f"mask.{name}"), shape).to(like.dtype) * most
        else:
            owners[name] = decode_owners(tensors.pop(f"owners.{name}"), shape, like.dtype)
        if layout["free_weights"]:
            weights[name] = tensors.pop(f"weights.{name}")
        else:
            weights[name] = unpacked(tensors.pop(f"values.{name}"), _has_value(owners[name], planned), name)
    found: dict[str, dict[str, Tensor]] = {"norms": {}, "defaults": {}}
    for key, tensor in tensors.items():
        start, _, rest = key.partition(".")
        if start == "tasks":
            task, _, rest = rest.partition(".")
            _put(tasks[task], rest, tensor, shapes)
        else:
            found[start][rest] = tensor
    state = NetworkState(
        weights=weights,
        owners=owners,
        norms=found["norms"],
        defaults=found["defaults"],
        tasks=tasks,
        active=active,
        tied=layout["tied"],
        padding=layout["padding"],
        buffers=tuple(layout["buffers"]),
        shared=tuple(layout["shared"]),
        recipe=recipe,
    )
    notes = {key: value for key, value in metadata.items() if key not in HEADER}
    kind: Kind = parsed({"kind": json.dumps(metadata["kind"])}, "kind", Kind)
    return StateFile(state, kind, notes, layout["free_weights"])


def _put(entry: TaskState, key: str, tensor: Tensor, shapes: Mapping[str, Sequence[int]]) -> None:
    kind, _, name = key.partition(".")
    if kind in KINDS:
        entry.private[key] = tensor
    elif kind == "reading":
        entry.reading[name] = pack_bits(decode_mask(tensor, shapes[name]))
    elif kind in IN_TRAINING:
        getattr(entry, kind)[name] = tensor
    else:
        raise ValueError(f"task {entry.name!r} has a tensor {key!r}, which is of no known kind")


def unpacked(values: Tensor, places: Tensor, name: str) -> Tensor:
    """A dense weight (*shape) from its values (k,) at the places, bool (*shape); 0 elsewhere.

    Raises:
        ValueError: there are not k places.
    """
    if values.shape != (count := int(places.sum()),):
        raise ValueError(f"layer {name!r} has {count} owned weights, and values of shape {tuple(values.shape)}")
    weight = values.new_zeros(places.shape)
    weight[places] = values
    return weight


def check_sizes(shapes: Mapping[str, Sequence[int]], held: int) -> None:
    """Raise where a header promises more weights than its file can hold: see `check_promised`."""
    check_promised(sum(prod(shape) for shape in shapes.values()), held, "weights")


@contextmanager
def damages(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file's content into an error that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


# ---- networks and subnetworks


def save_network(
    path: Path, network: MultiSubnetwork, notes: dict[str, str] | None = None, free_weights: bool = True
) -> None:
    """Write a whole network: weights, owners, and every task's private tensors.

    Args:
        path: of the file.
        network: in any phase; a task in training is written as it is.
        notes: further metadata.
        free_weights: also write the values of weights that no task owns. Without them the file is no larger than
            the tasks' subnetwork files together, and whoever loads it keeps the free weights that they have.
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
    """Write one frozen task: its weights, their places, private tensors, head and stem.

    Args:
        path: of the file.
        network: holds the task.
        task: a frozen one.
        dtype: see `StateFile.write`.
        notes: further metadata.
    Raises:
        ValueError: the task is not frozen, or the type is not allowed.
    """
    StateFile(network.view(task).only(task), "subnetwork", notes or {}).write(path, dtype)


def load_network(path: Path, network: MultiSubnetwork) -> dict[str, str]:
    """Fill a network that has the file's backbone and tasks; returns the file's notes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is of another backbone or other tasks.
    """
    file = read_state(path, "network")
    fill_network(path, network, file)
    return file.notes


def fill_network(path: Path, network: MultiSubnetwork, file: StateFile) -> None:
    """Fill a network with what `read_state` gave.

    Args:
        path: of the file, for the message.
        network: has the file's backbone and tasks.
        file: of kind network.
    Raises:
        ValueError: the file is of another backbone or other tasks.
    """
    try:
        state = file.state if file.free_weights else _with_free(file.state, network)
        network.load_state_dict(state.state_dict())
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error


def _with_free(state: NetworkState, network: MultiSubnetwork) -> NetworkState:
    """The state with the free weights that a network has now."""
    now, free = dict(network.weights()), {name: ids == FREE for name, ids in state.owners.items()}
    weights = {name: torch.where(free[name], now[name].cpu(), weight) for name, weight in state.weights.items()}
    return replace(state, weights=weights)
