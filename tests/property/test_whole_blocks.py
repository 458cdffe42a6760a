"""Tasks with blocks have every property of tasks with single weights, and leave no row or column of blocks empty."""

import pytest
import torch
from hypothesis import assume, given, settings
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
    Blocks,
    Budget,
    CapacityError,
    MultiSubnetwork,
    candidate_counts,
    cut,
    let_scores_choose,
    plan_blocks,
    prune,
    select,
    start_scores,
)
from msh.subnetworks.blocks import choose_covering
from msh.subnetworks.regrowth import choose_regrown, move

OPTIMIZERS = st.sampled_from([cls for cls in dense_optimizers() if cls.__name__ not in ("LBFGS", "Muon")])
NORMS = st.sampled_from(["none", "batch"])
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4))
DENSITIES = st.lists(st.floats(0.1, 1), min_size=1, max_size=3)
GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))


def plan_of(network, blocks, densities):
    """Plan the densities, or nothing if their blocks do not fit."""
    budgets = {f"task{i}": Budget(density=density) for i, density in enumerate(densities)}
    sizes = network.sizes()
    try:
        return plan_blocks(blocks.counts(sizes), sum(sizes.values()), budgets)
    except CapacityError:
        return {}


def learn(network, blocks, task, wanted, optimizer=torch.optim.SGD, seed=0, reuse="none"):
    network.add_task(task, make_head(seed), reuse=reuse, granularity="block", blocks=blocks.sizes)
    network.begin(task)
    prune(network, task, wanted, granularity=blocks, allow_empty=True)
    train(network, make_optimizer(optimizer, network), steps=1, seed=seed)
    network.compact(task)
    train(network, make_optimizer(optimizer, network), steps=2, seed=seed)
    network.freeze(task)


def is_in_blocks(blocks, masks):
    return all(torch.equal(mask, masks[name]) for name, mask in blocks.weights(blocks.whole(masks)).items())


@settings(max_examples=15)
@given(DENSITIES, SIZES, NORMS, OPTIMIZERS, st.integers(0, 1000))
def test_owners_partition_blocks_budgets_hold_and_nothing_is_forgotten(densities, size, norm, optimizer, seed):
    network = make_network(norm, seed).train()
    blocks = Blocks.of(network, size)
    plan = plan_of(network, blocks, densities)
    assume(plan)
    inputs, _ = make_batch(seed + 1)
    learned = {}
    for task, wanted in plan.items():
        learn(network, blocks, task, wanted, optimizer, seed)
        owned = network.masks(task)
        assert is_in_blocks(blocks, owned)
        assert {name: int(mask.sum()) for name, mask in blocks.whole(owned).items()} == wanted
        with torch.no_grad():
            for earlier, outputs in learned.items():
                assert torch.equal(network(inputs, earlier), outputs)
            learned[task] = network(inputs, task)
    total = network.state.total()
    assert total.taken == sum(total.owned[task] for task in plan)


@given(GRIDS, st.integers(0, 49), st.integers(0, 1000))
def test_a_full_grid_is_covered_as_far_as_the_number_of_blocks_allows(grid, number, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid
    number = min(number, rows * columns)
    scores = torch.rand(grid, generator=generator)
    chosen = choose_covering(scores, number, torch.ones(grid, dtype=torch.bool))
    assert int(chosen.sum()) == number
    assert int(chosen.any(1).sum()) == min(rows, number)
    assert int(chosen.any(0).sum()) == min(columns, number)


@given(GRIDS, st.lists(st.integers(0, 49), min_size=1, max_size=5), st.integers(0, 1000))
def test_every_cut_of_a_covered_grid_is_covered(grid, numbers, seed):
    generator = torch.Generator().manual_seed(seed)
    candidates, least = torch.ones(grid, dtype=torch.bool), max(grid)
    for number in sorted(numbers, reverse=True):
        number = max(least, min(number, int(candidates.sum())))
        candidates = choose_covering(torch.rand(grid, generator=generator), number, candidates)
        assert int(candidates.sum()) == number
        assert bool(candidates.any(0).all() and candidates.any(1).all())


@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.floats(0, 1), st.booleans(), st.integers(0, 1000))
def test_regrown_blocks_still_cover_every_line(layers, share, by_gradient, seed):
    torch.manual_seed(seed)
    widths = [2 * number for number in layers]
    network = MultiSubnetwork(nn.Sequential(nn.Linear(*widths[:2]), nn.Linear(*widths[1:])))
    blocks = Blocks.of(network, (2, 2))
    least = {f"{at}.weight": max(layers[at : at + 2]) for at in range(2)}
    network.add_task("a", nn.Linear(widths[2], 2), granularity="block", blocks=blocks.sizes)
    network.begin("a")
    prune(network, "a", least, granularity=blocks)
    network.compact("a")
    draw = torch.Generator().manual_seed(seed)
    for _ in range(3):
        gradients = (
            {name: torch.randn(w.shape, generator=draw) for name, w in network.weights()} if by_gradient else None
        )
        move(network, "a", choose_regrown(network, "a", share, blocks, gradients, draw), blocks, draw)
        for name, owned in blocks.whole(network.masks("a")).items():
            assert int(owned.sum()) == least[name]
            assert bool(owned.any(0).all() and owned.any(1).all())


