"""Merge tasks into a network file, release them from it, and split them from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from msh.errors import suggestion
from msh.files.header import task_names
from msh.files.plans import check_plan, explained_by_rounding, notes_for_tasks
from msh.files.state_file import StateFile, read_state
from msh.subnetworks import NetworkState


class Merge:
    """Merge tasks that were trained apart, in any order, into the network of a plan or of a network file.

    Attributes:
        base: the plan's path, or the network file's.
        network: the base, with the tasks taken so far.

    Args:
        base: a plan with the tasks; or a network file, to which they are added.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.network = base, read_state(base, "plan", "network")
        if self.network.kind == "plan":
            check_plan(base, self.network)

    @property
    def planned(self) -> list[str]:
        """List the tasks that the plan still waits for."""
        return [task for task, entry in self.network.state.tasks.items() if entry.phase == "planned"]

    def take(self, tasks: Sequence[tuple[Path, str]]) -> None:
        """Take over the tasks of (subnetwork file, its task); the time does not depend on the tasks taken before.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or has another plan or backbone; a task is there twice; or two tasks own the
                same weights. Nothing has changed then.
        """
        state = self.network.state
        state.take(_parts(tasks, self.base, self.network), state.next_ids(task for _, task in tasks))

    def result(self) -> StateFile:
        """Return the content of the network file; weights planned for tasks that are missing are free in it."""
        notes = notes_for_tasks(self.network) if self.network.kind == "plan" else self.network.notes
        return replace(self.network, state=self.network.state.without_planned(), kind="network", notes=notes)

    def write(self, out: Path) -> None:
        """Write the network file."""
        self.result().write(out)


def merge_files(base: Path, files: Sequence[Path], out: Path, allow_missing: bool = False) -> list[str]:
    """Merge tasks that were trained apart into one network file.

    Args:
        base: a plan with the files' tasks; or a network file, to which the tasks are added.
        files: subnetwork files, in any order.
        out: the network file; written only after every check.
        allow_missing: leave out tasks of the plan that no file holds; the weights planned for them are free.
    Returns:
        The network's tasks, in order.
    Raises:
        FileNotFoundError, ValueError: as `merged`.
    """
    network = merged(base, files, allow_missing)
    network.write(out)
    return list(network.state.tasks)


def merged(base: Path, files: Sequence[Path], allow_missing: bool = False) -> StateFile:
    """Merge tasks that were trained apart into the content of a network file.

    Args:
        base, files, allow_missing: as in `merge_files`.
    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or has another plan or backbone; a task is missing or there twice; or two tasks
            own the same weights.
    """
    tasks = [(path, _task_in(path)) for path in files]
    merge = Merge(base)
    if merge.network.kind == "plan":
        _check_complete(base, merge.planned, tasks, allow_missing)
    merge.take(tasks)
    return merge.result()


def release_task(path: Path, task: str, out: Path) -> None:
    """Copy a network file to `out`, which may be `path`, without a task: its weights become free and lose their values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a network file, has no such task, or other tasks read this one's weights.
    """
    file = read_state(path, "network")
    file.state.release(task)
    file.write(out)


def split_task(path: Path, task: str, out: Path) -> None:
    """Copy a frozen task from a network file to a subnetwork file, `out`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a network file, has no such task, or the task is not frozen.
    """
    file = read_state(path, "network")
    StateFile(file.state.only(task), "subnetwork", file.notes).write(out)


def _task_in(path: Path) -> str:
    names = task_names(path, "subnetwork")
    if len(names) != 1:
        raise ValueError(f"{path} is damaged: a subnetwork file has one task, and it names {len(names)}")
    return names[0]


def _check_complete(base: Path, planned: Sequence[str], tasks: Sequence[tuple[Path, str]], allow_missing: bool) -> None:
    for path, task in tasks:
        if task not in planned:
            hint = suggestion(task, planned)
            raise ValueError(f"{path}: task {task!r} is not in the plan {base}: {', '.join(planned)}{hint}")
    missing = sorted(set(planned) - {task for _, task in tasks}, key=planned.index)
    if missing and not allow_missing:
        raise ValueError(
            f"no file holds {', '.join(map(repr, missing))} of the plan {base}: name the files, or leave these tasks "
            "out with --allow-missing"
        )


def _parts(tasks: Sequence[tuple[Path, str]], base: Path, network: StateFile) -> Iterator[tuple[str, NetworkState]]:
    """Read (file, its state) of subnetwork files, one by one; raise where the plan or initial weights differ."""
    for path, task in tasks:
        file = read_state(path, "subnetwork")
        if network.kind == "plan" and file.notes.get("plan") != network.notes["plan"]:
            raise ValueError(f"{path}: task {task!r} was not trained on the plan {base}")
        same = file.notes.get("start") == network.notes.get("start")
        if not same and not explained_by_rounding(network.state, file.state):
            raise ValueError(
                f"{path}: task {task!r} was trained from a different backbone or initialization than {base}"
            )
        yield str(path), file.state
