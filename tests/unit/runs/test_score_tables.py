"""Tables about a run: their values follow from results.json and the network."""

from helpers import make_state
from msh.runs.results import Results, TaskResult
from msh.runs.score_tables import (
    capacity_table,
    matrix_table,
    owners_table,
    tasks_table,
    tracked_table,
)
from msh.subnetworks import TaskState


def results():
    made = Results(
        "toy", 0, [["a"], ["b"]], {"a": TaskResult("accuracy", "max", 0), "b": TaskResult("rmse", "min", 1)}, "x"
    )
    made.add_row({"a": 0.75})
    made.add_row({"a": 0.5, "b": 2.0})
    made.ensemble = {"both": {"metric": "accuracy", "direction": "max", "tasks": ["a", "b"], "test": 0.875, "val": 0.5}}
    return made


def state():
    rows = [TaskState("a", 1), TaskState("b", 2)]
    return make_state({"layer": [[1, 1, 0, 0], [2, 0, 0, 0]]}, rows)


def test_the_matrix_has_a_row_for_each_stage_with_the_names_of_its_tasks():
    made = results()
    table = matrix_table("matrix", made.stages, list(made.tasks), made.matrix)
    assert table.names == ["after", "a", "b"]
    assert table.values() == [["a", 0.75, None], ["b", 0.5, 2.0]]


def test_trackers_get_a_row_for_each_task_with_metric_and_direction_apart():
    table = tracked_table(results())
    row = dict(zip(table.names, table.values()[0], strict=True))
    assert (row["task"], row["metric"], row["direction"], row["stage"]) == ("a", "accuracy", "max", 0)
    assert (row["test"], row["test_when_learned"], row["forgetting"]) == (0.5, 0.75, 0.25)
    assert [values[0] for values in table.values()] == ["a", "b"]


def test_ensembles_have_their_scores_and_nothing_else():
    names = ("task", "metric", "test", "val", "weights", "train_seconds", "forgetting")
    table = tasks_table(results(), names, ensembles=True)
    assert [column.cell(table.rows[-1]) for column in table.columns] == [
        *("both of 2", "accuracy ↑", "0.8750", "0.5000", "", "", "")
    ]


def test_capacity_has_a_column_for_each_task_or_one_for_all():
    layers = state().capacity()
    assert capacity_table(layers, 2, "").values() == [["layer", (2, 4), 8, 2, 1, 5]]
    many = capacity_table(layers, 1, "")
    assert many.names == ["layer", "shape", "weights", "owned", "free"]
    assert many.values() == [["layer", (2, 4), 8, 3, 5]]


def test_owners_have_a_row_for_each_layer_and_the_network():
    rows = owners_table(state()).values()
    assert rows[3:] == [["layer", "a", 2, 0.25], ["layer", "b", 1, 0.125], ["layer", "free", 5, 0.625]]
    assert [row[1:] for row in rows[:3]] == [row[1:] for row in rows[3:]]
