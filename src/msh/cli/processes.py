"""Processes that torchrun or srun have started: one run, one run folder."""

from __future__ import annotations

import os
import sys

from msh.cli.resume import by_key


def place_among_processes() -> tuple[int, int]:
    """(this process's rank, number of processes), as torchrun or srun say; (0, 1) if neither has started it.

    Processes that Lightning starts by itself are not counted: it tells them their folder.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") not in (None, "bash", "interactive") and "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_NTASKS", "1"))
    return 0, 1


def share_folder() -> None:
    """See that all processes work in one run folder, and that only the first writes the config into it.

    Raises:
        ValueError: the command does not name the folder: each process would take one named after its own clock.
    """
    rank, processes = place_among_processes()
    if processes == 1:
        return
    given = by_key(sys.argv[1:])
    resumed = given.get("resume", "resume=null").split("=", 1)[1]
    if "hydra.run.dir" not in given and resumed in ("null", "", "auto"):
        raise ValueError(f"hydra.run.dir is not given: {processes} processes need one run folder: hydra.run.dir=DIR")
    if rank > 0:
        sys.argv += ["hydra.output_subdir=null"]
