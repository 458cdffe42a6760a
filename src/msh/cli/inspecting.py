"""`msh inspect`: show what a run folder, or a network, subnetwork or plan file holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from msh.cli.errors import user_errors


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh inspect", description=__doc__)
    parser.add_argument("path", type=Path, metavar="RUN_DIR|FILE", help="run folder; or one of its files, or a plan")
    parser.add_argument("--all", action="store_true", help="show every layer and task, and not neighbours as one")
    parser.add_argument(
        "--parameters",
        action="store_true",
        help="show of each tensor of the backbone whether tasks share it weight by weight (prunable), have their own "
        "(private), or all use the same (shared), and why",
    )
    given = parser.parse_args()
    with user_errors():
        from msh.report.inspection import print_folder_or_file, print_parameters

        if given.parameters:
            print_parameters(given.path)
        else:
            print_folder_or_file(given.path, given.all)


if __name__ == "__main__":
    main()
