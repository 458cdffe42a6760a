"""Objectives: the numbers by which a sweep compares runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from msh.errors import invalid
from msh.runs.results import Results, TaskResult

OVERALL = {"mean_score": "max", "density": "min", "seconds": "min"}
"""Objectives of every run, with the better direction."""
SPLITS = ("val", "test")


def objective_names(setting: Any) -> list[str]:
    """Return the setting `objective`, None, a name or several names, as a list."""
    return [] if setting is None else [setting] if isinstance(setting, str) else [str(name) for name in setting]


def read_objectives(setting: Any, tasks: Sequence[str]) -> list[str]:
    """Read the setting `objective`.

    Args:
        setting: None, a name, or several names.
        tasks: the run's task names.
    Raises:
        ValueError: a name is unknown, or appears twice.
    """
    names = objective_names(setting)
    allowed = [*OVERALL, *(f"{task}.{split}" for task in tasks for split in SPLITS)]
    for name in names:
        if name not in allowed:
            bound = f"one of {', '.join(OVERALL)}, TASK.val, TASK.test with TASK one of {', '.join(tasks)}"
            raise invalid("objective", bound, name, allowed)
        if names.count(name) > 1:
            raise ValueError(f"objective names {name!r} more than once")
    return names


def objective_values(results: Results, names: Sequence[str]) -> list[float]:
    """Return a finished run's objectives, in order; nan for missing scores."""
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
    """Average the tasks' scores on validation data, higher is better; nan if one is missing.

    An error, where lower is better, counts as its skill score (`skill_score`).
    """
    scores = [_skill(task) for task in results.tasks.values() if task.evaluated]
    return sum(scores) / len(scores) if scores else math.nan


def _skill(task: TaskResult) -> float:
    return math.nan if task.val is None else skill_score(task.val, task.direction, task.val_constant)


def mean_density(results: Results) -> float:
    """Average the tasks' densities; nan if one is missing."""
    densities = [math.nan if task.density is None else task.density for task in results.tasks.values()]
    return sum(densities) / len(densities) if densities else math.nan


def skill_score(score: float, direction: str, constant: float | None) -> float:
    """Convert a score to one without a unit, higher is better: an error to 1 - error / (error of a constant answer).

    It is 1 at best, and 0 if nothing is learned. Source: Murphy 1988, Skill scores based on the mean square error.

    Args:
        score: in the metric's unit.
        direction: "max" or "min"; "max" returns the score unchanged.
        constant: the error of a constant answer.
    Returns:
        nan if the constant answer's error is unknown, infinite or 0.
    """
    if direction == "max":
        return score
    return 1.0 - score / constant if constant and math.isfinite(constant) else math.nan
