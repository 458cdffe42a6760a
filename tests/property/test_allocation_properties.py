"""Owners partition the weights; a mask for budget k has exactly k weights."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import PRUNABLE, make_network
from msh.subnetworks import Budget, CapacityError, layer_counts, plan_counts, prune, select_apart, top_k_masks

SCORES = st.sampled_from([0.0, -0.0, 0.5, 1.0, float("inf"), -1.0])
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6).map(
    lambda sizes: {f"t{i}": n for i, n in enumerate(sizes)}
)


@st.composite
def selections(draw):
    """Draw scores with many ties, candidates, and 0 <= k <= candidates."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    scores = {f"t{i}": torch.tensor(draw(st.lists(SCORES, min_size=n, max_size=n))) for i, n in enumerate(sizes)}
    flags = {f"t{i}": torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for i, n in enumerate(sizes)}
    total = sum(int(flag.sum()) for flag in flags.values())
    return scores, flags, draw(st.sampled_from([0, total]) | st.integers(0, total))


@given(selections())
def test_the_best_k_candidates_are_kept_and_ties_go_to_the_first(case):
    scores, candidates, k = case
    flat, allowed = torch.cat(list(scores.values())).tolist(), torch.cat(list(candidates.values())).tolist()
    ranked = sorted((i for i in range(len(flat)) if allowed[i]), key=lambda i: (-flat[i], i))
    expected = [i in ranked[:k] for i in range(len(flat))]
    masks = top_k_masks(scores, k, candidates)
    assert torch.cat(list(masks.values())).tolist() == expected
    assert {name: mask.shape for name, mask in masks.items()} == {name: s.shape for name, s in scores.items()}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.booleans(), st.integers(0, 5))
def test_owners_partition_the_weights_and_every_task_has_exactly_its_budget(shares, whole_network, seed):
    network = make_network(seed=seed)
    for _, weight in network.weights():
        weight.round_(decimals=1)  # many ties
    wanted: dict[str, dict[str, int]] = {}
    for place, share in enumerate(shares):
        free = {name: int(mask.sum()) for name, mask in network.free().items()}
        if not sum(free.values()):
            break
        counts = {name: int(share * n) for name, n in ({"": sum(free.values())} if whole_network else free).items()}
        task = f"task{place}"
        network.add_task(task)
        network.begin(task)
        prune(network, task, counts, allow_empty=True)
        network.freeze(task)
        wanted[task] = counts
    for name in PRUNABLE:
        holders = torch.stack([network.masks(task)[name] for task in network.tasks] + [network.free()[name]])
        assert torch.equal(holders.sum(0), torch.ones(holders.shape[1:], dtype=torch.int64))
    for task, counts in wanted.items():
        kept = {name: int(mask.sum()) for name, mask in network.masks(task).items()}
        assert ({"": sum(kept.values())} if whole_network else kept) == counts
    assert network.state.total().taken == sum(sum(counts.values()) for counts in wanted.values())


@given(st.lists(st.integers(0, 40), min_size=2, max_size=4), st.integers(0, 3))
def test_repeated_pruning_keeps_subsets(counts, seed):
    network = make_network(seed=seed)
    network.add_task("a")
    network.begin("a")
    before = network.masks("a")
    for count in sorted(counts, reverse=True):
        prune(network, "a", {"": count}, allow_empty=True)
        masks = network.masks("a")
        assert sum(int(mask.sum()) for mask in masks.values()) == count
        assert not any(bool((masks[name] & ~before[name]).any()) for name in masks)
        before = masks


@st.composite
def sharings(draw):
    """Draw sizes, fitting budgets for two to four tasks, shares kept after four cuts, the scope, a seed."""
    sizes = {f"t{i}": n for i, n in enumerate(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))}
    left, budgets = dict(sizes), {}
    for task in "abcd"[: draw(st.integers(2, 4))]:
        budgets[task] = {name: draw(st.integers(0, n)) for name, n in left.items()}
        left = {name: n - budgets[task][name] for name, n in left.items()}
    shares = [draw(st.floats(0, 1)) for _ in range(3)] + [0.0]
    return sizes, budgets, sorted(shares, reverse=True), draw(st.booleans()), draw(st.integers(0, 99))


