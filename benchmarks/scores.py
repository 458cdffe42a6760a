"""Records of docs/results.json: means over the seeds, beside published scores and targets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from benchmarks.rows import Goal, Row
from msh.files.yaml_files import read_config
from msh.runs.results import FILE_NAME, Results

BESIDE = ("dense", "joint", "finetune")
"""Baselines in table order."""
PROCESSOR = "processor.txt"
"""File in a record's folder that names the processor."""
MEAN = "mean"
"""Task name of the record with the mean over a row's tasks."""


@dataclass(frozen=True)
class Measured:
    """A run whose curriculum is learned.

    Attributes:
        results: its results.json.
        epochs: task to epochs.
        threads: CPU threads.
        processor: its name; None: this machine's.
    """

    results: Results
    epochs: dict[str, int]
    threads: int | None
    processor: str | None = None


Runs = Mapping[int, Measured]
"""Seed to run."""


def read_run(folder: Path) -> Measured | None:
    """Read a run folder; None unless every stage is learned and every ensemble evaluated.

    Raises:
        ValueError: a file in it is damaged.
    """
    if not (folder / FILE_NAME).exists():
        return None
    results = Results.load(folder)
    if len(results.matrix) < len(results.curriculum):
        return None
    config = read_config(folder / ".hydra" / "config.yaml")
    if set(config.get("ensembles") or {}) - set(results.ensemble):
        return None
    where = folder / PROCESSOR
    processor = where.read_text().strip() if where.exists() else None
    return Measured(results, _epochs_of(results, config), config.threads, processor)


def _epochs_of(results: Results, config: DictConfig) -> dict[str, int]:
    """Task to the epochs of its stage."""
    stages, epochs = config.get("curriculum") or [], {}
    for number, tasks in enumerate(results.curriculum):
        stage = stages[number] if number < len(stages) else None
        own = stage.get("max_epochs") if isinstance(stage, DictConfig) else None
        epochs |= dict.fromkeys(tasks, own or config.trainer.max_epochs)
    return epochs


def beginning_of(run: Measured, tasks: Sequence[str]) -> Measured:
    """Cut a run down to its first stages, which have these tasks.

    Later stages do not change these scores. Results over all tasks are dropped: the joint network, ensembles, and the
    number of bitwise comparisons.
    """
    full = run.results
    stages = 1 + max(full.tasks[task].stage for task in tasks)
    cut = Results(full.experiment, full.seed, full.curriculum[:stages], {}, full.run_id, capacity=full.capacity)
    cut.tasks = {task: replace(full.tasks[task], joint=None, finetune=None) for task in tasks}
    for row in full.matrix[:stages]:
        cut.add_row(_of_tasks(row, tasks))
    for row in full.finetune["matrix"][: len(tasks)]:
        cut.add_finetune_row(_of_tasks(row, tasks))
    return Measured(cut, {task: run.epochs[task] for task in tasks}, run.threads, run.processor)


def _of_tasks(row: Sequence[float | None], tasks: Sequence[str]) -> dict[str, float]:
    return {task: score for task, score in zip(tasks, row, strict=False) if score is not None}


def records_of(row: Row, runs: Runs, baseline_runs: Runs, dense_runs: Runs) -> list[dict[str, Any]]:
    """Make a record per task and ensemble in a row, and for the mean over the tasks if the row has a goal for it.

    Args:
        row: the row.
        runs: its runs, at least one.
        baseline_runs: runs with its joint and fine-tuned networks, from this row or another.
        dense_runs: runs with its dense networks, from this row or another.
    Raises:
        ValueError: the two rows' networks have different numbers of weights.
    """
    first = next(iter(runs.values()))
    beside = [*baseline_runs.values(), *dense_runs.values()]
    sizes = {run.results.capacity["prunable"] for run in [*runs.values(), *beside]}
    if len(sizes) > 1:
        raise ValueError(
            f"row {row.id}: networks of {sorted(sizes)} weights are not to be compared: see dense_of, baselines_of"
        )
    scores = {task: _scores(row, task, runs, baseline_runs, dense_runs) for task in first.results.tasks}
    records = [_of_task(row, task, runs, scores[task]) for task in scores]
    start = records[0]
    for record in records[1:] if row.within_of_first is not None else ():
        missed = f"more than {row.within_of_first:g} worse than {start['task']}"
        _judge(record, missed, _worse(record, start["mean"]) <= row.within_of_first)
    members = list(records)
    records += [_of_ensemble(row, name, runs, members) for name in first.results.ensemble]
    if row.mean is not None:
        records.append(_of_mean(row, row.mean, runs, members, scores))
    changed = sum(run.results.guarantee["violations"] for run in runs.values())
    for record in records:
        if record["forgetting"]:
            _judge(record, f"forgetting {record['forgetting']:.2g}", False)
        if changed:
            _judge(record, "a frozen task changed", False)
    return records


Scores = dict[str, list[float | None]]
"""Kind of score ("test" or a baseline) to a score per seed."""


