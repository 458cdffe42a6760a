"""Build a task's own metric or loss from a config block: `_target_` and arguments."""

from __future__ import annotations

import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from msh.draws import drawing_apart, seed_draws
from msh.errors import described, invalid, one_of
from msh.subnetworks.tensors import same_bits
from msh.tasks.options import Kind
from msh.tasks.task import METRICS, Loss, MetricSpec, Task

DIRECTIONS = ("max", "min")
SIZES: dict[Kind, dict[str, Any]] = {
    "classification": {"num_classes": None, "task": "multiclass"},
    "multilabel": {"num_labels": None, "task": "multilabel"},
    "regression": {},
    "lm": {},
    "token_classification": {"num_classes": None, "task": "multiclass"},
}
"""Kind of task to the arguments that metrics have for it; None stands for the number of outputs."""
LOSS = "loss"
"""Name of a task's loss in logs, NAME/val/loss, where its metric is NAME/val/METRIC."""
TRIED = 4
"""Examples that a metric or loss is tried with."""


def with_own(task: Task, metric: Any, loss: Any) -> Task:
    """Give a task its own metric and loss, and try both on a few examples.

    Args:
        task: with a metric of msh.
        metric: a block with the `_target_` of a torchmetrics class and its arguments, and perhaps `name`; with
            `direction` where the class does not say which scores are better. The number of classes or labels
            is filled in. Anything else: the task's metric stays.
        loss: a block with the `_target_` of a module's class or a function of (outputs, targets), and its arguments;
            lists of numbers become tensors. None: the usual loss.
    Raises:
        ValueError: naming the setting, and what is wrong with it.
    """
    if isinstance(metric, Mapping):
        name, spec = _read_metric(f"tasks.{task.name}.metric", metric, task)
        task = replace(task, metric=name, own_metric=spec)
    if loss is not None:
        task = replace(task, own_loss=_read_loss(f"tasks.{task.name}.loss", loss))
        _try_loss(f"tasks.{task.name}.loss", task)
    return task


def _read_metric(key: str, block: Mapping[str, Any], task: Task) -> tuple[str, MetricSpec]:
    args = {name: value for name, value in block.items() if name not in ("_target_", "name", "direction")}
    kind = _located(key, block)
    if not inspect.isclass(kind) or not issubclass(kind, Metric):
        raise invalid(f"{key}._target_", "a torchmetrics.Metric class", block.get("_target_"))
    taken = inspect.signature(kind).parameters
    sizes = {name: task.outputs if value is None else value for name, value in SIZES[task.kind].items()}
    args = {name: value for name, value in sizes.items() if name in taken} | args
    try:
        built = kind(**args)
        higher = getattr(built, "higher_is_better", None)
        targets = task.splits["train"].targets[:TRIED]
        task.update(built, _blank(task, targets), targets)
    except Exception as error:  # each metric raises its own types
        raise ValueError(f"{key} cannot be computed with {dict(block)}: {described(error)}") from error
    _check_score(key, built)
    if not _resets(task, built, kind(**args)):
        bound = "a metric whose reset() restores all that update() changes (add_state), as each epoch is scored alone"
        raise invalid(f"{key}._target_", bound, block.get("_target_"))
    usual = None if higher is None else "max" if higher else "min"
    direction = block.get("direction", usual)
    if direction is None:
        raise invalid(f"{key}.direction", "max or min, as the class does not say which scores are better", None)
    one_of(f"{key}.direction", direction, DIRECTIONS)
    name = str(block.get("name") or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower())
    if name in METRICS:
        raise invalid(f"{key}.name", f"another name than msh's metrics ({', '.join(METRICS)})", name)
    if name == LOSS:
        raise invalid(f"{key}.name", f"another name than {LOSS!r}, which logs have for the task's loss", name)
    return name, MetricSpec(lambda _: kind(**args), cast(Literal["max", "min"], direction), (task.kind,))


def _check_score(key: str, metric: Metric) -> None:
    """Raise unless a metric that has seen a few examples computes one number."""
    metric.distributed_available_fn = lambda: False  # not every process has to be here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few examples
        try:
            score = metric.compute()
        except Exception:  # few examples, with outputs of 0, may not suffice
            return
    if not isinstance(score, Real) and (not isinstance(score, Tensor) or score.numel() != 1):
        bound = "a metric that computes one number (classes have average: micro or macro for it)"
        raise invalid(key, bound, _form(score))


