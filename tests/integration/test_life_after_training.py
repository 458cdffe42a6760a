"""A finished run lives on: it takes further tasks without the old ones' data, retrains one, and moves anywhere."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from running import here

import msh
from messages import says
from msh.cli import app, evaluate, train
from msh.files.state_file import read_state
from msh.training.run import Run

pytest.importorskip("huggingface_hub", reason="needs msh[hub]")
from hub import hub

__all__ = ["hub"]

NAMES = ("flats", "boats", "cars")
SOURCE = """{name}:
  source:
    _target_: msh.tasks.tables.csv_table
    path: ${{paths.data_dir}}/{name}.csv
    target: sold
  batch_size: 8
"""
BACKBONE = ["backbone.width=24", "backbone.depth=2", "backbone.norm=true", "seed=3", "trainer.precision=64-true"]
USUAL = ["trainer.max_epochs=2", "logger=csv", "threads=1", "trainer.accelerator=cpu", "callbacks=none"]


def write_tables(place):
    """Write a table per task, and a config folder with its source."""
    (place / "data").mkdir()
    (place / "my" / "tasks").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in NAMES:
        size, age = random.random((2, 80)).round(3)
        heat = random.choice(["oil", "gas"], 80)
        sold = np.where(size + age > 1, "yes", "no")
        table = pd.DataFrame({"size": size, "age": age, "heat": heat, "sold": sold})
        table.to_csv(place / "data" / f"{name}.csv", index=False)
        (place / "my" / "tasks" / f"{name}.yaml").write_text(SOURCE.format(name=name))


def training(place, *overrides):
    here(train.main, "--config-dir", "my", *USUAL, *overrides, cwd=place)


def outputs(folder, tasks, rows):
    predictor = msh.load(folder)
    return {task: predictor.predict(task, rows).raw for task in tasks}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[task], after[task]) for task in before)


def error_of(capsys, place, *overrides):
    with pytest.raises(SystemExit):
        training(place, *overrides, "hydra.run.dir=refused")
    assert not (place / "refused" / "results.json").exists()
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two tasks' run, moved to `archive/run of May`; their data is in `gone`, a third task's in `data`.

    Returns (the folder, raw inputs, the tasks' outputs for them).
    """
    place = tmp_path_factory.mktemp("life")
    write_tables(place)
    training(place, "tasks=[flats,boats]", *BACKBONE, "report=false", "hydra.run.dir=run")
    rows = pd.read_csv(place / "data" / "flats.csv")
    before = outputs(place / "run", ["flats", "boats"], rows)
    (place / "archive").mkdir()
    (place / "gone").mkdir()
    shutil.move(place / "run", place / "archive" / "run of May")
    for name in ("flats", "boats"):
        shutil.move(place / "data" / f"{name}.csv", place / "gone" / f"{name}.csv")
    training(place, "tasks=[cars]", "network=archive/run of May", "hydra.run.dir=grown")
    return place, rows, before


def test_a_further_task_needs_neither_the_old_ones_data_nor_their_settings(place):
    folder, rows, before = place
    results = json.loads((folder / "grown" / "results.json").read_text())
    assert results["curriculum"] == [["flats", "boats"], ["cars"]]
    assert {name: (task["evaluated"], task["test"] is None) for name, task in results["tasks"].items()} == {
        "flats": (False, True),
        "boats": (False, True),
        "cars": (True, False),
    }
    assert results["matrix"] == [[None, None, None], [None, None, results["tasks"]["cars"]["test"]]]
    assert results["guarantee"] == {"checked": 2, "violations": 0}
    assert same(before, outputs(folder / "grown", before, rows))
    state = read_state(folder / "grown" / "network.safetensors").state
    assert [state.recipe[key] for key in ("width", "depth", "norm", "_dtype_")] == [24, 2, True, "float64"]
    page = (folder / "grown" / "report.html").read_text()
    assert "Not evaluated, as this run does not have their data: flats, boats" in page


