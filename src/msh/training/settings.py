"""What two configs have in common, and whether a run on disk is the one that is wanted."""

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
    """What of a run is on disk: nothing, a run of other settings, part of it, or all.

    Attributes:
        why: what differs, or which baselines are missing.
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
"""Settings in which a run on disk may always differ from the one that is wanted."""


ADDED: dict[str, Any] = {
    "pruning.allow_empty_layers": False,
    "flush_denormal": False,
    "master_weights": True,
    "evaluation.batch_size": 500,
}
"""Settings that configs of earlier releases lack, to what these releases did."""


def on_disk(folder: Path, config: Any, leave_out: Sequence[str], baselines: Sequence[str] = ()) -> OnDisk:
    """What of a run is on disk.

    Args:
        folder: the run folder.
        config: that the run has now, as composed.
        leave_out: as in `differences`.
        baselines: that a finished run has measured.
    """
    if not (folder / FILE_NAME).exists():
        return OnDisk("new")
    try:
        results, saved = Results.load(folder), read_config(folder / ".hydra" / "config.yaml")
    except (ValueError, FileNotFoundError) as error:
        return OnDisk("other", str(error))
    changed = differences(saved, config, leave_out)
    if changed:
        whys = [f"{key} was {before!r}, is {now!r}" for key, (before, now) in changed.items()]
        return OnDisk("other", "; ".join(whys))
    missing = results.missing(baselines)
    return OnDisk("unfinished" if missing or results.status != "finished" else "finished", ", ".join(missing))


def differences(before: Any, now: Any, leave_out: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ.

    Args:
        before: a config.
        now: another.
        leave_out: dotted keys that are not compared, nor what is below them.
    Returns:
        Dotted key, in alphabetical order, to its two values, interpolations as they are written; None: not there.
    """
    values = _compared(before, leave_out), _compared(now, leave_out)
    return {
        key: (values[0].get(key), values[1].get(key))
        for key in sorted(values[0].keys() | values[1].keys())
        if values[0].get(key) != values[1].get(key)
    }


def identity(config: Any, leave_out: Sequence[str]) -> str:
    """A text that two configs share exactly where they have no `differences`."""
    present = {key: value for key, value in _compared(config, leave_out).items() if value is not None}
    return json.dumps(present, sort_keys=True, default=str)


def _compared(config: Any, leave_out: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in (ADDED | _flat(config)).items() if not is_under(key, leave_out)}


def lacking(config: Any) -> dict[str, Any]:
    """The settings that the config of a run of an earlier release lacks, with what that release did."""
    present = _flat(config)
    return {key: value for key, value in ADDED.items() if key not in present}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key to value; interpolations as they are written."""
    container = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if not isinstance(container, dict):
        return {prefix: container}
    flat: dict[str, Any] = {}
    for key, value in container.items():
        flat |= _flat(value, prefix + "." + str(key) if prefix else str(key))
    return flat
