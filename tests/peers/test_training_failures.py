"""Failures in similar libraries that only whole runs and fits show: one test each, named for the failure."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from msh.cli.configs import config_folder
from msh.tasks import RawData, Split, bundled
from msh.training import run
from msh.training.callbacks import Guarantee
from msh.training.config import register, run_config

register()
SMALL = [
    *("backbone.width=16", "backbone.depth=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
    *("logger=none", "callbacks=none", "threads=1", "trainer.max_epochs=4", "pruning.begin=0.25", "pruning.end=0.5"),
]


def train(folder, *overrides):
    """Do a whole run with two small tasks, like the command."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose("config", ["tasks=[wine,iris]", *SMALL, *overrides])
    return run.train(run_config(config), Path(folder))


# ---- backward transfer that is zero because scores are copied


class Harm(pl.Callback):
    """Overwrite the first task's weights while the second one trains."""

    def on_train_end(self, trainer, pl_module):
        network = pl_module.network
        if network.tasks == ["wine", "iris"]:
            for name, weight in network.weights():
                weight[network.masks("wine")[name]] *= -1.0
            network.subnetwork("wine").head.bias += torch.tensor([50.0, 0.0, 0.0])
            network.forget_modules()


@pytest.fixture
def harmed(tmp_path, monkeypatch):
    """Do a run in which the second stage damages the first task; return its results."""
    fits = run.run_fit

    def fit_and_harm(module, fit, tasks, config, folder, checkpoints, extra, *others):
        return fits(module, fit, tasks, config, folder, checkpoints, [*extra, Harm()], *others)

    monkeypatch.setattr(run, "run_fit", fit_and_harm)
    return lambda on_violation: train(tmp_path, "trainer.max_epochs=10", f"guarantee.on_violation={on_violation}")


def test_backward_transfer_is_evaluated_and_not_copied(harmed):
    results = harmed("warn")
    (learned, _), (now, _) = results.matrix
    assert learned > 0.45
    assert now == pytest.approx(1 / 3, abs=0.02)  # the head says the first class, whatever it sees
    assert results.bwt == now - learned < 0
    assert results.forgetting == learned - now
    assert (results.tasks["wine"].test_when_learned, results.tasks["wine"].test) == (learned, now)
    assert results.guarantee["violations"] == 1


def test_a_task_that_was_harmed_ends_the_run(harmed, tmp_path):
    with pytest.raises(RuntimeError, match="guarantee violated: task 'wine' has changed"):
        harmed("error")
    assert '"status": "failed"' in (tmp_path / "results.json").read_text()


def test_the_guarantee_checks_every_earlier_task_after_every_stage(tmp_path, monkeypatch):
    looked = []
    check = Guarantee.check

    def look(self, module, tasks):
        looked.append(list(tasks))
        check(self, module, looked[-1])

    monkeypatch.setattr(Guarantee, "check", look)
    train(tmp_path, "tasks=[wine,iris,breast_cancer]", "trainer.max_epochs=1")
    assert looked == [[], ["wine"], ["wine", "iris"]]


# ---- selection on the test split


def with_noise_as_test_split(data):
    targets = torch.randint(data.outputs, data.test.targets.shape, generator=torch.Generator().manual_seed(0))
    return RawData(data.kind, data.train, Split(data.test.inputs * 9 - 7, targets), data.outputs)


def test_the_test_split_selects_nothing(tmp_path, monkeypatch):
    settings = ["pruning/criterion=weight_gradient", "callbacks=early_stopping", "~callbacks.progress"]
    one = train(tmp_path / "one", *settings)
    load = bundled.bundled
    monkeypatch.setattr(bundled, "bundled", lambda name: with_noise_as_test_split(load(name)))
    two = train(tmp_path / "two", *settings)
    assert one.matrix != two.matrix
    files = [load_file(tmp_path / name / "network.safetensors") for name in ("one", "two")]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if not torch.equal(files[0][name], files[1][name])] == []
    assert [task.val for task in one.tasks.values()] == [task.val for task in two.tasks.values()]


# ---- metrics that are not reset, or weighted by the wrong batch size


class Compare(pl.Callback):
    """After each epoch: the logged validation accuracy, and the same by hand on the whole split."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        (name,) = pl_module.context.tasks
        split = pl_module.tasks[name].splits["val"]
        with torch.no_grad():
            outputs = pl_module(split.inputs, name)
        right = (outputs.argmax(1) == split.targets).sum().item()
        logged = [trainer.callback_metrics[f"{name}/val/{quantity}"].item() for quantity in ("accuracy", "loss")]
        by_hand = [right / len(split), pl_module.tasks[name].loss(outputs, split.targets).item()]
        self.seen.append((logged, by_hand))


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """(results, [(logged, by hand) per epoch]) of a run that evaluates in batches of 7, the last one smaller."""
    from msh.tasks import loaders
    from msh.training import fitting

    compare, fits, measuring = Compare(), run.run_fit, loaders.measuring_loader

    def fit_and_compare(module, fit, tasks, config, folder, checkpoints, extra, *others):
        return fits(module, fit, tasks, config, folder, checkpoints, [*extra, compare], *others)

    def small_batches(split, rank=0, world_size=1, batch_size=0):
        return measuring(split, rank, world_size, batch_size=7)

    monkeypatch.setattr(run, "run_fit", fit_and_compare)
    monkeypatch.setattr(fitting, "measuring_loader", small_batches)
    return train(tmp_path, "seed=1"), compare.seen


def test_metrics_are_reset_after_epochs_and_stages_and_weighted_by_batch_size(compared):
    results, seen = compared
    assert len(seen) == 2 * 4
    assert len({logged[0] for logged, _ in seen}) > 3
    for logged, by_hand in seen:
        assert logged == pytest.approx(by_hand, rel=1e-5)
    for row, size in zip(results.tasks.values(), (54, 45), strict=True):  # of the test splits
        assert row.test * size == pytest.approx(round(row.test * size), abs=1e-4)
