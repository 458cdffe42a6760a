import math

import pytest

from messages import says
from msh.subnetworks import Budget, CapacityError, layer_counts, plan_counts

SIZES = {"a": 100, "b": 50, "c": 7}
WHOLE = {"a": (32, 32), "b": (111, 3), "c": (64, 3)}


def test_a_density_gives_every_tensor_the_same_share():
    assert Budget(density=0.1).counts(SIZES, SIZES) == {"a": 10, "b": 5, "c": 1}
    assert Budget(density=1.0).counts(SIZES, SIZES) == SIZES


def test_a_density_counts_from_all_weights_and_not_from_the_free_ones():
    assert Budget(density=0.5).counts(SIZES, {"a": 60, "b": 30, "c": 4}) == {"a": 50, "b": 25, "c": 4}


def test_a_density_over_the_network_is_one_number():
    assert Budget(density=0.1, scope="network").counts(SIZES, SIZES) == {"": 16}


def test_a_number_of_weights_is_spread_in_proportion_and_exactly():
    counts = Budget(weights=16).counts(SIZES, SIZES)
    assert counts == {"a": 10, "b": 5, "c": 1}
    for wanted in (1, 2):  # a third each is rounded to none, two thirds each to all
        assert sum(Budget(weights=wanted).counts({"a": 1, "b": 1, "c": 1}, {}).values()) == wanted


def test_a_number_over_the_network_stays_that_number():
    assert Budget(weights=17, scope="network").counts(SIZES, SIZES) == {"": 17}


def test_no_rounding_remainder_goes_to_a_full_tensor():
    counts = Budget(weights=17).counts({"a": 4, "b": 5, "c": 5, "d": 5}, {})
    assert counts["a"] == 4
    assert sorted(counts.values()) == [4, 4, 4, 5]


def test_a_plan_beyond_all_weights_is_refused():
    with pytest.raises(CapacityError, match="'big'"):
        plan_counts({"a": 4, "b": 6}, {"big": Budget(weights=11)})


def test_an_equal_share_divides_the_free_weights():
    free = {"a": 9, "b": 5, "c": 0}
    assert Budget(share="equal").counts(SIZES, free, tasks_left=2) == {"a": 4, "b": 2, "c": 0}
    assert Budget(share="equal", scope="network").counts(SIZES, free, tasks_left=3) == {"": 4}
    assert Budget(share="equal").counts(SIZES, free) == free


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "none"),
        ({"density": 0.1, "weights": 3}, "density.*weights"),
        ({"density": 0.1, "share": "equal"}, "density.*share"),
        ({"weights": 3, "share": "equal"}, "weights.*share"),
        ({"density": 0.0}, says("density", "in (0, 1]", 0.0)),
        ({"density": -0.1}, says("density", value=-0.1)),
        ({"density": 1.01}, says("density", value=1.01)),
        ({"density": 10}, says("density", value=10)),
        ({"density": float("nan")}, says("density", value=float("nan"))),
        ({"weights": 0}, says("weights", ">= 1", 0)),
        ({"weights": -5}, says("weights", ">= 1", -5)),
        ({"share": "half"}, says("share", "one of equal", "half")),
        ({"density": 0.1, "scope": "layer"}, says("scope", "one of tensor, erk, epl, network", "layer")),
        ({"share": "equal", "scope": "erk"}, "scope 'erk' .* share"),
        ({"share": "equal", "scope": "epl"}, "scope 'epl' .* share"),
    ],
)
def test_an_invalid_budget_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Budget(**fields)


def test_a_plan_serves_the_tasks_in_order():
    budgets = {"first": Budget(density=0.5), "second": Budget(share="equal"), "third": Budget(share="equal")}
    assert plan_counts({"a": 8, "b": 4}, budgets) == {
        "first": {"a": 4, "b": 2},
        "second": {"a": 2, "b": 1},
        "third": {"a": 2, "b": 1},
    }


