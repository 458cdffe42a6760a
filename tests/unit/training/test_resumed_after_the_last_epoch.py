"""A fit that ends after its last checkpoint, and before the network is saved, resumes to the same weights."""

import signal
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from toys import begin, fit, make_config, make_module

from helpers import differences
from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training.callbacks import IterativePruning
from msh.training.callbacks.checkpoint import EpochCheckpoint
from msh.training.module import TaskModule
from msh.training.preemption import PREEMPTION, PreemptedError

EPOCHS = 4


class KilledError(Exception):
    pass


class EndAt(pl.Callback):
    """End the fit after an epoch, and keep no record of it."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


class DoubleAtTheEnd(pl.Callback):
    """As a user's callback may change weights."""

    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            for parameter in pl_module.network.subnetwork("a").parameters():
                parameter *= 2


def prune(end):
    wanted = {"a": {"2.weight": 4, "6.weight": 10}}
    return IterativePruning(wanted, CRITERIA["magnitude"], SCHEDULES["cubic"], 0.5, end, rounds=5)


AVERAGE = {"average": {"_target_": "pytorch_lightning.callbacks.EMAWeightAveraging", "decay": 0.9}}
STOPPING = {
    "_target_": "pytorch_lightning.callbacks.EarlyStopping",
    "monitor": "a/val/loss",
    "mode": "max",
    "patience": 1,
}
KINDS = {
    "the best epoch is not the last": (make_config(0, restore_best=True), list),
    "averages": (replace(make_config(0), callbacks=AVERAGE), list),
    "the best epoch's averages": (replace(make_config(0, restore_best=True), callbacks=AVERAGE), list),
    "the last cut at the end": (make_config(0), lambda: [prune(end=EPOCHS)]),
    "the remaining cuts at the end": (make_config(0), lambda: [prune(end=EPOCHS), EndAt(1)]),
    "a callback that stops early": (make_config(0), lambda: [EndAt(1)]),
    "early stopping": (replace(make_config(0), callbacks={"stop": STOPPING}), list),
    "a callback that acts at the end": (make_config(0), lambda: [DoubleAtTheEnd()]),
}
ACT_AT_THE_END = [kind for kind in KINDS if "best" in kind or "average" in kind or "at the end" in kind]
ACT_AT_THE_END.remove("the last cut at the end")


@pytest.fixture(params=["killed", "signalled"])
def ending(request, monkeypatch):
    """End a fit of so many epochs right after its last checkpoint."""
    save = EpochCheckpoint._save

    def save_and_die(self, trainer, name):
        save(self, trainer, name)
        if trainer.should_stop or trainer.current_epoch == EPOCHS - 1:
            raise KilledError

    def is_signalled(self, trainer):
        if trainer.should_stop or (trainer.current_epoch == EPOCHS - 1 and trainer.is_last_batch):
            PREEMPTION.received = signal.SIGTERM
        return PREEMPTION.received is not None

    with PREEMPTION.watched(), monkeypatch.context() as patch:
        if request.param == "killed":
            patch.setattr(EpochCheckpoint, "_save", save_and_die)
        else:
            patch.setattr(EpochCheckpoint, "_is_signalled", is_signalled)
        yield lambda: (patch.undo(), setattr(PREEMPTION, "received", None))


@pytest.mark.parametrize("kind", KINDS)
def test_the_resumed_fit_ends_like_an_undisturbed_one(kind, ending, tmp_path, monkeypatch):
    monkeypatch.setattr(TaskModule, "val_score", lambda self, *_: float(self.current_epoch == 1))
    config, callbacks = KINDS[kind]
    ended, resumed, whole = (begin(make_module(norm="batch"), "a") for _ in range(3))
    with pytest.raises((KilledError, PreemptedError)):
        fit(ended, tmp_path / "parts", *callbacks(), epochs=EPOCHS, config=config)
    ending()
    fit(whole, tmp_path / "whole", *callbacks(), epochs=EPOCHS, config=config)
    fit(resumed, tmp_path / "parts", *callbacks(), epochs=EPOCHS, config=config)
    assert differences(resumed.network.state_dict(), whole.network.state_dict()) == []
    assert resumed.run_step == whole.run_step == ended.run_step
    if kind in ACT_AT_THE_END:
        assert differences(ended.network.state_dict(), whole.network.state_dict())
