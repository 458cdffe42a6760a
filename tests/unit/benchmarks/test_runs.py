"""Steps: finished ones are skipped, stopped ones resumed, runs with other settings moved aside."""

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fakes import write_run
from msh.training.settings import OnDisk

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import runs  # noqa: E402
from benchmarks.runs import Runner, Step, arguments, move_aside, state_of  # noqa: E402

CONFIG = {"name": "fake", "seed": 0, "threads": 1, "logger": {"csv": 1}, "pruning": {"density": 0.1}}


@pytest.fixture
def composed(monkeypatch):
    """Composes CONFIG with overrides of one level, whatever the experiment; returns it."""

    def compose(*overrides):
        given = [override for override in overrides if not override.startswith("experiment=")]
        wanted = CONFIG | {"curriculum": [["a", "b"]], "trainer": {"max_epochs": 3}, "tasks": {"a": {}, "b": {}}}
        return OmegaConf.merge(OmegaConf.create(wanted), OmegaConf.from_dotlist(given))

    runs._composed.cache_clear()
    monkeypatch.setattr(runs, "compose", compose)
    yield
    runs._composed.cache_clear()


@pytest.fixture
def step(tmp_path, composed):
    return Step("row 1, seed 0", tmp_path / "runs" / "seed-0", ("experiment=fake", "seed=0"), ("dense",))


def learned(step, dense=0.9, status="finished", **config):
    return write_run(
        step.folder,
        {"a": {"test": 0.8, "dense": dense}, "b": {"test": 0.7, "dense": 0.9}},
        config=CONFIG | config,
        status=status,
    )


# ---- what is on disk


def test_a_step_without_results_is_new(step):
    assert state_of(step) == OnDisk("new")


def test_a_finished_run_with_the_same_settings_is_finished(step):
    learned(step, threads=7, logger={"wandb": 2})
    assert state_of(step) == OnDisk("finished")


@pytest.mark.parametrize(
    ("status", "dense", "why"), [("running", 0.9, ""), ("failed", 0.9, ""), ("finished", None, "dense")]
)
def test_a_stopped_run_and_one_without_a_baseline_are_unfinished(step, status, dense, why):
    learned(step, dense=dense, status=status)
    assert state_of(step) == OnDisk("unfinished", why)


def test_a_run_with_other_settings_is_another_and_names_the_difference(step):
    learned(step, pruning={"density": 0.2})
    assert state_of(step) == OnDisk("other", "pruning.density was 0.2, is 0.1")


def test_a_damaged_run_is_another(step):
    (learned(step) / "results.json").write_text("{")
    state = state_of(step)
    assert state.what == "other"
    assert "cannot be read" in state.why


def test_a_new_run_gets_all_settings_and_a_stopped_one_only_changeable_ones(step):
    new = arguments(step, OnDisk("new"), Path("/data"), 2)
    assert new == [
        "experiment=fake",
        "seed=0",
        "paths.data_dir='/data'",
        "baseline=[dense]",
        "threads=2",
        "logger=csv",
        f"hydra.run.dir='{step.folder}'",
    ]
    stopped = arguments(step, OnDisk("unfinished"), Path("/data"), 2)
    assert stopped == [f"resume='{step.folder}'", "paths.data_dir='/data'", "baseline=[dense]"]


def test_a_folder_moved_aside_never_replaces_another(tmp_path):
    for number in (1, 2):
        (tmp_path / "seed-0").mkdir()
        assert move_aside(tmp_path / "seed-0") == tmp_path / f"seed-0.old-{number}"


# ---- processes

FAKE = """
import json, pathlib, sys, time
folder = next(a.partition("=")[2].strip("'") for a in sys.argv if a.startswith(("hydra.run.dir", "resume")))
folder = pathlib.Path(folder)
with (folder.parents[1] / "called").open("a") as file:
    file.write(json.dumps([folder.name, sys.argv[1:]]) + "\\n")
if folder.name == "fails":
    sys.exit("no data")
if folder.name == "waits":
    time.sleep(100)
"""


@pytest.fixture
def runner(tmp_path, monkeypatch, composed):
    """(runner of fake processes, what it says, calls to write documents, function: [folder, arguments] called)."""
    monkeypatch.setattr(runs, "TRAIN", [sys.executable, "-S", "-c", FAKE])
    said, written = [], []

    def called():
        path = tmp_path / "called"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return Runner(tmp_path, 2, 1, said.append, lambda: written.append(len(called()))), said, written, called


def steps_of(tmp_path, *names):
    return [Step(name, tmp_path / "runs" / name.split(",")[0], ("experiment=fake",)) for name in names]


def test_a_failed_run_is_named_and_does_not_stop_the_others(tmp_path, runner):
    runner, said, written, called = runner
    failed = runner.do(steps_of(tmp_path, "fails", "first", "fails, dense", "second"))
    assert [step.name for step in failed] == ["fails"]
    assert sorted(name for name, _ in called()) == ["fails", "first", "second"]
    assert len(written) == 2
    assert any("fails: FAILED with exit code 1" in line for line in said)
    assert "  no data" in said
    assert "fails, dense: skipped, its run has failed" in said


def test_finished_steps_are_skipped_and_others_moved_aside(tmp_path, runner):
    runner, said, _, called = runner
    done, other, stopped = steps_of(tmp_path, "done", "other", "stopped")
    learned(done)
    learned(other, pruning={"density": 0.5})
    learned(stopped, status="running")
    assert runner.do([done, other, stopped]) == []
    found = dict(called())
    assert sorted(found) == ["other", "stopped"]
    assert found["other"][0] == "experiment=fake"
    assert found["stopped"][0] == f"resume='{stopped.folder}'"
    assert (tmp_path / "runs" / "other.old-1" / "results.json").exists()
    assert "  pruning.density was 0.5, is 0.1" in said


def test_two_steps_never_use_a_folder_at_once(tmp_path, runner, monkeypatch):
    runner, said, _, _ = runner
    runner.do(steps_of(tmp_path, "first", "first, dense", "second"))
    events = [line for line in said if line.startswith("first")]
    assert [line.rpartition(": ")[2].split()[0] for line in events] == ["starts", "done", "starts", "done"]
    assert said[:2] == ["first: starts", "second: starts"]


def test_stopping_stops_the_processes(tmp_path, runner):
    runner, said, _, _ = runner

    def stop(line):
        said.append(line)
        if line.startswith("first: done"):
            raise KeyboardInterrupt

    runner.say = stop
    waiting, first = steps_of(tmp_path, "waits", "first")
    with pytest.raises(KeyboardInterrupt):
        runner.do([waiting, first])
    assert runner.running == {}
    assert said[-1] == "waits: stopped; the same command resumes it"
