"""Start a run from a trained network: adopt the settings that its file determines, and refuse those that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from msh.backbones.named import named
from msh.cli.arguments import by_key, literal
from msh.cli.configs import config_folder
from msh.cli.resume import OVERLAYS, check_calls, trusted_calls
from msh.errors import Problems, invalid, is_under, one_of
from msh.files.header import task_names
from msh.files.yaml_files import read_config
from msh.inference.hub import source_file
from msh.recipes import Recipe, is_known, targets_in
from msh.training.settings import flat
from msh.training.targets import is_safe


def continued(config: DictConfig) -> DictConfig:
    """Complete the config of a run that starts from a network, so that no override has to be repeated.

    Backbone, seed and precision are those of the network's file. With `retrain`, the settings of these tasks' data are
    those of the network's run, unless the command line names tasks.

    Args:
        config: as Hydra composed it.
    Returns:
        The config; the same one if it names no network.
    Raises:
        FileNotFoundError: there is no such network.
        ValueError: a setting on the command line differs from the file's; the message names all of these. Or the file
            names code that neither msh nor the command line knows.
    """
    from msh.training.origin import determined, named_file

    if config.get("network") is None:
        return config
    network = str(config.network)
    overrides = list(HydraConfig.get().overrides.task)
    given, trusted = by_key(overrides), _trusted(overrides)
    with named_file("network", network):
        values = determined(source_file(network))
    config = config.copy()
    with read_write(config), open_dict(config):
        _check_given(config, values, given, network)
        _check_code(values.get("backbone", {}), network, trusted)
        config.pruning.start = config.pruning.start  # it may follow from a setting that the file's backbone lacks
        for key, value in values.items():
            if key == "trainer.precision" and not _differs(config, key, value):
                continue  # mixed precision computes in other types, and keeps the network's
            OmegaConf.update(config, key, _escaped(value), merge=False)
        if config.get("retrain") and "tasks" not in given:
            tasks = _tasks_of_run(config, network, given, trusted)
            config.tasks = {}
            OmegaConf.update(config, "tasks", tasks)
    return config


def _check_given(config: DictConfig, values: Mapping[str, Any], given: Mapping[str, str], network: str) -> None:
    """Raise for settings that the command line, or an experiment that it names, sets to other values than the file."""
    usual: dict[str, Any] = {}
    if any(key in OVERLAYS for key in given):
        usual = flat(compose(HydraConfig.get().job.config_name))
    with Problems() as problems:
        if (again := _named_again(values.get("backbone", {}), config, given)) is not None:
            for key, value in again.items():
                if value != values["backbone"].get(key):
                    whole = "backbone" if key == "model" else f"backbone.{key}"
                    problems.add(invalid(whole, f"{values['backbone'].get(key)!r}, as in the network {network}", value))
            values = {key: value for key, value in values.items() if key != "backbone"}
        for key, value in _leaves(values, config):
            now = OmegaConf.select(config, key)
            is_given = is_under(key, given) or (bool(usual) and now != usual.get(key))
            if is_given and _differs(config, key, value):
                problems.add(invalid(key, f"{value!r}, as in the network {network}", now))


def _named_again(backbone: Mapping[str, Any], config: DictConfig, given: Mapping[str, str]) -> Recipe | None:
    """Write what the command line says of the file's backbone, where it names its class or model as its run did.

    Returns:
        The model's recipe, and the settings that the command line has; None where it names none.
    """
    if "model" not in backbone or config.backbone.get("_target_") != backbone.get("_target_"):
        return None
    settings: Any = OmegaConf.to_container(config.backbone, resolve=True, throw_on_missing=False)
    found = named(settings)
    if found is None:
        return None
    recipe = found.recipe(tuple(found.input_shape or backbone["input_shape"]), found.inputs())
    return {key: value for key, value in recipe.items() if key == "model" or f"backbone.{key}" in given}


def _leaves(values: Mapping[str, Any], config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Walk through (dotted key, the file's value); of a backbone of another class, its name is enough."""
    backbone = values.get("backbone", {})
    if backbone and backbone.get("_target_") != config.backbone.get("_target_"):
        values = {**values, "backbone": {"_target_": backbone.get("_target_")}}
    elif backbone:
        values = {**values, "backbone": dict.fromkeys(flat(config.backbone)) | backbone}
    yield from flat(dict(values)).items()


def _differs(config: DictConfig, key: str, value: Any) -> bool:
    from msh.training.precision import type_of

    now: Any = OmegaConf.select(config, key)
    now = OmegaConf.to_container(now, resolve=True) if OmegaConf.is_config(now) else now
    if key == "trainer.precision":
        return type_of(now) != type_of(value)
    if key == "backbone.input_shape" and now is None:  # the file's
        return False
    return bool(now != value)


def _trusted(overrides: Sequence[str]) -> set[str]:
    """Collect all that the user's config files, or the command line, name to be called."""
    sources = HydraConfig.get().runtime.config_sources
    own = [Path(source.path) for source in sources if source.provider in ("command-line", "hydra.searchpath")]
    return trusted_calls([Path(config_folder()), *own], overrides)


def _check_code(backbone: Mapping[str, Any], network: str, trusted: set[str]) -> None:
    """Raise where a file names a backbone of code that is not known, and that the command line does not name."""
    for key, target in targets_in(backbone, "backbone"):
        if not (is_safe(target) or is_known(str(target)) or target in trusted):
            raise ValueError(
                f"the network {network} has {key} = {target!r}, which is not in msh, torch, torchvision, timm or "
                "transformers: if you trust it, name it with the same override or --config-dir as in its run"
            )


def _escaped(value: Any) -> Any:
    """Copy a file's value; OmegaConf then resolves no interpolations in it."""
    if isinstance(value, Mapping):
        return {key: _escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_escaped(child) for child in value]
    return literal(value) if isinstance(value, str) else value


def _tasks_of_run(config: DictConfig, network: str, given: Mapping[str, str], trusted: set[str]) -> dict[str, Any]:
    """Return the settings of the tasks to retrain from their run's folder, and take its folder of data."""
    from msh.training.config import plain_values, stored_config

    names = [config.retrain] if isinstance(config.retrain, str) else list(config.retrain)
    cure = f"name tasks with their data: tasks=[{','.join(map(str, names))}]"
    if not Path(network).is_dir():
        raise ValueError(f"retrain: {network} is no run folder, and is without the settings of its tasks' data: {cure}")
    path = Path(network) / ".hydra" / "config.yaml"
    stored = read_config(path)
    if "paths.data_dir" in given:
        OmegaConf.update(stored, "paths.data_dir", config.paths.data_dir)
    config.paths.data_dir = OmegaConf.select(stored, "paths.data_dir")
    check_calls(OmegaConf.masked_copy(stored, "tasks"), path, trusted)
    written: Any = OmegaConf.to_container(stored.tasks)
    tasks = stored_config(plain_values(stored)).tasks
    known = task_names(source_file(network), "network")
    with Problems() as problems:
        for name in names:
            problems.check(one_of, "retrain", name, known)
            if name in known and name not in tasks:
                problems.add(f"retrain: {network} does not have the settings of {name!r}, which it had learned: {cure}")
    return {name: written[name] if name in written else _escaped(asdict(tasks[name])) for name in names}
