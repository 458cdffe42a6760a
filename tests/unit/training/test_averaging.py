"""Averages of the weights in training, by hand and by Lightning's callbacks."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from toys import STEPS, AfterBatch, AfterEpoch, begin, fit, make_config, make_module, make_task

from helpers import differences, make_batch
from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training.callbacks import Freeze, IterativePruning
from msh.training.callbacks.averaging import AverageWeights, changing

WANTED = {"a": {"2.weight": 4, "6.weight": 10}}


class EveryOther(WeightAveraging):
    """Average after every other step from the third on."""

    def should_update(self, step_idx=None, epoch_idx=None):
        return step_idx is not None and step_idx >= 2 and step_idx % 2 == 0


class AfterEpochs(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None):
        return epoch_idx is not None


def averaging(name, restore_best=False, min_seconds=1e9, **settings):
    """A fit's settings with a callback for averaging."""
    block = {"_target_": name if "." in name else f"test_averaging.{name}", **settings}
    return replace(make_config(min_seconds, restore_best), callbacks={"average": block})


EMA = "pytorch_lightning.callbacks.EMAWeightAveraging"
SWA = "pytorch_lightning.callbacks.WeightAveraging"


def present(module, task="a"):
    """A copy of a task's tensors that change in training."""
    part = module.network.subnetwork(task)
    tensors = dict(part.named_parameters()) | dict(part.named_buffers())
    return {name: tensors[name].detach().clone() for name in changing(part)}


def compacted(norm="batch"):
    torch.manual_seed(7)
    module = begin(make_module(norm=norm), "a")
    module.network.restrict("a", {name: torch.rand(w.shape) < 0.5 for name, w in module.network.weights()})
    module.network.compact("a")
    return module


def ema(values, decay):
    average = values[0]
    for value in values[1:]:
        average = {name: decay * average[name] + (1 - decay) * value[name] for name in value}
    return average


def mean(values):
    return {name: torch.stack([value[name] for value in values]).mean(0) for name in values[0]}


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (averaging(EMA, decay=0.75), lambda seen: ema(seen, 0.75)),
        (averaging(SWA), mean),
        (averaging("EveryOther"), lambda seen: mean(seen[2::2])),
        (averaging("AfterEpochs"), lambda seen: mean(seen[STEPS - 1 :: STEPS])),
        (averaging(EMA, update_starting_at_step=10**6), lambda seen: seen[-1]),
    ],
    ids=["ema", "every step", "some steps", "epochs", "never"],
)
def test_a_fit_ends_with_the_average_over_its_steps(config, expected, tmp_path):
    module, look = compacted(), AfterBatch(lambda epoch, index, module: present(module))
    fit(module, tmp_path, look, epochs=3, config=config)
    assert len(look.seen) == 3 * STEPS
    assert_near(present(module), expected(look.seen))
    assert {name.rpartition("/")[2] for name in look.seen[0]} >= {"running_mean", "running_var"}


def test_buffers_may_stay_the_present_ones(tmp_path):
    module, look = compacted(), AfterBatch(lambda epoch, index, module: present(module))
    fit(module, tmp_path, look, epochs=2, config=averaging(SWA, use_buffers=False))
    found, last, average = present(module), look.seen[-1], mean(look.seen)
    for name in found:
        running = "running" in name
        torch.testing.assert_close(found[name], last[name] if running else average[name], rtol=1e-5, atol=1e-6)


def trajectory(tmp_path, name, config):
    """(weights after each batch, weights at each validation) of a fit from the same start."""
    module, steps = compacted(), AfterBatch(lambda epoch, index, module: present(module))
    hook = Evaluated()
    fit(module, tmp_path / name, steps, hook, epochs=3, config=config)
    return module, steps.seen, hook.seen


