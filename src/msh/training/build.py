"""From the composed config to tasks, network and trainer."""

from __future__ import annotations

from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from msh.subnetworks import MultiSubnetwork, Reuse, UnitGraph, trace_units
from msh.tasks import Task, build_task
from msh.tasks.build import Normalize
from msh.tasks.seeds import derive_seed


def build_tasks(config: DictConfig) -> dict[str, Task]:
    """Load the data of every task.

    Raises:
        ValueError: a task's data or settings are not allowed.
        FileNotFoundError: data is missing.
    """
    tasks = {}
    for name, task in config.tasks.items():
        tasks[str(name)] = build_task(
            str(name),
            instantiate(task.source),
            batch_size=task.batch_size,
            val_fraction=task.val_fraction,
            normalize=cast(Normalize, task.normalize),
            metric=task.metric,
            loss_weight=task.loss_weight,
            repeat=task.repeat,
        )
    return tasks


def build_backbone(config: DictConfig, tasks: dict[str, Task]) -> nn.Module:
    """The backbone, with weights that the run's seed decides."""
    settings: dict[str, Any] = cast(dict[str, Any], OmegaConf.to_container(config.backbone, resolve=True))
    if settings.get("input_shape") is None:
        settings["input_shape"] = next(iter(tasks.values())).input_shape
    torch.manual_seed(derive_seed(config.seed, "backbone"))
    backbone: nn.Module = instantiate(settings, _convert_="all")
    for name in ("input_shape", "features"):
        if not hasattr(backbone, name):
            raise ValueError(f"backbone {settings['_target_']} has no attribute {name!r}: see docs/architecture.md")
    return backbone


def build_units(config: DictConfig, network: MultiSubnetwork) -> UnitGraph | None:
    """The units of a backbone whose tasks keep whole units; None where they keep single weights.

    Raises:
        ValueError: the backbone or another setting does not allow whole units.
    """
    granularity = config.pruning.granularity
    if granularity == "weight":
        return None
    if config.reuse != "none":
        raise ValueError(
            f"reuse = {config.reuse!r} is not allowed with pruning.granularity = {granularity!r}: a task of whole "
            "units reads no other's weights; only reuse=none is"
        )
    try:
        return trace_units(network, granularity)
    except ValueError as error:
        raise ValueError(f"pruning.{error}") from error


def add_task(network: MultiSubnetwork, task: Task, config: DictConfig) -> None:
    """Add a task with a fresh head, and a stem where its input's shape is not the backbone's."""
    torch.manual_seed(derive_seed(config.seed, task.name, "head and stem"))
    backbone: Any = network.backbone
    head, stem = task.build_head(backbone.features), task.build_stem(backbone.input_shape)
    network.add_task(task.name, head, stem, cast(Reuse, config.reuse))
