"""A run that is killed and resumed ends as one that was not: bitwise the same weights, the same scores."""

import errno
import json
import os
import shutil
import signal
import time

import pytest
import torch
import wandb
from disturbing import args, assert_same_end, kill_when
from forking import run, start
from running import SMALL, few_steps, finish, here
from wandb_file import assert_wandb_has_the_csv

from msh.cli import evaluate, train
from msh.files.state_file import read_state
from msh.training import run as training
from msh.training.callbacks.checkpoint import EpochCheckpoint


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run("train.py", *args(folder), cwd=folder.parent)
    return folder


WINE = ["tasks=[wine]", *few_steps("wine")]
MOMENTS = {
    "pruning of the first task": lambda f: any((f / "checkpoints/stage-000-prune").glob("epoch-00003.*.ckpt")),
    # or after it: a machine with other work may pass over so short a fit
    "training of the first task": lambda f: (
        any((f / "checkpoints").glob("stage-000-train/epoch-*.*.ckpt"))
        or any((f / "checkpoints").glob("after-0001.*.safetensors"))
    ),
    "start of a stage of two tasks": lambda f: any((f / "checkpoints").glob("after-0001.*.safetensors")),
    "one of two tasks has stopped": lambda f: any((f / "checkpoints/stage-001-train").glob("epoch-00001.*.ckpt")),
}


ALSO_SIGNALLED = {"pruning of the first task", "one of two tasks has stopped"}
"""Moments at which a test below sends a signal: killing there too is slow."""


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=pytest.mark.slow if m in ALSO_SIGNALLED else ()) for m in MOMENTS]
)
def test_killed_run_ends_like_an_undisturbed_one(moment, undisturbed, tmp_path):
    folder = tmp_path / "run"
    kill_when(start("train.py", *args(folder), cwd=tmp_path), lambda: MOMENTS[moment](folder))
    assert json.loads((folder / "results.json").read_text())["status"] == "running"
    run("train.py", "+experiment=sequential", f"resume={folder}", cwd=tmp_path)
    assert_same_end(folder, undisturbed)


