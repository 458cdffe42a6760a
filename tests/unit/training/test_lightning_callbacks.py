"""Lightning's callbacks: each trains two tasks with pruning and keeps the guarantee, or is refused before training."""

import json
import logging
import re
import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from toys import make_run, make_split

from messages import says
from msh.tasks import RawData
from msh.training.callbacks.allowed import build_callbacks, check_monitors
from msh.training.run import train

LIGHTNING = "pytorch_lightning.callbacks"


def source(seed=1):
    return RawData("classification", make_split(40, "classification", seed), make_split(30, "classification", 2), 3)


def say(trainer, module):
    """Stands for a function of the user's."""


def config_of(folder, callbacks, **settings):
    here = f"{__name__}.source"
    tasks = {name: {"source": {"_target_": here, "seed": i}, "batch_size": 8} for i, name in enumerate("ab")}
    usual = {
        "backbone": {"_target_": "msh.backbones.MLP", "width": 12, "depth": 2},
        "pruning": {"density": 0.4, "begin": 0.25, "end": 0.5, "rounds": 2},
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "log_every_n_steps": 1},
        "checkpoint": {"min_seconds": 0},
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "report": False,
        "threads": 1,
    }
    logger = {"csv": {"_target_": "msh.tracking.loggers.CSVLogger", "save_dir": str(folder)}}
    return make_run(tasks, callbacks=callbacks, **({"logger": logger} | usual | settings))


def learn(folder, callbacks, **settings):
    """Train both tasks; returns results.json."""
    folder.mkdir(exist_ok=True)
    train(config_of(folder, callbacks, **settings), folder)
    return json.loads((folder / "results.json").read_text())


WORKING = {
    "EMAWeightAveraging": {"decay": 0.9},
    "WeightAveraging": {},
    "ModelCheckpoint": {"monitor": "val/loss", "save_top_k": 2},
    "LearningRateMonitor": {},
    "DeviceStatsMonitor": {},
    "ModelSummary": {"max_depth": 2},
    "RichModelSummary": {"max_depth": 2},
    "RichProgressBar": {},
    "TQDMProgressBar": {},
    "Timer": {"duration": {"hours": 1}},
    "EarlyStopping": {"monitor": "val/loss", "patience": 1},
    "LambdaCallback": {"on_train_start": {"_target_": "hydra.utils.get_method", "path": f"{__name__}.say"}},
    "SpikeDetection": {"warmup": 10**6},
}
REFUSED = {
    "StochasticWeightAveraging": ({"swa_lrs": 0.01}, "pytorch_lightning.callbacks.WeightAveraging"),
    "BatchSizeFinder": ({}, "tasks.TASK.batch_size"),
    "LearningRateFinder": ({}, "optimizer.lr"),
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, "trainer.accumulate_grad_batches"),
    "BackboneFinetuning": ({}, "pruning.start=backbone"),
    "OnExceptionCheckpoint": ({"dirpath": "saved"}, "resume=RUN_DIR"),
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, "settings under pruning"),
}


