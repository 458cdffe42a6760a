"""Compose configs with a loader of our own: once for a command, and with new keys for settings that take any.

Hydra's commands compose a config first to read `hydra.mode`, and then again to run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from msh.cli.configs import config_folder


class ComposedOnce:
    """A part of Hydra's loader, which keeps the config composed to read the mode until it is asked for it to run."""

    kept: tuple[str | None, list[str], DictConfig] | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a config: arguments as of Hydra's loader."""
        kept, self.kept = self.kept, None
        if kept is not None and validate_sweep_overrides:
            name, before, config = kept
            mode = [f"hydra.mode={run_mode.name}"]  # Hydra adds it where no config sets it
            if name == config_name and overrides in (before, before + mode):
                cast(Any, self).validate_sweep_overrides_legal(
                    OverridesParser.create().parse_overrides(overrides), run_mode, from_shell
                )
                if overrides != before:
                    config.hydra.mode = run_mode
                    config.hydra.overrides.hydra.extend(mode)
                return config
        arguments = (config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        composed: DictConfig = cast(Any, super()).load_configuration(*arguments)
        is_missing = "???" in composed.hydra.runtime.choices.values()  # an error where the command runs
        if not (validate_sweep_overrides or is_missing):
            self.kept = config_name, list(overrides), composed
        return composed


def composing_once(loader: type) -> type:
    """Extend Hydra's loader, unless it is extended already."""
    from msh.cli.open_keys import OpenKeys  # needs torch, which help does not

    return loader if issubclass(loader, ComposedOnce) else type("ComposedOnce", (ComposedOnce, OpenKeys, loader), {})


def use_own_loader() -> None:
    """Make Hydra compose configs with the extended loader from now on."""
    from msh.compat import hydra_commands

    hydra_commands().ConfigLoaderImpl = composing_once(hydra_commands().ConfigLoaderImpl)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Decorate a command's function as `hydra.main` does, with one of our configs, composed once."""

    def decorated(function: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        run: Any = hydra.main(version_base="1.3", config_path=config_folder(), config_name=config_name)(function)

        @wraps(run)
        def main() -> Any:
            use_own_loader()
            return run()

        return main

    return decorated
