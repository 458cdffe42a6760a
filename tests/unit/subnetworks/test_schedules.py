from itertools import pairwise

import pytest

from msh.subnetworks import SCHEDULES

NAMES = sorted(SCHEDULES)


def test_the_schedules_are_listed():
    assert NAMES == ["cubic", "exponential", "linear", "one_shot"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "budget"), [(1000, 100), (1000, 1000), (7, 0), (0, 0), (1, 1)])
def test_all_candidates_at_the_start_and_the_budget_at_the_end(name, start, budget):
    schedule = SCHEDULES[name]
    assert schedule(start, budget, 0.0) == start
    assert schedule(start, budget, 1.0) == budget
    assert schedule(start, budget, 1.5) == budget


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "budget"), [(1000, 100), (13, 4), (50, 0)])
def test_the_number_kept_is_whole_and_never_grows(name, start, budget):
    kept = [SCHEDULES[name](start, budget, step / 37) for step in range(38)]
    assert all(isinstance(count, int) and budget <= count <= start for count in kept)
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one_shot", [1000, 1000, 1000]),
        ("linear", [775, 550, 325]),  # 100 + 900 (1 - t)
        ("cubic", [480, 212, 114]),  # 100 + 900 (1 - t)^3: 479.7, 212.5, 114.1
        ("exponential", [562, 316, 178]),  # 1000 * 0.1^t: 562.3, 316.2, 177.8
    ],
)
def test_values_by_hand_at_a_quarter_half_and_three_quarters(name, expected):
    assert [SCHEDULES[name](1000, 100, time) for time in (0.25, 0.5, 0.75)] == expected


def test_exponential_removes_the_same_share_in_every_round():
    kept = [SCHEDULES["exponential"](10_000, 1_000, step / 5) for step in range(6)]
    assert all(after / before == pytest.approx(0.1**0.2, rel=1e-3) for before, after in pairwise(kept))
