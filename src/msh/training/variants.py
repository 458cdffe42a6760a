"""Many tasks of one block of the config: one for each argument of a transform, or several on the same data."""

from __future__ import annotations

import copy
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from msh.errors import one_of
from msh.tasks.transforms import TRANSFORMS
from msh.training.plan import check_number


def expand_variants(config: DictConfig) -> DictConfig:
    """Replace each task that has `variants` by these: <task>_0, <task>_1, ..., each with one more transform.

    Args:
        config: of a run; it stays as it is.
    Returns:
        A copy in which no task has variants.
    Raises:
        ValueError: variants are not a transform with a list of arguments, a task's name is taken, or there are more
            tasks than owner ids.
    """
    expanded: dict[str, Any] = {}
    tasks = cast(dict[str, dict[str, Any]], OmegaConf.to_container(config.tasks, resolve=False))
    for name, task in tasks.items():
        variants = task.pop("variants", None)
        made = {name: task} if variants is None else _variants(str(name), task, variants)
        if taken := set(made) & set(expanded):
            raise ValueError(f"tasks.{name}.variants: there is already a task {min(taken)!r}")
        expanded |= made
        check_number(len(expanded))
    config = copy.deepcopy(config)
    config.tasks = {}
    with open_dict(config):
        config.merge_with({"tasks": expanded})
    return config


def _variants(name: str, task: dict[str, Any], variants: Any) -> dict[str, dict[str, Any]]:
    if isinstance(variants, int) and not isinstance(variants, bool) and variants > 0:
        check_number(variants)
        return {f"{name}_{i}": copy.deepcopy(task) for i in range(variants)}
    if not isinstance(variants, dict) or len(variants) != 1:
        raise ValueError(
            f"tasks.{name}.variants = {variants!r} is not allowed: one transform with its arguments is, "
            "such as {rotate: [0, 30, 60]}, or how many tasks on the same data, at least 1"
        )
    ((transform, arguments),) = variants.items()
    one_of(f"the transform of tasks.{name}.variants", transform, TRANSFORMS)
    if isinstance(arguments, int) and not isinstance(arguments, bool):
        check_number(arguments)
        arguments = list(range(arguments))
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(
            f"tasks.{name}.variants.{transform} = {arguments!r} is not allowed: "
            "a list of arguments is, or how many, at least 1"
        )
    earlier = task.get("transforms") or []
    return {
        f"{name}_{i}": {**task, "transforms": [*earlier, {transform: argument}]} for i, argument in enumerate(arguments)
    }
