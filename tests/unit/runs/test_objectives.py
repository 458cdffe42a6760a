"""Objectives of runs, with numbers worked out by hand."""

import math

import pytest

from messages import says
from msh.runs.objectives import mean_score, objective_values, read_objectives
from msh.runs.results import Results, TaskResult

TASKS = ["digits", "diabetes"]


@pytest.fixture
def results():
    digits = TaskResult("accuracy", "max", 0, test=0.9, val=0.8, density=0.1)
    diabetes = TaskResult("rmse", "min", 1, test=60.0, val=50.0, val_constant=80.0, density=0.3)
    return Results("toy", 0, [["digits"], ["diabetes"]], {"digits": digits, "diabetes": diabetes}, "x", wall_seconds=7)


def test_an_error_counts_as_its_gain_over_a_constant_answer(results):
    assert mean_score(results) == pytest.approx((0.8 + (1 - 50 / 80)) / 2)
    results.tasks["diabetes"].val = 80.0
    assert mean_score(results) == pytest.approx(0.4)


def test_objectives_are_read_from_the_results_in_order(results):
    values = objective_values(results, ["density", "diabetes.val", "digits.test", "seconds"])
    assert values == pytest.approx([0.2, 50.0, 0.9, 7.0])


@pytest.mark.parametrize("missing", ["val", "val_constant"])
def test_a_missing_score_gives_nan(missing, results):
    setattr(results.tasks["diabetes"], missing, None)
    assert math.isnan(mean_score(results))


def test_single_names_and_lists_are_read():
    assert read_objectives(None, TASKS) == []
    assert read_objectives("mean_score", TASKS) == ["mean_score"]
    assert read_objectives(["digits.val", "density"], TASKS) == ["digits.val", "density"]


def test_an_unknown_name_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match=says("objective", value="digts.val", meant="digits.val")):
        read_objectives("digts.val", TASKS)
