"""From the composed config to tasks, network and trainer."""

from __future__ import annotations

from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from msh.subnetworks import MultiSubnetwork, Reuse
from msh.tasks import Task, build_task
from msh.tasks.build import Normalize
from msh.tasks.seeds import derive_seed
from msh.training.shared import SharedNetwork


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


def add_task(network: MultiSubnetwork | SharedNetwork, task: Task, config: DictConfig) -> None:
    """Add a task with a fresh head, and a stem where its input's shape is not the backbone's."""
    torch.manual_seed(derive_seed(config.seed, task.name, "head and stem"))
    backbone: Any = network.backbone
    head, stem = task.build_head(backbone.features), task.build_stem(backbone.input_shape)
    if isinstance(network, SharedNetwork):
        network.add_task(task.name, head, stem)
    else:
        network.add_task(task.name, head, stem, cast(Reuse, config.reuse))
