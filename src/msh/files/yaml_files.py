"""Read the configs and overrides that Hydra wrote into run folders."""

from __future__ import annotations

import io
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

DAMAGES = (OSError, ValueError, TypeError, AttributeError, RecursionError)
"""Errors from damaged YAML, besides the libraries' own types."""


def read_config(path: Path) -> DictConfig:
    """Read the composed config of a run, without resolving interpolations.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or has no settings.
    """
    config = _read(path)
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} has no settings")
    return config


def read_overrides(path: Path) -> list[str]:
    """Read the overrides that a run was started with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a list of overrides.
    """
    overrides = OmegaConf.to_container(_read(path), resolve=False)
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ValueError(f"{path} is not a list of overrides")
    return overrides


def _read(path: Path) -> DictConfig | ListConfig:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of aliases can expand beyond memory
                raise ValueError(f"line {event.start_mark.line + 1} has a YAML alias, which Hydra never writes")
        config = OmegaConf.load(io.StringIO(text))
        str(OmegaConf.to_container(config, resolve=False))  # raises if a number has more digits than Python prints
        return config
    except (*DAMAGES, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
