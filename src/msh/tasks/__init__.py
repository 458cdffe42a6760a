"""Tasks: where data comes from, how it is split and batched, what is minimised and measured."""

from msh.tasks.build import RawData, build_task
from msh.tasks.task import METRICS, Split, Task

__all__ = ["METRICS", "RawData", "Split", "Task", "build_task"]
