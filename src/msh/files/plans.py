"""Plan files: which task will own which weight, fixed for all tasks before any of them is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msh.checked import parsed
from msh.files.state_file import Size, StateFile, damages, read_state
from msh.subnetworks import Allocation, MultiSubnetwork, NetworkState
from msh.subnetworks.tensors import raw_bytes


def start_of(network: MultiSubnetwork) -> str:
    """SHA-256 of a backbone's tensors; of a network without tasks it tells which weights it starts from."""
    sha = hashlib.sha256()
    for name, tensor in network.backbone.named_buffers():
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def notes_of(start: str, input_shape: Sequence[int]) -> dict[str, str]:
    """Write the notes that tie a file to its backbone.

    Args:
        start: `start_of` its network.
        input_shape: of the backbone.
    """
    return {"start": start, "input_shape": json.dumps(list(input_shape))}


def input_shape_in(notes: Mapping[str, str], path: Path) -> tuple[int, ...]:
    """The input shape that `notes_of` wrote.

    Args:
        notes: of a file.
        path: of the file, for the message.
    Raises:
        ValueError: it is damaged.
    """
    with damages(path):
        return tuple(parsed(notes, "input_shape", list[Size]))


def make_plan_file(
    state: NetworkState, settings: Mapping[str, Any], input_shape: Sequence[int], start: str
) -> StateFile:
    """A plan: a state whose tasks are planned, without values.

    The initial weights are not in it, as they follow from the settings; it has their digest. So a plan takes bits, not
    bytes, per weight. Its note "plan" is a digest that names it.

    Args:
        state: from `NetworkState.planned`.
        settings: those that decided the allocation, as JSON has them.
        input_shape: of the backbone.
        start: `start_of` the network before it had tasks.
    """
    notes = {"settings": json.dumps(dict(settings), sort_keys=True), **notes_of(start, input_shape)}
    return replace(plan := StateFile(state, "plan", notes), notes=notes | {"plan": _digest(plan)})


def _digest(plan: StateFile) -> str:
    notes = {key: value for key, value in plan.notes.items() if key != "plan"}
    header = [plan.state.describe(), notes, plan.state.tied, {n: list(o.shape) for n, o in plan.state.owners.items()}]
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for tensors in (plan.state.owners, plan.state.norms, plan.state.defaults):
        for name in sorted(tensors):
            sha.update(name.encode())
            sha.update(raw_bytes(tensors[name]))
    return sha.hexdigest()


def read_plan(path: Path) -> StateFile:
    """Read a plan file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a plan file.
    """
    plan = read_state(path, "plan")
    with damages(path):
        if any(entry.phase != "planned" for entry in plan.state.tasks.values()):
            raise ValueError("it has tasks that are not planned")
        settings_of(plan)
        for key in ("start", "plan"):
            if key not in plan.notes:
                raise ValueError(f"it has no note {key!r}")
        if plan.version > 1 and _digest(plan) != plan.notes["plan"]:
            raise ValueError("its digest is not that of what it holds")
    input_shape_in(plan.notes, path)
    return plan


def settings_of(plan: StateFile) -> dict[str, Any]:
    """The settings that decided a plan's allocation."""
    found: dict[str, Any] = parsed(plan.notes, "settings", dict[str, Any])
    return found


def notes_for_tasks(plan: StateFile) -> dict[str, str]:
    """Write the notes that tie files of networks and tasks to their plan."""
    return {key: plan.notes[key] for key in ("start", "input_shape", "plan")}


def allocation_in(plan: StateFile, task: str) -> Allocation:
    """Read a task's planned weights, and the norms they start with."""
    return Allocation(plan.state.owned(task), plan.state.task(task).norms)
