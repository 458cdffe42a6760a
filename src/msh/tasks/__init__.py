"""Tasks: load, split, scale and batch data; the loss and the metric of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msh import importer

if TYPE_CHECKING:
    from msh.tasks.build import RawData as RawData
    from msh.tasks.build import build_task as build_task
    from msh.tasks.task import METRICS as METRICS
    from msh.tasks.task import Split as Split
    from msh.tasks.task import Task as Task

# metrics take a second and 150 MB, and predicting needs none
__getattr__ = importer(
    __name__,
    {
        "RawData": "msh.tasks.build",
        "build_task": "msh.tasks.build",
        "METRICS": "msh.tasks.task",
        "Split": "msh.tasks.task",
        "Task": "msh.tasks.task",
    },
)
