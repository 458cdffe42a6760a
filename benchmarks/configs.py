"""Compose configs as train.py does; MNIST, or noise in its place."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

from msh.cli.configs import config_folder
from msh.tasks import RawData, Split
from msh.training.config import RunConfig, register, run_config


def compose(*overrides: str, output_dir: Path | None = None) -> DictConfig:
    """Compose the config for `python train.py OVERRIDES`.

    Args:
        overrides: as on the command line.
        output_dir: the run folder, for the loggers.
    """
    register()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = hydra_compose("config", overrides=list(overrides))
    for logger in config.logger.values():
        logger.directory = str(output_dir)
    return config


def typed(*overrides: str, output_dir: Path | None = None) -> RunConfig:
    """Compose a config and convert it to the typed one; arguments as of `compose`."""
    return run_config(compose(*overrides, output_dir=output_dir))


def random_mnist() -> RawData:
    """Draw noise with MNIST's size, for measurements that do not depend on the pixels."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Split(
            torch.rand(examples, 1, 28, 28, generator=generator),
            torch.randint(0, 10, (examples,), generator=generator),
        )
        for examples in (60_000, 10_000)
    )
    return RawData("classification", train, test, 10)


def mnist(data_dir: Path) -> tuple[list[str], str]:
    """Return (overrides that make MNIST the only task, its name); noise with its size if it is missing."""
    if (data_dir / "MNIST" / "raw").is_dir():
        return ["tasks=mnist", f"paths.data_dir={data_dir.resolve()}"], "MNIST"
    source = ["tasks.mnist.source._target_=benchmarks.configs.random_mnist"]
    source += ["~tasks.mnist.source.name", "~tasks.mnist.source.root"]
    return ["tasks=mnist", *source], "noise of MNIST's size"
