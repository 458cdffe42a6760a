"""Stop each task early, independent of the others."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl

from msh.errors import at_least, invalid, one_of
from msh.training.module import TaskModule

log = logging.getLogger(__name__)


class EarlyStoppingPerTask(pl.Callback):
    """Stop training each task once it no longer improves on its validation split; the others continue.

    A task that has stopped gets no more updates; the fit ends when all have stopped. Tasks that train the same weights
    stop together: see `TaskModule.val_score`. Fits that prune do not stop early.

    Args:
        patience: successive epochs without improvement after which a task stops, >= 1.
        min_delta: smallest improvement over the best so far that counts, >= 0, in the unit of `monitor`.
        monitor: "loss" or "metric", on the validation split; it also decides which epoch is the best.
    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0, monitor: str = "loss") -> None:
        super().__init__()
        one_of("early_stopping.monitor", monitor, ("loss", "metric"))
        at_least("early_stopping.patience", 1, patience)
        if not min_delta >= 0.0:
            raise invalid("early_stopping.min_delta", ">= 0", min_delta)
        self.patience, self.min_delta, self.monitor = patience, min_delta, monitor
        self.best: dict[str, float] = {}
        self.waited: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the tasks that had stopped before a fit was resumed."""
        assert isinstance(pl_module, TaskModule)
        self._stop(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the epochs without improvement of each task."""
        assert isinstance(pl_module, TaskModule)
        if trainer.sanity_checking:
            return
        for group in pl_module.groups():
            name, score = "+".join(group), pl_module.val_score(trainer.callback_metrics, group, self.monitor)
            if score is None or pl_module.context.stopped.issuperset(group):
                continue
            if score > self.best.get(name, -math.inf) + self.min_delta:
                self.best[name], self.waited[name] = score, 0
            else:
                self.waited[name] = self.waited.get(name, 0) + 1
                if self.waited[name] == self.patience:
                    log.info("%s stops after epoch %d", name, trainer.current_epoch + 1)
        self._stop(pl_module)

    def _stop(self, module: TaskModule) -> None:
        stopped = [group for group in module.groups() if self.waited.get("+".join(group), 0) >= self.patience]
        module.stop(task for group in stopped for task in group)

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores so far, and the epochs without improvement."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.best, self.waited = dict(state_dict["best"]), dict(state_dict["waited"])
