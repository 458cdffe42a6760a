"""Several tasks in one fit: each has its own batches, budget and end, independent of the others."""

from itertools import pairwise

import pytest
import torch
from toys import STEPS, AfterBatch, AfterEpoch, begin, fit, make_config, make_module, make_task

from helpers import PRUNABLE, differences
from messages import says
from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training.callbacks import EarlyStoppingPerTask, Freeze, IterativePruning
from msh.training.module import NonFiniteLossError
from msh.training.shared import SharedModule, SharedNetwork

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def make_pair(optimizer="adamw", norm="batch", compact=True, **settings):
    """A module with the tasks a and b, each with every second weight of the network."""
    tasks = make_task("a"), make_task("b", "regression", **settings)
    module = make_module(*tasks, optimizer=OPTIMIZERS[optimizer], norm=norm)
    for place, name in enumerate("ab"):
        begin(module, name)
        free = module.network.free()
        every_second = {n: torch.arange(f.numel()).view(f.shape) % 2 == place for n, f in free.items()}
        module.network.restrict(name, {n: mask & free[n] for n, mask in every_second.items()})
    if compact:
        for name in "ab":
            module.network.compact(name)
    return module


def state_of(module, name):
    return {key: tensor.clone() for key, tensor in module.network.subnetwork(name).state_dict().items()}


# ---- independence


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_task_ends_bitwise_equal_alone_and_beside_another(optimizer, compact, tmp_path):
    config = make_config(gradient_clip_val=0.1)  # over all tasks together it would couple them
    together = make_pair(optimizer, compact=compact)
    start = state_of(together, "a")
    fit(together, tmp_path / "ab", name=["a", "b"], config=config)
    assert differences(start, state_of(together, "a"))
    for name in "ab":
        alone = make_pair(optimizer, compact=compact)
        fit(alone, tmp_path / name, name=name, config=config)
        assert differences(state_of(alone, name), state_of(together, name)) == []


def test_a_larger_loss_weight_changes_that_task_and_no_other(tmp_path):
    plain, weighted = make_pair("sgd"), make_pair("sgd", loss_weight=2.0)
    for folder, module in (("plain", plain), ("weighted", weighted)):
        fit(module, tmp_path / folder, name=["a", "b"])
    assert differences(state_of(plain, "a"), state_of(weighted, "a")) == []
    assert differences(state_of(plain, "b"), state_of(weighted, "b"))


def test_the_error_names_only_the_task_whose_loss_is_not_finite(tmp_path):
    def poison(epoch, batch, module):
        torch.nn.init.constant_(module.network.subnetwork("b").head.bias, float("nan"))

    with pytest.raises(NonFiniteLossError, match="the loss of 'b' became NaN"):
        fit(make_pair(), tmp_path, AfterBatch(poison), name=["a", "b"])


# ---- uneven data


@pytest.mark.parametrize(("uneven", "steps"), [("cycle", 8), ("shortest", STEPS)])
def test_an_epoch_is_as_long_as_the_longest_or_the_shortest_tasks(uneven, steps, tmp_path):
    module = make_pair(examples=80)
    fit(module, tmp_path, name=["a", "b"], epochs=2, uneven=uneven)
    assert module.run_step == 2 * steps


# ---- pruning


def make_pruner(wanted, **settings):
    usual = {"criterion": CRITERIA["magnitude"], "schedule": SCHEDULES["linear"], "begin": 0.5, "end": 2, "rounds": 3}
    return IterativePruning(wanted, **(usual | settings))


