"""`msh sweep`: show what the jobs of a sweep have come to so far, and write its files again."""

from __future__ import annotations

import argparse
from pathlib import Path

from msh.cli.errors import user_errors


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh sweep", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="SWEEP_DIR", help="folder that has the jobs' run folders in it")
    given = parser.parse_args()
    with user_errors():
        from msh.cli.sweeper import summarize

        summarize(given.folder)


if __name__ == "__main__":
    main()
