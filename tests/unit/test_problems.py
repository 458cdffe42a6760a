"""Bounds on whole numbers, and problems that are reported together."""

import pickle

import numpy as np
import pytest

from messages import says
from msh.errors import Problems, at_least


def test_a_whole_number_that_reaches_the_bound_passes():
    for value in (3, 4, np.int64(3)):
        at_least("a.b", 3, value)


@pytest.mark.parametrize("value", [2, -1, np.int64(2)])
def test_a_smaller_number_is_rejected(value):
    with pytest.raises(ValueError, match=says("a.b", ">= 3", value)):
        at_least("a.b", 3, value)


@pytest.mark.parametrize("value", [3.0, True, "3", None])
def test_a_value_that_is_no_whole_number_is_rejected(value):
    with pytest.raises(ValueError, match=says("a.b", "a whole number", value)):
        at_least("a.b", 3, value)


def collect(*checks):
    """Check each (function, arguments...), and raise all problems together."""
    with Problems() as problems:
        problems.add("first")
        for check in checks:
            problems.check(*check)


def test_problems_are_raised_together_in_order():
    with pytest.raises(ValueError, match="first") as caught:
        collect((at_least, "a.b", 3, 2), (int, "7"), (at_least, "a.c", 3, None))
    assert caught.value.problems == ["first", "a.b must be >= 3, got 2", "a.c must be a whole number, got None"]
    assert str(caught.value).splitlines()[:2] == ["3 problems:", "- first"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_problems_of_a_part_join_those_of_the_whole_with_a_prefix():
    with pytest.raises(ValueError, match="4 problems") as caught:
        collect((at_least, "a", 1, 0), (collect, (at_least, "b", 1, 0)))
    assert caught.value.problems[2:] == ["first", "b must be >= 1, got 0"]
    with pytest.raises(ValueError, match=r"^c\.a must be >= 1, got 0$"), Problems("c.") as problems:
        problems.check(at_least, "a", 1, 0)


def test_a_check_returns_its_result_and_without_problems_nothing_is_raised():
    with Problems() as problems:
        assert problems.check(int, "7") == 7


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError):
        collect((divmod, 1, 0))
