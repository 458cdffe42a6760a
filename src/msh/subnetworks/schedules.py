"""Schedule the number of kept weights over time, from all candidates down to the budget."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int, int, float], int]
"""(candidates at the start, budget, time in [0, 1]) to weights kept; at time 1 it is the budget."""


def _between(start: int, budget: int, rest: float) -> int:
    return budget + round((start - budget) * rest)


def one_shot(start: int, budget: int, time: float) -> int:
    """Keep everything until the end, then cut once."""
    return budget if time >= 1.0 else start


def linear(start: int, budget: int, time: float) -> int:
    """Remove the same number of weights in each unit of time."""
    return _between(start, budget, 1.0 - min(time, 1.0))


def cubic(start: int, budget: int, time: float) -> int:
    """Remove many weights at first and few at the end. Source: Zhu and Gupta 2017, eq. 1."""
    return _between(start, budget, float((1.0 - min(time, 1.0)) ** 3))


def exponential(start: int, budget: int, time: float) -> int:
    """Remove the same share in each round, as in lottery tickets. Source: Frankle and Carbin 2019, sec. 2."""
    if time >= 1.0 or start == 0 or budget == 0:
        return budget if time > 0.0 else start
    share: float = (budget / start) ** time
    return max(budget, round(start * share))


SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
}
