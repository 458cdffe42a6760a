"""Learning-rate schedulers get the length of their fit."""

from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler
from toys import AfterBatch, begin, fit, make_config, make_module, make_run

from helpers import dense_optimizers
from messages import says
from msh.training.schedulers import build_scheduler, check_groups, check_optimizer

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}


def make_optimizer(lr=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, steps):
    """The rate at the start and after each step."""
    seen = [scheduler.get_last_lr()[0]]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        seen.append(scheduler.get_last_lr()[0])
    return seen


def test_cosine_ends_at_zero_with_the_fit():
    seen = rates(build_scheduler(partial(lr_scheduler.CosineAnnealingLR), make_optimizer(), 4), 4)
    assert seen == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466, 0.0], abs=1e-6)


def test_linear_reaches_its_end_with_the_fit():
    factory = partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.2)
    assert rates(build_scheduler(factory, make_optimizer(), 4), 4) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_one_cycle_has_its_peak_and_its_end_within_the_fit():
    factory = partial(lr_scheduler.OneCycleLR, max_lr=1.0)
    seen = rates(build_scheduler(factory, make_optimizer(), 10), 9)
    assert max(seen) == pytest.approx(1.0)
    assert seen[-1] < 1e-4


def test_a_preset_length_stays():
    scheduler = build_scheduler(partial(lr_scheduler.CosineAnnealingLR, T_max=7), make_optimizer(), 4)
    assert scheduler.T_max == 7


def test_a_scheduler_without_a_length_gets_none():
    scheduler = build_scheduler(partial(lr_scheduler.StepLR, step_size=2, gamma=0.1), make_optimizer(), 4)
    assert rates(scheduler, 4) == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_a_fit_steps_the_scheduler_with_every_batch(tmp_path):
    config = make_config()
    config.scheduler = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True}
    seen = AfterBatch(lambda epoch, batch, module: module.optimizers().param_groups[0]["lr"])
    fit(begin(make_module(), "a"), tmp_path, seen, epochs=2, config=config)
    assert len(seen.seen) == 8
    assert seen.seen == sorted(seen.seen, reverse=True)
    assert seen.seen[-1] < 0.1 * seen.seen[0]


class OfLoss(lr_scheduler.LRScheduler):
    """A scheduler of the user's that needs a metric."""

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, loss=0.0, *, best):
        super().step()

    def _initial_step(self):
        pass


def no_scheduler(optimizer):
    return optimizer


@pytest.mark.parametrize("key", ["scheduler", "prune_scheduler"])
@pytest.mark.parametrize(
    "target", ["torch.optim.lr_scheduler.ReduceLROnPlateau", f"{__name__}.OfLoss", f"{__name__}.no_scheduler"]
)
def test_what_cannot_step_after_each_batch_is_refused_by_its_key(key, target):
    with pytest.raises(ValueError, match=says(f"{key}._target_", value=target)):
        check_optimizer(make_run(["a"], optimizer=ADAM, **{key: {"_target_": target, "_partial_": True}}))


def make_optimizer_run(target, **settings):
    return make_run(["a", "b"], optimizer={"_target_": target, "_partial_": True, **settings})


class NoClosure(torch.optim.SGD):
    """An optimizer of the user's, which Lightning cannot call."""

    def step(self):
        super().step()


class Drawing(torch.optim.SGD):
    def step(self, closure):
        torch.randn(3)
        super().step(closure)


@pytest.mark.parametrize("target", ["torch.optim.SparseAdam", f"{__name__}.NoClosure"])
def test_an_optimizer_that_cannot_take_a_step_is_refused(target):
    with pytest.raises(ValueError, match=rf"optimizer\._target_ = {target} cannot take a step: \w+: "):
        check_optimizer(make_optimizer_run(target))


@pytest.mark.parametrize("cls", dense_optimizers(), ids=lambda cls: cls.__name__)
def test_every_other_optimizer_of_torch_may_train_but_one_of_matrices_and_one_of_a_single_group(cls):
    config = make_optimizer_run(f"torch.optim.{cls.__name__}")
    if cls is torch.optim.Muon:
        with pytest.raises(ValueError, match=r"optimizer cannot be built from .*2D"):
            check_optimizer(config)
        return
    check_optimizer(config)
    check_groups(config, 1)
    if cls is not torch.optim.LBFGS:
        check_groups(config, 2)
        return
    with pytest.raises(ValueError, match=says("optimizer._target_", value="torch.optim.LBFGS")):
        check_groups(config, 2)


def test_trying_an_optimizer_changes_no_draws():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_optimizer(make_optimizer_run(f"{__name__}.Drawing", lr=0.1))
    assert torch.equal(torch.get_rng_state(), before)
