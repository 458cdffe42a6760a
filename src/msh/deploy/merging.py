"""Network files made of files: tasks merged into them, released from them, split from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from msh.checked import parsed
from msh.deploy.files import (
    NETWORK_FORMAT,
    SUBNETWORK_FORMATS,
    has_free_weights,
    read_metadata,
    read_network,
    read_subnetwork,
    shapes_in,
    tasks_in,
    write_part,
    write_state,
)
from msh.deploy.headers import Names
from msh.deploy.plans import PLAN_FORMAT, Plan, read_plan
from msh.names import suggestion
from msh.subnetworks import Part, lowest_ids, merge, release, split

NOT_NOTES = ("format", "state", "shapes", "tied", "free_weights")
"""Metadata of a network file that says how it is to be read, and nothing of where it comes from."""


@dataclass(frozen=True)
class Network:
    """What a network file holds.

    Attributes:
        state: a network's state.
        names: of its prunable tensors, in its order.
        tied: a further name of a prunable tensor to its name among these.
        notes: what its file says of where it comes from.
        free_weights: whether its file has the weights that no task owns.
    """

    state: dict[str, Any]
    names: list[str]
    tied: dict[str, str]
    notes: dict[str, str]
    free_weights: bool

    def write(self, path: Path) -> None:
        """Write it into a file."""
        write_state(path, self.state, self.names, self.tied, self.notes, self.free_weights)


def merge_files(base: Path, files: Sequence[Path], out: Path, allow_missing: bool = False) -> list[str]:
    """Put tasks that were trained apart into one network file.

    Args:
        base: a plan, whose tasks the files hold; or a network file, which takes up the files' tasks.
        files: subnetwork files, in any order.
        out: the network file; written only if nothing is wrong.
        allow_missing: leave out tasks of the plan that no file holds; the weights planned for them are free.
    Returns:
        The network's tasks, in order.
    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another plan or of another backbone; a task is missing or there twice; or two
            own the same weights.
    """
    tasks = _tasks_of(files)
    format_of_base = read_metadata(base).get("format")
    if format_of_base == PLAN_FORMAT:
        plan = read_plan(base)
        _check_complete(base, plan, tasks, allow_missing)
        network = Network(plan.state(), list(plan.owners), plan.tied, plan.notes, free_weights=False)
        ids = {task: owner for task, owner in plan.ids.items() if task in tasks.values()}
    elif format_of_base == NETWORK_FORMAT:
        plan, network = None, read_whole(base)
        ids = lowest_ids(network.state, tasks.values())
    else:
        raise ValueError(f"{base} is neither a plan nor a network file: its format is {format_of_base!r}")
    parts = ((str(path), _read_checked(path, base, network.notes, plan)) for path in tasks)
    state = merge(network.state, network.names, network.tied, parts, ids)
    replace(network, state=state).write(out)
    return tasks_in(state)


def release_task(path: Path, task: str, out: Path) -> None:
    """Write a network file without one of its tasks, whose weights become free: nothing of their values is in it.

    Args:
        path: of the network file.
        task: the one that is released.
        out: the file that is written; it may be the same.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a network file, has no such task, or other tasks read this one's weights.
    """
    network = read_whole(path)
    replace(network, state=release(network.state, network.names, network.tied, task)).write(out)


def split_task(path: Path, task: str, out: Path) -> None:
    """Write one task of a network file into a subnetwork file of its own.

    Args:
        path: of the network file, which stays as it is.
        task: a frozen one.
        out: the file that is written.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a network file, has no such task, or the task is not frozen.
    """
    network = read_whole(path)
    write_part(out, replace(split(network.state, network.names, task), notes=network.notes))


def read_whole(path: Path) -> Network:
    """Read a network file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a network file.
    """
    state, metadata = read_network(path)
    notes = {key: value for key, value in metadata.items() if key not in NOT_NOTES}
    return Network(state, list(shapes_in(metadata)), parsed(metadata, "tied", Names), notes, has_free_weights(metadata))


def _tasks_of(files: Sequence[Path]) -> dict[Path, str]:
    """Subnetwork file to its task, from headers alone."""
    found: dict[Path, str] = {}
    holders: dict[str, list[str]] = defaultdict(list)
    for path in files:
        metadata = read_metadata(path)
        if metadata.get("format") not in SUBNETWORK_FORMATS or "task" not in metadata:
            raise ValueError(f"{path} is not a subnetwork file: its format is {metadata.get('format')!r}")
        found[path] = metadata["task"]
        holders[metadata["task"]].append(str(path))
    for task, named in holders.items():
        if len(named) > 1:
            raise ValueError(f"task {task!r} is there more than once: in {', '.join(named)}")
    return found


def _check_complete(base: Path, plan: Plan, tasks: Mapping[Path, str], allow_missing: bool) -> None:
    for path, task in tasks.items():
        if task not in plan.tasks:
            raise ValueError(
                f"{path} holds task {task!r}, which is not in the plan {base}: {', '.join(plan.tasks)}"
                f"{suggestion(task, plan.tasks)}"
            )
    missing = [task for task in plan.tasks if task not in tasks.values()]
    if missing and not allow_missing:
        raise ValueError(
            f"no file holds {', '.join(map(repr, missing))} of the plan {base}: name the files, or leave these tasks "
            "out with --allow-missing"
        )


def _read_checked(path: Path, base: Path, notes: Mapping[str, str], plan: Plan | None) -> Part:
    """A subnetwork file's task, if it is of the same plan and starts from the same weights."""
    part = read_subnetwork(path)
    if plan is not None and part.notes.get("plan") != notes["plan"]:
        raise ValueError(f"{path}: task {part.task!r} was not trained on the plan {base}")
    if part.notes.get("start") != notes.get("start"):
        raise ValueError(
            f"{path}: task {part.task!r} is of another backbone than {base}, or its initial weights are others"
        )
    if plan is not None:
        for name, mask in plan.masks(part.task).items():
            if name not in part.masks or not torch.equal(part.masks[name], mask):
                raise ValueError(f"{path}: task {part.task!r} owns other weights of layer {name!r} than planned")
    return part
