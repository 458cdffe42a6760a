"""The `msh` command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "train": "train a curriculum: msh train +experiment=sequential",
    "evaluate": "measure a run's tasks again: msh evaluate run=RUN_DIR",
    "sweep": "show what the jobs of a sweep have come to: msh sweep SWEEP_DIR",
    "plan": "say which task will own which weight: msh plan +experiment=sequential pruning=at_init -o PLAN",
    "merge": "put tasks that were trained apart into one network: msh merge PLAN FILES... -o NETWORK",
    "release": "take a task out of a network, and free its weights: msh release NETWORK TASK -o NETWORK",
    "inspect": "show what a run folder or a file holds, in the terminal: msh inspect RUN_DIR|FILE",
    "report": "make a run's report, or compare runs: msh report RUN_DIR [RUN_DIR ...]",
    "dashboard": "make a W&B workspace with the panels of msh: msh dashboard --entity E --project P",
    "split": "copy a task of a network into a file of its own: msh split NETWORK TASK -o FILE",
}
MODULES = {"inspect": "inspecting"}
"""A command's module where it is not named for it: beside scripts, inspect.py would hide Python's own."""


def main() -> None:
    """Run a subcommand with the rest of the arguments."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: msh COMMAND [ARGUMENTS]; `msh COMMAND --help` tells more\n")
        print("\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items()))
        return
    command = arguments[0]
    if command not in COMMANDS:
        from msh.errors import suggestion

        print(f"error: msh has no command {command!r}{suggestion(command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    # Processes that Lightning starts for further devices run `sys.argv` again: let it name the command's own file.
    module = MODULES.get(command, command)
    sys.argv = [str(Path(__file__).with_name(f"{module}.py")), *arguments[1:]]
    importlib.import_module(f"msh.cli.{module}").main()


if __name__ == "__main__":
    main()