@given(GRIDS, st.floats(0, 1), st.integers(0, 49), st.integers(0, 1000))
def test_the_candidates_lines_are_covered_where_the_number_suffices(grid, share, number, seed):
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.rand(grid, generator=generator) < share
    number = min(number, int(candidates.sum()))
    chosen = choose_covering(torch.rand(grid, generator=generator), number, candidates)
    assert int(chosen.sum()) == number
    assert not bool((chosen & ~candidates).any())
    if number >= int(candidates.any(0).sum() + candidates.any(1).sum()):
        assert torch.equal(chosen.any(0), candidates.any(0))
        assert torch.equal(chosen.any(1), candidates.any(1))


@settings(max_examples=15)
@given(SIZES, NORMS, st.integers(0, 1000))
def test_a_loaded_network_computes_the_same_bits(size, norm, seed):
    network, other = make_network(norm, seed).train(), make_network(norm, seed + 1)
    blocks = Blocks.of(network, size)
    for task in ("a", "b"):
        learn(network, blocks, task, dict.fromkeys(blocks.sizes, 1), seed=seed)
        other.add_task(task, head=make_head(seed + 2))
    other.load_state_dict(copy_state(network))
    inputs, _ = make_batch(seed)
    for task in ("a", "b"):
        assert other.subnetwork(task).blocks == blocks.sizes
        assert torch.equal(other(inputs, task), network(inputs, task))


@settings(max_examples=15)
@given(st.sampled_from(["a", "b"]), SIZES, st.integers(0, 1000))
def test_released_blocks_can_be_reused_and_no_other_task_changes(gone, size, seed):
    network = make_network("none", seed).train()
    blocks, inputs = Blocks.of(network, size), make_batch(seed)[0]
    for task in ("a", "b"):
        learn(network, blocks, task, dict.fromkeys(blocks.sizes, 1), seed=seed)
    rest = {"a": "b", "b": "a"}[gone]
    before, mine = network(inputs, rest), network.masks(gone)
    network.release(gone)
    free = {name: int(mask.sum()) for name, mask in blocks.whole(network.free()).items()}
    learn(network, blocks, "c", free, torch.optim.Adam, seed + 1)
    assert torch.equal(network(inputs, rest), before)
    assert not any(bool((mask & ~network.masks("c")[name]).any()) for name, mask in mine.items())


@pytest.mark.parametrize("reuse", ["all", "learned"])
@settings(max_examples=15)
@given(SIZES, OPTIMIZERS, st.integers(0, 1000))
def test_tasks_that_read_others_own_blocks_and_change_nothing(reuse, size, optimizer, seed):
    network = make_network("none", seed).train()
    blocks, inputs = Blocks.of(network, size), make_batch(seed)[0]
    counts = blocks.counts(network.sizes())
    half = {name: max(1, count // 2) for name, count in counts.items()}
    learn(network, blocks, "a", half, seed=seed)
    before = network(inputs, "a")
    free = {name: min(half[name], counts[name] - half[name]) for name in half}
    learn(network, blocks, "b", half if reuse == "learned" else free, optimizer, seed + 1, reuse)
    assert torch.equal(network(inputs, "a"), before)
    owned, read = network.masks("b"), network.reading("b")
    assert is_in_blocks(blocks, owned)
    if reuse == "learned":
        assert is_in_blocks(blocks, read)
        held = {name: owned[name] | read[name] for name in owned}
        assert {name: int(mask.sum()) for name, mask in blocks.whole(held).items()} == half


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=15)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 4), SIZES, st.integers(0, 1000))
def test_each_round_keeps_blocks_of_the_last_round(criterion, schedule, rounds, size, seed):
    network = make_network("none", seed)
    blocks = Blocks.of(network, size)
    start = blocks.counts(network.sizes())
    wanted = {name: max(1, count // 2) for name, count in start.items()}
    network.add_task("a", nn.Linear(5, 3), granularity="block", blocks=blocks.sizes)
    network.begin("a")
    if CRITERIA[criterion].learned:
        start_scores(network, "a", "random", torch.Generator().manual_seed(seed))
    gradients = {name: torch.randn(weight.shape) for name, weight in network.weights()}
    before = network.masks("a")
    assert candidate_counts(network, "a", wanted, blocks) == start
    for number in range(1, rounds + 1):
        kept = {name: SCHEDULES[schedule](start[name], count, number / rounds) for name, count in wanted.items()}
        masks = select(network, "a", kept, CRITERIA[criterion], gradients, granularity=blocks)
        cut(network, "a", masks, granularity=blocks)
        assert not any((masks[name] & ~before[name]).any() for name in masks)
        assert candidate_counts(network, "a", wanted, blocks) == kept
        assert is_in_blocks(blocks, masks)
        before = masks
    assert kept == wanted


@given(SIZES, st.integers(0, 1000))
def test_learned_scores_choose_whole_blocks(size, seed):
    network = make_network("none", seed).train()
    blocks = Blocks.of(network, size)
    wanted = {name: max(1, count // 2) for name, count in blocks.counts(network.sizes()).items()}
    network.add_task("a", make_head(seed), granularity="block", blocks=blocks.sizes)
    network.begin("a")
    start_scores(network, "a", "random", torch.Generator().manual_seed(seed))
    let_scores_choose(network, "a", wanted)
    train(network, make_optimizer(torch.optim.SGD, network), steps=1, seed=seed)
    network(make_batch(seed)[0])
    used = {name: network.state.weight("a", name) != 0 for name in wanted}
    assert is_in_blocks(blocks, used)
    assert {name: int(mask.sum()) for name, mask in blocks.whole(used).items()} == wanted
