"""What a run is judged by: the numbers that a sweep compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from msh.errors import suggestion
from msh.runs.results import Results, TaskResult
from msh.tasks.task import skill_score

OVERALL = {"mean_score": "max", "density": "min", "seconds": "min"}
"""Objectives that every run has, and which way is better."""
SPLITS = ("val", "test")


def objective_names(given: Any) -> list[str]:
    """What a config gives as None, a name, or a list of names, as a list."""
    return [] if given is None else [given] if isinstance(given, str) else [str(name) for name in given]


def read_objectives(given: Any, tasks: Sequence[str]) -> list[str]:
    """The objectives that a config names.

    Args:
        given: None, a name, or a list of names.
        tasks: names of the run's tasks.
    Raises:
        ValueError: one is unknown, or named twice.
    """
    names = objective_names(given)
    allowed = [*OVERALL, *(f"{task}.{split}" for task in tasks for split in SPLITS)]
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"objective = {name!r} is not allowed: {', '.join(OVERALL)}, TASK.val or TASK.test is, "
                f"with TASK one of {', '.join(tasks)}{suggestion(name, allowed)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"objective names {name!r} more than once")
    return names


def objective_values(results: Results, names: Sequence[str]) -> list[float]:
    """A finished run's objectives, in order; nan where it has not measured one."""
    return [_value(results, name) for name in names]


def _value(results: Results, name: str) -> float:
    if name == "mean_score":
        return mean_score(results)
    if name == "density":
        return mean_density(results)
    if name == "seconds":
        return results.wall_seconds
    task, _, split = name.rpartition(".")
    score: float | None = getattr(results.tasks[task], split)
    return math.nan if score is None else score


def mean_score(results: Results) -> float:
    """Mean over the tasks of their scores on validation data, higher is better; nan where one is missing.

    An error, where lower is better, counts as its skill score (`msh.tasks.task.skill_score`).
    """
    scores = [_skill(task) for task in results.tasks.values()]
    return sum(scores) / len(scores) if scores else math.nan


def _skill(task: TaskResult) -> float:
    return math.nan if task.val is None else skill_score(task.val, task.direction, task.val_constant)


def mean_density(results: Results) -> float:
    """Mean over the tasks of the share of the prunable weights that each owns; nan where one is missing."""
    densities = [math.nan if task.density is None else task.density for task in results.tasks.values()]
    return sum(densities) / len(densities) if densities else math.nan
