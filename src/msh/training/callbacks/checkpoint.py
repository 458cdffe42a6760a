"""Checkpoints of a fit: what it goes on from if it is killed."""

from __future__ import annotations

import io
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from msh.compat import log_batch
from msh.files.atomic import write_bytes
from msh.files.sealed import drop_old, is_whole, seal, sealed_files
from msh.training.preemption import PREEMPTION
from msh.training.ranks import is_trial

log = logging.getLogger(__name__)

AGREE_EVERY = 10
"""Batches between two looks of several processes at whether one of them has received a signal."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint in full or not at all, and reads it without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file, flush it to the disk, and rename it."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())


class EpochCheckpoint(Checkpoint):
    """Save at the end of an epoch, and keep the newest two; at once, and end the run, if a signal says so.

    Args:
        folder: of this fit's checkpoints.
        min_seconds: time that must have passed since the last one; 0 saves every epoch.
    """

    def __init__(self, folder: Path, min_seconds: float = 0.0) -> None:
        super().__init__()
        self.folder, self.min_seconds = folder, min_seconds
        self.saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on there is always a next checkpoint to end at; after the fit, what it has learned is saved."""
        PREEMPTION.postponed = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the run within an epoch, between two optimizer steps; at its end, the epoch's validation comes first."""
        done = batch_idx + 1
        between = done < trainer.num_training_batches and done % trainer.accumulate_grad_batches == 0
        if between and (trainer.world_size == 1 or done % AGREE_EVERY == 0) and self._is_told(trainer):
            log_batch(trainer)  # Lightning's turn to log it never comes
            self._end(trainer, f"epoch-{trainer.current_epoch:05d}-batch-{done:06d}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is time to; every rank does, or none."""
        name = f"epoch-{trainer.current_epoch:05d}"
        if self._is_told(trainer):
            self._end(trainer, name)
        due = time.monotonic() - self.saved_at >= self.min_seconds
        if not is_trial(trainer) and trainer.strategy.broadcast(due):
            self._save(trainer, name)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """There will be no next checkpoint."""
        PREEMPTION.postponed = False

    def _is_told(self, trainer: pl.Trainer) -> bool:
        """Whether any process got a signal."""
        told = PREEMPTION.received is not None
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def _end(self, trainer: pl.Trainer, name: str) -> None:
        if not is_trial(trainer):
            self._save(trainer, name)
            log.info("told to end: saved %s", name)
        PREEMPTION.end()

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        path = self.folder / f"{name}.ckpt"
        trainer.save_checkpoint(path)
        self.saved_at = time.monotonic()
        if trainer.is_global_zero:
            seal(path)
            drop_old(self.folder, PATTERN)


PATTERN = "epoch-*.ckpt"
"""Alphabetical order is that of time: `epoch-00004-batch-000120` comes before `epoch-00004`, the end of that epoch."""


def newest_readable(folder: Path) -> Path | None:
    """The newest checkpoint of a fit that can be read; those that cannot are passed over, with a warning."""
    for path in sealed_files(folder, PATTERN):
        try:
            if not is_whole(path):
                raise ValueError("its checksum is not the one in its name")
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return path
        except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... on a damaged file
            log.warning("checkpoint %s cannot be read (%s): falling back to the one before", path, _first_line(error))
    return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
