"""Two processes on the CPU, started as users start them."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
from forking import run, run_ranks
from running import ROOT, SMALL, finish, start

from msh.files.state_file import read_state
from msh.training.evaluation import evaluate

SETTINGS = ["+experiment=sequential", "tasks=[wine,diabetes,iris]", "curriculum=[[wine],[diabetes,iris]]"]
SETTINGS += ["tasks.wine.batch_size=16", "tasks.diabetes.batch_size=16", "backbone.norm=true"]
SETTINGS += ["logger=csv", "trainer.max_epochs=8", "++callbacks.stop.patience=1", "++callbacks.stop.min_delta=0.045"]
SETTINGS += ["++callbacks.stop._target_=msh.training.callbacks.EarlyStoppingPerTask"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    small = [setting for setting in SMALL if not setting.startswith("trainer.")]
    run("train.py", *SETTINGS, *small, "trainer=ddp_sim", f"hydra.run.dir={folder}", cwd=folder.parent)
    return json.loads((folder / "results.json").read_text()), folder


def test_scores_of_two_processes_are_exact(two, tmp_path):
    """Each example in the uneven shards counts once: one process evaluates the network to the same scores."""
    results, folder = two
    shutil.copytree(folder, tmp_path / "run")
    measured = {row["task"]: row["score"] for row in evaluate(tmp_path / "run")}
    assert measured["wine"] == results["tasks"]["wine"]["test"]
    assert measured["iris"] == results["tasks"]["iris"]["test"]
    assert measured["diabetes"] == pytest.approx(results["tasks"]["diabetes"]["test"], rel=1e-6)


def test_processes_regrow_the_same_weights(tmp_path):
    """Optimizer and masks stay together on both: the guarantee compares them, and losses stay those of one network."""
    small = [setting for setting in SMALL if not setting.startswith("trainer.")]
    folder = tmp_path / "run"
    settings = ["+experiment=sequential", "tasks=[wine,iris]", "tasks.wine.batch_size=16", "pruning=regrow"]
    settings += ["pruning.density=0.2", "trainer.max_epochs=6", "logger=csv", *small]
    run_ranks(2, "train.py", *settings, "trainer=ddp_sim", f"hydra.run.dir={folder}", cwd=tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["guarantee"]["violations"] == 0
    owners = read_state(folder / "network.safetensors", "network").state.owners
    for owner, row in enumerate(results["tasks"].values(), start=1):
        assert sum(int((ids == owner).sum()) for ids in owners.values()) == row["weights"]
        assert row["val"] > 0.6
    measured = {row["task"]: row["score"] for row in evaluate(folder)}
    assert measured == {name: row["test"] for name, row in results["tasks"].items()}


def test_two_processes_do_a_sweep_together(tmp_path):
    """Each job is trained by both, the first process reports, and a job that fails leaves the others alone."""
    small = [setting for setting in SMALL if not setting.startswith("trainer.")]
    settings = ["tasks=[wine]", "trainer.max_epochs=2", "logger=csv", "optimizer=sgd", *small, "trainer=ddp_sim"]
    process = start("train.py", "-m", *settings, "optimizer.lr=1e6,0.01,0.02", "hydra.sweep.dir=sweep", cwd=tmp_path)
    code, printed = finish(process)
    assert code == 1, printed
    assert "Traceback" not in printed
    assert printed.count("written: ") == printed.count("1 of 3 jobs failed: 0") == 1
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    assert [(row["job"], row["status"]) for row in rows] == [("0", "failed"), ("1", "finished"), ("2", "finished")]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1", "2"]


def test_an_epochs_score_is_that_of_the_saved_network(two):
    """Batch norms see different examples in each process: both evaluate the first process's statistics."""
    results, folder = two
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    for task, metric in (("wine", "accuracy"), ("iris", "accuracy"), ("diabetes", "rmse")):
        pruned = max(place for place, row in enumerate(rows) if row[f"{task}/sparsity"])
        names = [f"{task}/val/loss", f"{task}/val/{metric}"]
        measured = [tuple(float(row[name]) for name in names) for row in rows[pruned:] if row[names[1]]]
        epochs = measured[1:]  # after that of the cut
        lowest = min(loss for loss, _ in epochs)  # which early stopping monitors
        best = [score for loss, score in epochs if loss == lowest][-1]
        assert best == pytest.approx(results["tasks"][task]["val"], rel=1e-6), task


def test_torchrun_starts_processes_that_share_a_run(tmp_path):
    settings = ["+experiment=parallel", "tasks=[wine,iris]", "trainer.max_epochs=2", "logger=csv", "pruning=at_init"]
    small = [setting for setting in SMALL if not setting.startswith("trainer.")]
    settings += [*small, "trainer=multi_node", "trainer.accelerator=cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += [str(ROOT / "train.py"), *settings]
    folder = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*launch, f"hydra.run.dir={folder}"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = [done.stdout]
    printed.append(run_ranks(2, "train.py", *settings, f"resume={folder}", "baseline=joint", cwd=tmp_path))
    assert [text.count("run folder:") for text in printed] == [1, 1]
    said = (folder / "train.log").read_text().splitlines()
    assert len([line for line in said if "learned wine" in line]) == 1
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert None not in [row["joint"] for row in results["tasks"].values()]
    assert (folder / ".hydra" / "config.yaml").is_file()


def test_guarantee_holds_over_processes(two):
    two, _ = two
    assert two["status"] == "finished"
    assert two["forgetting"] == 0.0
    assert two["guarantee"] == {"checked": 1, "violations": 0}
