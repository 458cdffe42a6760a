"""Small runs end as recorded: bitwise where processor and torch are those of the recording, else in float64 scores."""

import os

import pytest

from golden.recording import FLOAT64, SCORES64, differences, environment, read
from golden.runs import RUNS, record_run, record_scores

RECORDED = read("runs.json")
EXACT = environment() == RECORDED["environment"] and not os.environ.get("MSH_GOLDEN_FLOAT64")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_as_recorded(name, tmp_path):
    if EXACT:
        recorded, found, tolerance = RECORDED["runs"][name], record_run(name, tmp_path / "run"), 0.0
    else:
        recorded, found, tolerance = read(SCORES64)[name], record_scores(name, tmp_path / "run"), FLOAT64
    assert list(differences(recorded, found, EXACT, tolerance)) == []


def test_every_run_is_recorded():
    assert list(RECORDED["runs"]) == list(RUNS)
    assert list(read(SCORES64)) == list(RUNS)


@pytest.mark.parametrize("runs", [RECORDED["runs"], read(SCORES64)], ids=["float32", "float64"])
def test_an_interrupted_run_ends_as_one_that_was_not(runs):
    assert runs["interrupted"] == runs["mixed"]