def _resets(task: Task, used: Metric, fresh: Metric) -> bool:
    """Tell whether a metric that was used and reset computes what a fresh one does."""
    targets, scores = task.splits["train"].targets[:TRIED], []
    fresh.distributed_available_fn = used.distributed_available_fn
    with warnings.catch_warnings(), drawing_apart():
        warnings.simplefilter("ignore")  # of few examples
        try:
            used.reset()
            for metric in (used, fresh):
                seed_draws(0, cpu_only=True)  # some draw
                task.update(metric, _blank(task, targets), targets)
                scores.append(torch.as_tensor(metric.compute()))
        except Exception:  # few examples, with outputs of 0, may not suffice
            return True
    return same_bits(*scores)


def _read_loss(key: str, block: Any) -> Loss:
    if not isinstance(block, Mapping):
        raise invalid(key, "a block with _target_ and arguments, such as {_target_: torch.nn.CrossEntropyLoss}", block)
    args = {name: _tensor(value) for name, value in block.items() if name != "_target_"}
    target = _located(key, block)
    if not inspect.isclass(target):
        return cast(Loss, partial(target, **args))
    if not issubclass(target, nn.Module):
        raise invalid(f"{key}._target_", "a torch.nn.Module class or a function", block["_target_"])
    try:
        module = target(**args)
    except Exception as error:  # a constructor may raise any type
        raise ValueError(f"{key} cannot be built from {dict(block)}: {described(error)}") from error
    if any(True for _ in module.parameters()):
        raise invalid(f"{key}._target_", "a module without parameters, which none would train", block["_target_"])
    return module


def _try_loss(key: str, task: Task) -> None:
    targets = task.splits["train"].targets[:TRIED]
    outputs = _blank(task, targets).requires_grad_()
    try:
        loss = task.with_fresh_loss().loss(outputs, targets)
    except Exception as error:  # a loss may raise any type
        raise ValueError(
            f"{key} cannot be computed from outputs {list(outputs.shape)} and targets {list(targets.shape)} of type "
            f"{targets.dtype}: {described(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
        raise invalid(key, "a loss that returns a scalar tensor, the batch's mean, with a gradient", _form(loss))
    if isinstance(task.own_loss, nn.Module) and not _restores(task, outputs, targets):
        bound = "a module that keeps what changes in buffers (register_buffer), which checkpoints hold"
        raise invalid(f"{key}._target_", bound, f"{type(task.own_loss).__module__}.{type(task.own_loss).__qualname__}")


def _restores(task: Task, outputs: Tensor, targets: Tensor) -> bool:
    """Tell whether a fresh copy of an own loss with the state dict of one in use returns the same."""
    used, restored = task.with_fresh_loss(), task.with_fresh_loss()
    others = torch.linspace(0.1, 0.9, outputs.numel()).view_as(outputs).requires_grad_()
    with drawing_apart():  # losses may draw
        try:
            used.loss(others, targets)
        except Exception:  # outputs of 0 alone may be allowed
            return True
        try:
            cast(nn.Module, restored.own_loss).load_state_dict(cast(nn.Module, used.own_loss).state_dict())
        except RuntimeError:  # it has registered buffers in use
            return False
        scores = []
        for each in (used, restored):
            seed_draws(0, cpu_only=True)
            scores.append(each.loss(outputs, targets).detach())
    return same_bits(*scores)


def _form(value: Any) -> str:
    """Describe what a metric or loss returns: "a tensor of shape (10,)"."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _blank(task: Task, targets: Tensor) -> Tensor:
    """Return outputs for targets: zeros (examples, outputs), or (examples, tokens, outputs)."""
    return torch.zeros(*targets.shape[: 1 + task.per_token], task.outputs)


def _located(key: str, block: Mapping[str, Any]) -> Callable[..., Any]:
    target = block.get("_target_")
    try:
        located = pkgutil.resolve_name(str(target))
    except Exception as error:  # importing a module may raise any type
        raise invalid(
            f"{key}._target_", f"a class or function that can be imported ({described(error)})", target
        ) from error
    if not callable(located):
        raise invalid(f"{key}._target_", "a class or function", target)
    return cast(Callable[..., Any], located)


def _tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) and value and isinstance(value[0], int | float) else value
