"""Steps: finished ones are skipped, stopped ones resumed, runs with other settings moved aside."""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fakes import write_run
from msh.training.settings import OnDisk

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import runs  # noqa: E402
from benchmarks.runs import Step, arguments, move_aside, state_of, train  # noqa: E402

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
if folder.name.startswith("waits"):
    time.sleep(100)
"""


@pytest.fixture
def done(tmp_path, monkeypatch, composed):
    """Function: runs fake processes for steps, and returns the names of those that failed; (folder, arguments) called,
    in `calls`; `after` is called after each success."""
    monkeypatch.setattr(runs, "TRAIN", [sys.executable, "-S", "-c", FAKE])
    options = Namespace(data_dir=tmp_path, jobs=2, threads=1)

    def do(steps, after=lambda: None):
        return [step.name for step in train(steps, options, after)]

    return do


def calls(tmp_path):
    path = tmp_path / "called"
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}


def steps_of(tmp_path, *names):
    return [Step(name, tmp_path / "runs" / name, ("experiment=fake",)) for name in names]


def test_a_failed_run_is_named_and_does_not_stop_the_others(tmp_path, done, capsys):
    written = []
    assert done(steps_of(tmp_path, "fails", "first", "second"), lambda: written.append(1)) == ["fails"]
    assert sorted(calls(tmp_path)) == ["fails", "first", "second"]
    assert len(written) == 2
    said = capsys.readouterr().out
    assert "fails: FAILED with exit code 1" in said
    assert "\n  no data\n" in said


def test_finished_steps_are_skipped_and_others_moved_aside(tmp_path, done, capsys):
    finished, other, stopped = steps_of(tmp_path, "done", "other", "stopped")
    learned(finished)
    learned(other, pruning={"density": 0.5})
    learned(stopped, status="running")
    assert done([finished, other, stopped]) == []
    found = calls(tmp_path)
    assert sorted(found) == ["other", "stopped"]
    assert found["other"][0] == "experiment=fake"
    assert found["stopped"][0] == f"resume='{stopped.folder}'"
    assert (tmp_path / "runs" / "other.old-1" / "results.json").exists()
    assert "  pruning.density was 0.5, is 0.1\n" in capsys.readouterr().out


def test_stopping_stops_the_processes_and_starts_no_other(tmp_path, done, capsys):
    def stop():
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        done(steps_of(tmp_path, "waits", "first", "waits-too", "waits-also", "waits-as-well"), stop)
    assert time.monotonic() - start < 50
    assert "waits: stopped; the same command resumes it\n" in capsys.readouterr().out
    assert "waits-as-well" not in calls(tmp_path)
