"""results.json: scores worked out by hand, and files that cannot be read."""

import json
import math

import pytest

from msh.files import atomic
from msh.runs.results import FILE_NAME, SCHEMA_VERSION, Results, TaskResult


def make_results(directions=("max", "min", "max")):
    names = ["a", "b", "c"][: len(directions)]
    tasks = {
        name: TaskResult(metric="accuracy" if way == "max" else "rmse", direction=way, stage=stage)
        for stage, (name, way) in enumerate(zip(names, directions, strict=True))
    }
    return Results("toy", 3, [[name] for name in names], tasks, run_id="0a1b2c3d")


@pytest.fixture
def worked():
    """Task a (higher is better) falls from 0.9 to 0.8 to 0.85; b (lower is better) rises from 50 to 54."""
    results = make_results()
    results.add_row({"a": 0.9})
    results.add_row({"a": 0.8, "b": 50.0})
    results.add_row({"a": 0.85, "b": 54.0, "c": 0.5})
    return results


def test_the_matrix_has_a_row_a_stage_and_nothing_for_tasks_not_learned_yet(worked):
    assert worked.matrix == [[0.9, None, None], [0.8, 50.0, None], [0.85, 54.0, 0.5]]


def test_each_task_has_its_last_score_and_the_one_when_learned(worked):
    scores = [(task.test_when_learned, task.test) for task in worked.tasks.values()]
    assert scores == [(0.9, 0.85), (50, 54), (0.5, 0.5)]


def test_forgetting_is_best_past_minus_final(worked):
    assert worked.forgetting == pytest.approx(((0.9 - 0.85) + (54 - 50)) / 2)
    assert [worked.forgetting_of(task) for task in "abc"] == pytest.approx([0.05, 4.0, 0.0])


def test_backward_transfer_is_final_minus_when_learned(worked):
    assert worked.bwt == pytest.approx(((0.85 - 0.9) - (54 - 50)) / 2)


def test_forgetting_and_backward_transfer_differ_where_the_best_came_later():
    results = make_results(("max", "max", "max"))
    for row in ({"a": 0.5}, {"a": 0.9, "b": 0.4}, {"a": 0.7, "b": 0.4, "c": 0.1}):
        results.add_row(row)
    assert results.forgetting == pytest.approx((0.2 + 0.0) / 2)
    assert results.bwt == pytest.approx((0.2 + 0.0) / 2)
    assert results.forgetting_of("a") == pytest.approx(0.2)  # from 0.9, not from 0.5


def test_a_score_that_gets_better_is_less_than_no_forgetting():
    results = make_results(("min", "max"))
    results.add_row({"a": 50.0})
    results.add_row({"a": 40.0, "b": 0.5})
    assert (results.forgetting, results.bwt) == (-10.0, 10.0)


def test_after_the_first_stage_nothing_can_be_forgotten():
    results = make_results()
    results.add_row({"a": 0.9})
    assert (results.forgetting, results.bwt, results.forgetting_of("a")) == (0.0, 0.0, 0.0)
    assert results.forgetting_of("b") is None


def test_a_stage_of_several_tasks_has_one_row():
    results = make_results(("max", "max"))
    results.tasks["b"].stage = 0
    results.add_row({"a": 0.5, "b": 0.6})
    assert results.matrix == [[0.5, 0.6]]
    assert results.tasks["b"].test_when_learned == 0.6


def test_the_fine_tuned_networks_matrix_is_separate_from_the_runs(worked):
    before = (worked.matrix, worked.forgetting, worked.bwt)
    for row in ({"a": 0.9}, {"a": 0.3, "b": 40.0}, {"a": 0.5, "b": 42.0, "c": 0.6}):
        worked.add_finetune_row(row)
    assert worked.finetune["matrix"] == [[0.9, None, None], [0.3, 40.0, None], [0.5, 42.0, 0.6]]
    assert worked.finetune["forgetting"] == pytest.approx((0.4 + 2.0) / 2)
    assert worked.finetune["bwt"] == pytest.approx((-0.4 - 2.0) / 2)
    assert [task.finetune for task in worked.tasks.values()] == [0.5, 42.0, 0.6]
    assert (worked.matrix, worked.forgetting, worked.bwt) == before


# ---- files


def test_saving_and_loading_is_the_identity(worked, tmp_path):
    worked.capacity, worked.status = {"prunable": 10, "owned": 4, "free": 6}, "finished"
    worked.save(tmp_path)
    assert Results.load(tmp_path) == worked


def test_the_file_is_json_that_starts_with_its_version(worked, tmp_path):
    worked.save(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    assert next(iter(content)) == "schema_version"
    assert content["schema_version"] == SCHEMA_VERSION == 1
    assert content["matrix"][0] == [0.9, None, None]


def test_a_folder_without_results_is_not_a_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no results\.json"):
        Results.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"schema_version": 1}', '{"schema_version": "x"}'])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ValueError, match=r"results\.json cannot be read"):
        Results.load(tmp_path)


def test_a_file_cut_short_is_named(worked, tmp_path):
    worked.save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"results\.json cannot be read"):
        Results.load(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"results\.json cannot be read"):
        Results.load(tmp_path)


def change(worked, tmp_path, **changes):
    worked.save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_later_version_is_refused(worked, tmp_path):
    change(worked, tmp_path, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(ValueError, match="schema_version 2 is later than 1, which this release reads"):
        Results.load(tmp_path)


def test_keys_that_were_added_are_passed_over(worked, tmp_path):
    change(worked, tmp_path, something_new=1)
    assert Results.load(tmp_path) == worked


def test_a_file_from_before_there_were_more_baselines_is_read(worked, tmp_path):
    worked.save(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    del content["finetune"]
    for row in content["tasks"].values():
        del row["finetune"], row["joint"]
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    assert Results.load(tmp_path) == worked


def test_saving_is_complete_or_changes_nothing(worked, tmp_path, monkeypatch):
    worked.save(tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    worked.status = "finished"
    with pytest.raises(OSError, match="No space left"):
        worked.save(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_is_written_as_none_so_that_the_run_can_be_resumed(value, worked, tmp_path):
    scores = [name for name, hint in TaskResult.__annotations__.items() if hint == "float | None"]
    assert {"test", "val", "val_constant", "dense"} <= set(scores)
    for name in scores:
        setattr(worked.tasks["a"], name, value)
    worked.matrix[-1][0] = worked.forgetting = worked.bwt = value
    worked.finetune = {"matrix": [[value] * len(worked.tasks)], "forgetting": value, "bwt": value}
    worked.ensemble = {"both": {"metric": "mse", "direction": "min", "tasks": ["a"], "test": value, "val": value}}
    worked.save(tmp_path)
    loaded = Results.load(tmp_path)
    assert {getattr(loaded.tasks["a"], name) for name in scores} == {None}
    assert (loaded.matrix[-1][0], loaded.forgetting, loaded.bwt) == (None, None, None)
    assert loaded.finetune == {"matrix": [[None] * len(worked.tasks)], "forgetting": None, "bwt": None}
    assert (loaded.ensemble["both"]["test"], loaded.ensemble["both"]["val"]) == (None, None)
