"""`msh release`: take a task out of a network file; its weights become free, and their values are gone."""

from __future__ import annotations

import argparse
from pathlib import Path

from msh.cli.errors import user_errors


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh release", description=__doc__)
    parser.add_argument("network", type=Path, metavar="NETWORK", help="network file")
    parser.add_argument("task", metavar="TASK", help="name of the task")
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="NETWORK", help="the file that is written")
    given = parser.parse_args()
    with user_errors():
        from msh.files.merging import release_task

        release_task(given.network, given.task, given.out)
        print(f"written: {given.out}")


if __name__ == "__main__":
    main()
