"""Tasks of N of each M weights have every property of tasks with single weights, and no group has more than N."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import (
    copy_state,
    dense_optimizers,
    make_batch,
    make_head,
    make_network,
    make_optimizer,
    train,
)
from msh.subnetworks import (
    CRITERIA,
    SCHEDULES,
    CapacityError,
    Groups,
    MultiSubnetwork,
    NofM,
    candidate_counts,
    cut,
    plan_groups,
    prune,
    select,
    select_apart,
    start_scores,
)
from msh.subnetworks.regrowth import choose_regrown, move

OPTIMIZERS = st.sampled_from([cls for cls in dense_optimizers() if cls.__name__ not in ("LBFGS", "Muon")])
NORMS = st.sampled_from(["none", "batch"])
PAIRS = st.integers(2, 5).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m)))
SEEDS = st.integers(0, 1000)


def grouped(network, pair):
    return NofM(Groups.of(network, *pair))


def plan_of(network, kind, tasks):
    """Plan the tasks, as many as fit."""
    return plan_groups(kind.groups, tasks[: kind.groups.tasks], network.free(), allow_empty=True)


def learn(network, kind, task, wanted, optimizer=torch.optim.SGD, seed=0, reuse="none"):
    network.add_task(task, make_head(seed), reuse=reuse, granularity="nm")
    network.begin(task)
    prune(network, task, wanted, granularity=kind, allow_empty=True)
    train(network, make_optimizer(optimizer, network), steps=1, seed=seed)
    network.compact(task)
    train(network, make_optimizer(optimizer, network), steps=2, seed=seed)
    network.freeze(task)


def is_n_of_m(groups, masks):
    """Count input by input: no group has more than its part."""
    for name, inputs in groups.inputs.items():
        rows = masks[name].movedim(inputs, -1).reshape(-1, masks[name].shape[inputs])
        for start in range(0, rows.shape[1], groups.m):
            if int(rows[:, start : start + groups.m].sum(1).max()) > groups.n:
                return False
    return True


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


@settings(max_examples=15)
@given(PAIRS, NORMS, OPTIMIZERS, SEEDS)
def test_owners_partition_weights_budgets_hold_and_nothing_is_forgotten(pair, norm, optimizer, seed):
    network = make_network(norm, seed).train()
    kind = grouped(network, pair)
    plan = plan_of(network, kind, ["a", "b", "c"])
    inputs, _ = make_batch(seed + 1)
    learned = {}
    for task, wanted in plan.items():
        learn(network, kind, task, wanted, optimizer, seed)
        owned = network.masks(task)
        assert is_n_of_m(kind.groups, owned)
        assert counts(owned) == wanted
        with torch.no_grad():
            for earlier, outputs in learned.items():
                assert torch.equal(network(inputs, earlier), outputs)
            learned[task] = network(inputs, task)
    total = network.state.total()
    assert total.taken == sum(total.owned[task] for task in plan)


@given(PAIRS, SEEDS)
def test_as_many_tasks_fit_as_the_rule_says_and_no_more(pair, seed):
    network = MultiSubnetwork(nn.Sequential(nn.Linear(11, 60), nn.ReLU(), nn.Linear(60, 7)))
    kind = grouped(network, pair)
    names = [f"task{i}" for i in range(pair[1] // pair[0])]
    for task in names:
        wanted = plan_groups(kind.groups, [task], network.free())[task]
        own_at_random(network, kind, task, wanted, seed)
    with pytest.raises(CapacityError, match=f"'next' wants {pair[0]} of each {pair[1]} weights"):
        plan_groups(kind.groups, ["next"], network.free())
    everything = {name: torch.ones_like(mask) for name, mask in network.free().items()}
    with pytest.raises(CapacityError, match=f"{len(names)} tasks fit"):
        plan_groups(kind.groups, [*names, "next"], everything)


def own_at_random(network, kind, task, wanted, seed):
    network.add_task(task, nn.Linear(7, 2), granularity="nm")
    network.begin(task)
    prune(network, task, wanted, CRITERIA["random"], None, torch.Generator().manual_seed(seed), granularity=kind)
    network.compact(task)
    network.freeze(task)


@settings(max_examples=15)
@given(PAIRS, NORMS, SEEDS)
def test_a_loaded_network_computes_the_same_bits(pair, norm, seed):
    network, other = make_network(norm, seed).train(), make_network(norm, seed + 1)
    kind = grouped(network, pair)
    plan = plan_of(network, kind, ["a", "b"])
    for task, wanted in plan.items():
        learn(network, kind, task, wanted, seed=seed)
        other.add_task(task, head=make_head(seed + 2))
    other.load_state_dict(copy_state(network))
    inputs, _ = make_batch(seed)
    for task in plan:
        assert other.subnetwork(task).granularity == "nm"
        assert torch.equal(other(inputs, task), network(inputs, task))


@settings(max_examples=15)
@given(st.sampled_from(["a", "b"]), NORMS, SEEDS)
def test_released_weights_can_be_reused_and_no_other_task_changes(gone, norm, seed):
    network = make_network(norm, seed).train()
    kind, inputs = grouped(network, (2, 4)), make_batch(seed)[0]
    for task, wanted in plan_of(network, kind, ["a", "b"]).items():
        learn(network, kind, task, wanted, seed=seed)
    rest = {"a": "b", "b": "a"}[gone]
    before = network(inputs, rest)
    network.release(gone)
    wanted = plan_groups(kind.groups, ["c"], network.free(), allow_empty=True)["c"]
    learn(network, kind, "c", wanted, torch.optim.Adam, seed + 1)
    assert torch.equal(network(inputs, rest), before)
    assert counts(network.masks("c")) == wanted


@pytest.mark.parametrize("reuse", ["all", "learned"])
@settings(max_examples=15)
@given(PAIRS, OPTIMIZERS, SEEDS)
def test_tasks_that_read_others_own_groups_and_change_nothing(reuse, pair, optimizer, seed):
    network = make_network("none", seed).train()
    kind, inputs = grouped(network, pair), make_batch(seed)[0]
    plan = plan_of(network, kind, ["a", "b"])
    learn(network, kind, "a", plan["a"], seed=seed)
    before = network(inputs, "a")
    if "b" in plan or reuse == "learned":
        learn(network, kind, "b", plan["a"], optimizer, seed + 1, reuse)
        assert torch.equal(network(inputs, "a"), before)
        owned, read = network.masks("b"), network.reading("b")
        held = {name: owned[name] | read[name] for name in owned} if reuse == "learned" else owned
        assert is_n_of_m(kind.groups, held)
        assert counts(held) == plan["a"]


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=15)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 4), PAIRS, SEEDS)
def test_each_round_keeps_weights_of_the_last_round(criterion, schedule, rounds, pair, seed):
    network = make_network("none", seed)
    kind = grouped(network, pair)
    start = kind.counts(network.sizes())
    wanted = plan_of(network, kind, ["a"])["a"]
    network.add_task("a", nn.Linear(5, 3), granularity="nm")
    network.begin("a")
    if CRITERIA[criterion].learned:
        start_scores(network, "a", "random", torch.Generator().manual_seed(seed))
    gradients = {name: torch.randn(weight.shape) for name, weight in network.weights()}
    before = network.masks("a")
    assert candidate_counts(network, "a", wanted, kind) == start
    for number in range(1, rounds + 1):
        kept = {name: SCHEDULES[schedule](start[name], count, number / rounds) for name, count in wanted.items()}
        masks = select(network, "a", kept, CRITERIA[criterion], gradients, granularity=kind, allow_empty=True)
        cut(network, "a", masks, granularity=kind)
        assert not any((masks[name] & ~before[name]).any() for name in masks)
        assert counts(masks) == kept
        before = masks
    assert kept == wanted
    assert is_n_of_m(kind.groups, masks)


@given(PAIRS, SEEDS)
def test_a_cut_keeps_the_highest_scores_of_each_group(pair, seed):
    groups = Groups.of(MultiSubnetwork(nn.Linear(60, 3)), *pair)
    scores = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed))
    mask = groups.choose("weight", scores, groups.budget("weight"), torch.ones(3, 60, dtype=torch.bool))
    for row, kept in zip(scores, mask, strict=True):
        for first in range(0, 60, pair[1]):
            part, chosen = row[first : first + pair[1]], kept[first : first + pair[1]]
            best = part.sort(descending=True).values[: pair[0]]
            assert part[chosen].sort(descending=True).values.tolist() == best.tolist()


@given(PAIRS, SEEDS)
def test_tasks_of_a_stage_share_groups_and_no_weight(pair, seed):
    network = make_network("none", seed)
    kind = grouped(network, pair)
    plan = plan_of(network, kind, ["a", "b", "c"])
    generator = torch.Generator().manual_seed(seed)
    scores = {t: {n: torch.rand(w.shape, generator=generator) for n, w in network.weights()} for t in plan}
    candidates = {task: network.free() for task in plan}
    more = {t: {n: (k + int(candidates[t][n].sum())) // 2 for n, k in wanted.items()} for t, wanted in plan.items()}
    for kept in (more, plan):
        candidates = select_apart(scores, kept, plan, candidates, granularity=kind)
    assert {task: counts(masks) for task, masks in candidates.items()} == plan
    for name in network.names.prunable:
        assert int(torch.stack([masks[name].int() for masks in candidates.values()]).sum(0).max()) <= 1
    assert all(is_n_of_m(kind.groups, masks) for masks in candidates.values())


@pytest.mark.parametrize("by", ["gradient", "random"])
@settings(max_examples=15)
@given(PAIRS, st.floats(0, 1), SEEDS)
def test_regrown_weights_leave_no_group_with_more(by, pair, share, seed):
    network = make_network("none", seed).train()
    kind = grouped(network, pair)
    plan = plan_of(network, kind, ["a", "b"])
    last = list(plan)[-1]
    for task in list(plan)[:-1]:
        learn(network, kind, task, plan[task], seed=seed)
    network.add_task(last, make_head(seed), granularity="nm")
    network.begin(last)
    prune(network, last, plan[last], granularity=kind, allow_empty=True)
    network.compact(last)
    generator = torch.Generator().manual_seed(seed)
    gradients = {name: torch.randn(weight.shape, generator=generator) for name, weight in network.weights()}
    masks = choose_regrown(network, last, share, kind, gradients if by == "gradient" else None, generator)
    assert counts(masks) == plan[last]
    assert is_n_of_m(kind.groups, masks)
    move(network, last, masks, kind)
    assert counts(network.masks(last)) == plan[last]


def test_tensors_whose_inputs_do_not_divide_keep_single_weights():
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 4, 3), nn.ConvTranspose2d(4, 5, 3)
    network = MultiSubnetwork(nn.Sequential(*layers))
    groups = Groups.of(network, 2, 4)
    assert groups.inputs == {"1.weight": 1, "3.weight": 0}
    wanted = plan_groups(groups, ["a"], network.free())["a"]
    assert wanted == {name: weight.numel() // 2 for name, weight in network.weights()}
    network.add_task("a", nn.Flatten(), granularity="nm")
    network.begin("a")
    prune(network, "a", wanted, granularity=NofM(groups))
    assert bool((network.masks("a")["1.weight"].unflatten(1, (2, 4)).sum(2) == 2).all())
    assert bool((network.masks("a")["3.weight"].sum(0) == 2).all())


def test_other_tasks_single_weights_leave_too_few_in_some_groups():
    network = MultiSubnetwork(nn.Linear(8, 2))
    groups = Groups.of(network, 2, 4)
    free = {"weight": torch.tensor([[True] * 8, [False, False, False, True, True, True, True, True]])}
    with pytest.raises(
        CapacityError, match="task 'a' wants 2 of each 4 weights of layer 'weight', 8 in all, but only 13"
    ):
        plan_groups(groups, ["a"], free)
    with pytest.raises(ValueError, match="some groups of layer 'weight' have fewer than 2 candidates"):
        groups.choose("weight", torch.zeros(2, 8), 8, free["weight"])
