"""The `msh` command."""

from __future__ import annotations

import sys
from pathlib import Path

COMMANDS = {
    "train": "train a curriculum: msh train +experiment=sequential",
    "evaluate": "measure a run's tasks again: msh evaluate run=RUN_DIR",
}


def main() -> None:
    """Run a subcommand with the rest of the arguments."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: msh COMMAND [ARGUMENTS]; `msh COMMAND --help` tells more\n")
        print("\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items()))
        return
    command = arguments[0]
    if command not in COMMANDS:
        from msh.names import suggestion

        print(f"error: msh has no command {command!r}{suggestion(command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    # Processes that Lightning starts for further devices run `sys.argv` again: let it name the command's own file.
    sys.argv = [str(Path(__file__).with_name(f"{command}.py")), *arguments[1:]]
    if command == "train":
        from msh.cli.train import main as run
    else:
        from msh.cli.evaluate import main as run
    run()


if __name__ == "__main__":
    main()
