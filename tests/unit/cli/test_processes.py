"""Processes that others have started: which of them this is, and whether they share a folder."""

import pytest

from msh.cli.processes import check_shared_folder, place_among_processes

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_JOB_NAME": "train", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),  # set by Lightning itself
        (TORCHRUN, (1, 4)),
        (SRUN, (3, 8)),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, (0, 1)),
    ],
)
def test_the_place_is_that_of_torchrun_or_srun(environment, place, monkeypatch):
    for name in {**TORCHRUN, **SRUN}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place_among_processes() == place


def check(monkeypatch, **overrides):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    check_shared_folder({key.replace("_", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    "overrides", [{"hydra_run_dir": "x"}, {"hydra_run_dir": "x", "resume": "auto"}, {"resume": "x"}]
)
def test_processes_with_a_common_folder_are_accepted(overrides, monkeypatch):
    check(monkeypatch, **overrides)


@pytest.mark.parametrize("overrides", [{}, {"seed": "1"}, {"resume": "auto"}])
def test_processes_without_a_common_folder_are_refused(overrides, monkeypatch):
    with pytest.raises(ValueError, match=r"4 processes need one run folder: hydra\.run\.dir=DIR"):
        check(monkeypatch, **overrides)
