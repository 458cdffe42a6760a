"""`msh split`: copy a task of a network file into a file of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from msh.cli.errors import user_errors


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh split", description=__doc__)
    parser.add_argument("network", type=Path, metavar="NETWORK", help="network file")
    parser.add_argument("task", metavar="TASK", help="name of the task")
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="FILE", help="the file that is written")
    given = parser.parse_args()
    with user_errors():
        from msh.files.merging import split_task

        split_task(given.network, given.task, given.out)
        print(f"written: {given.out}")


if __name__ == "__main__":
    main()
