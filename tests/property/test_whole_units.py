"""Tasks with whole units have every property of tasks with single weights, and are smaller dense networks."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import (
    copy_state,
    dense_optimizers,
    differences,
    make_batch,
    make_head,
    make_network,
    make_optimizer,
    train,
)
from msh.inference.export import sliced
from msh.subnetworks import (
    CRITERIA,
    SCHEDULES,
    Budget,
    CapacityError,
    OverlappingUnits,
    Units,
    candidate_counts,
    cut,
    plan_units,
    prune,
    select,
    trace_units,
)
from msh.subnetworks.units import count_weights, unit_masks, units_in_use

OPTIMIZERS = st.sampled_from([cls for cls in dense_optimizers() if cls.__name__ not in ("LBFGS", "Muon")])
NORMS = st.sampled_from(["none", "batch"])
DENSITIES = st.lists(st.floats(0.2, 1), min_size=1, max_size=3)


def trace(network):
    return trace_units(network, "channel", make_batch()[0])


def plan_of(graph, densities):
    """Scale the densities down until their units fit."""
    budgets = {f"task{i}": Budget(density=density) for i, density in enumerate(densities)}
    try:
        return plan_units(graph, budgets)
    except CapacityError:
        return {}


def learn(network, graph, task, wanted, optimizer=torch.optim.SGD, seed=0, kind=Units):
    network.add_task(task, head=make_head(seed), granularity="unit" if kind is OverlappingUnits else "weight")
    network.begin(task)
    prune(network, task, wanted, granularity=kind(graph))
    train(network, make_optimizer(optimizer, network), steps=1, seed=seed)
    network.compact(task)
    train(network, make_optimizer(optimizer, network), steps=2, seed=seed)
    network.freeze(task)


@settings(max_examples=15)
@given(DENSITIES, NORMS, OPTIMIZERS, st.integers(0, 1000))
def test_owners_partition_units_budgets_hold_and_nothing_is_forgotten(densities, norm, optimizer, seed):
    network = make_network(norm, seed).train()
    graph = trace(network)
    plan = plan_of(graph, densities)
    assume(plan)
    inputs, _ = make_batch(seed + 1)
    learned = {}
    for (task, wanted), density in zip(plan.items(), densities, strict=True):
        learn(network, graph, task, wanted, optimizer, seed)
        owned = network.state.total().owned[task]
        assert owned == count_weights(graph, wanted) <= round(density * 52)
        kept = units_in_use(graph, network.masks(task))
        assert {name: int(units.sum()) for name, units in kept.items()} == wanted
        with torch.no_grad():
            for earlier, outputs in learned.items():
                assert torch.equal(network(inputs, earlier), outputs)
            learned[task] = network(inputs, task)
            small = sliced(network, task, inputs)(inputs)
        torch.testing.assert_close(small, learned[task], rtol=1e-3, atol=1e-5)
    total = network.state.total()
    assert total.taken == sum(total.owned[task] for task in plan)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), NORMS, OPTIMIZERS, st.integers(0, 1000))
def test_overlapping_units_take_exact_budgets_compute_small_and_forget_nothing(shares, norm, optimizer, seed):
    network = make_network(norm, seed).train()
    network.backbone.input_shape = tuple(make_batch()[0].shape[1:])
    graph = trace_units(network)
    inputs, _ = make_batch(seed + 1)
    learned = {}
    for number, share in enumerate(shares):
        free = {name: int(mask.sum()) for name, mask in network.free().items()}
        wanted = {name: min(free[name], max(1, share * size // 40)) for name, size in network.sizes().items()}
        if not all(wanted.values()):
            break
        task = f"task{number}"
        learn(network, graph, task, wanted, optimizer, seed, OverlappingUnits)
        assert {name: int(mask.sum()) for name, mask in network.masks(task).items()} == wanted
        with torch.no_grad():
            for earlier, outputs in learned.items():
                assert torch.equal(network(inputs, earlier), outputs)
            learned[task] = network(inputs, task)
            torch.testing.assert_close(sliced(network, task, inputs)(inputs), learned[task], rtol=1e-3, atol=1e-5)
            whole = copy.deepcopy(network)
            whole.subnetwork(task).granularity = "weight"
            torch.testing.assert_close(whole(inputs, task), learned[task], rtol=1e-3, atol=1e-5)
    total = network.state.total()
    assert total.taken == sum(total.owned.values())


@settings(max_examples=15)
@given(NORMS, st.integers(0, 1000))
def test_a_loaded_network_exports_the_same_bits(norm, seed):
    network, other = make_network(norm, seed).train(), make_network(norm, seed + 1)
    graph = trace(network)
    for task in ("a", "b"):
        learn(network, graph, task, {"2.weight": 2, "6.weight": 2}, seed=seed)
        other.add_task(task, head=make_head(seed + 2))
    other.load_state_dict(copy_state(network))
    small, again = (sliced(found, "b", make_batch()[0]) for found in (network, other))
    assert differences(small.state_dict(), again.state_dict()) == []


@settings(max_examples=15)
@given(st.sampled_from(["a", "b"]), NORMS, st.integers(0, 1000))
def test_released_units_can_be_reused_and_no_other_task_changes(gone, norm, seed):
    network = make_network(norm, seed).train()
    graph, inputs = trace(network), make_batch(seed)[0]
    for task in ("a", "b"):
        learn(network, graph, task, {"2.weight": 2, "6.weight": 2}, seed=seed)
    rest = {"a": "b", "b": "a"}[gone]
    before, mine = network(inputs, rest), network.masks(gone)
    network.release(gone)
    learn(network, graph, "c", {"2.weight": 2, "6.weight": 3}, torch.optim.Adam, seed + 1)
    assert torch.equal(network(inputs, rest), before)
    assert torch.equal(network.masks("c")["2.weight"], mine["2.weight"])


@pytest.mark.parametrize("criterion", [name for name, criterion in CRITERIA.items() if not criterion.learned])
@settings(max_examples=15)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 4), st.integers(0, 1000))
def test_each_round_keeps_units_of_the_last_round(criterion, schedule, rounds, seed):
    network = make_network("none", seed)
    graph, wanted = trace(network), {"2.weight": 1, "6.weight": 2}
    network.add_task("a", head=nn.Linear(5, 3))
    network.begin("a")
    gradients = {name: torch.randn(weight.shape) for name, weight in network.weights()}
    start, before = candidate_counts(network, "a", wanted, Units(graph)), network.masks("a")
    assert start == {"2.weight": 4, "6.weight": 5}
    for number in range(1, rounds + 1):
        kept = {name: SCHEDULES[schedule](start[name], count, number / rounds) for name, count in wanted.items()}
        masks = select(network, "a", kept, CRITERIA[criterion], gradients, granularity=Units(graph))
        cut(network, "a", masks, granularity=Units(graph))
        assert not any((masks[name] & ~before[name]).any() for name in masks)
        assert candidate_counts(network, "a", wanted, Units(graph)) == kept
        whole = unit_masks(graph, units_in_use(graph, masks))
        assert all(torch.equal(mask, whole[name]) for name, mask in masks.items())
        before = masks
    assert kept == wanted
