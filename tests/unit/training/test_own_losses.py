"""A task's own loss that changes in use: checkpoints hold its buffers, and each fit starts with it as it was built."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from toys import AfterBatch, begin, fit, make_config, make_module, make_task

from helpers import differences


class CountingLoss(torch.nn.Module):
    """Falls with each call, as in a schedule."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs, targets):
        self.calls += 1
        return functional.cross_entropy(outputs, targets) / (1 + self.calls / 10)


class KilledError(Exception):
    pass


def make():
    return begin(make_module(replace(make_task(), own_loss=CountingLoss())), "a")


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, 0), (2, 2)])
def test_a_resumed_fit_continues_with_the_losss_state(epoch, batch, tmp_path):
    def kill(now, done, module):
        if (now, done) == (epoch, batch):
            raise KilledError

    config = make_config(min_seconds=0, restore_best=True)
    whole, killed, resumed = make(), make(), make()
    fit(whole, tmp_path / "whole", config=config)
    with pytest.raises(KilledError):
        fit(killed, tmp_path / "parts", AfterBatch(kill), config=config)
    fit(resumed, tmp_path / "parts", config=config)
    assert differences(resumed.network.state_dict(), whole.network.state_dict()) == []
    assert resumed.tasks["a"].own_loss.calls == whole.tasks["a"].own_loss.calls > 0


def test_each_fit_and_each_module_starts_with_the_loss_as_it_was_built(tmp_path):
    module, seen = make(), []
    for folder in ("first", "second"):
        look = AfterBatch(lambda epoch, batch, module: int(module.tasks["a"].own_loss.calls))
        fit(module, tmp_path / folder, look, epochs=1)
        seen.append(look.seen)
    assert seen[0] == seen[1]
    assert module.unused_tasks["a"].own_loss.calls == 0


def test_a_checkpoint_of_an_earlier_release_has_no_state_of_losses(tmp_path):
    module = make()
    fit(module, tmp_path, config=make_config(min_seconds=0))
    module.on_load_checkpoint({"msh": {"run_step": 12, "first_step": 0}, "state_dict": {}})
    assert module.run_step == 12
