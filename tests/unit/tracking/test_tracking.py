"""Trackers log values that follow from results.json and the data sets alone."""

import pytest
import torch
from hydra.utils import get_object, instantiate

from msh.runs.results import Results, TaskResult
from msh.tasks.task import Split, Task
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.tracking import MOVED, describe, make_logger, outcome


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


def test_the_outcome_has_scores_forgetting_and_the_verdict_and_no_unknown_values():
    found = outcome(results())
    assert (found["score/a"], found["val_score/a"], found["score/b"]) == (0.5, 0.75, 2.0)
    assert found["forgetting"] == 0.25
    assert found["bwt"] == -0.25
    assert found["guarantee/verdict"] == "held: 3 compared, 0 changed"
    assert outcome(results(violations=1))["guarantee/verdict"] == "violated: 3 compared, 1 changed"
    assert not {"val_score/b", "dense/a", "mean_score"} & set(found)


def test_the_outcome_has_a_mean_score_once_every_task_is_evaluated():
    made = results()
    made.tasks["b"].val, made.tasks["b"].val_constant = 1.0, 4.0
    assert outcome(made)["mean_score"] == pytest.approx(0.75)


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
