"""What users type: settings with their defaults, options of config groups, and help texts."""

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import msh.cli.evaluate
import msh.cli.train  # noqa: F401 - both make their schemas known to Hydra
from golden.recording import command
from integration.running import ROOT
from msh.training.config import NAMED

CONF = ROOT / "conf"
OF_BOTH = CONF / "experiment_procedure"
"""Has <experiment>/<procedure>.yaml, composed where both are chosen."""
OF_PLANS = ["plan", "fleet", "merge", "split", "release"]
COMMANDS = [
    "train",
    "evaluate",
    "data",
    "predict",
    "generate",
    "export",
    "push",
    *OF_PLANS,
    "inspect",
    "report",
    "serve",
    "sweep",
    "dashboard",
]
PLACEHOLDERS = {"foo.bar=", "group="}
"""In Hydra's own help: no settings."""
INTERNAL = ("experiment_procedure", "wandb_sweep")
"""Folders of `conf` that are no groups to choose from: composed by themselves, or for W&B's agent."""
SCRIPTS = {"train.py": "train", "evaluate.py": "evaluate"}
"""Scripts of the checkout, which are these subcommands."""


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values, interpolations as they are written; an empty mapping is a value."""
    if not isinstance(config, dict) or (prefix and not config):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def default_settings() -> dict[str, dict[str, Any]]:
    """Compose what the commands compose without overrides."""
    return {name: _composed(name) for name in ("config", "evaluate")}


def option_settings() -> dict[str, dict[str, Any]]:
    """Compose each option of the groups: option to the settings that it adds or changes."""
    default = _composed("config")
    found = {}
    for overrides in options():
        chosen = _composed("config", *overrides)
        missing = object()
        found[" ".join(overrides)] = {k: v for k, v in chosen.items() if default.get(k, missing) != v}
    for path in sorted((CONF / "wandb_sweep").glob("*.yaml")):
        found[f"wandb_sweep={path.stem}"] = flat(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    return found


def options() -> list[list[str]]:
    """Overrides that choose each option, from the files of the groups and the groups of names."""
    found = [[f"{group}={name}"] for group, names in NAMED.items() for name in names]
    for path in sorted(CONF.rglob("*.yaml")):
        parts = path.relative_to(CONF).with_suffix("").parts
        if len(parts) == 1 or parts[0] == "wandb_sweep" or parts[-1] == "ray_cluster":  # needs Ray's launcher
            continue
        if OF_BOTH in path.parents:
            found.append([f"experiment={'/'.join(parts[1:-1])}", f"procedure={parts[-1]}"])
        else:
            cut = 1 if parts[0] == "experiment" else len(parts) - 1
            found.append([f"{'/'.join(parts[:cut])}={'/'.join(parts[cut:])}"])
    return found


def _composed(name: str, *overrides: str) -> dict[str, Any]:
    return flat(OmegaConf.to_container(composed(name, *overrides), resolve=False))


@cache  # many tests look at the same options
def composed(name: str, *overrides: str) -> DictConfig:
    """Compose a config, to be read only."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, list(overrides))
    OmegaConf.set_readonly(config, True)
    return config


def help_texts() -> dict[str, str]:
    """Ask every command for its help."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")  # argparse breaks lines within flags
        found = {"msh": command("--help", cwd=Path(folder))}
        for name in COMMANDS:
            found[f"msh {name}"] = command(name, "--help", cwd=Path(folder))
    return found | {script: found[f"msh {name}"] for script, name in SCRIPTS.items()}


def promises(text: str) -> set[str]:
    """Find what a help text lets users type: flags, overrides, subcommands, options of config groups."""
    found = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    found |= set(re.findall(r"(?<![\w.])\+?[a-z][\w.]*=", text)) - PLACEHOLDERS
    found |= {f"command {name}" for name in re.findall(r"^  ([a-z]+) {2,}", text, re.M)}
    return found | {f"{group}={option}" for group, option in _options(text)}


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Find (group, option) as users type them, in the help of today and in Hydra's own, which was recorded."""
    for group, options in re.findall(r"^  ([\w/]+) {2,}.*\n((?: {6}.*\n?)+)", text, re.M):
        yield from ((group, option) for option in re.split(r",\s+", options.strip()))
    recorded = text.partition("== Configuration groups ==")[2].partition("== Config ==")[0]
    if text.startswith("evaluate "):
        return  # Hydra listed the groups there too, and refused each of them
    for path, options in re.findall(r"^([\w/]+): (.+)$", recorded, re.M):
        group, _, folder = path.partition("/") if path.startswith("experiment/") else (path, "", "")
        if group.split("/")[0] not in INTERNAL:
            yield from ((group, f"{folder}/{option}" if folder else option) for option in options.split(", "))
