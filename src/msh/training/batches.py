"""Read how many examples a network evaluates at once, with `evaluation.batch_size` or without."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from msh.tasks import Task
from msh.tasks.loaders import MEASURING_BATCH


def check_evaluation(config: DictConfig) -> None:
    """Raise if `evaluation.batch_size` is neither null nor a whole number of at least 1.

    Args:
        config: of a run; one of an earlier release gets the batch size that its scores were measured with.
    Raises:
        ValueError: naming the value.
    """
    if config.get("evaluation") is None:
        with open_dict(config):
            config.evaluation = {"batch_size": MEASURING_BATCH}
    group = config.evaluation
    size = group.get("batch_size") if isinstance(group, DictConfig) else group
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"evaluation.batch_size must be >= 1, got {size!r}")


def evaluation_batch(config: DictConfig, task: Task) -> int:
    """Examples per batch in which a process evaluates a task.

    Args:
        config: of the run.
        task: whose own batch size it is where the config has none.
    """
    size: int | None = config.evaluation.batch_size
    return task.batch_size if size is None else size
