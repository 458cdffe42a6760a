"""Tasks: load, split, scale and batch data; the loss and the metric of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msh.tasks.build import RawData as RawData
    from msh.tasks.build import build_task as build_task
    from msh.tasks.task import METRICS as METRICS
    from msh.tasks.task import Split as Split
    from msh.tasks.task import Task as Task

BUILD, TASK = ("RawData", "build_task"), ("METRICS", "Split", "Task")


def __getattr__(name: str) -> Any:
    """Import a name when it is used: metrics take a second and 150 MB, and predicting needs none."""
    if name in BUILD:
        from msh.tasks import build

        return getattr(build, name)
    if name in TASK:
        from msh.tasks import task

        return getattr(task, name)
    raise AttributeError(f"module 'msh.tasks' has no attribute {name!r}")