class Evaluated(pl.Callback):
    """Copy the weights of the first validation batch of each epoch."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and not trainer.sanity_checking:
            self.seen.append(present(pl_module))


def test_averages_are_evaluated_and_training_continues_with_the_weights(tmp_path):
    _, plain, _ = trajectory(tmp_path, "plain", make_config())
    _, steps, evaluated = trajectory(tmp_path, "averaged", averaging(SWA))
    assert all(not differences(mine, other) for mine, other in zip(plain, steps, strict=True))
    for epoch, found in enumerate(evaluated, start=1):
        assert_near(found, mean(steps[: epoch * STEPS]))


def test_the_best_epochs_average_is_restored(tmp_path):
    scores = AfterEpoch(lambda trainer, module: float(trainer.callback_metrics["a/val/accuracy"]))
    module, look = compacted(), Evaluated()
    fit(module, tmp_path, look, scores, epochs=4, config=averaging(SWA, restore_best=True))
    accuracies = scores.seen[-4:]
    best = max(range(4), key=lambda epoch: (accuracies[epoch], epoch))
    assert not differences(present(module), look.seen[best])


def pruner(**settings):
    usual = {"criterion": CRITERIA["magnitude"], "schedule": SCHEDULES["linear"], "begin": 0, "end": 2, "rounds": 3}
    return IterativePruning(WANTED, **(usual | settings))


def test_a_pruned_weight_leaves_the_average_and_kept_ones_are_averaged_over_all_steps(tmp_path):
    module, look = begin(make_module(norm="batch"), "a"), AfterBatch(lambda epoch, index, module: present(module))
    fit(module, tmp_path, look, pruner(rescale=False), epochs=3, config=averaging(SWA))
    found, expected = present(module), mean(look.seen)
    masks = module.network.masks("a")
    assert [int(mask.sum()) for mask in masks.values()] == [4, 10]
    module.network.settle("a")
    for name, mask in masks.items():
        key = f"values.{name.replace('.', '/')}"
        torch.testing.assert_close(found[key][mask], expected[key][mask], rtol=1e-5, atol=1e-6)
        assert not bool(module.network.subnetwork("a").values[name][~mask].any())


def test_averages_start_again_after_a_rewind(tmp_path):
    module, look = begin(make_module(), "a"), AfterBatch(lambda epoch, index, module: present(module))
    fit(module, tmp_path, look, pruner(rounds=1, begin=0, end=1, rewind_epoch=0), epochs=2, config=averaging(SWA))
    found, expected, masks = present(module), mean(look.seen[STEPS:]), module.network.masks("a")
    for name, mask in masks.items():
        key = f"values.{name.replace('.', '/')}"
        torch.testing.assert_close(found[key][mask], expected[key][mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prunes", [False, True])
def test_a_resumed_fit_ends_with_the_same_bits(prunes, tmp_path):
    def run(folder, epochs, module=None):
        torch.manual_seed(3)
        module = begin(make_module(norm="batch"), "a")
        more = [pruner(end=3)] if prunes else []
        fit(module, folder, *more, epochs=epochs, config=averaging(EMA, True, 0, decay=0.9))
        return module

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4)
    assert not differences(dict(whole.network.state_dict()), dict(parts.network.state_dict()))


def test_frozen_tasks_stay_bitwise_and_a_stopped_task_keeps_its_average(tmp_path):
    module = begin(make_module(*map(make_task, "abc")), "a")
    half = {name: torch.arange(w.numel()).view(w.shape) % 2 == 0 for name, w in module.network.weights()}
    module.network.restrict("a", half)
    fit(module, tmp_path / "a", Freeze(), epochs=2, config=averaging(EMA))
    digest, outputs = module.network.digest("a"), module.network(make_batch()[0], "a")
    for place, task in enumerate("bc"):
        begin(module, task)
        quarter = {n: torch.arange(w.numel()).view(w.shape) % 4 == 1 + 2 * place for n, w in module.network.weights()}
        module.network.restrict(task, quarter)
    steps = AfterBatch(lambda epoch, index, module: (present(module, "b"), present(module, "c")))
    stop = AfterEpoch(lambda trainer, module: module.stop(["b"]))
    for task in "bc":
        module.network.compact(task)
    fit(module, tmp_path / "b", steps, stop, name=["b", "c"], epochs=3, config=averaging(SWA))
    stopped, other = zip(*steps.seen, strict=True)
    assert not differences(stopped[STEPS], stopped[-1])
    assert_near(present(module, "b"), mean(stopped[:STEPS]))
    assert_near(present(module, "c"), mean(other))
    assert module.network.digest("a") == digest
    assert torch.equal(module.network(make_batch()[0], "a"), outputs)


def test_a_callback_without_averages_has_nothing_to_swap():
    callback = AverageWeights(EMAWeightAveraging())
    assert callback.state_dict() == {"averages": {}, "steps": 0, "callback": {"latest_update_step": 0}}
