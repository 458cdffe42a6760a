"""Save checkpoints within a fit, so that a killed run can resume it."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from msh.compat import log_batch
from msh.files.atomic import write_bytes
from msh.files.header import damages
from msh.files.sealed import drop_old, is_whole, seal, sealed_files
from msh.files.weights_only import Packing, readable, unpacked
from msh.training.module import has_stepped
from msh.training.preemption import PREEMPTION
from msh.training.ranks import is_trial

log = logging.getLogger(__name__)

AGREE_EVERY = 10
"""Batches between two exchanges of received signals among processes."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints completely or not at all; read them without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file, flush it to the disk, and rename it.

        Raises:
            UnreadableStateError: a callback, a scheduler or another part has state that could not be read back.
        """
        buffer = io.BytesIO()
        torch.save(Packing().packed(readable_checkpoint(checkpoint)), buffer)
        with buffer.getbuffer() as content:  # without a copy
            write_bytes(Path(path), content)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; earlier releases wrote tensors as they are.

        Raises:
            ValueError: it is damaged.
        """
        with damages(path):
            checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return cast(dict[str, Any], unpacked(checkpoint, Path(path).stat().st_size))


def readable_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint's values to ones that are read without running code; see `readable`.

    Args:
        checkpoint: part to its state, as Lightning has them.
    Raises:
        UnreadableStateError: naming the part, such as the callback, and the place in its state.
    """
    parts = {key: state for key, state in checkpoint.items() if key != "callbacks"}
    plain = {key: readable(state, NAMES.get(key, f"checkpoint[{key!r}]")) for key, state in parts.items()}
    if "callbacks" in checkpoint:
        states = checkpoint["callbacks"].items()
        plain["callbacks"] = {key: readable(state, f"callback {key}: state_dict()") for key, state in states}
    return plain


NAMES = {
    "optimizer_states": "optimizer: state_dict()",
    "lr_schedulers": "scheduler: state_dict()",
    "state_dict": "module: state_dict()",
}
"""Part of a checkpoint to its name for people."""


class EpochCheckpoint(Checkpoint):
    """Save at the end of an epoch, and keep the newest two; after a signal, save at once and end the run.

    Args:
        folder: for this fit's checkpoints.
        min_seconds: least time between two checkpoints; 0 saves every epoch.
    """

    def __init__(self, folder: Path, min_seconds: float = 0.0) -> None:
        super().__init__()
        self.folder, self.min_seconds = folder, min_seconds
        self.saved_at = time.monotonic()
        self.checked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Postpone signals to the next checkpoint; after the fit, the run saves the network."""
        PREEMPTION.postponed = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the run after a signal, between two optimizer steps; after the epoch's last one, validate first."""
        done = batch_idx + 1
        is_last = done >= trainer.num_training_batches or trainer.should_stop
        between = not is_last and has_stepped(trainer, batch_idx)
        if between and (trainer.world_size == 1 or done % AGREE_EVERY == 0) and self._is_signalled(trainer):
            log_batch(trainer)  # Lightning would log this batch later
            self._end(trainer, f"epoch-{trainer.current_epoch:05d}-batch-{done:06d}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is time to, on every rank or on none."""
        name = f"epoch-{trainer.current_epoch:05d}"
        if self._is_signalled(trainer):
            self._end(trainer, name)
        due = time.monotonic() - self.saved_at >= self.min_seconds
        if not is_trial(trainer) and trainer.strategy.broadcast(due):
            self._save(trainer, name)
        elif not self.checked:
            self._check(trainer)
        self.checked = True

    def _check(self, trainer: pl.Trainer) -> None:
        """Check in the first epoch, however long it is to the first checkpoint, that one could be read back."""
        states = {callback.state_key: callback.state_dict() for callback in cast(Any, trainer).callbacks}
        schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        readable_checkpoint({"callbacks": states, "lr_schedulers": schedulers})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End at once from here on: there will be no next checkpoint."""
        PREEMPTION.postponed = False

    def _is_signalled(self, trainer: pl.Trainer) -> bool:
        """Return true if any process received a signal."""
        here = PREEMPTION.received is not None
        return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)

    def _end(self, trainer: pl.Trainer, name: str) -> None:
        if not is_trial(trainer):
            self._save(trainer, name)
            log.info("received a signal: saved %s", name)
        PREEMPTION.end()

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        path = self.folder / f"{name}.ckpt"
        trainer.save_checkpoint(path)
        self.saved_at = time.monotonic()
        if trainer.is_global_zero:
            seal(path)
            drop_old(self.folder, PATTERN)


PATTERN = "epoch-*.ckpt"
"""File names sort by time: `epoch-00004-batch-000120` comes before `epoch-00004`, the end of that epoch."""


def newest_readable(folder: Path) -> Path | None:
    """Find a fit's newest readable checkpoint; skip damaged ones with a warning."""
    for path in sealed_files(folder, PATTERN):
        try:
            if not is_whole(path):
                raise ValueError("its checksum is not the one in its name")
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return path
        except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... on a damaged file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("checkpoint %s cannot be read (%s): falling back to the one before", path, reason)
    return None
