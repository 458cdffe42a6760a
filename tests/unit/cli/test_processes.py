"""Processes that others have started: which of them this is, and whether they share a folder."""

import sys

import pytest

from msh.cli.processes import place_among_processes, share_folder

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


def arguments_after(monkeypatch, *arguments, rank="1"):
    for name, value in (TORCHRUN | {"RANK": rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    share_folder()
    return sys.argv[1:]


def test_only_the_first_process_writes_the_config(monkeypatch):
    assert arguments_after(monkeypatch, "hydra.run.dir=x", rank="0") == ["hydra.run.dir=x"]
    assert arguments_after(monkeypatch, "hydra.run.dir=x") == ["hydra.run.dir=x", "hydra.output_subdir=null"]
    assert arguments_after(monkeypatch, "resume=x") == ["resume=x", "hydra.output_subdir=null"]


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["resume=auto"]])
def test_processes_without_a_common_folder_are_refused(arguments, monkeypatch):
    with pytest.raises(ValueError, match=r"4 processes need one run folder: hydra\.run\.dir=DIR"):
        arguments_after(monkeypatch, *arguments)
