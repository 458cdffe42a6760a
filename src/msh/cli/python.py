"""`msh.train`: a run from Python, as the command does it, perhaps with a module that exists already."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from msh.backbones.named import GIVEN
from msh.cli.arguments import by_key, literal
from msh.cli.composing import use_own_loader
from msh.cli.configs import config_folder
from msh.cli.errors import message_of
from msh.cli.inherited import drop_inherited
from msh.cli.train import USERS_FOLDER, failed_start_removed, run_composed
from msh.runs.results import Results

NAME = "given"
"""Stands for the module in configs and recipes."""


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise errors of Hydra and OmegaConf, and of what Hydra calls, as errors of a setting or of data.

    Raises:
        FileNotFoundError: what they call found no file.
        ValueError: anything else.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        kind = FileNotFoundError if isinstance(error.__cause__, FileNotFoundError) else ValueError
        raise kind(message_of(error)) from error.__cause__


@_plain_errors()
def train(*overrides: str, backbone: nn.Module | None = None) -> tuple[Path, Results]:
    """Train a curriculum, as `msh train` does.

    Args:
        overrides: as on the command line, such as "tasks=[digits,wine]".
        backbone: a module to share; its weights are the tasks' first values unless `pruning.start=fresh` is among the
            overrides. It is not changed. To load the run elsewhere, pass a function that builds such a module:
            `msh.load(folder, classes={"given": build})`.
    Returns:
        (the run folder, the content of its results.json).
    Raises:
        ValueError: a setting or the data is not allowed.
        FileNotFoundError: data is missing.
    """
    settings = list(overrides)
    if backbone is not None:
        module = copy.deepcopy(backbone)
        GIVEN[NAME] = lambda: copy.deepcopy(module)
        settings += ["backbone=module", f"backbone.target={NAME}"]
        if "pruning.start" not in by_key(overrides):
            settings.append("pruning.start=backbone")
    GlobalHydra.instance().clear()
    use_own_loader()
    with initialize_config_dir(config_folder(), job_name="train", version_base="1.3"):
        config = compose("config", settings, return_hydra_config=True)
    folder = Path(config.hydra.run.dir).resolve()
    USERS_FOLDER.set(folder if folder.exists() else None)
    folder.mkdir(parents=True, exist_ok=True)
    with read_write(config), open_dict(config):
        config.hydra.mode = RunMode.RUN
        config.hydra.run.dir = config.hydra.runtime.output_dir = literal(str(folder))
        drop_inherited(config, config.hydra)
    HydraConfig.instance().set_config(config)
    try:
        with failed_start_removed(folder, has_log=False):
            run_composed(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), folder)
    finally:
        HydraConfig.instance().cfg = None
    return folder, Results.load(folder)
