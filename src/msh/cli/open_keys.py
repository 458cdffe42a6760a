"""Let overrides add keys to mappings that take any, such as a task's source, without Hydra's `+`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from msh.compat import Composing
from msh.training.config import RunConfig
from msh.training.typed import open_mapping


class OpenKeys(Composing):
    """A part of Hydra's loader, which adds `tasks.NAME.source.KEY=VALUE` as if it were `++tasks.NAME.source.KEY=VALUE`.

    Overrides are recorded as typed. Keys that no class takes are refused later, as those in files are.
    """

    def composed(self, config: DictConfig, overrides: Sequence[Override]) -> None:
        """Let overrides of open mappings add keys."""
        begun = set(_begun(overrides))
        for override in overrides:
            _begin_missing(config, override)
            if override.type == OverrideType.CHANGE and _may_add(config, override, begun):
                override.type = OverrideType.FORCE_ADD


def _begin_missing(config: DictConfig, override: Override) -> None:
    """Begin the open mapping above an override's key where a task's file leaves it to be set: OmegaConf cannot."""
    above, _, name = (open_mapping(RunConfig, override.key_or_group) or "").rpartition(".")
    place: Any = OmegaConf.select(config, above) if above else None
    if isinstance(place, DictConfig) and OmegaConf.is_missing(place, name):
        place[name] = {}


def _begun(overrides: Iterable[Override]) -> Iterator[str]:
    """List the keys of mappings that overrides begin, of which the config may have none."""
    for override in overrides:
        key = override.key_or_group
        if _is_mapping(override) or key.endswith("._target_"):
            yield key.removesuffix("._target_")


def _may_add(config: DictConfig, override: Override, begun: Container[str]) -> bool:
    """Return whether an override's key lies in a mapping that takes any, and that the config or an override has."""
    key = open_mapping(RunConfig, override.key_or_group)
    if key is None:
        return False
    above, _, name = key.rpartition(".")
    place: Any = OmegaConf.select(config, above) if above else config
    if isinstance(place, DictConfig) and isinstance(place.get(name), DictConfig):
        return key not in ("callbacks", "logger") or _is_mapping(override)  # else a name is a misspelt one
    return key in begun


def _is_mapping(override: Override) -> bool:
    return not override.is_sweep_override() and isinstance(override.value(), dict)
