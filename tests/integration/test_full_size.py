"""Runs of users, in full size."""

import json
import os

import pytest
from running import run

TARGETS = {"digits": 0.94, "breast_cancer": 0.92, "wine": 0.94}


@pytest.mark.slow
def test_demo_learns_every_task_in_the_papers_network(tmp_path):
    printed = run("train.py", "+experiment=sequential", "threads=1", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for task, least in TARGETS.items():
        assert results["tasks"][task]["test"] >= least, printed
    assert results["tasks"]["diabetes"]["test"] <= 62.0, printed
    assert (results["forgetting"], results["guarantee"]) == (0.0, {"checked": 6, "violations": 0})


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("MSH_DATA_DIR" not in os.environ, reason="MSH_DATA_DIR names no folder with the real data")
def test_mnist_then_fashion_mnist_from_torchvisions_files(tmp_path):
    settings = ["tasks=mnist_fashion", f"paths.data_dir={os.environ['MSH_DATA_DIR']}", "logger=csv"]
    settings += ["trainer.max_epochs=6", "trainer.limit_train_batches=0.3"]
    run("train.py", "+experiment=sequential", *settings, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["capacity"]["prunable"] == 784 * 1000 + 5 * 1000 * 1000
    assert results["tasks"]["mnist"]["test"] > 0.9
    assert results["tasks"]["fashion_mnist"]["test"] > 0.75
    assert results["forgetting"] == 0.0
