"""Build Lightning Trainers, one per fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from msh.errors import invalid
from msh.training.callbacks import EpochCheckpoint, StageProgress
from msh.training.callbacks.checkpoint import AtomicCheckpointIO
from msh.training.config import TrainerConfig
from msh.training.precision import TRUE


def check_trainer(config: TrainerConfig) -> None:
    """Check that this machine has the trainer's accelerator, that sharding supports its precision, and the rest.

    Args:
        config: the config's `trainer`.
    Raises:
        ValueError: naming the setting.
    """
    available = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    available["gpu"] = any(available.values())
    if not available.get(config.accelerator, True):
        bound = "'cpu' or 'auto' on this machine, where torch finds no GPU of this kind"
        raise invalid("trainer.accelerator", bound, config.accelerator)
    if config.strategy == "fsdp" and str(config.precision) in ("16", "16-mixed"):
        bound = "'bf16-mixed' or '32-true' with trainer.strategy=fsdp, which cannot scale the loss"
        raise invalid("trainer.precision", bound, config.precision)
    try:
        build_trainer(config, Path.cwd(), config.max_epochs)
    except (MisconfigurationException, ValueError, TypeError) as error:
        usual = asdict(TrainerConfig())
        changed = {key: value for key, value in asdict(config).items() if value != usual[key]}
        raise ValueError(f"trainer cannot be built from {changed}: {error}") from error


def build_trainer(
    config: TrainerConfig,
    folder: Path,
    epochs: int,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> pl.Trainer:
    """Build a Trainer for one fit, or for an evaluation.

    Args:
        config: the config's `trainer`.
        folder: the run folder.
        epochs: the fit's.
        callbacks: the fit's.
        loggers: the run's.
    """
    settings = {key: value for key, value in asdict(config).items() if value is not None}
    settings["max_epochs"] = epochs
    if str(settings.get("precision")) in TRUE:
        del settings["precision"]  # the network already has this type
    if settings["strategy"] == "ddp":
        # The buffers are the whole network: broadcasting them in each step would cost more than the step.
        settings["strategy"] = DDPStrategy(broadcast_buffers=False)
    if settings["strategy"] == "fsdp":
        from msh.training.sharding import ShardedStrategy

        settings |= {"strategy": ShardedStrategy(), "inference_mode": False}  # or gathered parameters could not train
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
