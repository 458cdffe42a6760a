"""How a process was started, and starts that cannot work."""

import logging

import pytest

from messages import says
from msh.training.config import TrainerConfig
from msh.training.launch import check_multi_node, check_start, place_among_processes
from msh.training.trainers import build_trainer, check_devices

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "4"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_NNODES": "2", "SLURM_NTASKS": "8"}
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS_PER_NODE": "4"}
ONE = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
SHELL = {"SLURM_JOB_NAME": "interactive"}


@pytest.fixture
def started(monkeypatch):
    """Sets the environment variables of a start, and no others of its kind."""

    def start(variables):
        for name in {**TORCHRUN, **STEP}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["train.py", "seed=1"])

    return start


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),  # set by Lightning itself
        (TORCHRUN, (1, 4)),
        (STEP, (3, 8)),
        (STEP | TORCHRUN, (1, 4)),
        (BATCH, (0, 1)),
        (STEP | SHELL, (0, 1)),
        (ONE | {"SLURM_STEP_ID": "0"}, (0, 1)),
    ],
)
def test_the_place_is_that_of_torchrun_or_srun(variables, place, started):
    started(variables)
    assert place_among_processes() == place


@pytest.mark.parametrize("variables", [{}, TORCHRUN, STEP, BATCH | TORCHRUN, ONE, ONE | {"SLURM_STEP_ID": "0"}])
def test_starts_that_work_pass_without_a_word(variables, started, caplog):
    started(variables)
    check_start()
    assert not caplog.records


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (BATCH, r"8 tasks.*without srun.*write `srun python\S* train.py seed=1`.*--ntasks=1"),
        (STEP | SHELL, r"'interactive'.*srun --job-name=msh --ntasks-per-node=4 python\S* train.py seed=1"),
        ({k: v for k, v in STEP.items() if k != "SLURM_NTASKS_PER_NODE"}, "--ntasks=8 .*write --ntasks-per-node=4"),
    ],
)
def test_starts_under_slurm_that_would_hang_are_refused(variables, message, started):
    started(variables)
    with pytest.raises(ValueError, match=message):
        check_start()
    with pytest.raises(ValueError, match=message):
        check_devices(TrainerConfig())


def test_one_process_in_an_interactive_job_of_many_tasks_gets_a_hint(started, caplog):
    started(BATCH | SHELL)
    with caplog.at_level(logging.WARNING):
        check_start()
    (record,) = caplog.records
    assert "srun --job-name=msh --ntasks-per-node=4 python" in record.getMessage()


@pytest.mark.parametrize(("variables", "works"), [({}, False), (BATCH, False), (STEP, True), (TORCHRUN, True)])
def test_multi_node_needs_processes_that_others_started(variables, works, started):
    started(variables)
    if works:
        check_multi_node()
    else:
        with pytest.raises(ValueError, match=r"trainer=multi_node.*neither.*torchrun --nproc-per-node=N.*srun"):
            check_multi_node()


@pytest.mark.parametrize("variables", [STEP, TORCHRUN | {"WORLD_SIZE": "8"}])
def test_a_trainer_of_other_devices_than_the_processes_is_refused(variables, started):
    started(variables)
    check_devices(TrainerConfig(devices=4, num_nodes=2, strategy="ddp"))
    with pytest.raises(ValueError, match=says("trainer.devices", value=2)):
        check_devices(TrainerConfig(devices=[0, 1]))


@pytest.mark.parametrize("variables", [BATCH, ONE, STEP | {"SLURM_NTASKS": "1"}])
def test_one_process_in_a_slurm_job_is_no_part_of_a_group(variables, started, tmp_path):
    started(variables)
    assert build_trainer(TrainerConfig(accelerator="cpu"), tmp_path, 1).world_size == 1
