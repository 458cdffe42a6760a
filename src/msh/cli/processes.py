"""Find out which of several processes this is, when torchrun or srun started them: one run, one run folder."""

from __future__ import annotations

import os


def place_among_processes() -> tuple[int, int]:
    """Return (rank of this process, number of processes) from torchrun or srun; (0, 1) if neither started it.

    Processes that Lightning starts are not counted: it passes them their folder.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") not in (None, "bash", "interactive") and "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_NTASKS", "1"))
    return 0, 1


def check_shared_folder(overrides: dict[str, str]) -> None:
    """Check that all processes work in one run folder.

    Args:
        overrides: of the command line, value by key.
    Raises:
        ValueError: the command does not name the folder: each process would take one named after its own clock.
    """
    _, processes = place_among_processes()
    if processes > 1 and "hydra.run.dir" not in overrides and overrides.get("resume", "") in ("null", "", "auto"):
        raise ValueError(f"hydra.run.dir is not given: {processes} processes need one run folder: hydra.run.dir=DIR")