def counts(masks):
    return [int(masks[name].sum()) for name in PRUNABLE]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "wanted", [[{"2.weight": 4, "6.weight": 20}, {"2.weight": 8, "6.weight": 20}], [{"": 30}, {"": 22}]]
)
def test_tasks_pruned_together_end_disjoint_with_their_budgets(criterion, wanted, tmp_path):
    module = make_module(make_task("a"), make_task("b", "regression"))
    for name in "ab":
        begin(module, name, criterion)
    pruner = make_pruner(dict(zip("ab", wanted, strict=True)), criterion=CRITERIA[criterion], sample=7)
    seen = AfterBatch(lambda epoch, batch, module: [module.network.masks(name) for name in "ab"])
    fit(module, tmp_path, pruner, seen, Freeze(), name=["a", "b"], epochs=2)
    first, last = seen.seen[0], seen.seen[-1]
    assert [counts(masks) for masks in first] == [[12, 40], [12, 40]]  # dense until the first cut
    for masks, budget in zip(last, wanted, strict=True):
        assert counts(masks) == list(budget.values()) or sum(counts(masks)) == budget.get("")
    assert not any(bool((last[0][name] & last[1][name]).any()) for name in PRUNABLE)
    assert module.network.state.total().free == 0


def test_pruning_at_initialisation_gives_the_first_task_the_same_weights_as_alone(tmp_path):
    wanted = {"2.weight": 4, "6.weight": 10}
    settings = {"begin": 0, "end": 0, "rounds": 1}
    alone = begin(make_module(make_task("a"), make_task("b")), "a")
    make_pruner({"a": wanted}, **settings).prune_now(alone)
    both = begin(begin(make_module(make_task("a"), make_task("b")), "a"), "b")
    make_pruner({"a": wanted, "b": wanted}, **settings).prune_now(both)
    assert differences(alone.network.masks("a"), both.network.masks("a")) == []


# ---- early stopping


def with_losses(module, **losses):
    """Judge tasks by these validation losses, epoch by epoch."""
    module.val_score = lambda metrics, group, by="metric": -sum(losses[name][module.current_epoch] for name in group)
    return module


FALLING = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]


def stop_early(module, folder, patience=2, min_delta=0.0, names=("a", "b"), **losses):
    """Fit with these validation losses; return (state of the tasks after each batch, number of batches)."""
    stopping = EarlyStoppingPerTask(patience=patience, min_delta=min_delta)
    seen = AfterBatch(lambda epoch, batch, module: {name: state_of(module, name) for name in names})
    fit(with_losses(module, **losses), folder, stopping, seen, name=list(names), epochs=6)
    return seen.seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("compact", [True, False])
def test_a_stopped_task_does_not_change_while_the_others_train(optimizer, compact, tmp_path):
    alone = make_pair(optimizer, compact=compact)
    fit(alone, tmp_path / "alone", name="b", epochs=6)
    module = make_pair(optimizer, compact=compact)
    seen = stop_early(module, tmp_path / "both", a=[3.0, 2.0, 2.0, 2.5, 0.0, 0.0], b=FALLING)
    assert len(seen) == 6 * STEPS
    moved = [bool(differences(x["a"], y["a"])) for x, y in pairwise(seen)]
    assert moved == [True] * (4 * STEPS - 1) + [False] * (2 * STEPS)  # epochs 2 and 3 brought nothing
    assert differences(state_of(alone, "b"), state_of(module, "b")) == []


