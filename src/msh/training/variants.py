"""Expand a block of the config into many tasks: one per argument of a transform, or several on the same data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msh.errors import invalid, one_of
from msh.tasks.transforms import TRANSFORMS

if TYPE_CHECKING:
    from msh.training.config import TaskConfig

MAX_TASKS = 2**15 - 2
"""Most tasks of a run: owner ids of 16 bits tell so many apart; 0 means free."""


def check_number(tasks: int) -> None:
    """Raise where a run would have more tasks than owner ids.

    Raises:
        ValueError: naming both numbers.
    """
    if tasks > MAX_TASKS:
        raise ValueError(f"tasks names {tasks} tasks: a network has owner ids for {MAX_TASKS} at most")


def expand_variants(tasks: dict[str, TaskConfig]) -> dict[str, TaskConfig]:
    """Replace each task that has `variants` by these: <task>_0, <task>_1, ..., each with one more transform.

    Args:
        tasks: by name; they stay as they are.
    Returns:
        Tasks by name, none of which has variants.
    Raises:
        ValueError: variants are not a transform with a list of arguments, a task's name is taken, or there are more
            tasks than owner ids.
    """
    expanded: dict[str, TaskConfig] = {}
    for name, task in tasks.items():
        made = {name: task} if task.variants is None else _variants(name, task)
        if taken := set(made) & set(expanded):
            raise ValueError(f"tasks.{name}.variants: there is already a task {min(taken)!r}")
        expanded |= made
        check_number(len(expanded))
    return expanded


def _variants(name: str, task: TaskConfig) -> dict[str, TaskConfig]:
    key, variants = f"tasks.{name}.variants", task.variants
    if _is_number(variants) and variants > 0:
        check_number(variants)
        return {f"{name}_{i}": replace(task, variants=None) for i in range(variants)}
    if not isinstance(variants, dict) or len(variants) != 1:
        bound = "{transform: [argument, ...]} or a number of tasks on the same data, >= 1"
        raise invalid(key, bound, variants)
    ((transform, arguments),) = variants.items()
    one_of(f"the transform of {key}", transform, TRANSFORMS)
    if _is_number(arguments):
        check_number(arguments)
        arguments = list(range(arguments))
    if not isinstance(arguments, list) or not arguments:
        raise invalid(f"{key}.{transform}", "a list of arguments or their number, >= 1", arguments)
    return {
        f"{name}_{i}": replace(task, variants=None, transforms=[*task.transforms, {transform: argument}])
        for i, argument in enumerate(arguments)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
