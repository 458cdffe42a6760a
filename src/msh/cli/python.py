"""`msh.train`: a run from Python, as the command does it, perhaps with a module that exists already."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from msh.backbones.named import BY_CALLER, GIVEN
from msh.cli.arguments import literal, split_arguments
from msh.cli.composing import use_own_loader
from msh.cli.configs import config_folder
from msh.cli.errors import message_of
from msh.cli.inherited import drop_inherited
from msh.cli.resume import compose_resumed, of_new_run, run_to_resume
from msh.cli.train import USERS_FOLDER, checked, failed_start_removed, run_alone
from msh.errors import invalid
from msh.inference.computing import usual_defaults
from msh.runs.results import Results


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
@usual_defaults()
def train(*overrides: str, backbone: nn.Module | None = None) -> tuple[Path, Results]:
    """Train a curriculum, as `msh train` does.

    Args:
        overrides: as on the command line, such as "tasks=[digits,wine]", or "resume=RUN_DIR" to resume a run.
        backbone: a module to share; its weights are the tasks' first values unless `pruning.start=fresh` is among the
            overrides. It is not changed. To resume the run, pass the same module again. To load the run elsewhere,
            pass a function that builds such a module: `msh.load(folder, classes={"given": build})`.
    Returns:
        (the run folder, the content of its results.json, which a `debug=fdr` run does not write).
    Raises:
        ValueError: a setting or the data is not allowed.
        FileNotFoundError: data is missing.
    """
    flags, settings = split_arguments(overrides)
    if flags:
        bound = "settings, such as tasks=[digits]; hydra.searchpath=[file://DIR] adds a folder of config files"
        raise invalid("overrides", bound, flags[0])
    given = checked(settings)
    GlobalHydra.instance().clear()
    folder = run_to_resume(flags, given)
    if backbone is not None:
        settings += _backbone_settings(backbone, given, folder is None)
    if folder is not None:
        config = compose_resumed(folder, None, settings)
        return folder, run_alone(config, folder)
    config = _composed(of_new_run(settings))
    folder = Path(config.hydra.run.dir)
    with failed_start_removed(folder, has_log=False):
        return folder, run_alone(config, folder)


def _backbone_settings(backbone: nn.Module, given: Mapping[str, str], is_new: bool) -> list[str]:
    """Let a run find a copy of a module by its name; return the settings that choose it."""
    module = copy.deepcopy(backbone)
    GIVEN[BY_CALLER] = lambda: copy.deepcopy(module)
    start = ["pruning.start=backbone"] if is_new and "pruning.start" not in given else []
    return ["backbone=module", f"backbone.target={BY_CALLER}", *start]


def _composed(settings: list[str]) -> DictConfig:
    """Compose a new run's config, with Hydra's part, and make its folder."""
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
    return config