@given(sharings())
def test_tasks_pruned_together_end_disjoint_with_full_budgets(case):
    sizes, budgets, shares, whole_network, seed = case
    if whole_network:
        budgets = {task: {"": sum(budget.values())} for task, budget in budgets.items()}
    generator = torch.Generator().manual_seed(seed)
    masks = {task: {name: torch.ones(n, dtype=torch.bool) for name, n in sizes.items()} for task in budgets}
    start = {"": sum(sizes.values()), **sizes}
    for share in shares:
        scores = {t: {n: torch.rand(k, generator=generator).round(decimals=1) for n, k in sizes.items()} for t in masks}
        counts = {
            t: {"": sum(int(m.sum()) for m in own.values()), **{n: int(m.sum()) for n, m in own.items()}}
            for t, own in masks.items()
        }
        kept = {
            t: {n: min(counts[t][n], k + round(share * (start[n] - k))) for n, k in budget.items()}
            for t, budget in budgets.items()
        }
        before, masks = masks, select_apart(scores, kept, budgets, masks)
        assert not any(bool((masks[t][n] & ~before[t][n]).any()) for t in masks for n in sizes)
    for name in sizes:
        assert int(sum(own[name].int() for own in masks.values()).max()) <= 1
    for task, budget in budgets.items():
        found = {name: int(mask.sum()) for name, mask in masks[task].items()}
        assert ({"": sum(found.values())} if whole_network else found) == budget


@given(SIZES.flatmap(lambda sizes: st.tuples(st.just(sizes), st.integers(1, sum(sizes.values())))))
@example(({"t0": 4, "t1": 5, "t2": 5, "t3": 5}, 17))
def test_a_budget_of_n_weights_gives_n_weights_within_every_tensor(case):
    sizes, wanted = case
    counts = Budget(weights=wanted).counts(sizes, sizes)
    assert sum(counts.values()) == wanted
    assert all(0 <= counts[name] <= sizes[name] for name in sizes)


@given(SIZES, st.integers(1, 5), st.sampled_from(["tensor", "network"]))
def test_equal_shares_fit_and_are_equal_up_to_rounding(sizes, tasks, scope):
    budgets = {f"task{i}": Budget(share="equal", scope=scope) for i in range(tasks)}
    least = tasks * len(sizes) if scope == "network" else tasks  # one of each layer for each task
    if (sum if scope == "network" else min)(sizes.values()) < least:
        with pytest.raises(CapacityError, match="would get no weight"):
            plan_counts(sizes, budgets)
        return
    plan = plan_counts(sizes, budgets)
    for name in plan["task0"]:
        served = [counts[name] for counts in plan.values()]
        assert sum(served) == (sizes[name] if name else sum(sizes.values()))
        assert max(served) - min(served) <= 1


@given(SIZES, st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
def test_a_plan_serves_every_budget_in_full_or_is_refused(sizes, densities):
    budgets = {f"task{i}": Budget(density=density) for i, density in enumerate(densities)}
    each = {name: [round(density * size) for density in densities] for name, size in sizes.items()}
    asked = {name: sum(counts) for name, counts in each.items()}
    if all(min(each[name]) and asked[name] <= sizes[name] for name in sizes):
        plan = plan_counts(sizes, budgets)
        assert {name: sum(counts[name] for counts in plan.values()) for name in sizes} == asked
    else:
        with pytest.raises(CapacityError):
            plan_counts(sizes, budgets)


SHAPE_LISTS = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=6)


@given(SHAPE_LISTS, st.sampled_from(["erk", "epl"]), st.data())
def test_layers_divide_the_total_exactly_and_within_their_limits(shapes, scope, data):
    named = {f"t{i}": tuple(shape) for i, shape in enumerate(shapes)}
    most = {name: data.draw(st.integers(0, math.prod(shape))) for name, shape in named.items()}
    total = data.draw(st.integers(0, sum(most.values())))
    counts = layer_counts(scope, named, total, most)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= most[name] for name in most)
    parts = {name: sum(shape) if scope == "erk" else 1 for name, shape in named.items()}
    shares = [(counts[name] - 1, counts[name] + 1, parts[name]) for name in most if counts[name] < most[name]]
    for low, _, part in shares:  # within one weight of one common factor, as far as nothing is full
        for _, high, other in shares:
            assert low * other <= high * part


@given(SHAPE_LISTS, st.sampled_from(["erk", "epl"]), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_tasks_with_layered_budgets_get_all_weights_or_an_error(shapes, scope, asked):
    named = {f"t{i}": tuple(shape) for i, shape in enumerate(shapes)}
    sizes = {name: math.prod(shape) for name, shape in named.items()}
    budgets = {f"task{i}": Budget(weights=n, scope=scope) for i, n in enumerate(asked)}
    try:
        plan = plan_counts(sizes, budgets, shapes=named)
    except CapacityError:
        parts = [sum(shape) if scope == "erk" else 1 for shape in named.values()]
        # each task may round its part of a small tensor up by one weight, and the last one finds nothing there
        smallest = min(asked) * min(sizes.values())
        rounded_to_none = min(asked) * min(parts) < sum(parts) or smallest < len(asked) * sum(asked)
        assert sum(asked) > sum(sizes.values()) or rounded_to_none
        return
    assert [sum(counts.values()) for counts in plan.values()] == asked
    assert all(sum(counts[name] for counts in plan.values()) <= sizes[name] for name in sizes)
