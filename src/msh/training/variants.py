"""Expand a block of the config into many tasks: one per argument of a transform, or several on the same data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msh.errors import invalid, one_of
from msh.tasks.transforms import TRANSFORMS

if TYPE_CHECKING:
    from msh.training.config import TaskConfig

MAX_TASKS = 2**15 - 2
"""Most tasks in a run: owner ids have 16 bits, and 0 means free."""


def check_number(tasks: int) -> None:
    """Check that there are owner ids for all tasks.

    Raises:
        ValueError: naming both numbers.
    """
    if tasks > MAX_TASKS:
        raise invalid("the number of tasks", f"<= {MAX_TASKS}, one owner id each", tasks)


def expand_variants(tasks: dict[str, TaskConfig]) -> dict[str, dict[str, TaskConfig]]:
    """Replace each task with `variants` by <task>_0, <task>_1, ..., each with one additional transform.

    Args:
        tasks: by name; not changed.
    Returns:
        Name in `tasks` to its tasks by name, without variants.
    Raises:
        ValueError: variants are not a transform with a list of arguments, a task's name is taken, or there are more
            tasks than owner ids.
    """
    blocks: dict[str, dict[str, TaskConfig]] = {}
    names: set[str] = set()
    for name, task in tasks.items():
        blocks[name] = {name: task} if task.variants is None else _variants(name, task)
        if taken := names.intersection(blocks[name]):
            raise ValueError(f"tasks.{name}.variants: there is already a task {min(taken)!r}")
        names.update(blocks[name])
        check_number(len(names))
    return blocks


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