def test_auto_finds_the_unfinished_run_and_a_torn_checkpoint_is_passed_over(undisturbed, tmp_path):
    wandb.setup()  # the runs inherit this process's service, which keeps those that are killed
    folder = tmp_path / "outputs" / "sequential" / "2026-01-01_00-00-00"
    checkpoints = folder / "checkpoints" / "stage-000-prune"
    process = start("train.py", *args(folder, "default"), cwd=tmp_path)
    kill_when(process, lambda: len(list(checkpoints.glob("epoch-*.*.ckpt"))) == 2)
    newest = max(checkpoints.glob("epoch-*.*.ckpt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    shutil.copytree(undisturbed, folder.with_name("2026-01-02_00-00-00"))  # newer, but finished
    printed = run("train.py", "+experiment=sequential", "resume=auto", cwd=tmp_path)
    assert f"{newest.name} cannot be read" in printed
    assert "falling back to the one before" in printed
    assert_same_end(folder, undisturbed)
    run_id = json.loads((folder / "results.json").read_text())["run_id"]
    parts = sorted((folder / "wandb").glob("*offline-run-*/*.wandb"))
    assert len(parts) == 2, printed  # before the kill and after it
    assert {part.name for part in parts} == {f"run-{run_id}.wandb"}
    assert_wandb_has_the_csv(folder)


@pytest.mark.parametrize(
    ("moment", "signum"),
    [("pruning of the first task", signal.SIGTERM), ("one of two tasks has stopped", signal.SIGINT)],
)
def test_a_run_that_receives_a_signal_saves_and_is_resumed(moment, signum, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start("train.py", *args(folder), "checkpoint.min_seconds=0", cwd=tmp_path)
    code, printed = kill_when(process, lambda: MOMENTS[moment](folder), signum)
    assert code == 128 + signum
    assert f"stopped by {signum.name}: resume={folder} continues the run" in printed
    assert "Traceback" not in printed
    assert json.loads((folder / "results.json").read_text())["status"] == "stopped"
    run("train.py", "+experiment=sequential", f"resume={folder}", cwd=tmp_path)
    assert_same_end(folder, undisturbed)


def test_the_batch_after_which_a_run_is_told_to_end_is_logged(train_here, tmp_path, monkeypatch):
    settings = ["+experiment=sequential", *WINE, "trainer.max_epochs=3", "trainer.log_every_n_steps=2"]
    whole, _ = train_here(*settings, "logger=csv", folder="whole")
    monkeypatch.setattr(EpochCheckpoint, "_is_signalled", lambda self, trainer: trainer.global_step == 2)
    with pytest.raises(AssertionError, match="exit code 143"):
        train_here(*settings, "logger=csv")
    monkeypatch.undo()
    (saved,) = (tmp_path / "run" / "checkpoints").rglob("*.ckpt")
    assert saved.name.startswith("epoch-00000-batch-000002")
    train_here(f"resume={tmp_path / 'run'}")
    logged = [(f / "metrics.csv").read_text() for f in (whole, tmp_path / "run")]
    assert logged[0] == logged[1]


@pytest.mark.parametrize(
    "granularity",
    [
        ["pruning.granularity=unit", "pruning.overlap=false"],
        ["pruning.granularity=unit", "pruning.overlap=true"],
        ["pruning.granularity=block", "pruning.block_size=[32,32]", "++backbone.width=512"],
        ["pruning=nm", "pruning.density=null"],
        ["++backbone.width=192"],
    ],
    ids=["units", "overlapping units", "blocks", "n of m", "chosen"],
)
def test_a_stopped_task_ends_like_an_undisturbed_one(granularity, train_here, tmp_path, monkeypatch):
    settings = ["+experiment=sequential", *WINE, "pruning.density=0.2", *granularity]
    settings += ["backbone.norm=true", "checkpoint.min_seconds=0", "trainer.max_epochs=6", "logger=csv"]
    whole, _ = train_here(*settings, folder="whole")
    compact = tmp_path / "run" / "checkpoints" / "stage-000-train"
    monkeypatch.setattr(EpochCheckpoint, "_is_signalled", lambda *_: any(compact.glob("epoch-00001.*")))
    with pytest.raises(AssertionError, match="exit code 143"):
        train_here(*settings)
    monkeypatch.undo()
    train_here(f"resume={tmp_path / 'run'}")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("fit", ["stage-000-prune", "stage-000-train", "dense-wine"])
def test_a_run_stopped_after_a_fits_last_epoch_ends_like_an_undisturbed_one(fit, train_here, tmp_path, monkeypatch):
    def is_signalled(self, trainer):
        in_last = trainer.current_epoch == trainer.max_epochs - 1 and trainer.is_last_batch
        return in_last and trainer.lightning_module.context.key == fit

    settings = ["+experiment=sequential", *WINE, "baseline=dense", "trainer.max_epochs=6", "logger=csv"]
    settings += ["optimizer.lr=0.1", "scheduler=constant"]  # neither fit is best in its last epoch
    whole, _ = train_here(*settings, folder="whole")
    monkeypatch.setattr(EpochCheckpoint, "_is_signalled", is_signalled)
    with pytest.raises(AssertionError, match="exit code 143"):
        train_here(*settings)
    monkeypatch.undo()
    train_here(f"resume={tmp_path / 'run'}")
    assert_same_end(tmp_path / "run", whole)
    dense = [json.loads((f / "results.json").read_text())["tasks"]["wine"]["dense"] for f in (tmp_path / "run", whole)]
    assert dense[0] == dense[1]


@pytest.mark.parametrize("how", [(), ("pruning.granularity=unit", "pruning.regrow.by=random")])
def test_a_task_stopped_in_the_middle_of_regrowth_ends_like_an_undisturbed_one(how, train_here, tmp_path, monkeypatch):
    settings = ["+experiment=sequential", *WINE, "pruning=regrow", "trainer.max_epochs=6", *how]
    settings += ["pruning.density=0.2", "checkpoint.min_seconds=0", "logger=csv"]
    whole, _ = train_here(*settings, folder="whole")
    regrown = tmp_path / "run" / "checkpoints" / "stage-000-regrow"
    monkeypatch.setattr(EpochCheckpoint, "_is_signalled", lambda *_: any(regrown.glob("epoch-00001.*")))
    with pytest.raises(AssertionError, match="exit code 143"):
        train_here(*settings)
    monkeypatch.undo()
    train_here(f"resume={tmp_path / 'run'}")
    assert_same_end(tmp_path / "run", whole)
    start = train_here(*settings, "pruning.regrow.share=null", folder="start")[0]
    owners = [read_state(f / "network.safetensors", "network").state.owners for f in (whole, start)]
    assert any(not torch.equal(mask, owners[1][name]) for name, mask in owners[0].items())


def test_a_job_is_put_back_into_the_queue_and_goes_on_by_the_same_command(undisturbed, tmp_path, monkeypatch):
    folder, queue = tmp_path / "run", tmp_path / "bin" / "scontrol"
    queue.parent.mkdir()
    queue.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", str(queue.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = ["train.py", *args(folder), "resume=auto"]
    code, _ = kill_when(start(*job, cwd=tmp_path), lambda: any(folder.glob("checkpoints/*/*.*.ckpt")), signal.SIGUSR1)
    assert code == 128 + signal.SIGUSR1
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    run(*job, cwd=tmp_path)
    assert_same_end(folder, undisturbed)


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    process = start("train.py", *args(folder), cwd=tmp_path)
    try:
        while not any(folder.glob("checkpoints/*/*.ckpt")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        before = (folder / "results.json").read_bytes()
        code, printed = finish(start("train.py", "+experiment=sequential", f"resume={folder}", cwd=tmp_path))
        assert code == 1
        assert f"error: {folder} is in use: another process" in printed
        assert (folder / "results.json").read_bytes() == before
    finally:
        process.kill()
        finish(process)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(*_):
    raise KeyboardInterrupt  # the run takes no notice of it, as of SIGKILL


def told(*_):
    os.kill(os.getpid(), signal.SIGTERM)


PARTS = {
    "trackers are told": (training.Tracking, "stage_ended"),
    "the network's file is to be written": (training, "save_network"),
}
"""Of the end of a stage: the first is done, the second is not, when the run ends."""


TWO = ["+experiment=sequential", "tasks=[wine,iris]", *few_steps("wine", "iris"), "logger=csv", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of `TWO` that nothing ends."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    here(train.main, *TWO, *SMALL, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


@pytest.mark.parametrize("end", [full, killed, told])
@pytest.mark.parametrize("part", PARTS)
def test_a_stage_that_is_measured_and_does_not_count_is_measured_again(part, end, whole, train_here, monkeypatch):
    do, stages = getattr(*PARTS[part]), []

    def end_in_the_second(*arguments):
        stages.append(arguments)
        if len(stages) == 1 or part == "trackers are told":
            do(*arguments)
        if len(stages) == 2:
            end()

    with monkeypatch.context() as patch:
        patch.setattr(*PARTS[part], end_in_the_second)
        with pytest.raises((AssertionError, KeyboardInterrupt)):
            train_here(*TWO)
    folder, _ = train_here("+experiment=sequential", "resume=run")
    assert_same_end(folder, whole)


def test_finished_run_is_left_as_it_is(train_here, monkeypatch):
    folder, _ = train_here("+experiment=sequential", *WINE, "logger=none", "trainer.max_epochs=2")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "train.log"}
    monkeypatch.setattr("msh.training.run.prepare", None)  # its data is not read again
    _, printed = train_here("+experiment=sequential", f"resume={folder}")
    assert "wine" in printed
    assert "is finished already" in printed
    assert {p: p.read_bytes() for p in before} == before


def test_resume_refuses_what_is_not_that_run(train_here, tmp_path):
    folder, _ = train_here("+experiment=sequential", *WINE, "logger=none", "trainer.max_epochs=2")
    with pytest.raises(AssertionError, match="no such folder"):
        train_here("+experiment=sequential", f"resume={tmp_path / 'nowhere'}")
    with pytest.raises(AssertionError, match=r"not a run folder: it has no results\.json"):
        train_here("+experiment=sequential", f"resume={tmp_path}")
    with pytest.raises(AssertionError, match="was started with seed = 0, not 3"):
        train_here("+experiment=sequential", f"resume={folder}", "seed=3")
    with pytest.raises(AssertionError, match="there is no unfinished run"):
        train_here("+experiment=sequential", "resume=auto")
    with pytest.raises(AssertionError, match="was started with experiment = sequential, not parallel"):
        train_here("+experiment=parallel", f"resume={folder}")


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The folder of a run, which is no longer where it was made."""
    folder = tmp_path_factory.mktemp("moved")
    settings = ["+experiment=sequential", *WINE, *SMALL, "logger=none", "trainer.max_epochs=1"]
    here(train.main, *settings, f"hydra.run.dir={folder / 'made'}", cwd=folder)
    return (folder / "made").rename(folder / "kept")


@pytest.mark.parametrize("name", ["k=v", "[z]", "it's", "a b"])
def test_a_run_folder_may_have_any_name(name, moved, train_here, tmp_path):
    folder = shutil.copytree(moved, tmp_path / name)
    _, printed = train_here(f"resume={folder}")
    assert f"run folder: {folder}" in printed
    here(evaluate.main, f"run={folder}", cwd=tmp_path)
    assert (folder / "evaluation.json").is_file()


def test_a_run_with_options_of_the_users_own_is_resumed_without_them(train_here, tmp_path):
    (tmp_path / "mine" / "tasks").mkdir(parents=True)
    source = "{_target_: msh.tasks.bundled.bundled, name: iris}"
    (tmp_path / "mine" / "tasks" / "flowers.yaml").write_text(f"flowers: {{source: {source}}}\n")
    own, settings = ["--config-dir", "mine"], ["+experiment=sequential", "logger=none", "trainer.max_epochs=2"]
    for arguments in ([*own, "tasks=[flowers]", *settings], ["tasks=[flowers]", *own, *settings, "seed=1"]):
        train_here(*arguments, folder=f"run-{len(arguments)}")
        folder = tmp_path / f"run-{len(arguments)}"
        for again in ([], own):
            _, printed = train_here(*again, f"resume={folder}", *again, "+experiment=sequential", "baseline=dense")
            assert "flowers" in printed
        assert json.loads((folder / "results.json").read_text())["tasks"]["flowers"]["dense"] > 0


def test_a_finished_run_is_not_trained_again_and_another_in_its_folder_is_refused(train_here):
    settings = ["+experiment=sequential", *WINE, "logger=none", "trainer.max_epochs=2"]
    folder, _ = train_here(*settings)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "train.log"}
    _, printed = train_here(*settings)
    assert "is finished already" in printed
    with pytest.raises(AssertionError, match=r"holds another run \(seed was 0, is 1\)"):
        train_here(*settings, "seed=1")
    assert {p: p.read_bytes() for p in before} == before
