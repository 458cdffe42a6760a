"""Pruning gated by the validation metric, with fixed metrics for each epoch."""

import pytest
import torch
from toys import AfterBatch, AfterEpoch, begin, fit, make_config, make_module, make_task

from helpers import PRUNABLE, differences
from msh.subnetworks import CRITERIA, SCHEDULES, go_back
from msh.training.callbacks import GatedPruning
from msh.training.config import GateConfig

HALF = {"2.weight": 6, "6.weight": 20}
"""Of 12 and 40 weights."""


def make_pruner(wanted=None, criterion="magnitude", patience=2, tolerance=0.01, maximum=0.8):
    """Dense for an epoch, to the budget within the second, then steps of an eighth."""
    gate = GateConfig(step=0.125, maximum=maximum, patience=patience, tolerance=tolerance, until=1.0)
    schedule = SCHEDULES["linear"]
    settings = {"begin": 1, "end": 2, "rounds": 2, "sample": 9, "gate": gate}
    return GatedPruning(wanted or {"a": HALF}, CRITERIA[criterion], schedule, **settings)


def make_scored(scores, *tasks, norm="none", criterion="magnitude"):
    """Make a module with fixed validation scores: task to a score per epoch, the last one repeated."""
    module = make_module(*tasks, norm=norm)
    for name in module.tasks:
        begin(module, name, criterion)

    def val_score(metrics, group, by="metric"):
        by_epoch = scores[group[0]]
        return by_epoch[min(module.current_epoch, len(by_epoch) - 1)]

    module.val_score = val_score
    return module


def counts(module, task="a"):
    return [int(module.network.masks(task)[name].sum()) for name in PRUNABLE]


def run(scores, folder, epochs=8, criterion="magnitude", **settings):
    """(module, counts in each epoch) of a fit of one task."""
    module = make_scored({"a": scores}, criterion=criterion)
    seen = AfterBatch(lambda epoch, batch, module: (batch, counts(module)))
    fit(module, folder, make_pruner(criterion=criterion, **settings), seen, epochs=epochs)
    return module, [count for batch, count in seen.seen if batch == 3]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_constant_metric_leads_step_by_step_to_the_maximum_and_ends_the_fit(criterion, tmp_path):
    module, seen = run([0.9], tmp_path, criterion=criterion)
    assert seen == [[12, 40], [6, 20], [4, 15], [3, 10], [2, 8]]
    assert counts(module) == [2, 8]


def test_a_step_that_recovers_within_the_patience_is_followed_by_the_next(tmp_path):
    _, seen = run([0.9, 0.9, 0.5, 0.9, 0.5, 0.5, 0.9], tmp_path)
    assert seen == [[12, 40], [6, 20], [4, 15], [4, 15], [3, 10], [3, 10]]


def test_a_step_without_recovery_is_reverted_to_the_last_acceptable_state(tmp_path):
    def look(trainer, module):
        state = {key: t.detach().clone() for key, t in module.network.subnetwork("a").state_dict().items()}
        return state, module.network.masks("a")

    module = make_scored({"a": [0.9, 0.9, 0.9, 0.8]}, norm="batch")
    before = list(module.network.parameters())
    seen = AfterEpoch(look)
    fit(module, tmp_path, make_pruner(), seen, epochs=8)
    assert len(seen.seen) == 5  # dense, budget, acceptable, and two in which it was not
    (state, masks), (_, failed) = seen.seen[2], seen.seen[4]
    assert counts(module) == [4, 15]
    assert differences(module.network.subnetwork("a").state_dict(), state) == []
    for name, mask in module.network.masks("a").items():
        assert torch.equal(mask, masks[name])
        assert not (failed[name] & ~mask).any()
        assert failed[name].sum() < mask.sum()
    assert all(a is b for a, b in zip(module.network.parameters(), before, strict=True))
    assert module.context.stopped == {"a"}


def test_a_step_under_way_at_the_last_epoch_is_reverted(tmp_path):
    module, seen = run([0.9, 0.9, 0.9, 0.5], tmp_path, epochs=4)
    assert seen[-1] == [3, 10]
    assert counts(module) == [4, 15]


def test_the_last_epoch_takes_no_step(tmp_path):
    assert counts(run([0.9], tmp_path, epochs=3)[0]) == [4, 15]


def test_a_task_that_never_comes_near_its_reference_keeps_its_budget(tmp_path):
    module, seen = run([0.9, 0.1], tmp_path)
    assert seen == [[12, 40], [6, 20], [6, 20]]
    assert counts(module) == [6, 20]


