"""How a process was started, and starts that cannot work."""

import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from toys import make_run

from messages import says
from msh.inference.computing import flushes_denormal
from msh.training.config import TrainerConfig
from msh.training.launch import check_multi_node, check_start, fate, place_among_processes, requeue
from msh.training.machine import set_up_torch
from msh.training.preemption import PREEMPTION, PreemptedError
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
        for name in [*TORCHRUN, *STEP, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"]:
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


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Puts a `scontrol` of these lines on PATH; it notes its arguments in the file that is returned."""

    def put(*lines):
        command = tmp_path / "bin" / "scontrol"
        command.parent.mkdir()
        command.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {tmp_path}/asked', *lines, ""]))
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
        return tmp_path / "asked"

    return put


@pytest.mark.parametrize(
    ("shown", "earlier", "expected"),
    [
        ("JobState=COMPLETING Restarts=1", None, "requeued"),
        ("JobState=COMPLETING Restarts=1", "1", "cancelled"),
        ("JobState=COMPLETING Restarts=2", "1", "requeued"),
        ("JobState=CANCELLED Restarts=0", None, "cancelled"),
        ("JobState=RUNNING Restarts=0", None, None),
    ],
)
def test_slurm_knows_the_fate_of_a_job_that_it_ends(shown, earlier, expected, started, scontrol, monkeypatch):
    started(ONE)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if earlier:
        monkeypatch.setenv("SLURM_RESTART_COUNT", earlier)
    asked = scontrol(f"echo JobId=7 {shown}")
    assert fate() == expected
    assert asked.read_text() == "show job --oneliner 7\n"


def test_outside_slurm_and_without_its_answer_nothing_is_known(started, scontrol):
    started({})
    assert fate() is None
    started(ONE)
    scontrol("exit 1")
    assert fate() is None


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_goes_back_into_the_queue_though_slurm_ends_all_its_processes_at_once(signum, started, scontrol):
    started(ONE | {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"})
    asked = scontrol("kill -TERM $PPID", "kill -TERM $$")
    with PREEMPTION.watched():
        assert PREEMPTION.requeue(signum)
    assert asked.read_text() == "requeue 5_2\n"


def test_a_job_that_slurm_does_not_take_back_is_said_so(started, scontrol, caplog):
    started(ONE)
    scontrol("exit 1")
    assert not requeue()
    assert "job 7 could not be put back" in caplog.text


def test_submitit_puts_its_jobs_back_itself(started, scontrol):
    started(ONE)
    asked, handled = scontrol(), []

    def handler(signum, frame):
        handled.append(signum)
        raise SystemExit(-1)

    usual = signal.signal(signal.SIGUSR2, handler)
    try:
        with pytest.raises(SystemExit, match="-1"), PREEMPTION.watched():
            PREEMPTION.requeue(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is handler
    finally:
        signal.signal(signal.SIGUSR2, usual)
    assert handled == [signal.SIGUSR2]
    assert not asked.exists()


def test_a_later_sigterm_does_not_hide_that_the_job_goes_back_into_the_queue():
    with PREEMPTION.watched():
        PREEMPTION.postponed = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(PreemptedError) as stop:
            PREEMPTION.release()
    assert stop.value.signum == signal.SIGUSR2
    PREEMPTION.received = None


def test_nothing_is_profiled_unless_a_run_asks_for_it(tmp_path):
    trainer = build_trainer(TrainerConfig(accelerator="cpu"), tmp_path, 1)
    with trainer.profiler.profile("outer"), trainer.profiler.profile("inner"):
        pass
    assert trainer.profiler.summary() == ""
    trainer = build_trainer(TrainerConfig(accelerator="cpu", profiler="simple"), tmp_path, 1)
    with trainer.profiler.profile("outer"):
        pass
    assert "outer" in trainer.profiler.summary()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_steps_do_not_search_for_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # Lightning sets it
    set_up_torch(make_run(["a"], flush_denormal=flushes_denormal()))
    searched = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: searched.append(1) or 0)
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight]).step()
    assert not searched


@pytest.mark.parametrize(("threads", "expected"), [(5, 5), (None, 3)])
def test_lightning_chooses_the_threads_of_several_processes_only_where_the_run_does_not(
    threads, expected, tmp_path, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    set_up_torch(make_run(["a"], threads=threads, flush_denormal=flushes_denormal()))
    trainer = build_trainer(TrainerConfig(accelerator="cpu", devices=2, strategy="ddp"), tmp_path, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")  # so that it starts no other process
    assert trainer.strategy.launcher.launch(torch.get_num_threads) == expected


@pytest.mark.parametrize("variable", [None, "7"])
def test_a_job_without_threads_gets_none_of_an_earlier_jobs(variable, monkeypatch):
    torch.set_num_threads(3)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)

    def found_after(threads):
        set_up_torch(make_run(["a"], threads=threads, flush_denormal=flushes_denormal()))
        return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")

    assert found_after(None) == (3, variable)
    assert found_after(2) == (2, "2")
    assert found_after(4) == (4, "4")
    assert found_after(None) == found_after(None) == (3, variable)
    assert found_after(2) == (2, "2")
    torch.set_num_threads(5)  # by the script that starts the runs
    assert found_after(None) == (5, "2")


def test_a_process_leaves_its_group_before_the_interpreter_ends():
    script = """
import atexit
from pathlib import Path
import torch.distributed as dist
from msh.training.config import TrainerConfig
from msh.training.trainers import build_trainer

atexit.register(lambda: print("in a group:", dist.is_initialized()))
build_trainer(TrainerConfig(accelerator="cpu"), Path.cwd(), 1)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print("in a group:", dist.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["in a group: True", "in a group: False"]
