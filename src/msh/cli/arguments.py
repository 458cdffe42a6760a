"""Read the command line before Hydra does: flags, overrides and paths of any name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

FLAGS_WITH_VALUE = {
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"),
    "--experimental-rerun",
}
PATHS = ("run", "network", "plan", "paths.data_dir")
"""Settings that take any existing path as it is, although Hydra's grammar gives some characters a meaning."""
SOURCE = re.compile(r"tasks\.[^.]+\.source\.(path|test_path|val_path|target)")
"""A source's files, which are like `PATHS`, and the column to predict, which may have any name."""
LISTED = re.compile(r"^\+(experiment|procedure|debug|hparams_search)=")
"""Groups that stand in the defaults list before others, which win: `+experiment=NAME` means `experiment=NAME`."""


def split_arguments(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags, each followed by its value, from overrides; Hydra refuses them mixed."""
    flags, overrides, rest = [], [], iter(arguments)
    for argument in rest:
        if argument.startswith("-"):
            flags += [argument, *([next(rest, "")] if argument in FLAGS_WITH_VALUE else [])]
        elif flags and flags[-1] in ("--info", "-i") and "=" not in argument:
            flags.append(argument)
        else:
            overrides.append(_quoted_path(LISTED.sub(r"\1=", argument)))
    return flags, overrides


def by_key(overrides: Iterable[str]) -> dict[str, str]:
    """Map the key of each override to its value, as typed; the last one counts."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+~"): value for key, _, value in pairs}


def is_unsafe(overrides: Iterable[str]) -> bool:
    """Return true if `unsafe=true` is among overrides: stored configs may call any code."""
    return by_key(overrides).get("unsafe", "false").lower() == "true"


def flag_value(flags: Sequence[str], *names: str) -> str | None:
    """Return the value of a flag, `--flag VALUE` or `--flag=VALUE`; None where it is not given."""
    for flag, after in zip_longest(flags, flags[1:]):
        name, written, value = flag.partition("=")
        if name in names:
            return value if written else after
    return None


def unquoted(text: str) -> str:
    """Take off quotes that enclose a path; a path that exists with them keeps them."""
    enclosed = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if enclosed and not Path(text).exists() else text


def quoted(text: str) -> str:
    """Quote a text so that Hydra's grammar takes it as it is."""
    text = re.sub(r"(\\*)'", r"\1\1\\'", literal(text))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def literal(text: str) -> str:
    """Keep OmegaConf from reading `${` in a text as the start of an interpolation."""
    return text.replace("${", r"\${")


def _quoted_path(override: str) -> str:
    key, _, value = override.partition("=")
    source = SOURCE.fullmatch(key)
    is_path = (key in PATHS or source) and (Path(unquoted(value)).exists() or (key == "run" and "${" not in value))
    is_name = source and source[1] == "target" and not value.startswith(("[", "{")) and "${" not in value
    return f"{key}={quoted(unquoted(value))}" if is_path or is_name else override
