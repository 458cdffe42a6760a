"""Plan files: which task will own which weight, fixed for all tasks before any of them is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from msh.checked import parsed
from msh.deploy.codec import decode_owners, encode_owners
from msh.deploy.files import open_format, write_safetensors
from msh.deploy.headers import Names, Shapes, Size, check_sizes
from msh.subnetworks import Allocation, MultiSubnetwork
from msh.subnetworks.initial import norm_of
from msh.subnetworks.merging import check_state
from msh.subnetworks.persistence import EXTRA_STATE, description
from msh.subnetworks.subnetwork import check_task_name
from msh.subnetworks.tensors import bag_key, raw_bytes

PLAN_FORMAT = "msh-plan-1"


@dataclass(frozen=True)
class Plan:
    """An allocation of weights to tasks, and what a network of these tasks starts from.

    The initial weights are not in it, as they follow from the settings; it has their digest (`start_of`). So a plan is
    as small as its owner maps, and a run that starts from other weights is found out.

    Attributes:
        tasks: in order; the owner id of the first is 1.
        owners: tensor name to owner ids (*shape), names in the network's order.
        norms: task to {tensor name: Euclidean norm that its weights there start with}.
        settings: what a run must have in common with it, as JSON has it.
        input_shape: of the backbone.
        start: digest of the backbone's tensors before any training.
        rest: the network's state but for its tasks, owner maps and prunable tensors: small.
        types: tensor name to an empty tensor of its weights' type.
        tied: a further name of a prunable tensor to its name among these.
    """

    tasks: tuple[str, ...]
    owners: dict[str, Tensor]
    norms: dict[str, dict[str, float]]
    settings: dict[str, Any]
    input_shape: tuple[int, ...]
    start: str
    rest: dict[str, Tensor]
    types: dict[str, Tensor]
    tied: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it: names the plan."""
        sha = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for tensor in (*self.owners.values(), *(self.rest[key] for key in sorted(self.rest))):
            sha.update(raw_bytes(tensor))
        return sha.hexdigest()

    def _header(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "norms": self.norms,
            "settings": self.settings,
            "input_shape": list(self.input_shape),
            "start": self.start,
            "shapes": {name: list(owners.shape) for name, owners in self.owners.items()},
            "tied": self.tied,
        }

    @property
    def notes(self) -> dict[str, str]:
        """What files of its networks and tasks say of where they come from."""
        return notes_of(self.start, self.input_shape) | {"plan": self.digest}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Task to its owner id."""
        return {task: place for place, task in enumerate(self.tasks, start=1)}

    def masks(self, task: str) -> dict[str, Tensor]:
        """The weights planned for a task: tensor name to bool (*shape)."""
        owner = self.ids[task]
        return {name: owners == owner for name, owners in self.owners.items()}

    def allocation(self, task: str) -> Allocation:
        """What a task is to own, and start with."""
        return Allocation(self.masks(task), self.norms[task])

    def state(self) -> dict[str, Any]:
        """State of a network in which nothing is owned yet; its prunable tensors are 0."""
        state: dict[str, Any] = dict(self.rest)
        for name, owners in self.owners.items():
            state[f"backbone.{name}"] = self.types[name].new_zeros(owners.shape)
            state[f"owners.{bag_key(name)}"] = owners.new_zeros(owners.shape)
        return {**state, EXTRA_STATE: description([], None)}


def start_of(network: MultiSubnetwork) -> str:
    """SHA-256 of a backbone's tensors; of a network without tasks it tells which weights it starts from."""
    sha = hashlib.sha256()
    for name, tensor in network.backbone.named_buffers():
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def notes_of(start: str, input_shape: Sequence[int]) -> dict[str, str]:
    """What files say of the backbone that they belong to.

    Args:
        start: `start_of` its network.
        input_shape: of the backbone.
    """
    return {"start": start, "input_shape": json.dumps(list(input_shape))}


