"""Remove from a config what an option left behind whose `_target_` another one replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from msh.cli.configs import config_folder

TARGETED = ("backbone", "optimizer", "scheduler", "prune_scheduler")
"""Groups whose options have a `_target_`."""
KEPT = ("_target_", "_partial_", "input_shape")
"""Settings that any backbone, optimizer or scheduler has."""


def drop_inherited(config: DictConfig, hydra: DictConfig) -> None:
    """Remove from a composed config, in place, what options left behind whose `_target_` another one replaced.

    Args:
        config: the run's.
        hydra: Hydra's own settings, with the options chosen and the overrides.
    """
    written = _written(hydra.overrides.task)
    for group in TARGETED:
        file = Path(config_folder()) / group / f"{hydra.runtime.choices.get(group)}.yaml"
        block = config.get(group)
        if not file.is_file() or not isinstance(block, DictConfig):
            continue
        option = cast(Any, OmegaConf.to_container(OmegaConf.load(file)))
        option = option.get(group, option)
        target = block.get("_target_")
        if target == option.get("_target_"):
            continue
        from msh.backbones.named import arguments_of

        taken, now = arguments_of(str(target)), cast(Any, OmegaConf.to_container(block, resolve=False))
        anew = group == "backbone" and f"{group}._target_" in written
        for key, value in option.items():
            inherited = f"{group}.{key}" not in written and now.get(key) == value and key not in KEPT
            if inherited and (anew or key == "fused" or (taken is not None and key not in taken)):
                with open_dict(block):
                    del block[key]


def _written(overrides: Sequence[str]) -> set[str]:
    """List the dotted keys that overrides set, with those of mappings."""
    keys = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        keys.add(override.key_or_group)
        value = None if override.is_sweep_override() else override.value()
        if isinstance(value, dict):
            keys |= {f"{override.key_or_group}.{key}" for key in value}
    return keys
