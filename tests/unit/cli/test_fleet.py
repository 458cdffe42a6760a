"""A fleet's arguments, its pace of writing, and its output."""

import io
import multiprocessing
import os
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from fakes import write_run
from messages import says
from msh.cli import app, fleet
from msh.cli.arguments import by_key
from msh.cli.configs import config_folder
from msh.cli.fleet import Fleet, FleetJobs, printing_to
from msh.cli.jobs import Jobs, without_hydra
from msh.files.plans import input_shape_in, make_plan_file, read_plan, settings_of
from msh.training.config import register
from msh.training.settings import identity

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "files"


class FakeMerge:
    """Takes seconds of a clock to write, and none to take a task."""

    def __init__(self, tasks, clock, seconds):
        self.planned, self.clock, self.seconds, self.written, self.tasks = tasks, clock, seconds, [], []

    def take(self, tasks):
        self.tasks += [task for _, task in tasks]

    def write(self, out):
        self.clock[0] += self.seconds
        self.written.append(len(self.tasks))


def finish(folder, task):
    write_run(folder / task, {task: {"test": 0.5}})
    (folder / task / "subnetworks").mkdir()
    (folder / task / "subnetworks" / f"{task}.safetensors").touch()


def test_writing_the_network_takes_at_most_a_tenth_of_the_time(tmp_path, monkeypatch):
    clock, tasks = [0.0], [f"t{i}" for i in range(60)]
    monkeypatch.setattr(fleet.time, "monotonic", lambda: clock[0])
    merge = FakeMerge(tasks, clock, 2.0)
    found = Fleet(tmp_path, merge, tmp_path / "network", io.StringIO())
    for task in tasks:
        clock[0] += 1.0
        finish(tmp_path, task)
        found.update()
    assert merge.written[0] == 1
    assert 1 < len(merge.written) <= 1 + 60 // (2 * fleet.WRITING)
    found.update(write=True)
    assert merge.written[-1] == 60
    found.update(write=True)
    assert merge.written.count(60) == 1


def test_a_task_that_failed_is_reported_once_and_merged_when_it_succeeds_after_all(tmp_path):
    console, merge = io.StringIO(), FakeMerge(["a", "b"], [0.0], 0.0)
    found = Fleet(tmp_path, merge, tmp_path / "network", console)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "unfinished.txt").write_text("2 problems:\n- seed must be >= 0\n- more")
    found.update()
    found.update()
    assert console.getvalue() == "0/2 a: failed: 2 problems: - seed must be >= 0\n"
    assert list(found.missing()) == ["a", "b"]
    (tmp_path / "a" / "unfinished.txt").unlink()
    finish(tmp_path, "a")
    found.update()
    assert console.getvalue().splitlines()[1].startswith("1/2 a: accuracy 0.5000, ")
    assert list(found.missing()) == ["b"]


def test_lines_fit_a_page(tmp_path):
    console = io.StringIO()
    Fleet(tmp_path, FakeMerge(["a"], [0.0], 0.0), tmp_path / "network", console).say("x" * 200)
    assert console.getvalue() == "x" * 76 + "...\n"


@pytest.mark.parametrize(
    ("launcher", "jobs", "overrides"),
    [
        (None, None, []),
        ("local", 1, []),
        ("local", 3, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]),
        ("slurm", None, ["hydra/launcher=submitit_slurm"]),
        ("slurm", 9, ["hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=9"]),
        ("ray", None, ["hydra/launcher=ray"]),
    ],
)
def test_a_launcher_is_one_of_hydra_s(launcher, jobs, overrides, monkeypatch):
    monkeypatch.setattr(fleet, "find_spec", lambda name: name)
    assert fleet._launcher(Namespace(launcher=launcher, jobs=jobs), {}) == overrides


@pytest.mark.parametrize(
    ("launcher", "extra"), [("local", "joblib"), ("slurm", "slurm"), ("ray", "ray")], ids=lambda name: name
)
def test_a_launcher_that_is_not_installed_names_its_extra(launcher, extra, monkeypatch):
    monkeypatch.setattr(fleet, "find_spec", lambda name: None)
    jobs = 2 if launcher == "local" else None
    with pytest.raises(RuntimeError, match=rf"--launcher {launcher}.* needs .*: pip install 'msh\[{extra}\]'"):
        fleet._launcher(Namespace(launcher=launcher, jobs=jobs), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launcher", "slrm"], says("--launcher", value="slrm", meant="slurm")),
        (["--jobs", "two"], says("--jobs", value="two")),
        (["--launcher", "ray", "--jobs", "2"], says("--jobs", value=2)),
        (["--launcher", "ray", "hydra/launcher=joblib"], "--launcher and hydra/launcher exclude each other"),
    ],
)
def test_flags_that_mean_nothing_are_refused(arguments, message):
    def read():
        given, rest = fleet._read_arguments(["plan", *arguments])
        return fleet._launcher(given, by_key(rest))

    with pytest.raises(ValueError, match=message):
        read()


def test_a_plan_of_an_earlier_release_says_to_make_it_again(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["msh", "fleet", str(GOLDEN / "planned" / "plan")])
    with pytest.raises(SystemExit):
        app.main()
    assert "was made by an earlier release" in capsys.readouterr().err


def test_a_plan_that_could_call_any_code_is_refused(tmp_path, monkeypatch, capsys):
    plan = read_plan(GOLDEN / "planned" / "plan")
    config = {"config": {"backbone": {"_target_": "os.system", "command": "true"}}, "overrides": []}
    shape = input_shape_in(plan.notes, tmp_path)
    make_plan_file(plan.state, settings_of(plan), shape, plan.notes["start"], config).write(tmp_path / "plan")
    monkeypatch.setattr("sys.argv", ["msh", "fleet", str(tmp_path / "plan")])
    with pytest.raises(SystemExit):
        app.main()
    assert "backbone._target_ = 'os.system' is not allowed: it could have any code called" in capsys.readouterr().err


def test_a_fleet_needs_a_plan():
    with pytest.raises(ValueError, match="which plan"):
        fleet._read_arguments(["--jobs", "2"])


def test_a_task_s_config_is_the_one_that_hydra_composes(tmp_path):
    register()
    GlobalHydra.instance().clear()
    arguments = ["tasks=[wine,iris]", "logger=csv", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${task}"]
    with initialize_config_dir(config_folder(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", arguments, run_mode=RunMode.MULTIRUN)
        jobs = FleetJobs(config, SimpleNamespace(config_loader=loader), None)
        batch = ["plan=plan", "tasks=[wine,iris]", "logger=csv", "task=iris"]
        jobs.config.plan = "plan"
        composed, expected = jobs.compose(batch), Jobs.compose(jobs, batch)
    assert identity(without_hydra(composed), ()) == identity(without_hydra(expected), ())
    assert jobs._new_folder(composed) == tmp_path / "iris"


def speak(folder):
    """Print as a fleet does, in a process whose output and errors are files."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    with printing_to(folder / "log") as console:
        print("a job speaks")
        os.system("echo its child too; echo it fails >&2")
        print("1/1 wine", file=console)
    print("the end")


def test_only_the_fleet_s_own_lines_reach_the_screen(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=speak, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "stdout").read_text() == "1/1 wine\nthe end\n"
    assert (tmp_path / "stderr").read_text() == ""
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["a job speaks", "it fails", "its child too"]


def test_streams_are_as_before_after_an_error(tmp_path):
    before = os.fstat(1), os.fstat(2)
    with pytest.raises(ValueError, match="x"), printing_to(tmp_path / "log"):
        raise ValueError("x")
    assert (os.fstat(1), os.fstat(2)) == before
