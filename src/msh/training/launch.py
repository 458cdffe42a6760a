"""Find out how this process was started (by torchrun, srun or alone), and refuse starts that cannot work.

Also: put a SLURM job back into the queue, and find out whether it goes there.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from typing import Literal

log = logging.getLogger(__name__)

INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which Lightning ignores SLURM."""


def is_under_torchrun() -> bool:
    """Return true if torchrun started this process, also within SLURM."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_in_slurm_job() -> bool:
    """Return true within a SLURM job, whether or not srun started this process."""
    return "SLURM_JOB_ID" in os.environ


def place_among_processes() -> tuple[int, int]:
    """Return (rank of this process, number of processes) from torchrun or srun; (0, 1) if neither started it.

    Processes that Lightning starts are not counted: it passes them their folder.
    """
    if is_under_torchrun():
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "SLURM_STEP_ID" in os.environ and not _is_interactive():
        return int(os.environ["SLURM_PROCID"]), _slurm_tasks()
    return 0, 1


def check_start() -> None:
    """Check that each task of a SLURM job runs this program, and knows its place.

    Raises:
        ValueError: processes would wait for others that never come, or each would work alone in one folder. The message
            has the line to write.
    """
    tasks = _slurm_tasks()
    if tasks == 1 or is_under_torchrun():
        return
    each = tasks // int(os.environ.get("SLURM_NNODES", "1"))
    command = shlex.join([os.path.basename(sys.executable), *sys.argv])
    command = command if len(command) < 60 else f"{os.path.basename(sys.executable)} {sys.argv[0]} ..."
    srun = f"srun --job-name=msh --ntasks-per-node={each} {command} trainer=multi_node"
    if "SLURM_STEP_ID" not in os.environ:
        if _is_interactive():
            log.warning("one process, where SLURM gives you %d tasks; to use all: %s", tasks, srun)
            return
        raise ValueError(
            f"this SLURM job has {tasks} tasks, and this process was started without srun, which starts one per task: "
            f"write `srun {command}` with trainer=multi_node; or ask for one task: #SBATCH --ntasks=1"
        )
    if _is_interactive():
        name = os.environ["SLURM_JOB_NAME"]
        raise ValueError(
            f"srun started {tasks} processes in a job named {name!r}, where Lightning ignores SLURM and each would "
            f"work alone; give the step another name: {srun}"
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            f"--ntasks={tasks} leaves open how many processes a node gets: write --ntasks-per-node={each} instead "
            "(#SBATCH, or after srun), and --nodes=N for several nodes"
        )


def check_multi_node() -> None:
    """Check that torchrun or srun started this process, as `trainer=multi_node` needs.

    Raises:
        ValueError: neither did.
    """
    if not is_under_torchrun() and not ("SLURM_STEP_ID" in os.environ and not _is_interactive()):
        raise ValueError(
            "trainer=multi_node is for processes that torchrun or srun started, and neither started this one: write "
            f"`torchrun --nproc-per-node=N {sys.argv[0]} ...` or, in a SLURM job, `srun {sys.argv[0]} ...`; on one "
            "machine, trainer=ddp starts its processes itself"
        )


def _slurm_tasks() -> int:
    return int(os.environ.get("SLURM_NTASKS", "1"))


def _is_interactive() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in INTERACTIVE


def slurm_job() -> str | None:
    """Return the id of this SLURM job, as scontrol takes it; None outside SLURM."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue() -> bool:
    """Put this SLURM job back into the queue; return whether it is there."""
    job = slurm_job()
    if job is None:
        return False
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("job %s could not be put back into the queue: %s", job, error)
        return False
    return True


def fate() -> Literal["requeued", "cancelled"] | None:
    """Ask SLURM for the reason of a SIGTERM: it starts the job again, or not; None: SLURM ends no job here."""
    job = slurm_job()
    if job is None:
        return None
    command = ["scontrol", "show", "job", "--oneliner", job]
    try:
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    fields = dict(re.findall(r"(\w+)=(\S*)", shown))
    if int(fields.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return "requeued"
    return "cancelled" if fields.get("JobState") in ("COMPLETING", "CANCELLED") else None