def test_the_fit_ends_when_every_task_has_stopped(tmp_path):
    seen = stop_early(make_pair(), tmp_path, a=[1.0] * 6, b=[2.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert len(seen) == 4 * STEPS


@pytest.mark.parametrize(("min_delta", "epochs"), [(0.5, 6), (1.0, 6), (2.0, 3)])
def test_an_improvement_over_the_best_must_be_more_than_min_delta(min_delta, epochs, tmp_path):
    seen = stop_early(make_pair(), tmp_path, min_delta=min_delta, names=("a",), a=FALLING)
    assert len(seen) == epochs * STEPS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, says("early_stopping.patience", ">= 1", 0)),
        ({"min_delta": -1}, says("early_stopping.min_delta", ">= 0", -1)),
        ({"monitor": "los"}, says("early_stopping.monitor", value="los", meant="loss")),
    ],
)
def test_wrong_settings_of_early_stopping_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EarlyStoppingPerTask(**settings)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", ["one has stopped", "all have stopped"])
def test_a_resumed_fit_knows_the_stopped_tasks(moment, tmp_path):
    losses = {"a": [1.0] * 6, "b": [2.0, 1.0, 0.9, 0.9, 0.9, 0.0] if moment == "all have stopped" else FALLING}

    def run(folder, module, *callbacks):
        config = make_config(min_seconds=0, restore_best=True)
        stopping = EarlyStoppingPerTask(patience=2)
        fit(with_losses(module, **losses), folder, stopping, *callbacks, name=["a", "b"], epochs=6, config=config)
        return module.network.state_dict()

    def stop(epoch, batch, module):
        if epoch == 4 and batch == 2:
            raise KilledError

    undisturbed = run(tmp_path / "one", make_pair())
    seen = AfterBatch(lambda epoch, batch, module: epoch)
    if moment == "one has stopped":
        with pytest.raises(KilledError):
            run(tmp_path / "two", make_pair(), AfterBatch(stop))
        resumed = run(tmp_path / "two", make_pair(), seen)
        assert min(seen.seen) == 4
    else:
        resumed = run(tmp_path / "one", make_pair(), seen)  # killed between the last checkpoint and the end of the fit
        assert seen.seen == []
    assert differences(resumed, undisturbed) == []


# ---- weights that tasks share


def make_shared():
    module = make_module(make_task("a"), make_task("b", "regression"))
    network = SharedNetwork(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU()))
    for name in "ab":
        torch.manual_seed(0)
        network.add_task(name, torch.nn.Linear(5, 3))
    return SharedModule(network, module.tasks, OPTIMIZERS["adamw"])


def test_a_shared_network_trains_one_trunk_and_only_the_heads_of_the_tasks_in_training(tmp_path):
    module = make_shared()
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    module.network.train_only(["b"])
    fit(module, tmp_path, name="b", epochs=1)
    assert differences(before, module.network.state_dict()) == sorted(
        ["backbone.0.weight", "backbone.0.bias", "heads.b.weight", "heads.b.bias"]
    )


def test_tasks_of_one_trunk_stop_together_and_have_one_best_epoch(tmp_path):
    module = with_losses(make_shared(), a=[5.0, 1.0, 3.0, 4.0, 0.0], b=[5.0, 6.0, 3.0, 3.0, 9.0])
    seen = AfterEpoch(lambda trainer, module: {key: t.clone() for key, t in module.network.state_dict().items()})
    config = make_config(restore_best=True)
    fit(module, tmp_path, EarlyStoppingPerTask(patience=2), seen, name=["a", "b"], epochs=5, config=config)
    assert len(seen.seen) == 5
    assert differences(module.network.state_dict(), seen.seen[2]) == []


def test_tasks_of_one_trunk_are_scored_by_mean_skill_or_summed_loss():
    module = make_shared()
    constant = module.tasks["b"].constant_score("val")
    assert constant > 0.0
    scores = {"a/val/accuracy": torch.tensor(0.5), "b/val/rmse": torch.tensor(0.25 * constant)}
    losses = {"a/val/loss": torch.tensor(1.0), "b/val/loss": torch.tensor(2.0)}
    assert module.val_score(scores | losses, ("a", "b")) == pytest.approx((0.5 + 0.75) / 2)
    assert module.val_score(scores | losses, ("a", "b"), "loss") == -3.0
    assert module.val_score(scores, ("b",)) == pytest.approx(-0.25 * constant)
    assert module.val_score(losses, ("b",), "loss") == -2.0
    assert module.val_score({"a/val/accuracy": torch.tensor(1.0)}, ("a", "b")) is None
    undefined = scores | {"b/val/rmse": torch.tensor(torch.nan)}
    assert [module.val_score(undefined, group) for group in (("b",), ("a", "b"))] == [-torch.inf, -torch.inf]
