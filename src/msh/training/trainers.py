"""Build Lightning Trainers, one per fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy

from msh.errors import invalid
from msh.training.callbacks import EpochCheckpoint
from msh.training.callbacks.checkpoint import AtomicCheckpointIO
from msh.training.config import TrainerConfig
from msh.training.launch import check_start, is_in_slurm_job, is_under_torchrun, place_among_processes
from msh.training.precision import TRUE
from msh.training.ranks import leave_at_exit


def check_devices(config: TrainerConfig) -> None:
    """Check the trainer's accelerator and devices against this machine and its processes, and sharding's precision.

    Args:
        config: the config's `trainer`.
    Raises:
        ValueError: naming the setting.
    """
    check_start()
    available = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    available["gpu"] = any(available.values())
    if not available.get(config.accelerator, True):
        bound = "'cpu' or 'auto' on this machine, where torch finds no GPU of this kind"
        raise invalid("trainer.accelerator", bound, config.accelerator)
    if config.strategy == "fsdp" and str(config.precision) in ("16", "16-mixed"):
        bound = "'bf16-mixed' or '32-true' with trainer.strategy=fsdp, which cannot scale the loss"
        raise invalid("trainer.precision", bound, config.precision)
    if str(config.precision) in ("16", "16-mixed") and device_of(config).type == "cpu":
        raise invalid(
            "trainer.precision",
            "'bf16-mixed' or '32-true' on a CPU, for which torch has no scaled float16",
            config.precision,
        )
    _, processes = place_among_processes()
    devices = len(config.devices) if isinstance(config.devices, list) else config.devices
    if processes > 1 and isinstance(devices, int) and devices != -1 and devices * config.num_nodes != processes:
        bound = f"{processes} in all nodes together, the processes that were started, as trainer=multi_node makes it"
        raise invalid("trainer.devices", bound, devices * config.num_nodes)


def check_trainer(config: TrainerConfig) -> None:
    """Check the devices, and that Lightning accepts the other settings.

    Args:
        config: the config's `trainer`.
    Raises:
        ValueError: naming the settings.
    """
    check_devices(config)
    try:
        build_trainer(config, Path.cwd(), config.max_epochs)
    except (MisconfigurationException, ValueError, TypeError) as error:
        usual = asdict(TrainerConfig())
        changed = {key: value for key, value in asdict(config).items() if value != usual[key]}
        raise ValueError(f"trainer cannot be built from {changed}: {error}") from error


def connect(config: TrainerConfig, folder: Path) -> None:
    """Connect the processes that torchrun or srun started, so that they can `agree` before the first fit.

    Args:
        config: the config's `trainer`.
        folder: the run folder.
    Raises:
        ValueError: the trainer does not use these processes.
    """
    check_devices(config)
    _, processes = place_among_processes()
    if processes == 1 or torch.distributed.is_initialized():
        return
    build_trainer(config, folder, 1).strategy.setup_environment()
    if not torch.distributed.is_initialized():
        raise invalid("trainer.strategy", f"'ddp' or 'fsdp' for {processes} processes", config.strategy)


def device_of(config: TrainerConfig) -> torch.device:
    """Return the kind of device on which a run computes.

    Args:
        config: the config's `trainer`.
    """
    kind = config.accelerator
    if kind in ("auto", "gpu"):
        kind = "cuda" if CUDAAccelerator.is_available() else "mps" if MPSAccelerator.is_available() else "cpu"
    return torch.device(kind)


class NoProfiler(PassThroughProfiler):
    """Profile nothing, in a tenth of the time: Lightning makes a hundred contexts per training step for its own."""

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return NOTHING


NOTHING = nullcontext()


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
    leave_at_exit()
    settings = {key: value for key, value in asdict(config).items() if value is not None}
    settings["max_epochs"] = epochs
    settings.setdefault("profiler", NoProfiler())
    if str(settings.get("precision")) in TRUE:
        del settings["precision"]  # the network already has this type
    if settings["strategy"] == "ddp":
        # The buffers are the whole network: broadcasting them in each step would cost more than the step.
        settings["strategy"] = DDPStrategy(broadcast_buffers=False)
    if settings["strategy"] == "fsdp":
        from msh.training.sharding import ShardedStrategy

        settings |= {"strategy": ShardedStrategy(), "inference_mode": False}  # or gathered parameters could not train
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        settings["enable_progress_bar"] = False
    plugins: list[Any] = [AtomicCheckpointIO()]
    if is_in_slurm_job() and place_among_processes()[1] == 1 and not is_under_torchrun():
        plugins.append(LightningEnvironment())  # Lightning would take the job's tasks for processes of this fit
    return pl.Trainer(
        **settings,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=plugins,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, EpochCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the samplers know their rank
    )