def input_shape_in(notes: Mapping[str, str], path: Path) -> tuple[int, ...]:
    """The input shape that `notes_of` wrote.

    Args:
        notes: metadata of a file.
        path: of the file, for the message.
    Raises:
        ValueError: it is damaged.
    """
    try:
        return tuple(parsed(notes, "input_shape", list[Size]))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def plan_of(network: MultiSubnetwork, settings: Mapping[str, Any], input_shape: Sequence[int], start: str) -> Plan:
    """The plan that a network's owner maps are.

    Args:
        network: all tasks of which are frozen, untrained; their ids are 1, 2, ...
        settings: as in `Plan`.
        input_shape: of the backbone.
        start: `start_of` the network before it had tasks.
    """
    assert [network.subnetwork(task).owner for task in network.tasks] == list(range(1, len(network.tasks) + 1))
    weights = dict(network.weights())
    own = ("subnetworks.", "owners.", EXTRA_STATE)
    prunable = {f"backbone.{name}" for name in (*weights, *network.names.tied)}
    state = network.state_dict()
    return Plan(
        tasks=tuple(network.tasks),
        owners={name: network.owners[name] for name in weights},
        norms={task: _norms(network, task) for task in network.tasks},
        settings=dict(settings),
        input_shape=tuple(input_shape),
        start=start,
        rest={key: value for key, value in state.items() if not key.startswith(own) and key not in prunable},
        types={name: weight.new_zeros(0) for name, weight in weights.items()},
        tied=network.names.tied,
    )


def _norms(network: MultiSubnetwork, task: str) -> dict[str, float]:
    owner = network.subnetwork(task).owner
    return {name: float(norm_of(weight, network.owners[name] == owner)) for name, weight in network.weights()}


HEADER = {
    "tasks": list[str],
    "norms": dict[str, dict[str, float]],
    "settings": dict[str, Any],
    "input_shape": list[Size],
    "start": str,
    "shapes": Shapes,
    "tied": Names,
}
"""Metadata of a plan file to the type of each value."""


def save_plan(path: Path, plan: Plan) -> None:
    """Write a plan file."""
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in plan.rest.items()}
    for name, owners in plan.owners.items():
        tensors[f"owners.{name}"] = encode_owners(owners)
        tensors[f"owner type.{name}"] = owners.cpu().new_zeros(0)
        tensors[f"weight type.{name}"] = plan.types[name].cpu()
    header = {key: json.dumps(value) for key, value in plan._header().items()}
    write_safetensors(path, tensors, {"format": PLAN_FORMAT, "digest": plan.digest, **header})


def read_plan(path: Path) -> Plan:
    """Read what `save_plan` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a plan file.
    """
    tensors, metadata = open_format(path, "plan", PLAN_FORMAT)
    try:
        found = {key: parsed(metadata, key, kind) for key, kind in HEADER.items()}
        shapes: dict[str, list[int]] = found.pop("shapes")
        check_sizes(shapes, path.stat().st_size)
        owners, types = {}, {}
        for name, shape in shapes.items():
            dtype = tensors.pop(f"owner type.{name}").dtype
            owners[name] = decode_owners(tensors.pop(f"owners.{name}"), shape, dtype)
            types[name] = tensors.pop(f"weight type.{name}")
        tasks, input_shape = tuple(found.pop("tasks")), tuple(found.pop("input_shape"))
        plan = Plan(tasks=tasks, input_shape=input_shape, owners=owners, types=types, rest=tensors, **found)
        for task in tasks:
            check_task_name(task)
            if plan.norms[task].keys() != shapes.keys():
                raise ValueError(f"the norms of task {task!r} are not of the tensors that there are")
        if any(owners.numel() and int(owners.max()) > len(tasks) for owners in plan.owners.values()):
            raise ValueError("weights are planned for tasks that are not there")
        check_state(plan.state(), shapes, plan.tied)
        if plan.digest != metadata["digest"]:
            raise ValueError("its digest is not that of what it holds")
        return plan
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
