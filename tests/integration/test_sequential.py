"""The demo, end to end: one command, the run folder, and measuring it again."""

import csv
import json
import sys

import pytest
from running import SMALL, run
from safetensors import safe_open
from wandb_file import logged_keys, run_ids

TASKS = ["digits", "breast_cancer", "wine", "diabetes"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(run folder, what was printed) of the demo with W&B offline, in a small network, in a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["+experiment=sequential", "baseline=dense", "trainer.max_epochs=6", f"hydra.run.dir={folder / 'run'}"]
    return folder / "run", run("train.py", *arguments, *SMALL, cwd=folder)


@pytest.fixture(scope="module")
def results(demo):
    return json.loads((demo[0] / "results.json").read_text())


def test_run_folder_holds_what_the_contract_names(demo):
    folder, printed = demo
    for name in ("results.json", "metrics.csv", "network.safetensors", "train.log", ".hydra/config.yaml"):
        assert (folder / name).is_file(), name
    assert sorted(p.stem for p in (folder / "subnetworks").iterdir()) == sorted(TASKS)
    assert (folder / "checkpoints").is_dir()
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert str(folder) in printed.splitlines()[-1]
    for task in TASKS:
        assert task in printed


def test_results_follow_the_schema(results):
    assert results["schema_version"] == 1
    assert (results["experiment"], results["seed"], results["status"]) == ("sequential", 0, "finished")
    assert results["curriculum"] == [[task] for task in TASKS]
    assert list(results["tasks"]) == TASKS
    prunable = results["capacity"]["prunable"]
    for stage, row in enumerate(results["tasks"].values()):
        assert row["stage"] == stage
        assert row["test"] == row["test_when_learned"] == results["matrix"][-1][stage]
        assert row["density"] == pytest.approx(0.1, abs=0.001)
        assert row["weights"] == pytest.approx(0.1 * prunable, rel=0.01)
        assert row["weights_private"] > 0
        assert row["weights_reused"] == 0
        assert row["dense"] is not None
        assert row["train_seconds"] > 0
    owned = sum(row["weights"] for row in results["tasks"].values())
    assert results["capacity"] == {"prunable": prunable, "owned": owned, "free": prunable - owned}


def test_nothing_is_forgotten(results):
    assert results["forgetting"] == 0.0
    assert results["bwt"] == 0.0
    assert results["guarantee"] == {"checked": 6, "violations": 0}
    for stage, row in enumerate(results["matrix"]):
        assert [score is None for score in row] == [task > stage for task in range(4)]


def test_tasks_are_learned(results):
    scores = {task: row["test"] for task, row in results["tasks"].items()}
    assert scores["digits"] > 0.7
    assert scores["breast_cancer"] > 0.85
    assert scores["wine"] > 0.7
    assert scores["diabetes"] < 77.0  # the standard deviation of the target


def test_evaluate_measures_the_same_to_the_last_digit(demo, results, monkeypatch, capsys):
    from hydra.core.global_hydra import GlobalHydra

    from msh.cli.evaluate import main

    folder, _ = demo
    (folder / "checkpoints").rename(folder / "elsewhere")  # it needs the network file, and no checkpoint
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={folder}"])
    GlobalHydra.instance().clear()
    main()
    (folder / "elsewhere").rename(folder / "checkpoints")
    printed = capsys.readouterr().out
    rows = json.loads((folder / "evaluation.json").read_text())
    assert {row["task"]: row["score"] for row in rows} == {t: r["test"] for t, r in results["tasks"].items()}
    assert all(str(row["score"]) in printed for row in rows)


def test_logs_have_one_step_axis_over_all_stages(demo):
    with (demo[0] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    first = {task: next(int(r["step"]) for r in rows if r[f"{task}/val/loss"]) for task in TASKS}
    assert [first[task] for task in TASKS] == sorted(set(first.values()))
    assert {"digits/val/accuracy", "diabetes/val/rmse", "capacity/free", "wine/sparsity"} <= set(rows[0])
    free = [float(row["capacity/free"]) for row in rows if row["capacity/free"]]
    assert free == pytest.approx([0.9, 0.8, 0.7, 0.6], abs=0.005)


def test_subnetwork_file_holds_only_the_tasks_own_weights(demo, results):
    with safe_open(demo[0] / "subnetworks" / "wine.safetensors", "pt") as file:
        values = sum(file.get_tensor(name).numel() for name in file.keys() if name.startswith("values."))  # noqa: SIM118
        assert file.metadata()["task"] == "wine"
    assert values == results["tasks"]["wine"]["weights"]


def test_wandb_run_can_be_read_back(demo, results):
    file = next((demo[0] / "wandb").glob("offline-run-*/*.wandb"))
    assert run_ids(file) == {results["run_id"]}
    assert {"digits/val/accuracy", "diabetes/test/rmse", "capacity/free"} <= logged_keys(file)
