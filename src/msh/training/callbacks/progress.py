"""What is seen while it works: stage, task, sparsity, scores and the time left; as a bar, or as lines of a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich import get_console
from rich.console import Console

from msh.compat import with_epoch_description
from msh.training.callbacks.prune import sparsities
from msh.training.module import SubnetworkModule, TaskModule

log = logging.getLogger(__name__)

IN_BAR = "in_bar"
"""Attribute of log records that tell what the progress bar shows too."""
FEW = 4
"""Tasks in training that are shown one by one; of more, the mean sparsity and the sum of the losses."""


@with_epoch_description
class StageProgress(RichProgressBar):
    """Lightning's progress bar, named for stage and task; and lines in the log.

    The bar is drawn on a terminal and in a notebook. The log has a line at the end of each epoch, and where epochs are
    long and there is no bar, lines in between; they are plain text.

    Args:
        every_seconds: between two lines within an epoch.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        super().__init__(leave=False)
        self.every_seconds = every_seconds
        self.started = self.told = time.monotonic()
        self.steps = 0
        """Batches of the present fit that were done in this process."""
        self.done = 0
        """The same, with those before it was stopped."""
        self.sparsities: dict[str, float] = {}
        if not can_draw(get_console()):
            self.disable()

    def describe_epoch(self, current_epoch: int) -> str:
        """Name the fit and the epoch."""
        module = self.trainer.lightning_module
        assert isinstance(module, TaskModule)
        return f"{module.context.name}  epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Sparsity and scores so far, under their names, and the time left; no version number."""
        assert isinstance(pl_module, TaskModule)
        shown = self._numbers(trainer, pl_module)
        if len(pl_module.context.tasks) == 1:  # its name is in the description
            shown = {name.removeprefix(f"{pl_module.context.tasks[0]}/"): value for name, value in shown.items()}
        numbers = {name: f"{value:.3g}" for name, value in shown.items() if not name.endswith("train/loss")}
        left = self.seconds_left(trainer, pl_module)
        return numbers if left is None else numbers | {"left": spoken(left)}

    def seconds_left(self, trainer: pl.Trainer, module: TaskModule) -> float | None:
        """Seconds to the end of the curriculum, if batches go on taking what they took in this fit; None at its start.

        Of a fit outside the curriculum, as baselines have, to the end of the fit. Stages that stop early take less.
        """
        if not self.steps:
            return None
        assert trainer.max_epochs is not None
        steps = trainer.max_epochs * int(trainer.num_training_batches) - self.done + module.context.steps_to_come
        return steps * (time.monotonic() - self.started) / self.steps

    # ---- Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self.started = self.told = time.monotonic()
        self.steps = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the masks; what is cut within the epoch is logged by the callback that cuts."""
        if isinstance(pl_module, SubnetworkModule):
            self.sparsities = sparsities(pl_module, pl_module.context.tasks)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; without a bar, tell now and then how far the epoch is."""
        self.steps += 1
        self.done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        within = batch_idx + 1 < trainer.num_training_batches
        if self.is_disabled and within and time.monotonic() - self.told >= self.every_seconds:
            self._tell(trainer, pl_module, f", batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's line into the log."""
        super().on_train_epoch_end(trainer, pl_module)
        self._tell(trainer, pl_module, "")

    def _tell(self, trainer: pl.Trainer, module: pl.LightningModule, batch: str) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, TaskModule)
        self.told = time.monotonic()
        parts = [f"{name} {value:.4f}" for name, value in self._numbers(trainer, module).items()]
        left = self.seconds_left(trainer, module)
        parts += [f"{spoken(left)} left"] if left is not None else []
        where = f"{module.context.name}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{batch}"
        log.info("%s  %s", where, "  ".join(parts), extra={IN_BAR: self.is_enabled})

    def _numbers(self, trainer: pl.Trainer, module: TaskModule) -> dict[str, float]:
        """Sparsity, losses and metric of the tasks in training, as far as they are known."""
        known: Mapping[str, Any] = {f"{task}/sparsity": value for task, value in self.sparsities.items()}
        known = {**known, **trainer.callback_metrics}
        if len(module.context.tasks) > FEW:
            cut = [float(known[f"{task}/sparsity"]) for task in module.context.tasks if f"{task}/sparsity" in known]
            known = {**known, "sparsity": sum(cut) / len(cut)} if cut else known
            names = ["sparsity", "val/loss"]
        else:
            names = [
                f"{task}/{what}"
                for task in module.context.tasks
                for what in ("sparsity", "train/loss", "val/loss", f"val/{module.tasks[task].metric}")
            ]
        return {name: float(known[name]) for name in names if name in known}


def can_draw(console: Console) -> bool:
    """Whether a bar can be drawn: in a notebook, or on a terminal; not in a file, whatever the environment claims."""
    return console.is_jupyter or (console.file.isatty() and not console.is_dumb_terminal)


def spoken(seconds: float) -> str:
    """A time as people say it: "45 s", "12 min", "1 h 20 min"."""
    if seconds < 59.5:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
