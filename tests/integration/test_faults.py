"""Kill processes again and again: no run is lost, and each ends as if undisturbed."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from disturbing import SETTINGS, args, assert_same_end, kill_when, kill_worker
from running import SMALL, command, finish, here, run, start
from safetensors.torch import load_file

from msh.cli import app, train

KILLS = 50

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(run folder, seconds from the first results.json to the end) of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start("train.py", *args(folder), cwd=folder.parent)
    began = wait_for(process, folder / "results.json")
    code, printed = finish(process)
    assert code == 0, printed
    return folder, time.monotonic() - began


def wait_for(process, path):
    """Wait until a file exists; return the time."""
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    return time.monotonic()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_any_moment_and_resumed_ends_bitwise_equal(number, undisturbed, tmp_path):
    whole, seconds = undisturbed
    folder = tmp_path / "run"
    process = start("train.py", *args(folder), cwd=tmp_path)
    began = wait_for(process, folder / "results.json")
    moment = random.Random(number).uniform(number, number + 1) / KILLS
    time.sleep(max(0.0, began + moment * seconds - time.monotonic()))
    process.send_signal(signal.SIGKILL)
    finish(process)
    run("train.py", "+experiment=sequential", f"resume={folder}", cwd=tmp_path)
    assert_same_end(folder, whole)
    assert not list(folder.rglob("*.ckpt"))


def test_a_run_killed_while_it_is_resumed_can_be_resumed(undisturbed, tmp_path):
    whole, seconds = undisturbed
    folder, draws = tmp_path / "run", random.Random(0)
    arguments = args(folder)
    for _ in range(5):
        process = start("train.py", *arguments, cwd=tmp_path)
        wait_for(process, folder / "results.json")
        time.sleep(draws.uniform(0.0, seconds))
        process.send_signal(signal.SIGKILL)
        finish(process)
        arguments = ["+experiment=sequential", f"resume={folder}"]
    run("train.py", *arguments, cwd=tmp_path)
    assert_same_end(folder, whole)


@pytest.mark.parametrize("limit", [20_000, 60_000, 100_000])
def test_a_file_that_cannot_be_written_whole_ends_the_run_with_an_error(limit, undisturbed, tmp_path):
    """The limit on the size of files stands for a disk that is full."""
    whole, _ = undisturbed
    folder = tmp_path / "run"
    code, printed = finish(limited(limit, *args(folder), cwd=tmp_path))
    assert code == 1
    assert "File too large" in printed
    assert json.loads((folder / "results.json").read_text())["status"] == "failed"
    assert not list(folder.rglob("*.tmp"))
    run("train.py", "+experiment=sequential", f"resume={folder}", cwd=tmp_path)
    assert_same_end(folder, whole)


def limited(size, *arguments, cwd):
    """train.py in a process that can write no file larger than `size` bytes."""
    return subprocess.Popen(
        command("train.py", *arguments),
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


TWO = ["trainer=ddp_sim", *(setting for setting in SMALL if not setting.startswith("trainer."))]


@pytest.fixture(scope="module")
def undisturbed_two(tmp_path_factory):
    """Run folder of two undisturbed processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run(
        "train.py",
        "+experiment=sequential",
        *SETTINGS,
        *TWO,
        "logger=csv",
        f"hydra.run.dir={folder}",
        cwd=folder.parent,
    )
    return folder


