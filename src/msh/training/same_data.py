"""Compare the data of tasks that a network has learned with those that a run reads for them now."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msh.errors import Problems
from msh.tasks import Task
from msh.tasks.outputs import outputs_from_data
from msh.tasks.preprocessing import steps_from_data, steps_to_data

ROUNDING = {"rel_tol": 1e-4, "abs_tol": 1e-6}
"""Statistics of the same data that differ by no more: processors add up in other orders."""
SHOWN = 60


def check_same_data(path: Path, tasks: Mapping[str, Task], recipes: Mapping[str, Mapping[str, Any]], cure: str) -> None:
    """Check that tasks' inputs are prepared as when a network learned them, and that they have the same classes.

    Otherwise the network would compute with numbers that mean something else to it.

    Args:
        path: file of the network.
        tasks: of the run, with its data.
        recipes: task to its recipe in the network; those without preprocessing, of earlier releases, are skipped.
        cure: what to do, for the message.
    Raises:
        ValueError: naming the tasks and what is different.
    """
    with Problems() as problems:
        for name in (name for name in recipes if name in tasks):
            if not {"preprocessing", "outputs"} <= recipes[name].keys():
                continue
            before, now = _filled(recipes[name]), tasks[name].data_recipe()
            found = _difference("", before, {key: now[key] for key in before})
            if found is not None:
                problems.add(f"{path}: task {name!r} was trained on other data than this run reads: {found}; {cure}")


def _filled(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Read preprocessing and outputs, so that settings added since have their values."""
    steps, outputs = steps_from_data(recipe["preprocessing"]), outputs_from_data(recipe["outputs"])
    return {"preprocessing": steps_to_data(steps), "outputs": outputs.to_data()}


def _difference(at: str, before: Any, now: Any) -> str | None:
    """Describe the first difference between JSON values, numbers compared to within rounding; None if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{at}.{key}".lstrip("."), before.get(key), now.get(key)) for key in before | now]
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        pairs = [(f"{at}[{place}]", *pair) for place, pair in enumerate(zip(before, now, strict=True))]
    elif _equal(before, now):
        return None
    else:
        return f"{at} was {_shown(before)}, and is {_shown(now)}"
    return next(filter(None, (_difference(*pair) for pair in pairs)), None)


def _equal(before: Any, now: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, now))
    return math.isclose(before, now, **ROUNDING) if numbers else bool(before == now)


def _shown(value: Any) -> str:
    """Shorten a value; a list of many, by its length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= SHOWN:
        return text
    return f"a list of {len(value)}" if isinstance(value, list) else text[:SHOWN] + "..."
