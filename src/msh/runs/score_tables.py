"""Tables about a run: its tasks and ensembles, the accuracy matrix, and the capacity of its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

from rich.filesize import decimal

from msh.runs.results import Matrix, Results, TaskResult
from msh.runs.tables import Column, Table
from msh.runs.words import ARROWS, SCORE, duration, shape_of
from msh.subnetworks import Capacity, NetworkState

BASELINES = ("dense", "finetune", "joint")


@dataclass(frozen=True)
class TaskRow:
    """A task or an ensemble with its scores.

    Attributes:
        name: of the task; of an ensemble, with the number of its members.
        result: its scores; of an ensemble, only those on the test split and on validation data.
        forgetting: see `Results.forgetting_of`.
        finetune_forgetting: the same of one dense network that was fine-tuned task after task.
        file_size: bytes of the subnetwork file.
    """

    name: str
    result: TaskResult
    forgetting: float | None = None
    finetune_forgetting: float | None = None
    file_size: int | None = None


def task_rows(results: Results, file_sizes: Mapping[str, int] | None = None) -> list[TaskRow]:
    """Make a row for each task.

    Args:
        results: of the run.
        file_sizes: task to the bytes of its subnetwork file.
    """
    tuned, sizes = results.finetune["matrix"], file_sizes or {}
    return [
        TaskRow(
            name,
            result,
            results.forgetting_of(name),
            results.forgetting_of(name, tuned) if tuned else None,
            sizes.get(name),
        )
        for name, result in results.tasks.items()
    ]


def ensemble_rows(results: Results) -> list[TaskRow]:
    """Make a row for each ensemble."""
    return [
        TaskRow(
            f"{name} of {len(found['tasks'])}",
            TaskResult(found["metric"], found["direction"], -1, test=found["test"], val=found.get("val")),
        )
        for name, found in results.ensemble.items()
    ]


def _result(name: str, form: str, **how: Any) -> Column[TaskRow]:
    """Make a column of a field of `TaskResult`."""
    return Column(name, attrgetter(f"result.{name}"), form, **how)


TASK: Column[TaskRow] = Column("task", attrgetter("name"), words=True)
COLUMNS: dict[str, Column[TaskRow]] = {
    column.name: column
    for column in (
        TASK,
        Column("metric", lambda row: f"{row.result.metric} {ARROWS[row.result.direction]}", words=True),
        _result("test", SCORE, mark=lambda row: "strong"),
        _result("test_when_learned", SCORE, header="when learned"),
        _result("val", SCORE, header="validation"),
        *(_result(name, SCORE, optional=True) for name in BASELINES),
        _result("density", ".3f"),
        _result("weights", ","),
        Column("weights_reused", lambda row: row.result.weights_reused or None, ",", "read", optional=True),
        _result("weights_private", ",", header="private"),
        Column("file_size", attrgetter("file_size"), decimal, "file"),
        Column("train_seconds", lambda row: row.result.train_seconds or None, duration, "trained"),
        Column("forgetting", attrgetter("forgetting"), "g"),
        Column(
            "finetune_forgetting", attrgetter("finetune_forgetting"), SCORE, "forgetting when fine-tuned", optional=True
        ),
    )
}


def tasks_table(title: str, rows: Sequence[TaskRow], names: Sequence[str], **how: Any) -> Table[TaskRow]:
    """Make a table of tasks and ensembles.

    Args:
        title: of the table.
        rows: see `task_rows`, `ensemble_rows`.
        names: of the columns, in COLUMNS.
        how: see `Table`.
    """
    return Table(title, [COLUMNS[name] for name in names], rows, TASK.cell, **how)


def tracked_table(results: Results) -> Table[TaskRow]:
    """Make the table of tasks for trackers: metric and direction apart, numbers only beside them."""
    names = ("test", "test_when_learned", "val", "density", "weights", *BASELINES, "forgetting")
    plain = [_result(name, "") for name in ("metric", "direction", "stage")]
    return Table("tasks", [TASK, *plain, *(COLUMNS[name] for name in names)], task_rows(results))


def matrix_table(
    title: str, stages: Sequence[str], tasks: Sequence[str], matrix: Matrix, summary: str = ""
) -> Table[Any]:
    """Make the accuracy matrix: a row after each stage.

    Args:
        title: of the table.
        stages: names of the rows.
        tasks: names of the columns.
        matrix: (stages so far, tasks), None for tasks not learned yet.
        summary: see `Table`.
    """
    rows = [(stage, *scores) for stage, scores in zip(stages, matrix, strict=False)]
    columns = [Column[Any]("after", itemgetter(0), words=True)]
    columns += [Column(task, itemgetter(place), SCORE) for place, task in enumerate(tasks, start=1)]
    return Table(title, columns, rows, summary=summary)


def capacity_table(layers: Sequence[Capacity], most_tasks: int, summary: str) -> Table[Capacity]:
    """Make a table with a row for each layer: its weights, those that each task owns, those that are free.

    Args:
        layers: at least one, all with the same tasks.
        most_tasks: of more tasks than this, there is one column for all that they own.
        summary: see `Table`.
    """
    tasks = list(layers[0].owned)

    def owned(task: str) -> Column[Capacity]:
        return Column(task, lambda layer: layer.owned[task], ",")

    columns: list[Column[Capacity]] = [
        Column("layer", lambda layer: layer.name, words=True),
        Column("shape", lambda layer: layer.shape if len(layer.shape) > 1 else None, shape_of, words=True),
        Column("weights", lambda layer: layer.size, ","),
        *(map(owned, tasks) if len(tasks) <= most_tasks else [Column("owned", lambda layer: layer.taken, ",")]),
        Column("free", lambda layer: layer.free, ","),
    ]
    return Table("Capacity", columns, layers, summary=summary)


def owners_table(state: NetworkState) -> Table[Any]:
    """Make a table with a row for each owner of each layer; owners without any of its weights are left out."""
    rows = [
        (layer, owner, weights)
        for layer in [state.total(), *state.capacity()]
        for owner, weights in [*layer.owned.items(), ("free", layer.free)]
        if weights
    ]
    columns: list[Column[Any]] = [
        Column("layer", lambda row: row[0].name, words=True),
        Column("owner", lambda row: row[1], words=True),
        Column("weights", lambda row: row[2], ","),
        Column("share", lambda row: row[2] / row[0].size, ".1%"),
    ]
    return Table("capacity", columns, rows)
