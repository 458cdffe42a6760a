"""Runs, job arrays, requeues and sweeps under a real SLURM of one node."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from disturbing import assert_same_end
from running import ROOT, SMALL, finish, start
from slurm import Cluster, missing, wait_until

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed, or not all of it: {', '.join(missing())}"),
]
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None, reason="msh[slurm] is not installed"
)

SECONDS = 500
"""Longest wait for anything: the node claims more processors than there may be."""
TRAIN = [sys.executable, str(ROOT / "train.py"), "+experiment=sequential"]
SETTINGS = [*SMALL, "tasks=[wine,iris]", "logger=csv", "checkpoint.min_seconds=0", "trainer.max_epochs=30"]
TWO = ["trainer=multi_node", *(setting for setting in SETTINGS if not setting.startswith("trainer.accelerator"))]
TWO += ["trainer.accelerator=cpu", "trainer.max_epochs=8"]


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="msh-slurm-"))  # pytest's own path is too long for a socket
    running = Cluster(folder, cpus=8)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Run folder of a run outside SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(*TRAIN[2:], *SETTINGS, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


def run(*words, cwd):
    """Run train.py outside SLURM, to its end."""
    code, out = finish(start("train.py", *words, cwd=cwd), SECONDS)
    assert code == 0, out


def line(*words):
    return shlex.join(map(str, words))


def printed(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("out-*.txt")))


def status(folder):
    """The status in results.json; "" while there is none."""
    path = folder / "results.json"
    return json.loads(path.read_text())["status"] if path.exists() else ""


def trains(folder):
    """Whether a run has a checkpoint of the fit under way."""
    return any(folder.glob("checkpoints/*/epoch-*.*.ckpt"))


def epochs(folder):
    """Rows that the run has logged."""
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


def go_back(cluster, job, command, restarts, folder):
    """Send a job back into the queue while its run trains; the run stops, and the job starts again."""
    before = epochs(folder)
    wait_until(lambda: trains(folder) and epochs(folder) > before, SECONDS, lambda: printed(folder.parent))
    cluster.run(*command, job)
    wait_until(lambda: cluster.show(job)["Restarts"] == restarts, SECONDS, lambda: printed(folder.parent))
    wait_until(lambda: cluster.state(job) == "PENDING", SECONDS, lambda: printed(folder.parent))
    assert status(folder) == "stopped"
    # Not in this second: the node refuses a job whose credential is as old as the one it has revoked.
    cluster.run("scontrol", "update", f"job={job}", "StartTime=now+3")


def test_a_job_ends_as_outside_slurm_without_a_word_about_srun(cluster, undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = cluster.submit(tmp_path, line(*TRAIN, *SETTINGS, f"hydra.run.dir={folder}"))
    assert cluster.wait(job) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert "srun" not in printed(tmp_path)
    assert_same_end(folder, undisturbed)


@pytest.mark.parametrize("by_srun", [True, False])
def test_a_cancelled_run_stops_with_its_checkpoint(by_srun, cluster, undisturbed, tmp_path):
    folder = tmp_path / "run"
    words = [*(["srun"] if by_srun else []), *TRAIN, *SETTINGS, f"hydra.run.dir={folder}"]
    job = cluster.submit(tmp_path, line(*words))
    wait_until(lambda: trains(folder), SECONDS, lambda: printed(tmp_path))
    cluster.run("scancel", job)
    assert cluster.wait(job)[0] == "CANCELLED"
    wait_until(lambda: status(folder) == "stopped", SECONDS, lambda: printed(tmp_path))
    assert f"stopped by SIGTERM: resume={folder} continues the run" in printed(tmp_path)
    run(f"resume={folder}", cwd=tmp_path)
    assert_same_end(folder, undisturbed)


def test_a_run_requeued_twice_by_its_signal_ends_bitwise_equal(cluster, undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = cluster.submit(tmp_path, line("srun", *TRAIN, *SETTINGS, f"hydra.run.dir={folder}", "resume=auto"))
    for restarts in ("1", "2"):
        go_back(cluster, job, ["scancel", "--signal=USR1"], restarts, folder)
    assert cluster.wait(job) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert "resume=" not in printed(tmp_path).replace("resume=auto", "")
    assert_same_end(folder, undisturbed)


def test_a_run_that_slurm_itself_requeues_continues(cluster, undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = cluster.submit(tmp_path, line("srun", *TRAIN, *SETTINGS, f"hydra.run.dir={folder}", "resume=auto"))
    go_back(cluster, job, ["scontrol", "requeue"], "1", folder)
    assert "stopped by SIGTERM: the job is back in the queue" in printed(tmp_path)
    assert cluster.wait(job) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert_same_end(folder, undisturbed)


def test_a_job_array_trains_the_tasks_of_a_plan(cluster, tmp_path):
    planned = ["+experiment=sequential", *SETTINGS, "pruning=at_init", "trainer.max_epochs=3"]
    msh = [sys.executable, "-m", "msh.cli.app"]
    plan, whole, merged = tmp_path / "plan.safetensors", tmp_path / "whole", tmp_path / "merged.safetensors"
    subprocess.run([*msh, "plan", *planned, "-o", plan], check=True, cwd=tmp_path, env=cluster.environment)
    words = line(*TRAIN[:2], *planned, f"plan={plan}")
    job = cluster.submit(
        tmp_path,
        "tasks=(wine iris)",
        "task=${tasks[$SLURM_ARRAY_TASK_ID]}",
        f"{words} task=$task hydra.run.dir={tmp_path}/jobs/$task resume=auto",
        options=["--array=0-1"],
    )
    run(*planned, f"plan={plan}", f"hydra.run.dir={whole}", cwd=tmp_path)
    for number in ("0", "1"):
        assert cluster.wait(f"{job}_{number}") == ("COMPLETED", "0:0"), printed(tmp_path)
    files = [str(path) for path in sorted(tmp_path.glob("jobs/*/subnetworks/*.safetensors"))]
    subprocess.run([*msh, "merge", plan, *files, "-o", merged], check=True, cwd=tmp_path, env=cluster.environment)
    assert merged.read_bytes() == (whole / "network.safetensors").read_bytes()


def test_two_ranks_share_a_run_and_go_back_into_the_queue_together(cluster, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    options = ["--ntasks-per-node=2"]
    first = cluster.submit(tmp_path, line("srun", *TRAIN, *TWO, f"hydra.run.dir={whole}"), options=options)
    job = cluster.submit(
        tmp_path, line("srun", *TRAIN, *TWO, f"hydra.run.dir={folder}", "resume=auto"), options=options
    )
    go_back(cluster, job, ["scancel", "--signal=USR1"], "1", folder)
    assert cluster.wait(job) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert cluster.wait(first) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert_same_end(folder, whole)


@pytest.mark.parametrize(
    ("options", "by", "message"),
    [
        (["--ntasks-per-node=2"], [], "started without srun"),
        (["--ntasks=2"], ["srun"], "write --ntasks-per-node=2 instead"),
        (["--ntasks-per-node=2", "--job-name=bash"], ["srun"], "give the step another name: srun --job-name=msh"),
    ],
)
def test_a_start_that_would_hang_is_refused_before_anything_is_made(options, by, message, cluster, tmp_path):
    job = cluster.submit(tmp_path, line(*by, *TRAIN, *TWO, "hydra.run.dir=run"), options=options)
    assert cluster.wait(job)[0] == "FAILED"
    assert message in printed(tmp_path)
    assert not (tmp_path / "run").exists()


def test_one_step_of_a_wide_job_trains_and_evaluates_alone(cluster, undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = cluster.submit(
        tmp_path,
        line("srun", "-n1", *TRAIN, *SETTINGS, f"hydra.run.dir={folder}"),
        line(sys.executable, ROOT / "evaluate.py", f"run={folder}"),
        options=["--ntasks-per-node=2"],
    )
    assert cluster.wait(job) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert (folder / "evaluation.json").is_file()
    assert_same_end(folder, undisturbed)


def test_eight_ranks_on_one_node_train_together(cluster, tmp_path):
    folder = tmp_path / "run"
    settings = [*TWO, "tasks=[wine]", "trainer.max_epochs=3", "tasks.wine.batch_size=16"]
    words = line("srun", *TRAIN, *settings, f"hydra.run.dir={folder}")
    job = cluster.submit(tmp_path, words, options=["--ntasks-per-node=8"])
    assert cluster.wait(job) == ("COMPLETED", "0:0"), printed(tmp_path)
    assert printed(tmp_path).count("run folder:") == 1
    results = json.loads((folder / "results.json").read_text())
    assert (results["status"], results["guarantee"]) == ("finished", {"checked": 0, "violations": 0})


def start_sweep(cluster, folder, *extra):
    words = [*TRAIN, "-m", *SETTINGS, "seed=0,1", f"hydra.sweep.dir={folder}", "hydra/launcher=submitit_slurm"]
    words += ["hydra.launcher.timeout_min=60", "hydra.launcher.cpus_per_task=1", *extra]
    return subprocess.Popen(
        words, cwd=folder.parent, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def array_of(cluster, folder):
    """Wait for a sweep's jobs; returns the array's number."""
    wait_until(lambda: list(folder.glob(".submitit/*_0")), SECONDS)
    (first,) = folder.glob(".submitit/*_0")
    return first.name.partition("_")[0]


@needs_submitit
def test_a_sweep_waits_for_a_requeued_job_which_resumes_itself(cluster, undisturbed, tmp_path):
    folder = tmp_path / "sweep"
    process = start_sweep(cluster, folder)
    job = f"{array_of(cluster, folder)}_0"
    go_back(cluster, job, ["scancel", "--signal=USR2"], "1", folder / "0")
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out
    assert_same_end(folder / "0", undisturbed)
    assert status(folder / "1") == "finished"


@needs_submitit
def test_a_cancelled_job_of_a_sweep_leaves_the_others(cluster, undisturbed, tmp_path):
    folder = tmp_path / "sweep"
    process = start_sweep(cluster, folder)
    job = f"{array_of(cluster, folder)}_0"
    wait_until(lambda: trains(folder / "0"), SECONDS, cluster.logs)
    cluster.run("scancel", job)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "1 of 2 jobs failed: 0;" in out
    assert (status(folder / "0"), status(folder / "1")) == ("stopped", "finished")
    again = start_sweep(cluster, folder, "skip_finished=true")
    out, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, out
    assert_same_end(folder / "0", undisturbed)


@needs_submitit
def test_a_fleet_with_a_cancelled_job_is_continued_by_the_same_command_to_the_bytes_of_one_process(cluster, tmp_path):
    planned = ["+experiment=sequential", *SETTINGS, "pruning=at_init", "logger=none"]
    msh = [sys.executable, "-m", "msh.cli.app"]
    plan, folder, whole = tmp_path / "plan", tmp_path / "fleet", tmp_path / "whole"
    subprocess.run([*msh, "plan", *planned, "-o", plan], check=True, cwd=tmp_path, env=cluster.environment)
    run(*planned, f"plan={plan}", f"hydra.run.dir={whole}", cwd=tmp_path)
    fleet = [*msh, "fleet", plan, "--launcher", "slurm", f"hydra.sweep.dir={folder}"]
    fleet += ["hydra.launcher.timeout_min=60", "hydra.launcher.cpus_per_task=1"]
    started = {"cwd": tmp_path, "env": cluster.environment, "text": True}
    process = subprocess.Popen(fleet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **started)
    job = f"{array_of(cluster, folder)}_0"
    wait_until(lambda: trains(folder / "wine"), SECONDS, cluster.logs)
    cluster.run("scancel", job)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, out
    assert "1 of 2 tasks finished" in out
    assert "the same command continues: msh fleet" in out
    assert (status(folder / "wine"), status(folder / "iris")) == ("stopped", "finished")
    done = subprocess.run(fleet, capture_output=True, timeout=SECONDS, **started)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 tasks finished" in done.stdout
    assert (folder / "network.safetensors").read_bytes() == (whole / "network.safetensors").read_bytes()
