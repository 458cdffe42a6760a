"""Small runs end as recorded: bitwise where processor and torch are those of the recording, else in their scores."""

import pytest

from golden.recording import differences, environment, read
from golden.runs import RUNS, record_run

RECORDED = read("runs.json")
EXACT = environment() == RECORDED["environment"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_as_recorded(name, tmp_path):
    found = record_run(name, tmp_path / "run")
    assert list(differences(RECORDED["runs"][name], found, EXACT)) == []


def test_every_run_is_recorded():
    assert list(RECORDED["runs"]) == list(RUNS)


def test_an_interrupted_run_ends_as_one_that_was_not():
    assert RECORDED["runs"]["interrupted"] == RECORDED["runs"]["mixed"]
