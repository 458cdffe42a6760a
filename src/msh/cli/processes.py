"""Check that processes which torchrun or srun started share a run folder."""

from __future__ import annotations

from msh.training.launch import place_among_processes


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
