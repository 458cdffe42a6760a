"""Resume a run: find its folder, and compose its config from the one that is stored there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from msh.backbones.named import BY_CALLER
from msh.cli.arguments import by_key, is_unsafe, literal, quoted, unquoted
from msh.cli.composing import use_own_loader
from msh.cli.configs import config_folder
from msh.files.yaml_files import read_config, read_overrides
from msh.recipes import OWN
from msh.runs.results import FILE_NAME, Results
from msh.training.config import NAMED
from msh.training.settings import differences, lacking
from msh.training.targets import is_safe

CHANGEABLE = (
    "resume",
    "baseline",
    "paths",
    "logger",
    "report",
    "owner_maps",
    "callbacks",
    "checkpoint",
    "hydra",
    "trainer.enable_progress_bar",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "evaluation",
    "objective",
    "skip_finished",
)
"""Settings that a resumed run may change: they do not change what it learned before. On other devices, or on another
number of devices, it continues with the same batches; sums may round differently, as with other evaluation batches."""
OVERLAYS = ("experiment", "procedure", "debug", "hparams_search")
"""Groups whose options set keys of other groups."""
BY_NAME = ("tasks", "logger", "callbacks")
"""Groups whose options replace each other; those of other groups set some keys, and leave the rest."""
HYDRAS_OWN = ("hydra", "defaults")
"""Keys by which a stored config, which never has them, could change what Hydra itself loads and calls."""
SHOWN = 12
"""Settings that differ which a message names."""
CREATES = re.compile(r"\$\{\s*oc\.(decode|create)")
TARGET = re.compile(r"_target_\s*[=:]\s*['\"]?([\w.]+)")


def run_to_resume(flags: Sequence[str], overrides: dict[str, str]) -> Path | None:
    """Find the run folder that a command line resumes; None for a new run.

    Args:
        flags: of the command line.
        overrides: of the command line, value by key.
    Raises:
        ValueError: it is a multirun.
        FileNotFoundError: see `find_run`.
    """
    target = overrides.get("resume", "null")
    if target == "auto" and "hydra.run.dir" in overrides:
        target = overrides["hydra.run.dir"]
        if not (Path(unquoted(target)) / FILE_NAME).exists():  # the first start of a job that a queue starts again
            return None
    if target in ("null", ""):
        return None
    if {"-m", "--multirun"} & set(flags):
        raise ValueError(
            "resume continues one run: leave out --multirun; hydra.sweep.dir=SWEEP skip_finished=true continues a sweep"
        )
    return find_run(target, overrides)


def find_run(target: str, overrides: dict[str, str]) -> Path:
    """Find the run folder that `resume=` means.

    Args:
        target: a run folder, or "auto".
        overrides: of the command line, value by key.
    Raises:
        FileNotFoundError: it is not a run folder, or no run is unfinished.
    """
    if target != "auto":
        folder = Path(unquoted(target)).resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"resume = {target}: there is no such folder")
        for needed in (FILE_NAME, ".hydra/overrides.yaml", ".hydra/config.yaml"):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"resume = {target} is not a run folder: it has no {needed}")
        return folder
    name = Path(overrides.get("experiment", "train")).name  # experiments in folders are named without them
    root = Path(unquoted(overrides.get("paths.output_dir", "outputs"))) / name
    unfinished = [path.parent for path in root.glob(f"*/{FILE_NAME}") if _is_unfinished(path.parent)]
    if not unfinished:
        raise FileNotFoundError(f"resume = auto: there is no unfinished run below {root}")
    return max(unfinished, key=lambda folder: folder.name).resolve()


def _is_unfinished(folder: Path) -> bool:
    try:
        return Results.load(folder).status != "finished"
    except ValueError:
        return False


def of_new_run(overrides: Sequence[str]) -> list[str]:
    """Leave out `resume`, where `run_to_resume` has found no run."""
    return [override for override in overrides if override.partition("=")[0] != "resume"]


def compose_resumed(folder: Path, own: str | None, overrides: Sequence[str]) -> DictConfig:
    """Compose a run's config from the stored one and the overrides that the command line adds.

    Args:
        folder: the run folder.
        own: the user's config folder, if the command line names one.
        overrides: of the command line; those that the run was started with count once. With `unsafe=true` among them,
            code that the stored config names is called, whatever it is.
    Returns:
        The config with Hydra's part, for a run in this folder.
    Raises:
        ValueError: the stored config is damaged, or could call any code; or another experiment is named.
        HydraException: an override does not fit.
    """
    path = folder / ".hydra" / "config.yaml"
    unsafe = is_unsafe(overrides)
    ours = ("resume", "unsafe", "hydra.run.dir")
    overrides = [override for override in overrides if override.partition("=")[0] not in ours]
    started = read_overrides(folder / ".hydra" / "overrides.yaml")
    stored = read_config(path)
    if OmegaConf.select(stored, OWN) == BY_CALLER and OWN not in by_key(overrides):
        raise ValueError(f"{path} shares a module that Python passed: resume it by msh.train(..., backbone=MODULE)")
    changes = register_stored("resumed", stored, path, started, own, overrides, unsafe)
    if own is not None:
        changes.append(f"hydra.searchpath=[{quoted(f'file://{Path(own).resolve()}')}]")
    use_own_loader()
    with initialize_config_dir(config_folder(), job_name="train", version_base="1.3"):
        try:
            config = compose("resumed", changes, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            if changes:
                raise
            raise ValueError(f"{path} is not the config of a run: {error}") from error
    with read_write(config), open_dict(config):
        config.resume = literal(str(folder))
        config.hydra.mode = RunMode.RUN
        config.hydra.run.dir = config.hydra.runtime.output_dir = literal(str(folder))
    return config


def register_stored(
    name: str,
    stored: DictConfig,
    path: Path,
    started: Sequence[str],
    own: str | None,
    overrides: Sequence[str],
    unsafe: bool = False,
) -> list[str]:
    """Make a stored config known to Hydra, without the keys that decide what Hydra itself loads.

    Args:
        name: that Hydra composes it by.
        stored: the config; settings that its release lacked are added.
        path: the file that holds it.
        started: the overrides that it was composed from.
        own: the user's config folder, if the command line names one.
        overrides: of the command line.
        unsafe: call what the stored config names, whatever it is.
    Returns:
        The overrides that it was not composed from, as they apply to it.
    Raises:
        ValueError: it could call any code; or another experiment is named.
    """
    if not unsafe:
        folders = [Path(source) for source in (config_folder(), own, *_searched(overrides)) if source]
        check_calls(stored, path, trusted_calls(folders, overrides))
    for key, value in lacking(stored).items():
        OmegaConf.update(stored, key, value, force_add=True)
    changes = list(_changes(path, stored, by_key(started), overrides))
    values = {key: value for key, value in cast(Any, OmegaConf.to_container(stored)).items() if key not in HYDRAS_OWN}
    node = {"defaults": ["schema", {"hydra": "default"}, "_self_"], **values}
    ConfigStore.instance().store(name=name, node=node)
    return changes


def _searched(overrides: Sequence[str]) -> list[str]:
    """List the user's config folders among overrides: hydra.searchpath=[file://DIR]."""
    given = [override for override in overrides if override.partition("=")[0] == "hydra.searchpath"]
    parsed = OverridesParser.create().parse_overrides(given)
    return [str(place).removeprefix("file://") for one in parsed for place in cast(Any, one.value())]


