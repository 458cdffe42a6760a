"""`msh dashboard`: make a W&B workspace for the runs of a project."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msh.cli.errors import user_errors


def main() -> None:
    """Run the command with the process's arguments."""
    parser = argparse.ArgumentParser("msh dashboard", description=__doc__)
    parser.add_argument("--entity", help="W&B user or team")
    parser.add_argument("--project", help="W&B project; runs log to `msh` unless logger.wandb.project says otherwise")
    parser.add_argument("--name", default="msh", help="of the workspace")
    parser.add_argument(
        "--update", metavar="URL", help="workspace to put the panels into; without it, a new one is made"
    )
    parser.add_argument("--dry-run", action="store_true", help="write its JSON, and connect to nothing")
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help="where --dry-run writes; the screen without")
    given = parser.parse_args()
    with user_errors():
        from msh.tracking.dashboard import build_workspace, save_workspace, spec

        for key in ("entity", "project"):
            if not getattr(given, key):
                raise ValueError(f"which {key}? give --{key} NAME; W&B shows both in a run's address: ENTITY/PROJECT")
        workspace = build_workspace(given.entity, given.project, given.name)
        if not given.dry_run:
            print(f"saved: {save_workspace(workspace, given.update)}")
            return
        text = json.dumps(spec(workspace), indent=1)
        if given.out is None:
            print(text)
        else:
            given.out.write_text(text + "\n")
            print(f"written: {given.out}")


if __name__ == "__main__":
    main()
