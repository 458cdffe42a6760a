"""Two processes on the CPU do what one does."""

import json

import pytest
from running import SMALL, run

SETTINGS = ["+experiment=sequential", "tasks=[wine,diabetes,iris]", "curriculum=[[wine],[diabetes,iris]]"]
SETTINGS += ["tasks.wine.batch_size=16", "tasks.diabetes.batch_size=16", "backbone.norm=true"]
SETTINGS += ["logger=csv", "trainer.max_epochs=8", "++callbacks.stop.patience=1", "++callbacks.stop.min_delta=0.045"]
SETTINGS += ["++callbacks.stop._target_=msh.training.callbacks.EarlyStoppingPerTask"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    small = [setting for setting in SMALL if not setting.startswith("trainer.")]
    run("train.py", *SETTINGS, *small, "trainer=ddp_sim", f"hydra.run.dir={folder}", cwd=folder.parent)
    return json.loads((folder / "results.json").read_text())


def test_two_processes_learn_what_one_does(two, tmp_path):
    run("train.py", *SETTINGS, *SMALL, f"hydra.run.dir={tmp_path / 'one'}", cwd=tmp_path)
    one = json.loads((tmp_path / "one" / "results.json").read_text())
    assert one["capacity"] == two["capacity"]
    assert two["tasks"]["wine"]["test"] == pytest.approx(one["tasks"]["wine"]["test"], abs=0.08)
    assert two["tasks"]["diabetes"]["test"] == pytest.approx(one["tasks"]["diabetes"]["test"], rel=0.08)


def test_guarantee_holds_over_processes(two):
    assert two["status"] == "finished"
    assert two["forgetting"] == 0.0
    assert two["guarantee"] == {"checked": 1, "violations": 0}
