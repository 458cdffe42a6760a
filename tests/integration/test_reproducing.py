"""Reproduce end to end: runs through train.py, resumed for additional baselines, and their documents."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from running import ROOT, SMALL, few_steps

sys.path.insert(0, str(ROOT))

from benchmarks import reproduce
from benchmarks.rows import Goal, Row
from benchmarks.runs import arguments, state_of


def test_rows_are_run_resumed_for_baselines_and_documented(tmp_path, train_here):
    small = [*SMALL, "trainer.max_epochs=2", "tasks=[iris,wine]", *few_steps("iris", "wine")]
    first = Row("1", "At once", "parallel", small, baselines={"joint": [0], "finetune": [0]}, dense_of="2")
    second = Row("2", "In turn", "sequential", small, baselines={"dense": [0]}, tasks={"iris": Goal(target=0.0)})
    rows = {"1": first, "2": second}
    steps = reproduce.plan(list(rows.values()), None, tmp_path / "runs")
    states = []
    for step in [replace(step, baselines=()) for step in steps] + steps:
        states.append(state_of(step).what)
        train_here(*arguments(step, state_of(step), Path("data"), 1), small=False)
    assert states == ["new", "new", "unfinished", "unfinished"]
    assert [state_of(step).what for step in steps] == ["finished"] * 2

    reproduce.document(rows, tmp_path / "runs", tmp_path / "docs", tmp_path / "records")
    records = json.loads((tmp_path / "docs" / "results.json").read_text())
    assert [(record["row"], record["task"]) for record in records] == [
        ("1", "iris"),
        ("1", "wine"),
        ("2", "iris"),
        ("2", "wine"),
    ]
    runs = [json.loads((step.folder / "results.json").read_text())["tasks"] for step in steps[:2]]
    for record in records:
        mine = runs[int(record["row"]) - 1][record["task"]]
        assert (record["mean"], record["joint"], record["finetune"]) == (mine["test"], mine["joint"], mine["finetune"])
        assert record["dense"] == runs[1][record["task"]]["dense"] is not None
        assert (record["epochs"], record["threads"], record["forgetting"]) == (2, 1, 0)
    assert records[0]["joint"] is not None
    assert records[2]["met"] is True
