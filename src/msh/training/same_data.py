"""Compare the data of tasks that a network has learned with those that a run reads for them now."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msh.errors import Problems
from msh.tasks import Task
from msh.tasks.outputs import outputs_from_data
from msh.tasks.steps import tensor_from_data

ROUNDING = {"rel_tol": 1e-4, "abs_tol": 1e-6}
"""Statistics of the same data that differ by no more: processors add up in other orders."""
SHOWN = 60
COMPARED = "preprocessing", "outputs", "splits"
"""Keys of a record of a task's data."""


def data_record(task: Task) -> dict[str, Any]:
    """Describe a task's data so that `check_same_data` finds other data: its recipe, and each split's size and targets.

    Inputs are described by the recipe alone: prepared, they differ by rounding from processor to processor.
    """
    splits = {
        name: {"examples": len(split), "targets_digest": _digest(split.targets)} for name, split in task.splits.items()
    }
    return {**task.data_recipe(), "splits": splits}


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()


def check_same_data(path: Path, tasks: Mapping[str, Task], recipes: Mapping[str, Mapping[str, Any]], cure: str) -> None:
    """Check that tasks' inputs are prepared as when a network learned them, and that they have the same classes.

    Otherwise the network would compute with numbers that mean something else to it.

    Args:
        path: file of the network.
        tasks: of the run, with its data.
        recipes: task to its recipe in the network, or its `data_record`; those without preprocessing, of earlier
            releases, are skipped.
        cure: what to do, for the message.
    Raises:
        ValueError: naming the tasks and what is different.
    """
    with Problems() as problems:
        for name in (name for name in recipes if name in tasks):
            if not {"preprocessing", "outputs"} <= recipes[name].keys():
                continue
            before = {key: recipes[name][key] for key in COMPARED if key in recipes[name]}
            before["outputs"] = outputs_from_data(before["outputs"]).to_data()
            now = data_record(tasks[name]) if "splits" in before else tasks[name].data_recipe()
            found = _difference("", before, now)
            if found is not None:
                problems.add(f"{path}: task {name!r} was trained on other data than this run reads: {found}; {cure}")


def _difference(at: str, before: Any, now: Any) -> str | None:
    """Describe the first difference between JSON values; None if there is none.

    Numbers are compared to within rounding. Settings that only the new ones have were added by a later release.
    """
    if _is_tensor(before) and _is_tensor(now):
        before, now = (tensor_from_data(value).double() for value in (before, now))
        if before.shape != now.shape:
            return f"{at} had the shape {[*before.shape]}, and has {[*now.shape]}"
        apart = ~torch.isclose(before, now, ROUNDING["rel_tol"], ROUNDING["abs_tol"], equal_nan=True)
        return f"{at} was {before[apart][0]:.6g}, and is {now[apart][0]:.6g}" if bool(apart.any()) else None
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{at}.{key}".lstrip("."), value, now.get(key)) for key, value in before.items()]
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        pairs = [(f"{at}[{place}]", *pair) for place, pair in enumerate(zip(before, now, strict=True))]
    elif _equal(before, now):
        return None
    else:
        return f"{at} was {_shown(before)}, and is {_shown(now)}"
    return next(filter(None, (_difference(*pair) for pair in pairs)), None)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"dtype", "shape", "data"}


def _equal(before: Any, now: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, now))
    return math.isclose(before, now, **ROUNDING) if numbers else bool(before == now)


def _shown(value: Any) -> str:
    """Shorten a value; a list of many, by its length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= SHOWN:
        return text
    return f"a list of {len(value)}" if isinstance(value, list) else text[:SHOWN] + "..."