def _scores(row: Row, task: str, runs: Runs, baseline_runs: Runs, dense_runs: Runs) -> Scores:
    def of(runs: Runs, task: str, name: str) -> list[float | None]:
        return [getattr(run.results.tasks[task], name) for run in runs.values()]

    return {
        "test": of(runs, task, "test"),
        **{name: of(baseline_runs, task, name) for name in ("finetune", "joint")},
        "dense": of(dense_runs, row.goal(task).dense_as or task, "dense"),
    }


def _of_task(row: Row, task: str, runs: Runs, scores: Scores) -> dict[str, Any]:
    results = [run.results.tasks[task] for run in runs.values()]
    extras = {
        "density": statistics.mean(cast(float, result.density) for result in results),
        "forgetting": max(run.results.forgetting_of(task) or 0.0 for run in runs.values()),
        "seconds": statistics.mean(result.train_seconds for result in results),
        "epochs": next(iter(runs.values())).epochs[task],
    }
    return _record(row, task, results[0].metric, results[0].direction, scores, row.goal(task), runs, extras)


def _of_ensemble(row: Row, name: str, runs: Runs, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ensembles = [run.results.ensemble[name] for run in runs.values()]
    scores: Scores = {"test": [ensemble["test"] for ensemble in ensembles]}
    mine = [record for record in members if record["task"] in ensembles[0]["tasks"]]
    extras = {"density": sum(record["density"] for record in mine), "forgetting": None}
    extras |= {key: max(record[key] for record in mine) for key in ("seconds", "epochs")}
    goal = row.goal(name)
    without_dense = replace(row, worse_than_dense=None)
    record = _record(without_dense, name, ensembles[0]["metric"], ensembles[0]["direction"], scores, goal, runs, extras)
    best = min(mine, key=lambda member: _worse(member, 0.0))
    if goal.above_members:
        _judge(record, f"not above its best member, {best['task']}", _worse(record, best["mean"]) < 0)
    return record


def _of_mean(
    row: Row, goal: Goal, runs: Runs, records: Sequence[dict[str, Any]], of_tasks: Mapping[str, Scores]
) -> dict[str, Any]:
    """Average over the tasks within each seed, then over the seeds."""
    scores: Scores = {
        name: [_mean(of_seed) for of_seed in zip(*(of_task[name] for of_task in of_tasks.values()), strict=True)]
        for name in ("test", *BESIDE)
    }
    extras = {key: statistics.mean(record[key] for record in records) for key in ("density", "seconds")}
    extras |= {"forgetting": max(record["forgetting"] for record in records), "epochs": records[0]["epochs"]}
    return _record(row, MEAN, records[0]["metric"], records[0]["direction"], scores, goal, runs, extras)


def _record(
    row: Row,
    task: str,
    metric: str,
    direction: str,
    scores: Scores,
    goal: Goal,
    runs: Runs,
    extras: Mapping[str, Any],
) -> dict[str, Any]:
    present = {name: [score for score in per_seed if score is not None] for name, per_seed in scores.items()}
    tests = present["test"]
    record: dict[str, Any] = {
        "row": row.id,
        "task": task,
        "metric": metric,
        "direction": direction,
        "mean": statistics.mean(tests),
        "std": statistics.stdev(tests) if len(tests) > 1 else None,
        "seeds": len(tests),
        "authors": goal.authors,
        **{name: statistics.mean(present[name]) if present.get(name) else None for name in BESIDE},
        **{key: extras[key] for key in ("density", "forgetting", "seconds")},
        **{f"{name}_seeds": len(present.get(name, [])) for name in BESIDE},
        "target": goal.target,
        "worse_than_dense": row.worse_than_dense if goal.worse_than_dense is None else goal.worse_than_dense,
        "met": None,
        "missed": [],
        "epochs": extras["epochs"],
        "experiment": row.experiment,
        "threads": next(iter(runs.values())).threads,
    }
    bound, dense = record["worse_than_dense"], record["dense"]
    if goal.target is not None:
        _judge(record, "target", _worse(record, goal.target) <= 0)
    if bound is not None and dense is None:
        _judge(record, "dense not measured", False)
    elif bound is not None:
        _judge(record, f"more than {bound:g} worse than dense", _worse(record, dense) <= bound)
    return record


def _judge(record: dict[str, Any], bound: str, holds: bool) -> None:
    """Note whether a record meets a bound; it lists those that it misses."""
    record["missed"] += [] if holds else [bound]
    record["met"] = not record["missed"]


def _worse(record: Mapping[str, Any], than: float) -> float:
    """Return how much worse a record's mean is than a score, rounded so that equal decimals are equal."""
    difference = record["mean"] - than if record["direction"] == "min" else than - record["mean"]
    return round(difference, 9)


def _mean(scores: Sequence[float | None]) -> float | None:
    return None if None in scores else statistics.mean(cast(Sequence[float], scores))
