"""Checkpoints at the ends of epochs: what a fit that was killed goes on from."""

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

from msh.deploy.atomic import write_bytes
from msh.training.ranks import is_trial

log = logging.getLogger(__name__)

KEPT = 2
"""Newest checkpoints of a fit that are kept: one to fall back to."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint in full or not at all, and reads it without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file, flush it to the disk, and rename it."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())


class EpochCheckpoint(Checkpoint):
    """Save at the end of an epoch, and keep the newest two.

    Args:
        folder: of this fit's checkpoints.
        min_seconds: time that must have passed since the last one; 0 saves every epoch.
    """

    def __init__(self, folder: Path, min_seconds: float = 0.0) -> None:
        super().__init__()
        self.folder, self.min_seconds = folder, min_seconds
        self.saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is time to; every rank does, or none."""
        due = time.monotonic() - self.saved_at >= self.min_seconds
        if is_trial(trainer) or not trainer.strategy.broadcast(due):
            return
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch:05d}.ckpt")
        self.saved_at = time.monotonic()
        if trainer.is_global_zero:
            for old in epoch_checkpoints(self.folder)[KEPT:]:
                old.unlink(missing_ok=True)


def epoch_checkpoints(folder: Path) -> list[Path]:
    """A fit's checkpoints, the newest first."""
    return sorted(folder.glob("epoch-*.ckpt"), reverse=True)


def newest_readable(folder: Path) -> Path | None:
    """The newest checkpoint of a fit that can be read; those that cannot are passed over, with a warning."""
    for path in epoch_checkpoints(folder):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... on a torn file
            log.warning("checkpoint %s cannot be read (%s): falling back to the one before", path, _first_line(error))
        else:
            return path
    return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