@pytest.mark.parametrize(
    ("dense", "then", "kept"),
    [
        (0.9, 0.82, [2, 8]),
        (0.9, 0.80, [6, 20]),
        (-50.0, -54.0, [2, 8]),  # an error, to be lowered
        (-50.0, -56.0, [6, 20]),
        (0.9, float("nan"), [6, 20]),
    ],
)
def test_the_tolerance_is_a_share_of_the_dense_metric(dense, then, kept, tmp_path):
    assert counts(run([dense, then], tmp_path, tolerance=0.1)[0]) == kept


def make_two(norm="none"):
    scores = {"a": [0.9, 0.9, 0.9, 0.9, 0.9], "b": [0.9, 0.9, 0.5]}
    return make_scored(scores, make_task("a"), make_task("b"), norm=norm)


def test_tasks_of_a_stage_are_decided_separately_and_share_no_weight(tmp_path):
    def look(trainer, module):
        return {key: t.detach().clone() for key, t in module.network.subnetwork("b").state_dict().items()}

    module, seen = make_two(), AfterEpoch(look)
    fit(module, tmp_path, make_pruner({"a": HALF, "b": HALF}), seen, name=["a", "b"], epochs=8)
    assert (counts(module, "a"), counts(module, "b")) == ([2, 8], [6, 20])
    assert differences(module.network.subnetwork("b").state_dict(), seen.seen[1]) == []
    masks = [module.network.masks(task) for task in "ab"]
    assert not any((masks[0][name] & masks[1][name]).any() for name in PRUNABLE)
    for task in "ab":
        module.network.freeze(task)
    assert module.network.state.total().free == 52 - 10 - 26


@pytest.mark.parametrize("allow_empty", [False, True])
def test_a_step_that_would_empty_a_layer_is_not_taken_and_ends_the_gate(allow_empty, tmp_path, caplog):
    module = make_scored({"a": [0.9]})
    module.network.subnetwork("a").values["2.weight"].data *= torch.cat([torch.ones(2, 1, 3), torch.zeros(2, 1, 3)])
    gate = GateConfig(step=0.3, maximum=0.99, patience=2, tolerance=0.01, until=1.0)
    pruner = GatedPruning(
        {"a": {"": 26}}, CRITERIA["magnitude"], SCHEDULES["linear"], 1, 2, 2, allow_empty=allow_empty, gate=gate
    )
    with caplog.at_level("INFO"):
        fit(module, tmp_path, pruner, epochs=8)
    assert pruner.ended == ["a"]
    assert (0 in counts(module)) == allow_empty
    assert ("layer '2.weight'" in caplog.text) != allow_empty
    assert allow_empty or pruner.level == {"a": 1}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_killed_and_resumed_fit_decides_the_same_and_ends_bitwise_equal(epoch, tmp_path):
    def stop(now, batch, module):
        if (now, batch) == (epoch, 2):
            raise KilledError

    names, wanted, config = ["a", "b"], {"a": HALF, "b": HALF}, make_config(min_seconds=0)
    undisturbed, killed, resumed = (make_two(norm="batch") for _ in range(3))
    fit(undisturbed, tmp_path / "one", make_pruner(wanted), name=names, epochs=8, config=config)
    with pytest.raises(KilledError):
        fit(killed, tmp_path, make_pruner(wanted), AfterBatch(stop), name=names, epochs=8, config=config)
    seen = AfterBatch(lambda epoch, batch, module: epoch)
    fit(resumed, tmp_path, make_pruner(wanted), seen, name=names, epochs=8, config=config)
    assert min(seen.seen) == epoch
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []
    assert resumed.context.stopped == undisturbed.context.stopped == {"a", "b"}


def test_a_fit_killed_after_all_tasks_ended_stays_ended(tmp_path):
    config = make_config(min_seconds=0)
    first, again = (make_scored({"a": [0.9, 0.1]}) for _ in range(2))
    fit(first, tmp_path, make_pruner(), epochs=8, config=config)
    seen = AfterBatch(lambda epoch, batch, module: epoch)
    fit(again, tmp_path, make_pruner(), seen, epochs=8, config=config)
    assert seen.seen == []
    assert differences(again.network.state_dict(), first.network.state_dict()) == []


def test_a_debugging_fit_ends_at_the_budget(tmp_path):
    module = make_scored({"a": [0.9]})
    fit(module, tmp_path, make_pruner(), epochs=8, config=make_config(fast_dev_run=True))
    assert counts(module) == [6, 20]


def test_only_a_masked_task_can_be_reverted():
    module = begin(make_module(), "a")
    module.network.freeze("a")
    with pytest.raises(ValueError, match=r"task 'a' is frozen.*masked"):
        go_back(module.network, "a", {})