@pytest.mark.parametrize(("rank", "trainer"), [(0, "ddp_sim"), (1, "ddp_sim"), (1, "cpu")])
def test_when_one_of_two_processes_dies_the_other_ends_and_the_run_can_resume(rank, trainer, undisturbed_two, tmp_path):
    folder = tmp_path / "run"
    arguments = ["+experiment=sequential", *SETTINGS, *TWO, "logger=csv", f"hydra.run.dir={folder}"]
    process = start("train.py", *arguments, cwd=tmp_path)
    while not any(folder.glob("checkpoints/*/epoch-*.*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    (child,) = children(process.pid)
    os.kill([process.pid, child][rank], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while process.poll() is None or alive(child):
        assert time.monotonic() < deadline, "the other process goes on without the one that died"
        time.sleep(0.1)
    code, _ = finish(process)
    assert code != 0
    run("train.py", "+experiment=sequential", f"resume={folder}", f"trainer={trainer}", cwd=tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert (results["status"], results["forgetting"], results["guarantee"]["violations"]) == ("finished", 0.0, 0)
    if trainer == "ddp_sim":
        assert_same_end(folder, undisturbed_two)


def test_a_killed_job_ends_no_other_and_only_that_job_is_repeated(tmp_path):
    """First its process is killed once, by chance; then whenever it gets to work, as one that takes too much memory."""
    sweep = ["-m", *args("run")[:-1], "seed=1,2,3", "hydra.sweep.dir=jobs", "hydra.sweep.subdir=${seed}"]
    sweep += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for times, folder in ((1, tmp_path / "once"), (2, tmp_path / "twice")):
        folder.mkdir()
        process, jobs = start("train.py", *sweep, cwd=folder), folder / "jobs"
        killed = [kill_worker(process, jobs / "2") for _ in range(times)]
        assert len(set(killed)) == times
        code, printed = finish(process)
        assert code == (0 if times == 1 else 1), printed
        assert "a process was killed" in printed
        assert [status_of(jobs / seed) for seed in "13"] == ["finished", "finished"]
    assert status_of(jobs / "2") == "running"
    assert "1 of 3 jobs failed: 2" in printed
    kept = {path: path.stat().st_mtime_ns for seed in "13" for path in (jobs / seed).rglob("*")}
    printed = run("train.py", *sweep, "skip_finished=true", cwd=folder)
    assert "is launching 1 jobs" in printed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for seed in "123":
        assert_same_end(jobs / seed, tmp_path / "once" / "jobs" / seed)


def status_of(folder):
    return json.loads((folder / "results.json").read_text())["status"]


def test_a_run_with_one_process_resumes_with_two(tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    one = [setting for setting in args(folder) if setting != "backbone.norm=true"]  # batches' statistics are of a rank
    run("train.py", *one[:-1], f"hydra.run.dir={whole}", cwd=tmp_path)
    process = start("train.py", *one, cwd=tmp_path)
    kill_when(process, lambda: any(folder.glob("checkpoints/stage-000-prune/epoch-*.*.ckpt")))
    run("train.py", "+experiment=sequential", f"resume={folder}", "trainer=ddp_sim", cwd=tmp_path)
    assert status_of(folder) == "finished"
    resumed, expected = (load_file(f / "subnetworks" / "digits.safetensors") for f in (folder, whole))
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-3, atol=1e-4, msg=name)


def children(pid):
    """List the processes that a process has started and that run train.py."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "train.py"], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]


def alive(pid):
    """Return true if a process runs, and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Make a folder with a plan, and a run that trains its tasks in one process."""
    folder = tmp_path_factory.mktemp("planned")
    overrides = ["+experiment=sequential", "tasks=[wine,iris,diabetes]", "pruning=at_init", "logger=none", *SMALL]
    overrides += ["trainer.max_epochs=6", "checkpoint.min_seconds=0"]
    here(app.main, "plan", *overrides, "-o", "plan", cwd=folder)
    here(train.main, *overrides, "plan=plan", "hydra.run.dir=together", cwd=folder)
    return folder


@pytest.mark.parametrize("begun", [0, 1, 3])
def test_a_fleet_killed_with_its_jobs_is_continued_by_the_same_command_to_the_same_bytes(begun, planned, tmp_path):
    fleet = [sys.executable, "-m", "msh.cli.app", "fleet", "plan", "--jobs", "2", f"hydra.sweep.dir={tmp_path}"]
    process = subprocess.Popen(fleet, cwd=planned, start_new_session=True, stdout=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("*/results.json"))) < begun:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    assert process.stdout.readline().startswith("training 3 tasks")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(fleet, cwd=planned, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 tasks finished" in done.stdout
    expected = (planned / "together" / "network.safetensors").read_bytes()
    assert (tmp_path / "network.safetensors").read_bytes() == expected
