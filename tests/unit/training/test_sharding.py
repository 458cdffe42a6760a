"""Sharded fits in a group with one process; tests/integration/test_ranks.py has two."""

import os
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.distributed.tensor import DTensor
from toys import AfterBatch, begin, fit, make_config, make_module, make_task

from helpers import differences
from messages import says
from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training.callbacks import IterativePruning
from msh.training.callbacks.checkpoint import newest_readable
from msh.training.config import TrainerConfig
from msh.training.sharding import share_of
from msh.training.trainers import check_trainer

WANTED = {"a": {"2.weight": 3, "6.weight": 10}}


@pytest.fixture(autouse=True)
def _group():
    """Clean up after each test: Lightning takes a leftover process group, and its port, for its own."""
    with patch.dict(os.environ):
        yield
    leave_group()


def leave_group():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_settings(strategy, **settings):
    return make_config(strategy=strategy, devices=1, **settings)


def make_pruner(criterion="magnitude", rewind=None):
    return IterativePruning(WANTED, CRITERIA[criterion], SCHEDULES["linear"], 1, 2, 2, rewind_epoch=rewind)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.05, fused=True)


def fused_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, fused=True)


@pytest.mark.parametrize(
    ("criterion", "rewind", "optimizer"),
    [("magnitude", None, fused_sgd), ("weight_gradient", 1, adamw), ("learned", None, adamw)],
)
def test_a_sharded_fit_ends_like_one_without_shards(criterion, rewind, optimizer, tmp_path):
    networks = {}
    for strategy in ("auto", "fsdp"):
        module = begin(make_module(optimizer=optimizer, norm="batch"), "a", criterion)
        config = make_settings(strategy, gradient_clip_val=0.5, accumulate_grad_batches=2)
        fit(module, tmp_path / strategy, make_pruner(criterion, rewind), epochs=4, config=config)
        networks[strategy] = module.network
        leave_group()
    masks = {strategy: network.masks("a") for strategy, network in networks.items()}
    assert differences(masks["fsdp"], masks["auto"]) == []
    states = {strategy: network.state_dict() for strategy, network in networks.items()}
    for name, value in states["auto"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(states["fsdp"][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_parameters_are_sharded_during_a_fit_and_whole_on_request_and_after(tmp_path):
    def look(epoch, batch, module):
        sub = module.network.subnetwork("a")
        sharded = {name: type(p) for name, p in sub.named_parameters()}
        states = [s["exp_avg"] for s in module.optimizers().optimizer.state.values()]
        with module.whole():
            whole = {name: type(p) for name, p in sub.named_parameters()}
            sub.values["2.weight"].data.fill_(epoch)
        with module.whole():
            is_saved = bool((sub.values["2.weight"] == epoch).all())
        return sharded, whole, is_saved, all(isinstance(state, DTensor) for state in states)

    module = begin(make_module(optimizer=adamw), "a")
    seen = AfterBatch(look)
    fit(module, tmp_path, seen, epochs=1, config=make_settings("fsdp"))
    for sharded, whole, is_saved, states_sharded in seen.seen:
        assert len(sharded) == len(whole) > 3
        assert set(whole.values()) == {torch.nn.Parameter}
        assert all(issubclass(kind, DTensor) for kind in sharded.values())
        assert is_saved
        assert states_sharded
    sub = module.network.subnetwork("a")
    assert {type(p) for p in sub.parameters()} == {torch.nn.Parameter}
    assert module.context.sharded == {}


@pytest.mark.parametrize(("first", "then"), [("fsdp", "fsdp"), ("fsdp", "auto"), ("auto", "fsdp")])
def test_a_fit_resumes_from_a_checkpoint_with_or_without_shards(first, then, tmp_path):
    def stop(epoch, batch, module):
        if epoch == 2:
            raise KeyError("stopped")

    def learn(folder, strategy, *callbacks):
        module = begin(make_module(optimizer=adamw), "a")
        fit(module, folder, make_pruner(), *callbacks, epochs=4, config=make_settings(strategy, min_seconds=0))
        leave_group()
        return module.network.state_dict()

    with pytest.raises(KeyError, match="stopped"):
        learn(tmp_path / "stopped", first, AfterBatch(stop))
    leave_group()
    assert newest_readable(tmp_path / "stopped" / "checkpoints").name.startswith("epoch-00001.")
    resumed, expected = learn(tmp_path / "stopped", then), learn(tmp_path / "whole", "auto")
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_shares_are_cut_as_torch_does():
    mesh = SimpleNamespace(size=lambda: 4)
    shard, whole = SimpleNamespace(device_mesh=mesh), torch.arange(10).reshape(5, 2)
    shares = []
    for rank in range(4):
        mesh.get_local_rank = lambda rank=rank: rank
        shares.append(share_of(whole, shard))
    assert [len(share) for share in shares] == [2, 2, 1, 0]
    assert torch.equal(torch.cat(shares), whole)


def test_an_indivisible_batch_size_is_refused_before_training(tmp_path, monkeypatch):
    module = begin(make_module(make_task("a"), make_task("b", batch_size=5)), "a")
    monkeypatch.setattr("pytorch_lightning.Trainer.world_size", 2)
    with pytest.raises(ValueError, match=says("tasks.b.batch_size", value=5)):
        fit(module, tmp_path, epochs=1)


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_under_bfloat16_gradients_are_clipped_with_a_fused_optimizer_too(strategy, tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0, fused=True)

    def weights(module):
        with module.whole():
            return torch.cat([p.detach().reshape(-1) for p in module.network.subnetwork("a").parameters()])

    module = begin(make_module(optimizer=sgd), "a")
    seen = AfterBatch(lambda epoch, batch, module: weights(module))
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 0.01}
    fit(module, tmp_path, seen, epochs=1, config=make_settings(strategy, **settings))
    moved = [float((after - before).norm()) for before, after in pairwise(seen.seen)]
    assert moved == pytest.approx([0.01] * len(moved), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerator": "gpu"}, says("trainer.accelerator", value="gpu")),
        ({"accelerator": "cuda"}, says("trainer.accelerator", value="cuda")),
        ({"strategy": "fsdp", "precision": "16-mixed"}, says("trainer.precision", value="16-mixed")),
    ],
)
def test_a_missing_accelerator_or_unsupported_precision_is_named(settings, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    config = TrainerConfig(**{"accelerator": "cpu"} | settings)
    with pytest.raises(ValueError, match=message):
        check_trainer(config)
