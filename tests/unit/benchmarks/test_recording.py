"""Run records hold results, settings and processor, without folders and loggers."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fakes import write_run
from msh.cli.resume import check_same_run
from msh.files.yaml_files import read_config, read_overrides
from msh.training.settings import OnDisk

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import recording  # noqa: E402
from benchmarks.configs import compose  # noqa: E402
from benchmarks.document import processor  # noqa: E402
from benchmarks.recording import record_of, steps_to_do, write_records  # noqa: E402
from benchmarks.runs import Step, state_of  # noqa: E402


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """The step of a run with a baseline, and the step of its record; files on disk have its settings."""
    step = Step("run", tmp_path / "runs" / "1" / "seed-0", (), ("dense",))

    def look(step):
        if not (step.folder / "results.json").exists():
            return OnDisk("new")
        task = json.loads((step.folder / "results.json").read_text())["tasks"]["a"]
        return OnDisk("unfinished" if task["dense"] is None else "finished")

    monkeypatch.setattr(recording, "state_of", look)
    return step, record_of(step, tmp_path / "runs", tmp_path / "records")


def recorded_task(step, target):
    write_records([step], step.folder.parents[1], target.folder.parents[1])
    return json.loads((target.folder / "results.json").read_text())["tasks"]["a"]


def test_a_record_has_no_folders_and_loggers(steps):
    step, target = steps
    config = {"paths": {"data_dir": "/somewhere"}, "logger": {"csv": {}}, "checkpoint": {"min_seconds": 1, "x": 2}}
    write_run(step.folder, {"a": {"test": 0.8}}, config=config)
    assert recorded_task(step, target)["test"] == 0.8
    assert sorted(path.name for path in target.folder.rglob("*") if path.is_file()) == [
        "config.yaml",
        "processor.txt",
        "results.json",
    ]
    saved = read_config(target.folder / ".hydra" / "config.yaml")
    assert set(saved) == {"curriculum", "trainer", "threads", "tasks", "checkpoint"}
    assert saved.checkpoint == {"x": 2}


def test_recorded_baselines_stay_until_they_are_evaluated_again(steps):
    step, target = steps
    write_run(step.folder, {"a": {"test": 0.8, "dense": 0.9}})
    recorded_task(step, target)
    write_run(step.folder, {"a": {"test": 0.7}})
    assert recorded_task(step, target)["dense"] == 0.9
    write_run(step.folder, {"a": {"test": 0.7, "dense": 0.6}})
    assert recorded_task(step, target)["dense"] == 0.6


def test_an_unfinished_curriculum_is_not_recorded(steps):
    step, target = steps
    write_run(step.folder, {"a": {"test": 0.8}}, matrix=[])
    write_records([step], step.folder.parents[1], target.folder.parents[1])
    assert not target.folder.exists()


def test_a_record_counts_as_a_run_with_its_settings(tmp_path):
    overrides = ("experiment=sequential", "seed=3")
    step = Step("run", tmp_path / "runs" / "1", overrides)
    write_run(step.folder, {"a": {"test": 0.8}})
    config = compose(*overrides, f"paths.data_dir={tmp_path}", "logger=csv", output_dir=tmp_path)
    OmegaConf.save(config, step.folder / ".hydra" / "config.yaml")
    write_records([step], tmp_path / "runs", tmp_path / "records")
    assert str(tmp_path) not in (tmp_path / "records" / "1" / ".hydra" / "config.yaml").read_text()
    assert state_of(record_of(step, tmp_path / "runs", tmp_path / "records")).what == "finished"


@pytest.fixture
def recorded(tmp_path):
    """A step with a baseline, an empty folder of runs, and a folder of records in which it has no baseline."""
    step = Step("run", tmp_path / "runs" / "1", ("experiment=sequential", "seed=3"), ("joint",))
    made = Step("run", tmp_path / "made" / "1", step.overrides, step.baselines)
    tasks = ["digits", "breast_cancer", "wine", "diabetes"]
    write_run(made.folder, {task: {"test": 0.8} for task in tasks})
    config = compose(*step.overrides, "threads=1", "logger=csv", output_dir=made.folder)
    OmegaConf.save(config, made.folder / ".hydra" / "config.yaml")
    write_records([made], tmp_path / "made", tmp_path / "records")
    return step, tmp_path / "runs", tmp_path / "records"


def missing(steps, root, records, **options):
    return steps_to_do(steps, Namespace(**{"missing": True, "output_dir": root} | options), records)


def test_steps_without_a_finished_record_are_missing(recorded):
    step, root, records = recorded
    run = Step("run", step.folder, step.overrides)
    other = Step("other", root / "2", ("experiment=sequential", "seed=4"))
    assert missing([run, step, other], root, records, missing=False) == [run, step, other]
    assert not root.exists()
    assert missing([run, step, other], root, records) == [step, other]


def test_a_record_without_a_baseline_is_restored_as_a_run_to_resume(recorded):
    step, root, records = recorded
    missing([step], root, records)
    assert state_of(step).what == "unfinished"
    assert json.loads((step.folder / "results.json").read_text())["tasks"]["wine"]["test"] == 0.8
    assert read_overrides(step.folder / ".hydra" / "overrides.yaml") == [*step.overrides, "logger=csv", "threads=1"]
    assert (step.folder / "processor.txt").read_text() == f"{processor()}\n"
    check_same_run(compose(*step.overrides, "logger=csv", "threads=1", "baseline=joint"), step.folder)


def test_a_record_keeps_the_processor_of_its_run_when_another_machine_adds_baselines(recorded, monkeypatch):
    step, root, records = recorded
    missing([step], root, records)
    monkeypatch.setattr(recording, "processor", lambda: "another")
    write_records([step], root, records)
    assert (records / "1" / "processor.txt").read_text() == f"{processor()}\n"


def test_a_record_never_replaces_a_run(recorded):
    step, root, records = recorded
    write_run(step.folder, {"digits": {"test": 0.1}})
    before = (step.folder / "results.json").read_text()
    missing([step], root, records)
    assert (step.folder / "results.json").read_text() == before
