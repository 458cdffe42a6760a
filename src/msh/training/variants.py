"""Expand a block of the config into many tasks: one per argument of a transform, one per folder, or several on the
same data."""

from __future__ import annotations

import re
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msh.errors import invalid, one_of

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
        bound = "{transform: [argument, ...]}, {path: pattern} or a number of tasks on the same data, >= 1"
        raise invalid(key, bound, variants)
    ((transform, arguments),) = variants.items()
    if transform == "path":
        return _per_match(name, task, f"{key}.path", arguments)
    from msh.tasks.transforms import TRANSFORMS

    one_of(f"the transform of {key}", transform, [*TRANSFORMS, "path"])
    if _is_number(arguments):
        check_number(arguments)
        arguments = list(range(arguments))
    if not isinstance(arguments, list) or not arguments:
        raise invalid(f"{key}.{transform}", "a list of arguments or their number, >= 1", arguments)
    return {
        f"{name}_{i}": replace(task, variants=None, transforms=[*task.transforms, {transform: argument}])
        for i, argument in enumerate(arguments)
    }


def _per_match(name: str, task: TaskConfig, key: str, pattern: Any) -> dict[str, TaskConfig]:
    """Make a task from each file or folder that a pattern matches; its name has what stands for the *."""
    if not isinstance(pattern, str) or pattern.count("*") != 1:
        raise invalid(key, "a path with one *", pattern)
    from msh.tasks.image_files import is_litter

    start, end = str(Path(pattern).expanduser()).split("*")
    parts = {match: match[len(start) : len(match) - len(end)] for match in sorted(glob(f"{start}*{end}"))}
    parts = {match: part for match, part in parts.items() if part and not is_litter(part)}
    if not parts:
        raise invalid(key, "a pattern that matches files or folders", pattern)
    names = [f"{name}_{re.sub(r'[^0-9A-Za-z]+', '_', Path(part).stem).strip('_')}" for part in parts.values()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{key}: several matches of {pattern!r} would be the task {repeated[0]!r}: rename them")
    tasks = {}
    for task_name, (match, part) in zip(names, parts.items(), strict=True):
        source = {k: value.replace("*", part) if isinstance(value, str) else value for k, value in task.source.items()}
        tasks[task_name] = replace(task, variants=None, source={**source, "path": match})
    return tasks


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
