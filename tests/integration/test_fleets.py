"""One command trains a plan's tasks as jobs and merges them: the same bytes as one process, whatever happens."""

import re
import shutil
from contextlib import nullcontext

import forking
import pytest
from running import SMALL, few_steps, here

from msh.cli import app, train
from msh.files.header import task_names
from msh.runs.results import ENDED
from msh.training.run import Run

TASKS = ["wine", "iris", "diabetes"]
OVERRIDES = ["+experiment=sequential", f"tasks=[{','.join(TASKS)}]", "pruning=at_init", "trainer.max_epochs=2"]
OVERRIDES += ["logger=none", *SMALL, *few_steps(*TASKS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with a plan, and a run that trains its tasks in one process."""
    folder = tmp_path_factory.mktemp("fleet")
    here(app.main, "plan", *OVERRIDES, "-o", "plan.safetensors", cwd=folder)
    here(train.main, *OVERRIDES, "plan=plan.safetensors", "hydra.run.dir=together", cwd=folder)
    return folder


@pytest.fixture
def fleet(folder, tmp_path, capsys):
    """Run `msh fleet` in this process, in a separate fleet folder; return what it printed."""

    def run_it(*arguments, code=None):
        capsys.readouterr()
        ends = pytest.raises(SystemExit, match=f"^{code}$") if code else nullcontext()
        with ends:
            here(app.main, "fleet", "plan.safetensors", f"hydra.sweep.dir={tmp_path / 'fleet'}", *arguments, cwd=folder)
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run_it


def assert_same_bytes(folder, path, network=None):
    network = path / "network.safetensors" if network is None else network
    assert network.read_bytes() == (folder / "together" / "network.safetensors").read_bytes()
    for task in TASKS:
        own = path / task / "subnetworks" / f"{task}.safetensors"
        assert own.read_bytes() == (folder / "together" / "subnetworks" / own.name).read_bytes()


@pytest.fixture(scope="module")
def trained(folder):
    """(Folder of a fleet with two jobs at a time, what it printed)."""
    printed = forking.run("msh", "fleet", "plan.safetensors", "--launcher", "local", "--jobs", "2", cwd=folder)
    return folder / printed.splitlines()[1].strip(), printed


def test_jobs_in_parallel_give_the_bytes_of_one_process_and_need_no_overrides(folder, trained):
    place, printed = trained
    assert_same_bytes(folder, place)
    lines = printed.splitlines()
    assert lines[0] == "training 3 tasks of plan.safetensors; into"
    assert {re.fullmatch(r"\d/3 (\w+): \w+ [\d.]+, .*s", line).group(1) for line in lines[2:5]} == set(TASKS)
    assert lines[5].startswith("3 of 3 tasks finished; ")
    assert lines[6] == f"network: {place.relative_to(folder)}/network.safetensors"
    assert max(map(len, lines)) <= 80
    assert "learned wine" in (place / "fleet.log").read_text()


def test_a_finished_fleet_trains_nothing_again(folder, trained):
    place, _ = trained
    before = {path: path.stat().st_mtime_ns for task in TASKS for path in (place / task).rglob("*")}
    here(app.main, "fleet", "plan.safetensors", "-o", "merged", cwd=folder)
    assert_same_bytes(folder, place, folder / "merged")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_failed_task_is_reported_and_repeated_by_the_same_command(folder, fleet, tmp_path, monkeypatch):
    (tmp_path / "fleet" / "wine").mkdir(parents=True)  # of a job that was killed before it began
    (tmp_path / "fleet" / "wine" / "unfinished.txt").write_text(ENDED)
    finish_stage = Run._finish_stage

    def fail_for_iris(self, stage):
        if stage.tasks == ("iris",):
            raise ValueError("the disk of iris\nbroke")
        finish_stage(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish_stage", fail_for_iris)
        printed = fleet(code=1)
    assert re.search(r"^\d/3 iris: failed: the disk of iris$", printed, re.M)
    last = printed[printed.index("2 of 3 tasks finished") :].splitlines()
    assert last[2:4] == ["error: not finished: 1 task", "  iris: the disk of iris"]
    assert last[4].startswith("the same command continues: msh fleet plan.safetensors ")
    assert task_names(tmp_path / "fleet" / "network.safetensors", "network") == ["wine", "diabetes"]
    printed = fleet()
    assert "3 of 3 tasks finished" in printed
    assert_same_bytes(folder, tmp_path / "fleet")


def test_an_interrupted_fleet_keeps_what_is_finished_and_continues(folder, fleet, tmp_path, monkeypatch):
    finish_stage, calls = Run._finish_stage, []

    def stop_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        finish_stage(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish_stage", stop_second)
        printed = fleet(code=130)
    assert "1 of 3 tasks finished" in printed
    assert "the fleet was stopped; the same command continues: msh fleet plan.safetensors" in printed
    assert task_names(tmp_path / "fleet" / "network.safetensors", "network") == ["wine"]
    fleet()
    assert_same_bytes(folder, tmp_path / "fleet")


def test_a_damaged_file_is_reported_and_all_others_are_merged(trained, fleet, tmp_path):
    shutil.copytree(trained[0], tmp_path / "fleet")
    file = tmp_path / "fleet" / "wine" / "subnetworks" / "wine.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    (tmp_path / "fleet" / "iris" / "unfinished.txt").write_text(ENDED)  # of a job killed once it had finished
    printed = fleet(code=1)
    assert re.search(r"^  wine: .*wine.safetensors is not a safetensors file, or is damaged.*; delete", printed, re.M)
    assert task_names(tmp_path / "fleet" / "network.safetensors", "network") == ["iris", "diabetes"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trainer.max_epochs=3"], [r"plan.safetensors was made with trainer.max_epochs = 2, not 3"]),
        (["seed=1", "optimizer.lr=1"], ["2 problems", "made with optimizer.lr = 0.001, not 1", "seed = 0, not 1"]),
        (["experiment=parallel"], ["was started with experiment = sequential, not parallel"]),
        (["seed=1,2"], ["seed=1,2 has several values"]),
        (["files.dtype=float16"], ["files.dtype must be float32"]),
        (["task=wine", "--jobs", "0"], ["task is set by the fleet", "--jobs must be >= 1, got 0"]),
        (["trainer.max_epoch=3"], ["max_epoch", "did you mean 'trainer.max_epochs'"]),
    ],
)
def test_what_contradicts_the_plan_is_refused_by_name_before_any_work(arguments, parts, fleet, tmp_path):
    printed = fleet(*arguments, code=1)
    assert all(re.search(part, printed) for part in parts), printed
    assert not (tmp_path / "fleet").exists()


def test_another_fleet_in_the_folder_is_refused_by_the_setting_that_differs(trained, fleet, tmp_path):
    shutil.copytree(trained[0], tmp_path / "fleet")
    printed = fleet("baseline=dense", code=1)
    assert re.search(r"holds another run \(baseline was None, is 'dense'\): choose another hydra.sweep.dir", printed)
