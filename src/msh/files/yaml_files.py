"""YAML files of run folders: configs and overrides that Hydra wrote."""

from __future__ import annotations

import io
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

DAMAGES = (OSError, ValueError, TypeError, AttributeError, RecursionError)
"""What reading damaged YAML ends in, beside errors of the libraries' own."""


def read_config(path: Path) -> DictConfig:
    """The composed config of a run, interpolations as they are written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no settings.
    """
    config = _read(path)
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} holds no settings")
    return config


def read_overrides(path: Path) -> list[str]:
    """The overrides that a run was started with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
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
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for more than memory holds
                raise ValueError(f"line {event.start_mark.line + 1} has a YAML alias, which Hydra never writes")
        config = OmegaConf.load(io.StringIO(text))
        str(OmegaConf.to_container(config, resolve=False))  # raises where a number is longer than Python writes out
        return config
    except (*DAMAGES, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
