"""Compare configs, and check a run folder against the settings of the run at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from msh.errors import is_under
from msh.files.yaml_files import read_config
from msh.runs.results import FILE_NAME, Results


@dataclass(frozen=True)
class OnDisk:
    """State of a run folder compared with the run at hand.

    Attributes:
        what: no run, a run with other settings, part of this run, or all of it.
        why: the settings that differ, or the baselines that are missing.
    """

    what: Literal["new", "other", "unfinished", "finished"]
    why: str = ""


INCIDENTAL = (
    "resume",
    "paths",
    "logger",
    "report",
    "owner_maps",
    "hydra",
    "checkpoint.min_seconds",
    "evaluation",
    "flush_denormal",
    "trainer.enable_progress_bar",
    "callbacks.progress",
    "objective",
    "skip_finished",
)
"""Settings that may always differ between a run on disk and the run at hand."""
ADDED: dict[str, Any] = {
    "pruning.allow_empty_layers": False,
    "flush_denormal": False,
    "master_weights": True,
    "evaluation.batch_size": 500,
    "pruning.regrow.rounds": 20,
    "pruning.regrow.until": 0.75,
    "pruning.regrow.sample": 500,
    "pruning.regrow.by": "gradient",
}
"""Settings that configs of earlier releases lack, to the value that reproduces those releases."""


def on_disk(folder: Path, config: Any, leave_out: Sequence[str], baselines: Sequence[str] = ()) -> OnDisk:
    """Compare a run folder with the run at hand.

    Args:
        folder: the run folder.
        config: the run's, as composed.
        leave_out: as in `differences`.
        baselines: names of those that a finished run has trained.
    """
    if not (folder / FILE_NAME).exists():
        return OnDisk("new")
    try:
        results, saved = Results.load(folder), read_config(folder / ".hydra" / "config.yaml")
    except (ValueError, FileNotFoundError) as error:
        return OnDisk("other", str(error))
    changed = differences(saved, config, leave_out)
    if changed:
        return OnDisk("other", "; ".join(f"{key} was {before!r}, is {now!r}" for key, (before, now) in changed.items()))
    missing = results.missing(baselines)
    return OnDisk("unfinished" if missing or results.status != "finished" else "finished", ", ".join(missing))


def differences(before: Any, now: Any, leave_out: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """List the settings in which two configs differ.

    Args:
        before: a config.
        now: another.
        leave_out: dotted keys that are not compared, nor any key below them.
    Returns:
        Dotted key, in alphabetical order, to its two values, with interpolations unresolved; None: missing.
    """
    values = compared(before, leave_out), compared(now, leave_out)
    return {
        key: (values[0].get(key), values[1].get(key))
        for key in sorted(values[0].keys() | values[1].keys())
        if values[0].get(key) != values[1].get(key)
    }


def identity(config: Any, leave_out: Sequence[str]) -> str:
    """Write a config as text; two configs have the same text if and only if they have no `differences`."""
    present = {key: value for key, value in compared(config, leave_out).items() if value is not None}
    return json.dumps(present, sort_keys=True, default=str)


def compared(config: Any, leave_out: Sequence[str]) -> dict[str, Any]:
    """Map a config's dotted keys to their values, those that it lacks as `ADDED`; arguments as of `differences`."""
    return {key: value for key, value in (ADDED | flat(config)).items() if not is_under(key, leave_out)}


def lacking(config: Any) -> dict[str, Any]:
    """Return the settings that an earlier release's config lacks, with the values that reproduce that release."""
    present = flat(config)
    return {key: value for key, value in ADDED.items() if key not in present}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Map dotted keys to values, with interpolations unresolved."""
    container = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if not isinstance(container, dict):
        return {prefix: container}
    leaves: dict[str, Any] = {}
    for key, value in container.items():
        leaves |= flat(value, prefix + "." + str(key) if prefix else str(key))
    return leaves
