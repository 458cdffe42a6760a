"""Find the configs, in the wheel or at the top of a checkout; compose one for a command that does no run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msh

if TYPE_CHECKING:
    from msh.training.config import RunConfig


def config_folder() -> str:
    """Return the folder of `config.yaml`."""
    package = Path(msh.__file__).resolve().parent
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"msh's configs are neither in {package} nor beside its source: install it again")


def compose_config(overrides: Sequence[str], own: str | None = None) -> RunConfig:
    """Compose a run's config, as `msh train` would with these overrides.

    Args:
        overrides: as typed.
        own: folder of the user's configs.
    Raises:
        ValueError: a setting is invalid; or what Hydra raises.
    """
    from hydra import compose, initialize_config_dir  # slow to import
    from omegaconf import OmegaConf, open_dict, read_write

    from msh.cli.arguments import quoted
    from msh.cli.composing import use_own_loader
    from msh.cli.inherited import drop_inherited
    from msh.training.config import register, run_config

    register()
    use_own_loader()
    path = [f"hydra.searchpath=[{quoted(f'file://{Path(own).resolve()}')}]"] if own else []
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose("config", [*overrides, *path], return_hydra_config=True)
    with read_write(config), open_dict(config):
        drop_inherited(config, config.hydra)
    return run_config(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
