"""What is printed at the end."""

import io

import pytest
from rich.console import Console

from msh.report.table import print_results, print_scores
from msh.runs.results import Results, TaskResult


def make_results():
    tasks = {
        "wine": TaskResult("accuracy", "max", 0, test=0.9, density=0.25, weights=12345),
        "diabetes": TaskResult("rmse", "min", 1, test=55.123456, density=0.1, weights=99),
    }
    results = Results("toy", 7, [["wine"], ["diabetes"]], tasks, run_id="x")
    results.matrix = [[0.95, None], [0.9, 55.123456]]
    results.capacity = {"prunable": 1000, "owned": 350, "free": 650}
    results.guarantee = {"checked": 3, "violations": 1}
    return results


def printed(results):
    console = Console(file=io.StringIO(), width=120)
    print_results(results, console)
    return console.file.getvalue()


def cells(text, name):
    """The cells of a task's row."""
    (line,) = [line for line in text.splitlines() if f" {name} " in line]
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_a_task_has_a_line_with_all_that_was_measured():
    text = printed(make_results())
    assert cells(text, "wine") == ["wine", "accuracy ↑", "0.9000", "0.250", "12,345", "0.05"]
    assert cells(text, "diabetes") == ["diabetes", "rmse ↓", "55.1235", "0.100", "99", "0"]


def test_the_title_and_the_last_line_tell_of_the_run():
    text = printed(make_results())
    assert "toy, seed 7" in text
    assert "compared bitwise: 3 times, 1 changed; network used: 35.0% of 1,000 weights" in text


@pytest.mark.parametrize("baseline", ["dense", "finetune", "joint"])
def test_a_baselines_column_is_shown_only_where_it_was_measured(baseline):
    results = make_results()
    assert baseline not in printed(results)
    setattr(results.tasks["wine"], baseline, 0.875)
    assert f" {baseline} " in printed(results)
    assert cells(printed(results), "wine")[3] == "0.8750"
    assert cells(printed(results), "diabetes")[3] == ""


def test_a_task_that_is_not_learned_yet_has_empty_cells():
    results = make_results()
    results.tasks["diabetes"] = TaskResult("rmse", "min", 1)
    results.matrix = [[0.9, None]]
    assert cells(printed(results), "diabetes")[2:] == ["", "", "0", ""]


def test_scores_are_printed_to_the_last_digit(capsys):
    print_scores([{"task": "wine", "metric": "accuracy", "score": 0.9629629850387573}])
    assert "0.9629629850387573" in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 80])
def test_names_are_not_cut_in_a_file(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    print_results(make_results())
    assert "forgetting" in capsys.readouterr().out
