"""Keep a sweep under submitit together: a job that is lost leaves the results of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

NAME = "TolerantJob"


def is_submitit(launcher: Any) -> bool:
    """Return true if Hydra's launcher hands jobs to submitit: they outlive this process."""
    return type(launcher).__module__.startswith("hydra_plugins.hydra_submitit_launcher")


def tolerate_lost_jobs(launcher: Any) -> None:
    """Let a job that ended without a result count as None: the launcher would raise, and forget the other jobs.

    Args:
        launcher: Hydra's; others than submitit's stay as they are.
    """
    if not is_submitit(launcher):
        return
    from submitit.local.local import LocalExecutor
    from submitit.slurm.slurm import SlurmExecutor

    executors: list[Any] = [LocalExecutor, SlurmExecutor]
    for executor in executors:
        usual = executor.job_class
        if usual.__name__ != NAME:
            executor.job_class = type(NAME, (usual,), {"results": _tolerant(usual.results)})


def _tolerant(wait: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    from submitit.core.utils import UncompletedJobError

    def results(job: Any) -> list[Any]:
        """Wait for the job, also while it is in the queue again."""
        try:
            return wait(job)
        except UncompletedJobError as error:
            log.error("job %s was lost: %s", job.job_id, str(error).splitlines()[0])
            return [None]

    return results
