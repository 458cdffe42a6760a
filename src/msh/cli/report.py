"""Write a run's report.html, or a page that compares several runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMPARISON = "comparison.html"


def report(folders: Sequence[Path], out: Path | None) -> None:
    """Write the page, and say on stderr which runs, or parts of them, are missing.

    Args:
        folders: run folders; of several, those without a run are left out.
        out: the page; None: in the run folder, or `COMPARISON` here.
    Raises:
        FileNotFoundError: no folder has a run.
        LaterVersionError: a run is of a later release.
    """
    if len(folders) == 1:
        from msh.report.pages import REPORT
        from msh.report.run_page import write_report

        out = out or folders[0] / REPORT
        runs = [write_report(folders[0], out)]
    else:
        from msh.report.comparison import write_comparison
        from msh.runs.facts import read_run

        out = out or Path(COMPARISON)
        runs = []
        for folder in folders:
            try:
                runs.append(read_run(folder, tensors=False))
            except FileNotFoundError as error:
                print(f"left out: {error}", file=sys.stderr)
        if not runs:
            raise FileNotFoundError(f"none of the {len(folders)} folders has a run")
        write_comparison(runs, settings_of([run.config for run in runs]), out)
    for run in runs:
        for note in run.notes:
            print(f"{run.folder}: {note}", file=sys.stderr)
    print(f"written: {out}")


def settings_of(configs: Sequence[Any]) -> dict[str, list[Any]]:
    """Find the settings in which configs differ.

    Args:
        configs: None where one is not known.
    Returns:
        Dotted key to its value in each config; None where it is not there.
    """
    from msh.training.settings import compared

    values = [None if config is None else compared(config, ()) for config in configs]
    known = [value for value in values if value is not None]
    keys = sorted({key for value in known for key in value})
    keys = [key for key in keys if any(value.get(key) != known[0].get(key) for value in known)]
    return {key: [None if value is None else value.get(key) for value in values] for key in keys}
