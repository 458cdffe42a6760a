"""Check what a config calls: the arguments of every `_target_`, and in a run folder's config whose code it is."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object

from msh.backbones.named import named
from msh.errors import Problems, requirement, suggestion
from msh.recipes import targets_in
from msh.training.config import RunConfig, TaskConfig

SAFE = (
    *("msh.", "torch.nn.", "torch.optim.", "pytorch_lightning.callbacks.", "pytorch_lightning.loggers."),
    *("torchmetrics.classification.", "torchmetrics.regression."),
)
"""Prefixes of names that may be called."""
CALLED = ("tasks", "backbone", "optimizer")
"""Parts of a run's config whose targets are called when it is evaluated again."""
WEIGHTS = "; to start from a file's weights, set backbone=module and name this class as backbone.target"


def check_targets(config: Mapping[str, Any], origin: str) -> None:
    """Check that a config calls no other code than msh's, torch's and Lightning's.

    Args:
        config: a run's, as plain values.
        origin: its file, for the message.
    Raises:
        ValueError: naming the key and the target.
    """
    for part in CALLED:
        for key, target in targets_in(config.get(part), part):
            if not is_safe(target):
                problem = requirement(key, "a name that msh, torch or Lightning defines", target)
                raise ValueError(f"{origin}: {problem}; if you trust the run folder, unsafe=true allows other code")


def is_safe(target: Any) -> bool:
    """Return true if a target's name, and the module that defines it, belong to these libraries."""
    if not isinstance(target, str) or not target.startswith(SAFE):
        return False
    try:
        called = get_object(target)
    except Exception:  # it does not exist: the error comes where it is called
        return True
    return f"{getattr(called, '__module__', '')}.".startswith(SAFE)


def check_arguments(config: RunConfig) -> None:
    """Check that no block of a config has an argument that its `_target_` does not take.

    Raises:
        ValueError: naming each such key, and the arguments that there are.
    """
    with Problems() as problems:
        for found in unknown_arguments(config).values():
            for problem in found:
                problems.add(problem)


def unknown_arguments(config: RunConfig) -> dict[str, list[str]]:
    """List the arguments in a config's blocks that their `_target_` does not take.

    Targets that take any keyword, or do not exist, are left to the call.

    Returns:
        Key of a block, such as "optimizer", to a sentence for each problem; without blocks that have none.
    """
    found: dict[str, list[str]] = {}
    blocks: dict[str, Any] = {}
    try:
        chosen = named(config.backbone)
    except ValueError as error:
        found["backbone"] = getattr(error, "problems", [str(error)])
    else:  # the settings of a named one are checked now
        own = None if chosen is None else {"_target_": chosen.target, **(chosen.args or {})}
        blocks = {"backbone": config.backbone} if own is None else {"backbone.args": own}
    blocks |= {"optimizer": config.optimizer, "scheduler": config.scheduler, "prune_scheduler": config.prune_scheduler}
    blocks |= {"callbacks": config.callbacks, "logger": config.logger}
    blocks |= _blocks_of(config.tasks)
    for key, block in blocks.items():
        if problems := list(_unknown_arguments(key, block)):
            found[key] = problems
    return found


def check_task_arguments(tasks: Mapping[str, TaskConfig]) -> None:
    """Check the arguments of tasks' sources and stems, as `check_arguments` does."""
    with Problems() as problems:
        for key, block in _blocks_of(tasks).items():
            for problem in _unknown_arguments(key, block):
                problems.add(problem)


def _blocks_of(tasks: Mapping[str, TaskConfig]) -> dict[str, Any]:
    parts = {name: {"source": task.source, "stem": task.stem} for name, task in tasks.items()}
    return {f"tasks.{name}.{part}": block for name, blocks in parts.items() for part, block in blocks.items()}


def _unknown_arguments(key: str, block: Any) -> Iterator[str]:
    """Yield a sentence for each unknown argument of a block, and of the blocks in it."""
    if not isinstance(block, Mapping):
        return
    names = _arguments_of(block.get("_target_"))
    for name, value in block.items():
        if names is not None and not str(name).startswith("_") and name not in names:
            hint = WEIGHTS if f"{key}.{name}" == "backbone.weights" else suggestion(str(name), names)
            yield f"there is no setting {key}.{name}; {block['_target_']} takes {', '.join(names)}{hint}"
        yield from _unknown_arguments(f"{key}.{name}", value)


def _arguments_of(target: Any) -> list[str] | None:
    """List the keyword arguments of a class or function, given its name; None if it takes any, or cannot say."""
    if not isinstance(target, str):
        return None
    try:
        taken = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except Exception:  # it does not exist, or is not written in Python: the error comes where it is called
        return None
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in taken):
        return None
    return [p.name for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
