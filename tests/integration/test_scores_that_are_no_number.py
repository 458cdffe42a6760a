"""A metric may be undefined, such as the precision of a network that answers one class alone, or very large."""

import json
import math

import torch
from running import SMALL, here
from torchmetrics import Metric

from msh.cli import evaluate, train
from msh.runs.results import Results

UNDEFINED = [
    *(setting for setting in SMALL if setting != "report=false"),
    "tasks=[wine]",
    "tasks.wine.metric={_target_: test_scores_that_are_no_number.Undefined, name: undefined}",
    "trainer.max_epochs=2",
]


class Undefined(Metric):
    """0 / 0."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, outputs, targets):
        self.seen = self.seen + len(targets)

    def compute(self):
        return self.seen * math.nan


def test_a_run_ends_without_the_score_and_says_so(tmp_path):
    here(train.main, *UNDEFINED, "baseline=dense", "logger=csv", "hydra.run.dir=run", cwd=tmp_path)
    results = Results.load(tmp_path / "run")
    assert results.status == "finished"
    assert results.learned == "1 of 1"
    assert results.matrix == [[None]]
    assert (results.tasks["wine"].val, results.tasks["wine"].test, results.tasks["wine"].dense) == (None, None, None)
    assert "wine/test/undefined is nan, so that the task has no score" in (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "run" / "report.html").exists()
    here(evaluate.main, "run=run", "unsafe=true", cwd=tmp_path)
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [row["score"] for row in rows] == [None]


def test_a_run_with_targets_whose_squares_float32_cannot_hold_ends_with_scores(tmp_path):
    rows = [f"{math.sin(i)},{math.cos(i)},{math.sin(i) * 1e22}" for i in range(200)]
    (tmp_path / "large.csv").write_text("\n".join(["a,b,y", *rows]))
    table = [f"tasks.table.source.path={tmp_path / 'large.csv'}", "tasks.table.source.target=y"]
    here(train.main, *SMALL, "tasks=table", *table, "trainer.max_epochs=2", "hydra.run.dir=run", cwd=tmp_path)
    results = Results.load(tmp_path / "run")
    assert results.status == "finished"
    scores = results.tasks["table"]
    assert all(1e20 < score < 1e23 for score in (scores.test, scores.val, scores.val_constant))
