"""`msh merge`: put tasks that were trained apart into one network file."""

from __future__ import annotations

import argparse
from pathlib import Path

from msh.cli.errors import user_errors
from msh.cli.memory import give_large_blocks_back


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh merge", description=__doc__)
    parser.add_argument("base", type=Path, metavar="PLAN", help="plan file; or a network file that takes the tasks up")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="subnetwork file of a task")
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="NETWORK", help="the network file")
    parser.add_argument("--allow-missing", action="store_true", help="leave out tasks of the plan that no file holds")
    given = parser.parse_args()
    with user_errors():
        from msh.files.merging import merge_files

        give_large_blocks_back()
        print(f"tasks: {', '.join(merge_files(given.base, given.files, given.out, given.allow_missing))}")
        print(f"written: {given.out}")


if __name__ == "__main__":
    main()
