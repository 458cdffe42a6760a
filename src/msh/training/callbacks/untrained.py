"""Report the backbone's tensors that no gradient reaches in a stage."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from msh.runs.words import listed
from msh.subnetworks.tensors import name_of_key
from msh.training.module import SubnetworkModule

log = logging.getLogger(__name__)

BAGS = ("values", "private")
"""Parts of a subnetwork that hold the backbone's parameters."""


class ReportUntrained(pl.Callback):
    """Watch the gradients of a stage's fits, until each tensor had one; `report` names those that never had."""

    def __init__(self) -> None:
        self.waiting: dict[str, set[str]] = {}
        """Task to the names of the tensors that had no gradient yet; only tasks that have trained."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients of the tensors that had none so far."""
        assert isinstance(pl_module, SubnetworkModule)
        for task in pl_module.context.tasks:
            if task in pl_module.context.stopped:
                continue
            sub = pl_module.network.subnetwork(task)
            found = {f"{bag}.{name}": p for bag in BAGS for name, p in getattr(sub, bag).named_parameters()}
            waiting = self.waiting.setdefault(task, set(found))
            waiting -= {key for key in waiting if key not in found or _is_reached(found[key].grad)}

    def report(self) -> None:
        """Log the tensors that no task's gradients have reached."""
        names = set.intersection(*self.waiting.values()) if self.waiting else set()
        if names:
            log.warning(
                "no gradient reached %s in the first stage: the outputs do not depend on them. Tasks own weights there "
                "that never train: remove such modules, or freeze them (requires_grad_(False)) to give them no budget",
                listed(sorted(name_of_key(key.partition(".")[2]) for key in names)),
            )


def _is_reached(gradient: Tensor | None) -> bool:
    """Tell whether a gradient has a number besides 0; one that is sparse, or sharded over ranks, is taken to."""
    if gradient is None or isinstance(gradient, DTensor) or gradient.layout != torch.strided:
        return gradient is not None
    return bool(gradient.any())
