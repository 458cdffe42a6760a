"""Stages of one task and of several, and the baselines beside them."""

import json
import shutil

import pytest
from running import few_steps
from sources import instead_of

from msh.tracking.tracking import Tracking
from msh.training.baselines import Baselines
from msh.training.evaluation import evaluate

MIXED = ["+experiment=mixed", "trainer.max_epochs=4", "logger=none"]
TWO = ["tasks=[wine,iris]", *few_steps("wine", "iris")]
ORDER = ["digits", "breast_cancer", "wine", "diabetes"]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def mixed(train_here):
    """(results.json, run folder, printed text) of a curriculum with mixed stages and every baseline."""
    settings = [*few_steps(*ORDER), "optimizer.lr=0.01", "baseline=[joint,dense,finetune]", "callbacks=early_stopping"]
    folder, printed = train_here(*MIXED, *settings)
    return results_of(folder), folder, printed


def test_a_mixed_curriculum_is_learned_and_compared(mixed):
    results, folder, printed = mixed
    assert results["curriculum"] == [["digits", "breast_cancer"], ["wine"], ["diabetes"]]
    assert [row["stage"] for row in results["tasks"].values()] == [0, 0, 1, 2]
    assert [[score is not None for score in row] for row in results["matrix"]] == [
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
    assert (results["status"], results["forgetting"]) == ("finished", 0.0)
    assert results["guarantee"] == {"checked": 2 + 3, "violations": 0}
    assert {round(row["density"], 2) for row in results["tasks"].values()} == {0.1}
    assert results["capacity"]["owned"] == sum(row["weights"] for row in results["tasks"].values())
    assert sorted(path.stem for path in (folder / "subnetworks").iterdir()) == sorted(ORDER)
    for name in ORDER:
        row, sign = results["tasks"][name], 1 if name != "diabetes" else -1
        assert min(sign * row[key] for key in ("test", "dense", "joint")) > (0.6 if sign == 1 else -77.0)
        assert row["finetune"] == results["finetune"]["matrix"][-1][ORDER.index(name)]
    assert results["finetune"]["forgetting"] > 0.02
    assert all(name in printed for name in ("dense", "finetune", "joint"))
    assert not list((folder / "checkpoints").rglob("*.ckpt"))


def test_the_parallel_experiment_has_one_stage_of_all_its_tasks(train_here):
    settings = [*TWO, "trainer.max_epochs=2", "logger=none", "uneven=shortest", "reuse=all"]
    folder, _ = train_here("+experiment=parallel", *settings, "pruning=at_init")
    results = results_of(folder)
    assert results["curriculum"] == [["wine", "iris"]]
    assert len(results["matrix"]) == 1
    assert [row["weights_reused"] for row in results["tasks"].values()] == [0, 0]
    assert results["guarantee"] == {"checked": 0, "violations": 0}


def test_later_stages_change_no_bit_of_an_earlier_one(train_here):
    settings = ["+experiment=mixed", "trainer.max_epochs=3", "logger=none"]
    more = ["tasks=[wine,iris,diabetes]", "curriculum=[[wine,iris],[diabetes]]", *few_steps("diabetes")]
    short, _ = train_here(*settings, *TWO, "curriculum=[[wine,iris]]", folder="short")
    long, _ = train_here(*settings, *TWO, *more, folder="long")
    for name in ("wine", "iris"):
        files = [folder / "subnetworks" / f"{name}.safetensors" for folder in (short, long)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_finished_run_takes_additional_baselines_and_keeps_its_network(train_here, monkeypatch):
    settings = ["+experiment=parallel", *TWO, "trainer.max_epochs=2", "logger=none", "pruning=at_init"]
    folder, _ = train_here(*settings, "baseline=joint")
    before = results_of(folder)
    fit, fits = Baselines._fit, []
    monkeypatch.setattr(
        Baselines, "_fit", lambda self, module, what, *rest: fits.append(what.key) or fit(self, module, what, *rest)
    )
    train_here(f"resume={folder}", "baseline=[joint,finetune]")
    train_here(f"resume={folder}", "baseline=finetune")
    after = results_of(folder)
    assert fits == ["finetune-wine", "finetune-iris"]  # a fit for each task, once
    assert (after["status"], after["matrix"], after["guarantee"]) == ("finished", before["matrix"], before["guarantee"])
    for task, row in after["tasks"].items():
        assert row["finetune"] is not None
        assert row | {"finetune": None} == before["tasks"][task]


def test_a_finished_run_without_checkpoints_takes_a_baseline_without_training_again(train_here):
    settings = ["+experiment=mixed", *TWO, "curriculum=[[wine],[iris]]", "trainer.max_epochs=2"]
    folder, _ = train_here(*settings, "logger=csv")
    shutil.rmtree(folder / "checkpoints")
    before, files = results_of(folder), {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert len(files) == 3
    train_here(f"resume={folder}", "baseline=joint")
    after = results_of(folder)
    assert (after["status"], after["matrix"], after["guarantee"]) == ("finished", before["matrix"], before["guarantee"])
    for task, row in after["tasks"].items():
        assert row["joint"] is not None
        assert row | {"joint": None} == before["tasks"][task]  # its train_seconds among them
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("keeps_metrics", [True, False])
def test_what_follows_a_run_without_checkpoints_is_logged_at_its_last_step(keeps_metrics, train_here, monkeypatch):
    ended, steps = Tracking.ended, []
    monkeypatch.setattr(Tracking, "ended", lambda self, results, step: (steps.append(step), ended(self, results, step)))
    settings = ["+experiment=mixed", *TWO, "curriculum=[[wine],[iris]]", "trainer.max_epochs=2", "logger=csv"]
    folder, _ = train_here(*settings, "trainer.accumulate_grad_batches=3")
    shutil.rmtree(folder / "checkpoints")
    if not keeps_metrics:
        (folder / "metrics.csv").unlink()
    train_here(f"resume={folder}", "baseline=joint")
    assert steps[0] == steps[1] > 0


def test_a_run_that_failed_in_a_baseline_resumes_there(train_here, monkeypatch):
    settings = ["+experiment=parallel", *TWO, "trainer.max_epochs=2", "logger=none"]
    settings += ["pruning=at_init", "baseline=[dense,finetune,joint]", "backbone.norm=true"]
    undisturbed, _ = train_here(*settings, folder="undisturbed")
    evaluate, fits = Baselines._evaluate, []

    def fail(self, module, kind, tasks):
        if kind == "finetune" and len(tasks) == 2:
            raise OSError("the disk is gone")
        return evaluate(self, module, kind, tasks)

    monkeypatch.setattr(Baselines, "_evaluate", fail)
    with pytest.raises(AssertionError, match="the disk is gone"):
        train_here(*settings)
    monkeypatch.setattr(Baselines, "_evaluate", evaluate)
    fit = Baselines._fit
    monkeypatch.setattr(
        Baselines, "_fit", lambda self, module, what, *rest: fits.append(what.key) or fit(self, module, what, *rest)
    )
    folder = undisturbed.with_name("run")
    train_here("+experiment=parallel", f"resume={folder}")
    assert fits == ["joint"]  # both dense networks and both fine-tuned tasks were done
    first, second = results_of(undisturbed), results_of(folder)
    assert first["finetune"] == second["finetune"]
    for key in ("test", "dense", "finetune", "joint"):
        assert [row[key] for row in first["tasks"].values()] == [row[key] for row in second["tasks"].values()]


def test_an_ensemble_reports_itself_and_its_members_and_is_evaluated_again(train_here):
    source = instead_of("fashion_mnist", shape="[1,11,11]", classes=3, examples=90)
    small = ["backbone.channels=[4,4]", "backbone.linear=[8]", "threads=1", "trainer.accelerator=cpu"]
    overrides = ["+experiment=paper/self_ensemble_fashion", *source, *small, "callbacks=none", "logger=none"]
    quick = [
        "trainer.max_epochs=5",
        "tasks.fashion_mnist.batch_size=8",
        "backbone.norm=true",
        "optimizer.lr=0.01",
        "seed=1",
    ]
    folder, printed = train_here(*overrides, *quick, small=False)
    results, members = results_of(folder), [f"fashion_mnist_{i}" for i in range(5)]
    assert results["curriculum"] == [members]
    assert list(results["ensemble"]) == ["ensemble"]
    row = results["ensemble"]["ensemble"]
    assert {key: row[key] for key in ("metric", "direction", "tasks")} == {
        "metric": "accuracy",
        "direction": "max",
        "tasks": members,
    }
    scores = [results["tasks"][name]["test"] for name in members]
    assert len(set(scores)) > 1
    assert row["test"] > max(0.7, sum(scores) / 5)
    assert row["val"] > sum(results["tasks"][name]["val"] for name in members) / 5
    assert all(task["density"] == pytest.approx(0.2, abs=0.02) for task in results["tasks"].values())
    assert "ensemble of 5" in printed
    again = {found["task"]: found["score"] for found in evaluate(folder, unsafe=True)}
    assert again == {name: results["tasks"][name]["test"] for name in members} | {"ensemble": row["test"]}


def test_tasks_whose_densities_add_up_to_1_fill_the_network(train_here):
    tasks = ["digits", "wine", "iris", "breast_cancer", "diabetes"]
    settings = [*few_steps(*tasks), "pruning.density=0.2", "pruning.granularity=weight", "backbone.width=32"]
    folder, _ = train_here(f"tasks=[{','.join(tasks)}]", *settings, "trainer.max_epochs=1", "logger=none")
    results = results_of(folder)
    weights = [task["weights"] for task in results["tasks"].values()]
    assert len(set(weights[:4])) == 1
    assert weights[4] < weights[0]  # 204.8 weights of a layer are 205 for all but the last
    assert results["capacity"] == {"prunable": sum(weights), "owned": sum(weights), "free": 0}
