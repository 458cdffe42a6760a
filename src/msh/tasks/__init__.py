"""Tasks: load, split, scale and batch data; the loss and the metric of each."""

from msh.tasks.build import RawData, build_task
from msh.tasks.task import METRICS, Split, Task

__all__ = ["METRICS", "RawData", "Split", "Task", "build_task"]
