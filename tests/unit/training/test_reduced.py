"""Processes exchange the gradients of the task's weights in each step, and no others."""

import os
from functools import partial
from unittest.mock import patch

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy
from toys import STEPS, begin, fit, make_config, make_module

from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training import trainers
from msh.training.callbacks import IterativePruning


@pytest.fixture
def sent(monkeypatch):
    """Bytes of each bucket of gradients that DDP reduces; a group of one process goes the same way as a larger one."""
    sizes = []

    def count(state, bucket):
        sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    class Counting(DDPStrategy):
        def configure_ddp(self):
            super().configure_ddp()
            self.model.register_comm_hook(None, count)

    monkeypatch.setattr(trainers, "DDPStrategy", partial(Counting, process_group_backend="gloo"))
    with patch.dict(os.environ):  # Lightning leaves its port there
        yield sizes
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_only_the_subnetworks_own_weights_are_reduced(density, sent, tmp_path):
    module = begin(make_module(), "a")
    sizes = module.network.sizes()
    wanted = {"a": {name: round(density * size) for name, size in sizes.items()}}
    IterativePruning(wanted, CRITERIA["magnitude"], SCHEDULES["one_shot"], 0, 0, 1).prune_now(module)
    module.network.compact("a")
    private = sum(tensor.numel() for tensor in module.network.subnetwork("a").private_tensors().values())
    fit(module, tmp_path, epochs=2, config=make_config(strategy="ddp", devices=1))
    budget = sum(wanted["a"].values())
    assert sum(sent) == 4 * (budget + private) * 2 * STEPS
    assert budget == pytest.approx(density * sum(sizes.values()), rel=0.05)
