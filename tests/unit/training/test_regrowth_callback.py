"""The regrowth callback within fits: with accumulated gradients, averages and losses that diverge."""

from dataclasses import replace

import pytest
import torch
from test_averaging import EMA, averaging
from toys import AfterBatch, begin, fit, make_config, make_module, make_task

from helpers import differences
from msh.training.callbacks.checkpoint import newest_readable
from msh.training.callbacks.regrow import Regrowth
from msh.training.module import NonFiniteLossError, has_stepped


def compacted(task="a", **more):
    """A module whose task owns half of each tensor."""
    torch.manual_seed(7)
    module = begin(make_module(make_task(task), **more), task)
    module.network.restrict(task, {name: torch.rand(w.shape) < 0.5 for name, w in module.network.weights()})
    module.network.compact(task)
    return module


def regrowth(rounds=3, end=2.0, task="a"):
    return Regrowth([task], share=0.5, rounds=rounds, end=end, by="random")


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_weights_are_replaced_between_windows_of_accumulated_gradients(window, tmp_path):
    seen = []

    class Watched(Regrowth):
        def _replace(self, trainer, module, task, number):
            seen.append((trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.completed))
            assert trainer.global_step == module.context.first_step + expected[len(seen) - 1]
            super()._replace(trainer, module, task, number)

    steps = {1: [2, 4, 6], 2: [1, 2, 3], 3: [1, 2, 3], 5: [1, 1, 2]}  # optimizer steps; 4 batches in an epoch
    expected = sorted(set(steps[window])) if window == 5 else steps[window]
    fit(
        compacted(), tmp_path, Watched(["a"], 0.5, 3, 2.0, "random"), config=make_config(accumulate_grad_batches=window)
    )
    assert len(seen) == len(expected)


def test_the_optimizer_steps_at_the_end_of_windows_and_of_epochs():
    trainer = type("Trainer", (), {"accumulate_grad_batches": 3, "num_training_batches": 8})
    assert [batch for batch in range(8) if has_stepped(trainer, batch)] == [2, 5, 7]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_resumed_fit_forgets_the_averages_of_replaced_weights(rounds, tmp_path):
    """The last batch of an epoch replaces weights, and a checkpoint follows before the averages are used again."""
    config = averaging(EMA, decay=0.9, min_seconds=0)
    config = replace(config, trainer=replace(config.trainer, check_val_every_n_epoch=3))

    class EndError(Exception):
        pass

    def end(epoch, batch, module):
        if (epoch, batch) == (1, 0):
            raise EndError

    whole, ended, resumed = compacted(), compacted(), compacted()
    fit(whole, tmp_path / "one", regrowth(rounds, end=1 + rounds), config=config)
    with pytest.raises(EndError):
        fit(ended, tmp_path, regrowth(rounds, end=1 + rounds), AfterBatch(end), config=config)
    assert newest_readable(tmp_path / "checkpoints").name.startswith("epoch-00000.")
    fit(resumed, tmp_path, regrowth(rounds, end=1 + rounds), config=config)
    assert differences(resumed.network.state_dict(), whole.network.state_dict()) == []


def exploding(parameters):
    return torch.optim.SGD(parameters, lr=1e30)


def test_weights_that_diverge_before_a_replacement_are_named(tmp_path):
    module = compacted("wine", optimizer=exploding)
    with pytest.raises(NonFiniteLossError, match="of 'wine' became NaN or infinite in epoch 0 of toy"):
        fit(module, tmp_path, regrowth(rounds=7, task="wine"), name="wine")