def test_a_network_file_does_as_well_as_its_run_folder(place):
    folder, rows, before = place
    network = "network='archive/run of May/network.safetensors'"
    training(folder, "tasks=[cars]", network, "report=false", "hydra.run.dir=from a file")
    assert same(before, outputs(folder / "from a file", before, rows))
    files = [folder / name / "network.safetensors" for name in ("grown", "from a file")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_network_on_the_hub_does_as_well(place, hub, capsys):
    folder, _, _ = place
    content = (folder / "archive" / "run of May" / "network.safetensors").read_bytes()
    hub.put("me/houses", {"network.safetensors": content})
    training(folder, "tasks=[cars]", "network=hf://me/houses", "report=false", "hydra.run.dir=from the hub")
    files = [folder / name / "network.safetensors" for name in ("grown", "from the hub")]
    assert files[0].read_bytes() == files[1].read_bytes()
    message = error_of(capsys, folder, "network=hf://me/houses", "retrain=flats")
    assert "retrain: hf://me/houses is no run folder" in message


def test_a_violation_in_a_task_without_data_is_found(place, tmp_path, monkeypatch, capsys):
    folder, _, _ = place
    fit = Run._do_fit

    def change(run, *arguments):
        weight = dict(run.network.weights())["layers.1.weight"]
        weight[run.network.masks("boats")["layers.1.weight"]] += 1
        fit(run, *arguments)

    monkeypatch.setattr(Run, "_do_fit", change)
    with pytest.raises(SystemExit):
        training(folder, "tasks=[cars]", "network=archive/run of May", f"hydra.run.dir={tmp_path / 'run'}")
    assert "task 'boats' has changed since it was frozen: its weights" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "failed"
    assert "report.html was not written" not in (tmp_path / "run" / "train.log").read_text()


def test_settings_that_contradict_the_file_are_named_together(place, capsys):
    folder, _, _ = place
    known = ["tasks=[cars]", "network=archive/run of May"]
    message = error_of(
        capsys, folder, *known, "seed=1", "backbone.width=40", "backbone.norm=true", "trainer.precision=32"
    )
    for key, value, given in (("seed", 3, 1), ("backbone.width", 24, 40), ("trainer.precision", "64-true", 32)):
        assert re.search(says(key, f"{value!r}, as in the network archive/run of May", given), message)
    assert "- backbone.norm" not in message
    message = error_of(capsys, folder, *known, "backbone=resnet18")
    bound = "'msh.backbones.mlp.MLP', as in the network archive/run of May"
    assert re.search(says("backbone._target_", bound, "msh.backbones.resnet.ResNet18"), message)
    (folder / "my" / "experiment").mkdir()
    (folder / "my" / "experiment" / "wide.yaml").write_text("# @package _global_\nbackbone:\n  depth: 5\n")
    message = error_of(capsys, folder, *known, "+experiment=wide")
    assert re.search(says("backbone.depth", "2, as in the network archive/run of May", 5), message)
    assert "seed" not in message


def test_the_files_code_is_not_called_unless_the_command_line_names_it(place, capsys, tmp_path):
    folder, _, _ = place
    file = read_state(folder / "archive" / "run of May" / "network.safetensors")
    file.state.recipe["_target_"] = "os.system"
    file.write(tmp_path / "network")
    message = error_of(capsys, folder, "tasks=[cars]", f"network={tmp_path / 'network'}")
    assert "backbone._target_ = 'os.system', which is not in msh" in message


@pytest.mark.parametrize("network", ["grown", "grown/network.safetensors"])
def test_one_task_is_trained_again_and_no_other_changes(place, network, tmp_path):
    folder, rows, before = place
    tasks = [] if network == "grown" else ["tasks=[cars]"]
    training(folder, f"network={network}", "retrain=cars", "trainer.max_epochs=3", *tasks, f"hydra.run.dir={tmp_path}")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["curriculum"] == [["flats", "boats"], ["cars"]]
    assert same(before, outputs(tmp_path, before, rows))
    old, new = (read_state(path / "network.safetensors").state for path in (folder / "grown", tmp_path))
    assert old.digest("cars") != new.digest("cars")
    assert old.total().owned == new.total().owned
    here(evaluate.main, f"run={tmp_path}", "paths.data_dir=data", cwd=folder)


def test_what_cannot_be_trained_again_is_named(place, capsys, tmp_path):
    folder, _, _ = place
    message = error_of(capsys, folder, "network=grown", "retrain=[boots,flats]")
    assert re.search(says("retrain", "one of flats, boats, cars", "boots", "boats"), message)
    assert "does not have the settings of 'flats'" in message
    assert "name tasks with their data: tasks=[boots,flats]" in message
    message = error_of(capsys, folder, "network=grown/network.safetensors", "retrain=[flats]")
    assert "is no run folder, and is without the settings" in message
    message = error_of(capsys, folder, "network=grown", "retrain=[flats]", "tasks=[cars]")
    assert "retrain = 'flats' needs its data: name it in tasks too" in message
    message = error_of(capsys, folder, "retrain=cars", "tasks=[cars]")
    assert re.search(says("retrain", "null without network=RUN, which has the tasks", ["cars"]), message)
    shutil.copytree(folder / "gone", tmp_path / "all")
    shutil.copy(folder / "data" / "cars.csv", tmp_path / "all")
    both = ["tasks=[cars,flats]", "reuse=all", f"paths.data_dir={tmp_path / 'all'}", "report=false"]
    training(folder, *both, *BACKBONE, "hydra.run.dir=reading")
    message = error_of(capsys, folder, "network=reading", "retrain=cars")
    assert "retrain = 'cars': task 'flats' reads its weights, so retrain 'flats' too" in message


def test_a_moved_run_is_used_as_where_it_was(place, tmp_path, capsys):
    """Everything that a run folder is good for works where it was copied to, without the network it started from."""
    folder, rows, _ = place
    moved = tmp_path / "a new disk" / "grown"
    shutil.copytree(folder / "grown", moved)
    shutil.copytree(folder / "data", tmp_path / "inputs")
    again = outputs(folder / "grown", ["flats", "boats", "cars"], rows)
    assert same(again, outputs(moved, again, rows))
    here(evaluate.main, f"run={moved}", "paths.data_dir=inputs", cwd=tmp_path)
    scores = json.loads((moved / "evaluation.json").read_text())
    results = json.loads((moved / "results.json").read_text())
    assert scores == [{"task": "cars", "metric": "accuracy", "score": results["tasks"]["cars"]["test"]}]
    here(train.main, f"resume={moved}", "paths.data_dir=inputs", cwd=tmp_path)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    here(app.main, "predict", moved, "--task", "flats", "rows.csv", "-o", "answers.csv", cwd=tmp_path)
    assert len(pd.read_csv(tmp_path / "answers.csv")) == len(rows)
    here(app.main, "export", moved, "--task", "boats", "-o", "boats.pt2", cwd=tmp_path)
    (moved / "report.html").unlink()
    here(app.main, "report", moved, cwd=tmp_path)
    page = (moved / "report.html").read_text()
    assert "flats" in page
    here(app.main, "inspect", moved, cwd=tmp_path)
    assert "flats" in capsys.readouterr().out


def test_a_stopped_run_is_resumed_where_it_was_moved_to(place, tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("stopped")

    folder, _, _ = place
    shutil.copytree(folder / "archive" / "run of May", tmp_path / "old")
    shutil.copytree(folder / "my", tmp_path / "my")
    shutil.copytree(folder / "data", tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_do_fit", stop)
        with pytest.raises(SystemExit):
            training(tmp_path, "tasks=[cars]", "network=old", "hydra.run.dir=new")
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "there").mkdir()
    shutil.move(tmp_path / "new", tmp_path / "there" / "new")
    here(train.main, "resume=there/new", cwd=tmp_path)
    ends = [path / "network.safetensors" for path in (folder / "grown", tmp_path / "there" / "new")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
