"""What trackers are told follows from results.json and the data alone."""

import pytest
import torch
from hydra.utils import get_object, instantiate

from msh.runs.results import Results, TaskResult
from msh.tasks.task import Split, Task
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.tracking import MOVED, _kept, describe, make_logger, matrix_picture, matrix_rows, outcome, score_rows


@pytest.mark.parametrize(("before", "now"), MOVED.items())
def test_configs_of_earlier_releases_name_the_same_loggers(before, now):
    assert callable(get_object(now))
    with pytest.raises(Exception, match="Error locating target"):
        instantiate({"_target_": before})


def test_a_logger_of_an_earlier_release_is_made(tmp_path):
    logger = make_logger({"_target_": "msh.reports.loggers.RunCSVLogger", "directory": str(tmp_path)})
    assert isinstance(logger, RunCSVLogger)


def results(violations=0):
    tasks = {"a": TaskResult("accuracy", "max", 0), "b": TaskResult("rmse", "min", 1)}
    made = Results("toy", 0, [["a"], ["b"]], tasks, "0a1b2c3d")
    made.tasks["a"].val, made.tasks["a"].density = 0.75, 0.1
    made.add_row({"a": 0.75})
    made.add_row({"a": 0.5, "b": 2.0})
    made.guarantee = {"checked": 3, "violations": violations}
    return made


def test_the_matrix_has_a_row_for_each_stage_with_the_names_of_its_tasks():
    assert matrix_rows(results()) == [["a", 0.75, None], ["b", 0.5, 2.0]]
    assert matrix_picture(results()).size > (100, 100)


def test_a_score_is_shaded_by_the_share_of_the_best_that_is_left():
    assert _kept([None, 0.8, 0.4], "max") == [0.0, 1.0, 0.5]
    assert _kept([2.0, 1.0], "min") == [0.5, 1.0]
    assert _kept([0.0, 0.0], "min") == [1.0, 1.0]
    assert _kept([None, None], "max") == [0.0, 0.0]


def test_the_outcome_has_scores_forgetting_and_the_verdict_and_nothing_unknown():
    found = outcome(results())
    assert (found["score/a"], found["val_score/a"], found["score/b"]) == (0.5, 0.75, 2.0)
    assert found["forgetting"] == 0.25
    assert found["bwt"] == -0.25
    assert found["guarantee/verdict"] == "held: 3 compared, 0 changed"
    assert outcome(results(violations=1))["guarantee/verdict"] == "violated: 3 compared, 1 changed"
    assert not {"val_score/b", "dense/a", "mean_score"} & set(found)


def test_the_objective_of_sweeps_is_there_once_every_task_is_measured():
    made = results()
    made.tasks["b"].val, made.tasks["b"].val_constant = 1.0, 4.0
    assert outcome(made)["mean_score"] == pytest.approx(0.75)


def test_scores_are_a_row_for_each_task():
    columns, rows = score_rows(results())
    assert dict(zip(columns, rows[0], strict=True))["forgetting"] == 0.25
    assert [row[0] for row in rows] == ["a", "b"]


def toy(shift=0):
    split = Split(torch.zeros(4, 3), torch.arange(4) + shift)
    splits = {"train": split, "val": split, "test": split}
    return Task("toy", "classification", splits, 4, "accuracy", 2, torch.zeros(4), torch.ones(4))


def test_data_are_described_by_settings_shapes_and_a_fingerprint():
    found = describe(toy(), {"source": {"_target_": "toy"}})
    assert found["examples"] == {"train": 4, "val": 4, "test": 4}
    assert found["input_shape"] == [3]
    assert found["settings"] == {"source": {"_target_": "toy"}}
    assert found["targets_sha256"] == describe(toy(), {})["targets_sha256"] != describe(toy(1), {})["targets_sha256"]
