"""Make a W&B workspace for the runs of a project."""

from __future__ import annotations

import json
from argparse import Namespace

from msh.files.atomic import write_text
from msh.tracking.dashboard import build_workspace, save_workspace, spec


def dashboard(given: Namespace) -> None:
    """Save the workspace, or write its JSON.

    Args:
        given: arguments of `msh dashboard`.
    Raises:
        ValueError: entity or project is missing.
    """
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
        write_text(given.out, text + "\n")
        print(f"written: {given.out}")
