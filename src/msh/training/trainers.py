"""Lightning Trainers, one for each fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from msh.training.callbacks import EpochCheckpoint, StageProgress
from msh.training.callbacks.checkpoint import AtomicCheckpointIO


def build_trainer(
    config: DictConfig, folder: Path, epochs: int, callbacks: Sequence[pl.Callback] = (), loggers: Sequence[Logger] = ()
) -> pl.Trainer:
    """A Trainer for one fit, or for measuring.

    Args:
        config: the config's `trainer`.
        folder: the run folder.
        epochs: of the fit.
        callbacks: of the fit.
        loggers: of the run.
    """
    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = {key: value for key, value in settings.items() if value is not None}
    settings["max_epochs"] = epochs
    if settings["strategy"] == "ddp":
        # The buffers are the whole network: sending them from rank 0 with each step would cost more than the step.
        settings["strategy"] = DDPStrategy(broadcast_buffers=False)
    if not any(isinstance(callback, StageProgress) for callback in callbacks):
        settings["enable_progress_bar"] = False
    return pl.Trainer(
        **settings,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, EpochCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the samplers know their rank
    )
