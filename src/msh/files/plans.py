"""Write and read plan files, which fix the weights that each task will own before any task is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from msh.checked import parsed
from msh.files.header import Size, damages
from msh.files.state_file import StateFile, read_state
from msh.subnetworks import Allocation, MultiSubnetwork, NetworkState
from msh.subnetworks.tensors import raw_bytes, same_bits

MADE_WITH = "made_with"


def start_of(network: MultiSubnetwork) -> str:
    """SHA-256 of a backbone's tensors: before a network has tasks, it identifies the initial weights on a processor.

    Others round random draws differently: see `explained_by_rounding`.
    """
    sha = hashlib.sha256()
    for name, tensor in network.backbone.named_buffers():
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


ROUNDING = 1e-5
"""Processors round random draws differently: norms of initial weights differ by less than this, relative to their
value, and other values relative to their tensor's largest."""


def explained_by_rounding(state: NetworkState, other: NetworkState) -> bool:
    """Return true if the initial tensors of two states differ by no more than processors round them apart.

    Vectorized instructions draw the same random numbers as others, to within their last digits. A state has the norms
    of its initial weights, and the values of its other tensors; a subnetwork file of earlier releases may lack both.

    Args:
        state, other: of networks, plans or subnetworks, with the same layers.
    """
    if not state.norms or state.norms.keys() != other.norms.keys():
        return False
    pairs = [(norm, other.norms[name], ROUNDING) for name, norm in state.norms.items()]
    for name in state.defaults.keys() & other.defaults.keys():
        tensor = state.defaults[name]
        exact = not tensor.is_floating_point()
        pairs.append((tensor, other.defaults[name], 0.0 if exact else max(ROUNDING, torch.finfo(tensor.dtype).eps)))
    return all(_near(mine.cpu(), theirs.cpu(), tolerance) for mine, theirs, tolerance in pairs)


def _near(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    if same_bits(mine, theirs) or not tolerance:
        return same_bits(mine, theirs)
    apart = (mine.double() - theirs.double()).abs()
    return bool(apart.max() <= tolerance * theirs.double().abs().max())


def notes_of(start: str, input_shape: Sequence[int]) -> dict[str, str]:
    """Write the notes that tie a file to its backbone: `start_of` the network, and the backbone's input shape."""
    return {"start": start, "input_shape": json.dumps(list(input_shape))}


def notes_of_run(start: str, input_shape: Sequence[int], seed: int) -> dict[str, str]:
    """Write the notes of a run's files: `notes_of`, and the seed from which the initial weights are drawn again."""
    return {**notes_of(start, input_shape), "seed": str(seed)}


def input_shape_in(notes: Mapping[str, str], path: Path) -> tuple[int, ...]:
    """Read the input shape that `notes_of` wrote.

    Raises:
        ValueError: it is damaged; the message names the path.
    """
    with damages(path):
        return tuple(parsed(notes, "input_shape", list[Size]))


class MadeWith(TypedDict):
    """Config that a plan was made with, so that its tasks can train without another; see `make_plan_file`."""

    config: dict[str, Any]
    overrides: list[str]


def make_plan_file(
    state: NetworkState,
    settings: Mapping[str, Any],
    input_shape: Sequence[int],
    start: str,
    made_with: MadeWith | None = None,
) -> StateFile:
    """Make a plan: planned tasks with owners and norms, which take bits, not bytes, per weight.

    The initial weights follow from the settings, so the plan has their digest only. Its note "plan" is a digest that
    identifies it: plans with the same allocation have the same one, whatever else their tasks train with.

    Args:
        state: from `NetworkState.planned`.
        settings: the ones that decided the allocation, as JSON has them.
        input_shape: of the backbone.
        start: `start_of` the network before it had tasks.
        made_with: the composed config, interpolations unresolved, and the overrides that it was composed from.
    """
    notes = {"settings": json.dumps(dict(settings), sort_keys=True), **notes_of(start, input_shape)}
    if made_with is not None:
        notes[MADE_WITH] = json.dumps(made_with)
    return replace(plan := StateFile(state, "plan", notes), notes=notes | {"plan": _digest(plan)})


def _digest(plan: StateFile) -> str:
    state, notes = plan.state, {key: value for key, value in plan.notes.items() if key not in ("plan", MADE_WITH)}
    header = [state.describe(), notes, state.tied, {name: list(owners.shape) for name, owners in state.owners.items()}]
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for tensors in (state.owners, state.norms, state.defaults):
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
    check_plan(path, plan)
    return plan


def check_plan(path: Path, plan: StateFile) -> None:
    """Raise unless a plan file is complete and has its digest.

    Raises:
        ValueError: it is damaged; the message names the path.
    """
    with damages(path):
        if any(entry.phase != "planned" for entry in plan.state.tasks.values()):
            raise ValueError("it has tasks that are not planned")
        settings_of(plan)
        made_with(plan)
        if missing := [key for key in ("start", "plan") if key not in plan.notes]:
            raise ValueError(f"it has no note {missing[0]!r}")
        if plan.version > 1 and _digest(plan) != plan.notes["plan"]:
            raise ValueError("its content does not have its digest")
    input_shape_in(plan.notes, path)


def settings_of(plan: StateFile) -> dict[str, Any]:
    """Read the settings that decided a plan's allocation."""
    settings: dict[str, Any] = parsed(plan.notes, "settings", dict[str, Any])
    return settings


def made_with(plan: StateFile) -> MadeWith | None:
    """Read the config that a plan was made with; None for plans of earlier releases, which lack it."""
    found: MadeWith | None = parsed(plan.notes, MADE_WITH, MadeWith) if MADE_WITH in plan.notes else None
    return found


def notes_for_tasks(plan: StateFile) -> dict[str, str]:
    """Write the notes that tie files of networks and tasks to their plan, and the seed of the initial weights."""
    notes = {key: plan.notes[key] for key in ("start", "input_shape", "plan")}
    seed = settings_of(plan).get("seed")
    return notes if seed is None else {**notes, "seed": str(seed)}


def allocation_in(plan: StateFile, task: str) -> Allocation:
    """Read a task's planned weights, and the norms they start with."""
    return Allocation(plan.state.owned(task), plan.state.task(task).norms)
