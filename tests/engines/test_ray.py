"""Multiruns on a Ray cluster of this machine: jobs whose worker is killed resume, and end as undisturbed ones."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from disturbing import args, assert_same_end, kill_worker
from running import SMALL, finish, run, start

pytest.importorskip("ray", reason="needs Ray: `make test-engines` installs it")
pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs hydra-ray-launcher: `make test-engines`")

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for the address that other machines see
SWEEP = ["-m", *args("run")[:-1], "seed=1,2", "hydra.sweep.dir=jobs", "hydra.sweep.subdir=${seed}"]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster with two CPUs, which `address=auto` finds; every process of it ends."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path: sockets are in it
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    settings = [f"--node-ip-address={LOOPBACK}", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2"]
    settings += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_ADDRESS", f"{LOOPBACK}:{port}")
        with open(Path(folder) / "head.log", "w") as log:
            head = subprocess.Popen(ray, stdout=log, stderr=log, env=os.environ | {"PYTHONWARNINGS": "ignore"})
        try:
            wait_until_up(head, Path(folder) / "head.log")
            yield folder
        finally:
            head.terminate()
            head.wait(60)
            deadline = time.monotonic() + 30
            while (left := processes_of(folder)) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not left
            shutil.rmtree(folder)


def wait_until_up(head, log):
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def processes_of(folder):
    """Pids of the processes that have the cluster's folder in their environment, besides this one."""
    pids = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            has = f"RAY_TMPDIR={folder}\0".encode() in environment.read_bytes()
        except OSError:  # it has ended
            continue
        if has and int(environment.parts[2]) != os.getpid():
            pids.append(int(environment.parts[2]))
    return pids


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The jobs' folder of the same sweep, one job after another in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run("train.py", *SWEEP, cwd=folder)
    return folder / "jobs"


def test_jobs_on_a_cluster_end_as_in_one_process_and_are_skipped_once_finished(undisturbed, tmp_path):
    printed = run("train.py", *SWEEP, "hydra/launcher=ray_cluster", cwd=tmp_path)
    assert "Connecting to existing Ray cluster" in printed
    for seed in "12":
        assert_same_end(tmp_path / "jobs" / seed, undisturbed / seed)
    kept = {path: path.stat().st_mtime_ns for seed in "12" for path in (tmp_path / "jobs" / seed).rglob("*")}
    printed = run("train.py", *SWEEP, "hydra/launcher=ray_cluster", "skip_finished=true", cwd=tmp_path)
    assert "is launching" not in printed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("retries", "said"),
    [(3, "retries remaining"), (0, "was cut off, and is launched again")],
    ids=["by Ray", "by the sweep"],
)
def test_a_job_whose_worker_is_killed_in_training_is_repeated_and_ends_as_undisturbed(
    retries, said, undisturbed, tmp_path
):
    launcher = ["hydra/launcher=ray_cluster", f"+hydra.launcher.ray.remote.max_retries={retries}"]
    process = start("train.py", *SWEEP, *launcher, cwd=tmp_path)
    kill_worker(process, tmp_path / "jobs" / "1")
    code, printed = finish(process)
    assert code == 0, printed
    assert said in printed
    assert "resuming from" in printed
    for seed in "12":
        assert_same_end(tmp_path / "jobs" / seed, undisturbed / seed)
        assert not (tmp_path / "jobs" / seed / "unfinished.txt").exists()


def test_a_fleet_on_ray_gives_the_bytes_of_one_process(tmp_path):
    planned = ["+experiment=sequential", *SMALL, "tasks=[digits,wine,iris]", "pruning=at_init", "logger=none"]
    planned.append("trainer.max_epochs=6")
    msh = [sys.executable, "-m", "msh.cli.app"]
    subprocess.run([*msh, "plan", *planned, "-o", "plan"], check=True, cwd=tmp_path)
    run("train.py", *planned, "plan=plan", "hydra.run.dir=whole", cwd=tmp_path)
    fleet = [*msh, "fleet", "plan", "hydra/launcher=ray_cluster", "hydra.sweep.dir=fleet"]
    done = subprocess.run(fleet, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 tasks finished" in done.stdout
    whole = (tmp_path / "whole" / "network.safetensors").read_bytes()
    assert (tmp_path / "fleet" / "network.safetensors").read_bytes() == whole
