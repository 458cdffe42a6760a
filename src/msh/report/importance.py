"""Compute the importance of a sweep's settings for the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from msh.report.sweeps import JobRow

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

JOBS_PER_SETTING = 4
"""Finished jobs that are needed for each setting."""


def importances(rows: Sequence[JobRow]) -> tuple[dict[str, float], str]:
    """Compute each setting's share in the scores' variance, by functional analysis of variance.

    Args:
        rows: the sweep's jobs.
    Returns:
        (setting to its share, the largest first; the reason if there is none, else "").
    Source: Hutter, Hoos, Leyton-Brown 2014, An efficient approach for assessing hyperparameter importance.
    """
    done = [row for row in rows if row.final_score is not None]
    settings = [key for key in rows[0].settings if len({row.settings[key] for row in done}) > 1]
    wanted = JOBS_PER_SETTING * len(settings)
    if not settings:
        return {}, "No setting differs among the finished jobs."
    if len(done) < wanted:
        return {}, f"Too few jobs: {len(done)} are finished, and {len(settings)} settings need {wanted} at least."
    if len({row.final_score for row in done}) == 1:
        return {}, "All finished jobs have the same score."
    if find_spec("optuna") is None:
        return {}, "Optuna, which computes it, is not installed: pip install 'msh[search]'."
    return _analysed(done, settings), ""


def _analysed(done: Sequence[JobRow], settings: Sequence[str]) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _distribution([row.settings[key] for row in done]) for key in settings}
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
    for row in done:
        study.add_trial(
            optuna.create_trial(
                params={key: _value(row.settings[key], space[key]) for key in settings},
                distributions=space,
                value=row.final_score,
            )
        )
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}


def _distribution(values: Sequence[str]) -> BaseDistribution:
    """Guess a setting's distribution: numbers between the lowest and the highest value, or names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = numbers_of(values)
    if numbers is None:
        return CategoricalDistribution(sorted(set(values)))
    return FloatDistribution(min(numbers), max(numbers))


def _value(value: str, distribution: BaseDistribution) -> str | float:
    from optuna.distributions import CategoricalDistribution

    return value if isinstance(distribution, CategoricalDistribution) else float(value)


def numbers_of(values: Sequence[str]) -> list[float] | None:
    """Convert values to numbers; None if any is no finite number."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Find the Pareto front: points that no other one dominates.

    Args:
        points: name to (cost, score).
    Returns:
        Names, the lowest cost first; equal points are all included.
    """
    ordered = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    front: list[str] = []
    for name in ordered:
        cost, score = points[name]
        if not front or score > points[front[-1]][1] or (cost, score) == points[front[-1]]:
            front.append(name)
    return front
