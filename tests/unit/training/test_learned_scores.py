"""Scores that learn within a fit of four batches an epoch, alone, beside others, and over weights of earlier tasks."""

import pytest
from toys import STEPS, AfterBatch, begin, fit, make_config, make_module, make_task

from helpers import PRUNABLE, differences, make_head, seen_weights
from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training.callbacks import Freeze, IterativePruning

BUDGETS = {"a": {"2.weight": 3, "6.weight": 10}, "b": {"2.weight": 4, "6.weight": 20}}


def make_pruner(*tasks, begin=1.0, end=2, rounds=2):
    wanted = {task: BUDGETS[task] for task in tasks}
    return IterativePruning(wanted, CRITERIA["learned"], SCHEDULES["linear"], begin, end, rounds)


def make_begun(*tasks, norm="none"):
    """Make a module with a frozen task in a quarter of the weights, and tasks in training with learned reads."""
    module = make_module(*(make_task(name) for name in tasks), norm=norm)
    network = module.network
    network.add_task("old", head=make_head(5))
    network.begin("old")
    network.restrict("old", {name: mask & (mask.cumsum(-1) == 1) for name, mask in network.free().items()})
    network.freeze("old")
    for name in tasks:
        begin(module, name, "learned", "learned")
    return module


def counts(tensors):
    return [int((tensors[name] != 0).sum()) for name in PRUNABLE]


@pytest.mark.parametrize(("begin_at", "dense"), [(0, 0), (1, STEPS), (0.5, STEPS // 2)])
def test_from_begin_on_a_task_computes_with_its_budget_and_cuts_narrow_its_candidates(begin_at, dense, tmp_path):
    module = begin(make_module(), "a", "learned")
    network = module.network
    seen = AfterBatch(lambda *_: (counts(seen_weights(network, "a")), counts(network.masks("a"))))
    parameters = list(network.parameters())
    fit(module, tmp_path, make_pruner("a", begin=begin_at), seen)
    computed, candidates = zip(*seen.seen, strict=True)
    before = max(dense - 1, 0)  # what is begun after a batch is seen after it
    assert list(computed) == [[12, 40]] * before + [[3, 10]] * (3 * STEPS - before)
    middle = round((begin_at + 2) / 2 * STEPS)
    narrow = [[12, 40]] * (middle - 1) + [[7, 25]] * (2 * STEPS - middle) + [[3, 10]] * (STEPS + 1)
    assert list(candidates) == narrow
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    network.freeze("a")
    assert counts(seen_weights(network, "a")) == [3, 10]


def test_tasks_of_a_stage_end_disjoint_and_may_read_the_same_weights(tmp_path):
    module = make_begun("a", "b")
    network = module.network
    digest = network.digest("old")
    fit(module, tmp_path, make_pruner("a", "b", begin=0), Freeze(), name=["a", "b"], epochs=2)
    owned, reading = ({task: read(task) for task in "ab"} for read in (network.masks, network.reading))
    for name in PRUNABLE:
        for task in "ab":
            assert int((owned[task][name] | reading[task][name]).sum()) == BUDGETS[task][name]
            assert not (reading[task][name] & ~network.masks("old")[name]).any()
        assert not (owned["a"][name] & owned["b"][name]).any()
    assert sum(int((reading["a"][name] & reading["b"][name]).sum()) for name in PRUNABLE) > 0
    assert network.digest("old") == digest


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_and_resumed_fit_learns_the_same_scores_and_ends_bitwise_equal(epoch, tmp_path):
    def stop(now, batch, module):
        if (now, batch) == (epoch, 2):
            raise KilledError

    def go(folder, *callbacks):
        module = make_begun("a", "b", norm="batch")
        pruner, config = make_pruner("a", "b", begin=0.5, end=3.5), make_config(min_seconds=0)
        fit(module, folder, pruner, *callbacks, name=["a", "b"], epochs=4, config=config)
        return module

    undisturbed = go(tmp_path / "one")
    with pytest.raises(KilledError):
        go(tmp_path, AfterBatch(stop))
    seen = AfterBatch(lambda epoch, batch, module: epoch)
    resumed = go(tmp_path, seen)
    assert min(seen.seen) == epoch
    assert differences(resumed.network.state_dict(), undisturbed.network.state_dict()) == []
    assert "subnetworks.a.scores.2/weight" in resumed.network.state_dict()


def test_a_debugging_fit_of_one_batch_prunes_down_to_the_budget(tmp_path):
    module = begin(make_module(), "a", "learned")
    fit(module, tmp_path, make_pruner("a"), config=make_config(fast_dev_run=True))
    assert counts(module.network.masks("a")) == [3, 10]
