"""Network files made of files: tasks merged into them, released from them, split from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from msh.errors import suggestion
from msh.files.plans import notes_for_tasks, read_plan
from msh.files.state_file import StateFile, check_kind, kind_of, read_metadata, read_state, task_names
from msh.subnetworks import NetworkState


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
    kind = kind_of(read_metadata(base))
    if kind not in ("plan", "network"):
        raise ValueError(f"{base} must be a plan or a network file, got {kind or 'a file of another format'}")
    network = read_plan(base) if kind == "plan" else read_state(base, "network")
    state, notes = network.state, network.notes
    if kind == "plan":
        notes = notes_for_tasks(network)
        _check_complete(base, state, tasks, allow_missing)
    state.take(_parts(tasks, base, notes, planned=kind == "plan"), state.next_ids(tasks.values()))
    for missing in [task for task, entry in state.tasks.items() if entry.phase == "planned"]:
        state.release(missing)
    replace(network, kind="network", notes=notes).write(out)
    return list(state.tasks)


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
    file = read_state(path, "network")
    file.state.release(task)
    file.write(out)


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
    file = read_state(path, "network")
    StateFile(file.state.only(task), "subnetwork", file.notes).write(out)


def _tasks_of(files: Sequence[Path]) -> dict[Path, str]:
    """Subnetwork file to its task, from metadata alone."""
    found: dict[Path, str] = {}
    holders: dict[str, list[str]] = defaultdict(list)
    for path in files:
        metadata = read_metadata(path)
        check_kind(metadata, path, "subnetwork")
        names = task_names(metadata, path)
        if len(names) != 1:
            raise ValueError(f"{path} is damaged: a subnetwork file has one task, and it names {len(names)}")
        found[path] = names[0]
        holders[names[0]].append(str(path))
    for task, named in holders.items():
        if len(named) > 1:
            raise ValueError(f"task {task!r} is there more than once: in {', '.join(named)}")
    return found


def _check_complete(base: Path, plan: NetworkState, tasks: Mapping[Path, str], allow_missing: bool) -> None:
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


def _parts(
    tasks: Mapping[Path, str], base: Path, notes: Mapping[str, str], planned: bool
) -> Iterator[tuple[str, NetworkState]]:
    """(file, its state) of subnetwork files of the same plan that start from the same weights, read one by one."""
    for path, task in tasks.items():
        file = read_state(path, "subnetwork")
        if planned and file.notes.get("plan") != notes["plan"]:
            raise ValueError(f"{path}: task {task!r} was not trained on the plan {base}")
        if file.notes.get("start") != notes.get("start"):
            raise ValueError(
                f"{path}: task {task!r} was trained from a different backbone or initialization than {base}"
            )
        yield str(path), file.state