@pytest.mark.parametrize("name", WORKING)
def test_a_callback_works_through_two_tasks_with_pruning(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "DeviceStatsMonitor":
        pytest.importorskip("psutil")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # the second fit's ModelCheckpoint
        results = learn(tmp_path / "run", {"mine": {"_target_": f"{LIGHTNING}.{name}", **WORKING[name]}})
    assert results["status"] == "finished"
    assert results["guarantee"] == {"checked": 1, "violations": 0}
    budget = round(0.4 * results["capacity"]["prunable"])
    assert [task["weights"] for task in results["tasks"].values()] == pytest.approx([budget, budget], abs=2)


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_that_cannot_work_is_refused_before_training(name, tmp_path):
    settings, instead = REFUSED[name]
    with pytest.raises(ValueError, match=says("callbacks.mine", value=name)) as caught:
        learn(tmp_path / "run", {"mine": {"_target_": f"{LIGHTNING}.{name}", **settings}})
    assert instead in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()


def test_every_callback_of_lightning_is_tried_or_left_out_for_a_reason():
    bases = {"Callback", "Checkpoint", "ProgressBar", "BaseFinetuning"}
    predicts = {"BasePredictionWriter", "PredictionWriter"}  # msh does not call Trainer.predict
    needs_a_function = {"ThroughputMonitor"}
    known = {*WORKING, *REFUSED, *bases, *predicts, *needs_a_function}
    assert set(pl.callbacks.__all__) <= known


@pytest.mark.parametrize(
    ("callbacks", "settings", "message"),
    [
        (["LearningRateMonitor"], {"logger": {}}, says("callbacks.0", value="LearningRateMonitor")),
        (["RichProgressBar", "TQDMProgressBar"], {}, says("callbacks.1", value="TQDMProgressBar")),
        (["WeightAveraging", "EMAWeightAveraging"], {}, says("callbacks.1", value="EMAWeightAveraging")),
        (
            ["WeightAveraging"],
            {"pruning": {"density": 0.4, "begin": 0.25, "end": 0.5, "gate": {"step": 0.1, "until": 0.75}}},
            "null with pruning.gate",
        ),
        (["WeightAveraging"], {"trainer": {"accelerator": "cpu", "strategy": "fsdp"}}, "null with trainer.strategy"),
    ],
)
def test_callbacks_that_do_not_fit_the_settings_are_refused(callbacks, settings, message, tmp_path):
    blocks = {str(i): {"_target_": f"{LIGHTNING}.{name}"} for i, name in enumerate(callbacks)}
    with pytest.raises(ValueError, match=message):
        learn(tmp_path / "run", blocks, **settings)


def test_all_refused_callbacks_are_named_at_once(tmp_path):
    blocks = {name: {"_target_": f"{LIGHTNING}.{name}"} for name in ("BatchSizeFinder", "LearningRateFinder")}
    with pytest.raises(ValueError, match=r"2 problems:(.|\n)*BatchSizeFinder(.|\n)*LearningRateFinder"):
        learn(tmp_path / "run", blocks)


@pytest.mark.parametrize(
    ("monitor", "settings", "works"),
    [
        ("val/loss", {}, True),
        ("a/val/loss", {}, False),
        ("b/val/accuracy", {}, False),
        ("a/val/loss", {"curriculum": [["a", "b"]]}, True),
        ("a/val/loss", {"curriculum": [["a", "b"]], "baseline": ["joint"]}, True),
        ("a/val/loss", {"curriculum": [["a", "b"]], "baseline": ["dense"]}, False),
    ],
)
def test_a_value_that_some_fit_does_not_log_cannot_be_monitored(monitor, settings, works, tmp_path):
    block = {"stop": {"_target_": f"{LIGHTNING}.EarlyStopping", "monitor": monitor, "patience": 9}}
    if works:
        assert learn(tmp_path / "run", block, **settings)["status"] == "finished"
        return
    with pytest.raises(ValueError, match=says("callbacks.stop.monitor", value=monitor)) as caught:
        learn(tmp_path / "run", block, **settings)
    assert "val/loss" in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()


class LogsOwn(pl.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/f1", 0.5)


@pytest.mark.parametrize("kind", ["EarlyStopping", "ModelCheckpoint"])
@pytest.mark.parametrize(
    ("monitor", "own", "meant"),
    [
        ("val/los", False, "val/loss"),
        ("val/los", True, "val/loss"),
        ("vall/loss", True, "val/loss"),
        ("loss", False, "val/loss"),
        ("elsewhere", False, None),
        ("val/f1", False, None),
        ("a/val/acuracy", True, None),
        ("val/f1", True, "works"),
    ],
)
def test_a_misspelt_value_is_refused_before_training_unless_own_code_may_log_it(kind, monitor, own, meant, tmp_path):
    blocks = {"mine": {"_target_": f"{LIGHTNING}.{kind}", "monitor": monitor}}
    if own:
        blocks["own"] = {"_target_": f"{__name__}.LogsOwn"}
    if meant == "works":
        config = config_of(tmp_path, blocks)
        check_monitors(build_callbacks(config), dict.fromkeys("ab", SimpleNamespace(metric="accuracy")), [["a"], ["b"]])
        return
    with pytest.raises(ValueError, match=says("callbacks.mine.monitor", value=monitor)) as caught:
        learn(tmp_path / "run", blocks)
    if meant is not None:
        assert f"did you mean '{meant}'?" in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("monitor", ["epoch", "step", "val/loss", None])
def test_a_checkpoint_may_follow_what_lightning_counts(monitor):
    blocks = {"mine": {"_target_": f"{LIGHTNING}.ModelCheckpoint", "monitor": monitor}}
    callbacks = build_callbacks(make_run(["digits"], callbacks=blocks))
    check_monitors(callbacks, {"a": SimpleNamespace(metric="accuracy")}, [["a"]])


def test_a_fit_that_a_callback_ends_early_is_pruned_to_its_budget(tmp_path, caplog):
    class Ends(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = True

    globals()["Ends"] = Ends
    with caplog.at_level(logging.WARNING):
        results = learn(tmp_path / "run", {"ends": {"_target_": f"{__name__}.Ends"}})
    budget = round(0.4 * results["capacity"]["prunable"])
    assert [task["weights"] for task in results["tasks"].values()] == pytest.approx([budget, budget], abs=2)
    assert re.search(r"the remaining 2 are made at once", caplog.text)
    assert results["guarantee"] == {"checked": 1, "violations": 0}


def from_elsewhere(base):
    raise ModuleNotFoundError("No module named 'lightning'", name="lightning")


def test_a_callback_that_imports_a_missing_lightning_says_what_to_import(tmp_path):
    config = make_run(["digits"], callbacks={"mine": {"_target_": f"{__name__}.from_elsewhere", "base": 1}})
    with pytest.raises(ValueError, match=says("callbacks.mine._target_") + ".*") as error:
        build_callbacks(config)
    assert "imports from pytorch_lightning.callbacks" in str(error.value)


def test_callbacks_of_the_package_lightning_are_those_that_the_trainer_knows():
    block = {"_target_": "lightning.pytorch.callbacks.Timer", "duration": "00:01:00:00"}
    callback = build_callbacks(make_run(["digits"], callbacks={"timer": block}))["timer"]
    assert type(callback) is pl.callbacks.Timer


def test_a_callback_may_extend_the_one_of_the_package_lightning_but_no_other():
    theirs = type("Callback", (), {"__module__": "lightning.pytorch.callbacks.callback"})
    stopping = type("EarlyStopping", (theirs,), {"__module__": "lightning.pytorch.callbacks.early_stopping"})
    made = {"Plain": type("Plain", (theirs,), {}), "Stops": type("Stops", (stopping,), {})}
    globals().update(made)
    blocks = {"mine": {"_target_": f"{__name__}.Plain"}}
    assert isinstance(build_callbacks(make_run(["digits"], callbacks=blocks))["mine"], theirs)
    with pytest.raises(ValueError, match=r"extends pytorch_lightning\.callbacks\.EarlyStopping"):
        build_callbacks(make_run(["digits"], callbacks={"mine": {"_target_": f"{__name__}.Stops"}}))


def test_device_statistics_need_psutil(tmp_path, monkeypatch):
    monkeypatch.setattr("msh.training.callbacks.allowed.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=says("callbacks.mine", value="DeviceStatsMonitor")) as caught:
        learn(tmp_path / "run", {"mine": {"_target_": f"{LIGHTNING}.DeviceStatsMonitor"}})
    assert "pip install psutil" in str(caught.value)
