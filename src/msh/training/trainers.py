"""Lightning Trainers, one for each fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from msh.training.callbacks import EpochCheckpoint, StageProgress
from msh.training.callbacks.checkpoint import AtomicCheckpointIO
from msh.training.config import TrainerConfig
from msh.training.precision import TRUE


def check_devices(config: TrainerConfig) -> None:
    """Raise where the trainer asks for what this machine, or sharding, has not.

    Args:
        config: the config's `trainer`.
    Raises:
        ValueError: naming the setting.
    """
    there = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(config.accelerator, True):
        raise ValueError(
            f"trainer.accelerator = {config.accelerator}: torch finds none on this machine; trainer.accelerator=cpu "
            "does without (trainer=ddp_sim: two processes of it)"
        )
    if config.strategy == "fsdp" and str(config.precision) in ("16", "16-mixed"):
        raise ValueError(
            f"trainer.precision = {config.precision} does not go with trainer.strategy=fsdp, whose gradients have no "
            "loss scale: use bf16-mixed or 32-true"
        )


def build_trainer(
    config: TrainerConfig,
    folder: Path,
    epochs: int,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> pl.Trainer:
    """A Trainer for one fit, or for measuring.

    Args:
        config: the config's `trainer`.
        folder: the run folder.
        epochs: of the fit.
        callbacks: of the fit.
        loggers: of the run.
    """
    settings = {key: value for key, value in asdict(config).items() if value is not None}
    settings["max_epochs"] = epochs
    if str(settings.get("precision")) in TRUE:
        del settings["precision"]  # the network has the type already
    if settings["strategy"] == "ddp":
        # The buffers are the whole network: sending them from rank 0 with each step would cost more than the step.
        settings["strategy"] = DDPStrategy(broadcast_buffers=False)
    if settings["strategy"] == "fsdp":
        from msh.training.sharding import ShardedStrategy

        settings |= {"strategy": ShardedStrategy(), "inference_mode": False}  # or what is gathered could not train
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
