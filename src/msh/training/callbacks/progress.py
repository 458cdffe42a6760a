"""Show stage, task, sparsity, scores and the time left during a fit: as a line with a bar, and as lines of a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich import get_console
from rich.console import Console
from rich.live import Live
from rich.text import Text

from msh.runs import words
from msh.training.callbacks.prune import sparsities
from msh.training.module import SubnetworkModule, TaskModule

log = logging.getLogger(__name__)

IN_BAR = "in_bar"
"""Attribute of log records that tell what the progress bar shows too."""
FEW = 4
"""Up to so many tasks in training are shown one by one; of more, the mean sparsity and the sum of the losses."""
EVERY = 0.5
"""Seconds between two redraws of the line."""
BAR = (6, 24)
"""Least and most width of the bar, in characters; numbers come before a wider one."""
NUMBER, LEFT = 5, len("  59 min left")
"""Width kept for a number and for the time left, so that the line does not jump."""


class StageProgress(ProgressBar):
    """A line with a bar on a terminal or in a notebook, redrawn in place; and lines in the log.

    The log has a line at the end of each epoch, and where epochs are long and there is no bar, lines in between; they
    are plain text.

    Args:
        every_seconds: between two lines of the log within an epoch.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.started = self.logged = self.drawn = time.monotonic()
        self.steps = 0
        """Batches of the present fit that were done in this process."""
        self.done = 0
        """The same, with those before it was stopped."""
        self.sparsities: dict[str, float] = {}
        self.is_enabled = can_draw(get_console())
        self.live: Live | None = None

    def disable(self) -> None:
        """Draw nothing; Lightning calls this in all processes but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        """Draw the line."""
        self.is_enabled = True

    def line(self, trainer: pl.Trainer, module: TaskModule, width: int) -> Text:
        """Write the line: fit, epoch, bar and time left, and as many numbers as the width allows."""
        assert trainer.max_epochs is not None
        total = int(trainer.num_training_batches)
        left = self.seconds_left(trainer, module)
        tail = "" if left is None else f"  {spoken(left)} left"
        head = f"{module.context.name}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        room, numbers = width - len(head) - max(LEFT, len(tail)) - BAR[0] - 2, ""
        for name, value in self._numbers(trainer, module).items():
            short = name.removeprefix(f"{module.context.tasks[0]}/") if len(module.context.tasks) == 1 else name
            shown = f"  {short} {value:<{NUMBER}.3g}"
            if not name.endswith("train/loss") and len(numbers) + len(shown) <= room:
                numbers += shown
        bar = max(0, min(BAR[1], BAR[0] + room - len(numbers)))
        full = round(bar * (self.done - trainer.current_epoch * total) / total)
        strokes = (("━" * full, "magenta"), ("━" * (bar - full), "dim"))
        return Text.assemble(head, "  ", *strokes, numbers, tail, no_wrap=True, overflow="ellipsis")

    def seconds_left(self, trainer: pl.Trainer, module: TaskModule) -> float | None:
        """Estimate the seconds to the end of the curriculum from the batches of this fit; None before the first.

        In a fit outside the curriculum, as baselines have, to the end of the fit. Stages that stop early take less.
        """
        if not self.steps:
            return None
        assert trainer.max_epochs is not None
        steps = trainer.max_epochs * int(trainer.num_training_batches) - self.done + module.context.steps_to_come
        return steps * (time.monotonic() - self.started) / self.steps

    # ---- Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = self.logged = time.monotonic()
        self.steps = 0
        self.drawn = -EVERY
        if self.is_enabled:
            self.live = Live(console=get_console(), auto_refresh=False, transient=True)
            self.live.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the masks; the callback that prunes logs changes within the epoch."""
        if isinstance(pl_module, SubnetworkModule):
            self.sparsities = sparsities(pl_module, pl_module.context.tasks)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; redraw the line, or log the progress within the epoch, if it is time to."""
        self.steps += 1
        self.done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        now = time.monotonic()
        if self.live is not None and now - self.drawn >= EVERY:
            assert isinstance(pl_module, TaskModule)
            self.drawn = now
            self.live.update(self.line(trainer, pl_module, self.live.console.width - 1), refresh=True)
        within = batch_idx + 1 < trainer.num_training_batches
        if not self.is_enabled and within and now - self.logged >= self.every_seconds:
            self._log(trainer, pl_module, f", batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's line into the log."""
        self._log(trainer, pl_module, "")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the line away."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the line away."""
        self._stop()

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule, batch: str) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, TaskModule)
        self.logged = time.monotonic()
        parts = [f"{name} {words.number(value)}" for name, value in self._numbers(trainer, module).items()]
        left = self.seconds_left(trainer, module)
        parts += [f"{spoken(left)} left"] if left is not None else []
        where = f"{module.context.name}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{batch}"
        log.info("%s  %s", where, "  ".join(parts), extra={IN_BAR: self.is_enabled})

    def _numbers(self, trainer: pl.Trainer, module: TaskModule) -> dict[str, float]:
        """Collect sparsity, losses and metric of the tasks in training, as far as they are known."""
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
    """Tell whether a line can be redrawn: in a notebook, or on a terminal; never in a file."""
    return console.is_jupyter or (console.file.isatty() and not console.is_dumb_terminal)


def spoken(seconds: float) -> str:
    """Write a time as people say it: "45 s", "12 min", "1 h 20 min"."""
    if seconds < 59.5:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