def _changes(path: Path, stored: DictConfig, started: dict[str, str], overrides: Sequence[str]) -> Iterator[str]:
    """Write the overrides with which the run was not started so that they apply to its stored config."""
    for key, value in by_key(overrides).items():
        override = next(o for o in reversed(overrides) if o.lstrip("+~").partition("=")[0] == key)
        if started.get(key) == value:
            continue
        if key in OVERLAYS:
            raise ValueError(
                f"{path} was started with {key} = {started.get(key, 'null')}, not {value}: its settings stay; start "
                "anew for others"
            )
        if key in NAMED or ((Path(config_folder()) / key).is_dir() and not key.startswith("hydra")):  # a group
            if key in BY_NAME:
                stored[key] = {}
            yield f"+{key}={value}"
        else:
            yield f"+{override}" if override.startswith("+") and not override.startswith("++") else override


def check_calls(config: DictConfig, path: Path, trusted: set[str]) -> None:
    """Raise unless all code that a stored config calls is defined by msh, torch or Lightning, or trusted.

    Raises:
        ValueError: naming the key.
    """
    for key, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if _may_call(key, value) and (str(value) not in trusted or (key.endswith("_target_") and "$" in str(value))):
            raise ValueError(
                f"{path}: {key} = {value!r} is not allowed: it could have any code called; unsafe=true allows it, "
                "or the same override or --config-dir again, if you trust where it is from"
            )


def _may_call(key: str, value: Any) -> bool:
    """Tell whether a value can lead to a call of code that is not msh's, torch's or Lightning's."""
    if key.endswith("_target_") or key == OWN:
        return "$" in str(value) or not is_safe(value)
    return bool(CREATES.search(str(value)))


def trusted_calls(sources: Sequence[Path], overrides: Sequence[str]) -> set[str]:
    """Collect all that config files of the user, or the command line, name to be called."""
    files = [path for folder in sources for path in folder.rglob("*.yaml")]
    found = {value for path in files for value in _calls_in(path)}
    for override in overrides:
        found |= {*TARGET.findall(override), override.partition("=")[2]}
    return found


def _calls_in(path: Path) -> Iterator[str]:
    try:
        yield from (str(value) for key, value in _leaves(yaml.safe_load(path.read_text())) if _may_call(key, value))
    except (OSError, ValueError, yaml.YAMLError):
        return  # Hydra says what is wrong with it, if it is used


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Walk through (dotted key, value) of everything that is no mapping or list; a `_target_` in any form."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None or key.endswith("_target_"):
        yield key, value
    else:
        for name, child in children:
            yield from _leaves(child, f"{key}.{name}" if key else str(name))


def check_same_run(config: DictConfig, folder: Path) -> None:
    """Raise unless a resumed run's config is the one it was started with.

    Raises:
        ValueError: naming the settings that differ, and both values of each.
    """
    saved = read_config(folder / ".hydra" / "config.yaml")
    if saved.get("name") != config.get("name"):
        raise ValueError(f"{folder} is a run of experiment {saved.get('name')!r}, not {config.get('name')!r}")
    changed = [
        f"{key} = {json.dumps(before)}, not {json.dumps(now)}"
        for key, (before, now) in differences(saved, config, CHANGEABLE).items()
    ]
    if changed:
        more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ValueError(
            f"{folder} was started with {'; '.join(changed[:SHOWN])}{more}: a resumed run keeps its settings; start a "
            "new run for others"
        )
