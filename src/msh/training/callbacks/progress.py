"""What is seen while it works."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from msh.training.module import TaskModule

log = logging.getLogger(__name__)

IN_BAR = "in_bar"
"""Attribute of log records that tell what the progress bar shows too."""


class StageProgress(RichProgressBar):
    """Lightning's progress bar, named for stage and task; and a line per epoch in the log."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        if not sys.stderr.isatty() and not sys.stdout.isatty():
            self.disable()

    def _get_train_description(self, current_epoch: int) -> str:
        module = self.trainer.lightning_module
        assert isinstance(module, TaskModule)
        return f"{module.fit_name}  epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The scores so far, under their names; no version number."""
        assert isinstance(pl_module, TaskModule)
        shown = epoch_scores(trainer, pl_module)
        if len(pl_module.learning) == 1:  # its name is in the description
            shown = {name.split("/", 1)[1]: value for name, value in shown.items()}
        return {name: f"{value:.3g}" for name, value in shown.items() if not name.endswith("train/loss")}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's line into the log."""
        super().on_train_epoch_end(trainer, pl_module)
        assert isinstance(pl_module, TaskModule)
        scores = "  ".join(f"{name} {value:.4f}" for name, value in epoch_scores(trainer, pl_module).items())
        where = (pl_module.fit_name, trainer.current_epoch + 1, trainer.max_epochs)
        log.info("%s  epoch %d/%d  %s", *where, scores, extra={IN_BAR: self.is_enabled})


def epoch_scores(trainer: pl.Trainer, module: TaskModule) -> dict[str, float]:
    """Loss, metric and sparsity of the tasks in training, as far as they are known."""
    names = [
        f"{task}/{what}"
        for task in module.learning
        for what in ("train/loss", "val/loss", f"val/{module.tasks[task].metric}", "sparsity")
    ]
    return {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