def test_a_plan_starts_from_the_free_weights():
    free = {"a": 3, "b": 4}
    assert plan_counts({"a": 8, "b": 4}, {"x": Budget(density=0.25), "y": Budget(share="equal")}, free) == {
        "x": {"a": 2, "b": 1},
        "y": {"a": 1, "b": 3},
    }
    assert free == {"a": 3, "b": 4}


def test_the_plan_fails_at_the_first_task_without_enough_weights():
    budgets = {"x": Budget(density=0.6), "y": Budget(density=0.3), "z": Budget(density=0.2)}
    with pytest.raises(CapacityError) as caught:
        plan_counts({"a": 10, "b": 20}, budgets)
    assert str(caught.value).startswith("task 'z' wants 2 weights of layer 'a', but only 1 are free")


@pytest.mark.parametrize("scope", ["tensor", "network", "erk", "epl"])
@pytest.mark.parametrize("number", range(2, 12))
def test_equal_densities_that_add_up_to_1_fit_and_only_late_tasks_get_less(scope, number):
    budgets = {str(i): Budget(density=1 / number, scope=scope) for i in range(number)}
    sizes = {name: math.prod(shape) for name, shape in WHOLE.items()}
    plan = plan_counts(sizes, budgets, shapes=WHOLE)
    total = sum(sizes.values())
    assert total - len(sizes) * number / 2 <= sum(sum(counts.values()) for counts in plan.values()) <= total
    if scope in ("tensor", "network"):
        rounded = budgets["0"].counts(sizes, sizes)
        assert all(plan[task] == rounded for task in list(plan)[: number // 2])
        assert all(plan[task][name] <= count for task in plan for name, count in rounded.items())


def test_a_late_task_gets_the_same_weights_when_it_is_planned_alone():
    budgets = {str(i): Budget(density=0.2) for i in range(5)}
    plan = plan_counts({"a": 1024}, budgets)
    assert [counts["a"] for counts in plan.values()] == [205, 205, 205, 205, 204]
    assert plan_counts({"a": 1024}, {"4": budgets["4"]}, {"a": 204}, owning=4) == {"4": {"a": 204}}
    with pytest.raises(CapacityError, match="task '4' wants 205 weights of layer 'a', but only 204 are free"):
        plan_counts({"a": 1024}, {"4": budgets["4"]}, {"a": 204})


@pytest.mark.parametrize("scope", ["tensor", "network", "erk"])
def test_densities_beyond_1_do_not_fit_by_rounding(scope):
    budgets = {str(i): Budget(density=0.2005, scope=scope) for i in range(5)}
    with pytest.raises(CapacityError, match="task '4' wants"):
        plan_counts({name: math.prod(shape) for name, shape in WHOLE.items()}, budgets, shapes=WHOLE)


def test_a_message_names_the_whole_network():
    budgets = {"x": Budget(weights=8, scope="network"), "y": Budget(weights=3, scope="network")}
    with pytest.raises(CapacityError, match="task 'y' wants 3 weights of the whole network, but only 2 are free"):
        plan_counts({"a": 4, "b": 6}, budgets)


def test_after_a_task_over_the_network_the_rest_is_free_in_proportion():
    budgets = {"x": Budget(weights=6, scope="network"), "y": Budget(share="equal")}
    assert plan_counts({"a": 4, "b": 8}, budgets)["y"] == {"a": 2, "b": 4}


SHAPES = {"stem": (4, 1, 3, 3), "wide": (20, 30), "narrow": (5, 20)}
"""36, 600 and 100 weights; sums of dimensions 11, 50 and 25."""


def test_erk_gives_each_tensor_weights_in_proportion_to_the_sum_of_its_dimensions():
    assert layer_counts("erk", SHAPES, 86) == {"stem": 11, "wide": 50, "narrow": 25}
    assert layer_counts("erk", SHAPES, 172) == {"stem": 22, "wide": 100, "narrow": 50}


def test_erk_fills_small_tensors_and_divides_the_rest():
    assert layer_counts("erk", SHAPES, 36 + 270) == {"stem": 36, "wide": 180, "narrow": 90}
    assert layer_counts("erk", SHAPES, 36 + 100 + 300) == {"stem": 36, "wide": 300, "narrow": 100}
    assert layer_counts("erk", SHAPES, 736) == {"stem": 36, "wide": 600, "narrow": 100}


def test_the_rounding_remainder_goes_to_the_largest_fractions_then_to_the_first_tensor():
    assert layer_counts("erk", SHAPES, 87) == {"stem": 11, "wide": 51, "narrow": 25}  # 11.13, 50.58, 25.29
    assert layer_counts("erk", {"a": (3, 3), "b": (3, 3), "c": (3, 3)}, 2) == {"a": 1, "b": 1, "c": 0}


def test_erk_beyond_all_weights_is_refused():
    with pytest.raises(ValueError, match=says("total", "in [0, 736], the number of weights", 737)):
        layer_counts("erk", SHAPES, 737)
    with pytest.raises(ValueError, match="needs the shapes"):
        Budget(density=0.1, scope="erk").counts(SIZES, SIZES)


def test_equal_per_layer_gives_equal_numbers_and_fills_small_tensors():
    assert layer_counts("epl", SHAPES, 90) == {"stem": 30, "wide": 30, "narrow": 30}
    assert layer_counts("epl", SHAPES, 36 + 120) == {"stem": 36, "wide": 60, "narrow": 60}
    assert layer_counts("epl", SHAPES, 36 + 100 + 300) == {"stem": 36, "wide": 300, "narrow": 100}


def test_no_tensor_gives_more_than_it_may():
    assert layer_counts("epl", SHAPES, 90, {"stem": 10, "wide": 600, "narrow": 100}) == {
        "stem": 10,
        "wide": 40,
        "narrow": 40,
    }
    with pytest.raises(ValueError, match=says("total", "in [0, 60], the number of weights", 90)):
        layer_counts("erk", SHAPES, 90, {"stem": 10, "wide": 50, "narrow": 0})


SHARED = {"stem": 36, "wide": 600, "narrow": 100}


def test_tasks_divide_small_tensors_in_proportion_to_their_budgets():
    budgets = {"x": Budget(weights=200, scope="epl"), "y": Budget(weights=100, scope="epl")}
    assert plan_counts(SHARED, budgets, shapes=SHAPES) == {
        "x": {"stem": 24, "wide": 109, "narrow": 67},  # 2/3 of 36, 2/3 of 100 (rounded up), the rest
        "y": {"stem": 12, "wide": 55, "narrow": 33},
    }


def test_tasks_that_take_the_whole_network_take_the_same_share_of_each_tensor():
    budgets = {name: Budget(weights=184, scope="erk") for name in "abcd"}
    quarters = {"stem": 9, "wide": 150, "narrow": 25}
    assert plan_counts(SHARED, budgets, shapes=SHAPES) == dict.fromkeys("abcd", quarters)


@pytest.mark.parametrize("scope", ["erk", "epl"])
def test_a_layered_plan_names_the_missing_weights(scope):
    budgets = {"x": Budget(density=0.9, scope=scope), "y": Budget(weights=100, scope=scope)}
    with pytest.raises(CapacityError, match="task 'y' wants 100 weights of the whole network, but only 74 are free"):
        plan_counts(SHARED, budgets, shapes=SHAPES)
    with pytest.raises(CapacityError, match="task 'x' wants 737 weights of the whole network, but only 736 are free"):
        plan_counts(SHARED, {"x": Budget(weights=737, scope=scope)}, shapes=SHAPES)
    budgets = {name: Budget(weights=40, scope=scope) for name in "abc"}
    with pytest.raises(CapacityError, match="task 'c' would get no weight of layer 'tiny', of which 0 are free"):
        plan_counts({"tiny": 2, "wide": 600}, budgets, shapes={"tiny": (2, 1), "wide": (20, 30)})
