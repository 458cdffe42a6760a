"""Make tables about a run: tasks and ensembles, accuracy matrix, capacity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from msh.runs.results import Matrix, Results, TaskResult
from msh.runs.tables import Column, Table
from msh.runs.words import ARROWS, duration, number, shape_of

if TYPE_CHECKING:
    from msh.subnetworks import Capacity, NetworkState

BASELINES = ("dense", "finetune", "joint")
EMPTY: Mapping[str, int] = MappingProxyType({})


def tasks_table(
    results: Results, names: Sequence[str], ensembles: bool = False, file_sizes: Mapping[str, int] = EMPTY, **how: Any
) -> Table[str]:
    """Make a table with a row per task, and one per ensemble.

    Args:
        results: the run's.
        names: columns, see `_columns`.
        ensembles: add their rows, which have test and validation scores only.
        file_sizes: task to its subnetwork file's bytes.
        how: see `Table`.
    """
    rows = dict(results.tasks)
    for name, row in results.ensemble.items() if ensembles else ():
        scores = TaskResult(row["metric"], row["direction"], -1, row["test"], val=row.get("val"))
        rows[f"{name} of {len(row['tasks'])}"] = scores
    columns = {column.name: column for column in _columns(results, rows, file_sizes)}
    return Table("Tasks", [columns[name] for name in names], list(rows), str, **how)


def _columns(results: Results, rows: Mapping[str, TaskResult], file_sizes: Mapping[str, int]) -> list[Column[str]]:
    def score(name: str, form: str | Callable[[Any], str] = number, **how: Any) -> Column[str]:
        return Column(name, lambda task: getattr(rows[task], name), form, **how)

    def forgetting(task: str, matrix: Matrix) -> float | None:
        return results.forgetting_of(task, matrix) if matrix and task in results.tasks else None

    return [
        Column("task", str, words=True),
        Column("metric", lambda task: f"{rows[task].metric} {ARROWS[rows[task].direction]}", words=True),
        score("test", mark=lambda task: "strong"),
        score("test_when_learned", header="when learned"),
        score("val", header="validation"),
        *(score(name, optional=True) for name in BASELINES),
        score("density", ".3f"),
        score("weights", ","),
        Column("weights_reused", lambda task: rows[task].weights_reused or None, ",", "read", optional=True),
        score("weights_private", ",", header="private"),
        score("flops", ".3f", header="FLOPs", optional=True),
        Column("file_size", file_sizes.get, decimal, "file"),
        Column("train_seconds", lambda task: rows[task].train_seconds or None, duration, "trained"),
        Column("forgetting", lambda task: forgetting(task, results.matrix), "g"),
        Column(
            "finetune_forgetting",
            lambda task: forgetting(task, results.finetune["matrix"]),
            number,
            "forgetting when fine-tuned",
            optional=True,
        ),
    ]


def tracked_table(results: Results) -> Table[str]:
    """Make the tasks' table for trackers, with metric and direction apart."""

    def fact(name: str) -> Column[str]:
        return Column(name, lambda task: getattr(results.tasks[task], name))

    names = ("task", "test", "test_when_learned", "val", "density", "weights", *BASELINES, "forgetting")
    task, *scores = tasks_table(results, names).columns
    return Table("Tasks", [task, *map(fact, ("metric", "direction", "stage")), *scores], list(results.tasks))


def matrix_table(
    title: str, stages: Sequence[str], tasks: Sequence[str], matrix: Matrix, summary: str = ""
) -> Table[Any]:
    """Make the accuracy matrix: a row after each stage.

    Args:
        title: above the table.
        stages: row names.
        tasks: column names.
        matrix: (stages so far, tasks), None for tasks not learned yet.
        summary: see `Table`.
    """
    rows = [(stage, *scores) for stage, scores in zip(stages, matrix, strict=False)]
    columns = [Column[Any]("after", itemgetter(0), words=True)]
    columns += [Column(task, itemgetter(place), number) for place, task in enumerate(tasks, start=1)]
    return Table(title, columns, rows, summary=summary)


def capacity_table(layers: Sequence[Capacity], most_tasks: int, summary: str) -> Table[Capacity]:
    """Make a table with a row per layer: all weights, each task's, and free ones.

    Args:
        layers: at least one, all with the same tasks.
        most_tasks: with more tasks than this, one column counts all owned weights.
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
    """Make a table with a row per layer and owner; owners without weights in a layer are left out."""
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
