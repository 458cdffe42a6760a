"""`msh report`: make a run's report.html, or a page that compares several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msh.cli.errors import user_errors

if TYPE_CHECKING:
    from msh.runs.facts import RunFacts

COMPARISON = "comparison.html"


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folder, finished or not")
    told = f"the page; RUN_DIR/report.html, of several runs {COMPARISON} here, when not given"
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help=told)
    given = parser.parse_args()
    with user_errors():
        from msh.report.run_page import FILE_NAME, write_report

        if len(given.runs) == 1:
            out = given.out or given.runs[0] / FILE_NAME
            _tell([write_report(given.runs[0], out)])
        else:
            out = given.out or Path(COMPARISON)
            _tell(_compare(given.runs, out))
        print(f"written: {out}")


def _compare(folders: Sequence[Path], out: Path) -> list[RunFacts]:
    from msh.report.comparison import write_comparison
    from msh.runs.facts import read_run

    runs = [read_run(folder) for folder in folders]
    write_comparison(runs, settings_of([run.config for run in runs]), out)
    return runs


def _tell(runs: Sequence[RunFacts]) -> None:
    """Say on stderr what is missing."""
    for run in runs:
        for note in run.notes:
            print(f"{run.folder}: {note}", file=sys.stderr)


def settings_of(configs: Sequence[Any]) -> dict[str, list[Any]]:
    """The settings in which configs differ.

    Args:
        configs: None where one is not known.
    Returns:
        Dotted key to its value in each config; None where it is not there.
    """
    from msh.training.settings import differences

    known = [config for config in configs if config is not None]
    if not known:
        return {}
    changed = [differences(known[0], config, ()) if config is not None else {} for config in configs]
    first = {key: before for found in changed for key, (before, _) in found.items()}
    return {
        key: [
            None if config is None else found[key][1] if key in found else first[key]
            for config, found in zip(configs, changed, strict=True)
        ]
        for key in sorted(first)
    }


if __name__ == "__main__":
    main()
