"""Tables that are printed at the end of a run."""

import io

import pytest
from rich.console import Console

from msh.report.terminal import print_results, print_scores
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


def test_a_task_has_a_line_with_its_scores():
    text = printed(make_results())
    assert cells(text, "wine") == ["wine", "accuracy ↑", "0.9000", "0.250", "12,345", "0.05"]
    assert cells(text, "diabetes") == ["diabetes", "rmse ↓", "55.1235", "0.100", "99", "0"]


def test_the_title_and_the_last_line_describe_the_run():
    text = printed(make_results())
    assert "toy, seed 7" in text
    assert "compared bitwise: 3 times, 1 changed; network used: 35.0% of 1,000 weights" in text


def test_one_comparison_is_one_time():
    results = make_results()
    results.guarantee = {"checked": 1, "violations": 0}
    assert "compared bitwise: 1 time, 0 changed" in printed(results)


@pytest.mark.parametrize("baseline", ["dense", "finetune", "joint"])
def test_a_baselines_column_is_shown_only_if_it_has_a_score(baseline):
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
    assert cells(printed(results), "diabetes")[2:] == ["", "", "", ""]


def test_scores_are_printed_to_the_last_digit(capsys):
    print_scores([{"task": "wine", "metric": "accuracy", "score": 0.9629629850387573}])
    assert "0.9629629850387573" in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 80])
def test_names_are_not_cut_in_a_file(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    print_results(make_results())
    assert "forgetting" in capsys.readouterr().out


@pytest.mark.parametrize("baselines", [(), ("dense", "finetune", "joint")])
def test_the_table_fits_80_columns_and_loses_nothing(baselines):
    results = make_results()
    results.tasks["diabetes"].weights = 1_158_800
    for name in baselines:
        for task in results.tasks.values():
            setattr(task, name, 55.123456)
    console = Console(file=io.StringIO(), width=80)
    print_results(results, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for shown in ("diabetes", "55.1235", "1,158,800", "forgetting", *baselines):
        assert shown in text


@pytest.mark.parametrize(
    ("encoding", "arrow", "name", "shown"),
    [
        ("utf-8", "↑", "wine\udcff", "wine?"),
        ("ascii", "^", "wine\xe9", "wine?"),
        ("latin-1", "^", "wine\xe9", "wine\xe9"),
    ],
)
def test_letters_that_the_terminal_lacks_are_replaced(encoding, arrow, name, shown, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", output)
    results = make_results()
    results.tasks[name] = results.tasks.pop("wine")
    print_results(results)
    output.flush()
    text = output.buffer.getvalue().decode(encoding)
    assert f"accuracy {arrow}" in text
    assert shown in text
