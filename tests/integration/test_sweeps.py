"""Sweeps with real jobs: one of them crashes, and only that one is done again."""

import csv
import re
from contextlib import nullcontext

import pytest
from browser import browser, check_drawn, open_page
from running import SMALL, few_steps, here

from fakes import write_sweep
from messages import says
from msh.cli import app, train
from msh.report.sweep_page import write_sweep_page
from msh.training.run import Run

COMMON = ["+experiment=sequential", "tasks=wine", *few_steps("wine"), "logger=none", "trainer.max_epochs=1"]
COMMON += ["pruning=at_init", *SMALL]


def sweep(folder, *overrides, capsys, code=None):
    """`train.py -m` into folder / "sweep"; returns what it printed."""
    ends = pytest.raises(SystemExit, match=f"^{code}$") if code else nullcontext()
    with ends:
        here(train.main, "-m", *COMMON, "hydra.sweep.dir=sweep", *overrides, cwd=folder)
    captured = capsys.readouterr()
    return captured.out + captured.err


def rows(folder):
    return {row["job"]: row for row in csv.DictReader((folder / "sweep" / "sweep.csv").read_text().splitlines())}


def test_a_job_that_crashes_is_named_and_done_again_while_finished_ones_are_left(tmp_path, capsys):
    rates = "optimizer.lr=1e-3,1e30,2e-3"  # the second one's loss is not finite
    printed = sweep(tmp_path, rates, capsys=capsys, code=1)
    assert "1 failed: the loss of 'wine' became NaN or infinite" in printed
    assert "error: 1 of 3 jobs failed: 1" in printed
    first = rows(tmp_path)
    assert [row["status"] for row in first.values()] == ["finished", "failed", "finished"]
    assert [row["optimizer.lr"] for row in first.values()] == ["0.001", "1e+30", "0.002"]
    kept = {path: path.stat().st_mtime_ns for job in "02" for path in (tmp_path / "sweep" / job).rglob("*")}
    printed = sweep(tmp_path, rates, "skip_finished=true", capsys=capsys, code=1)
    assert "Launching 1 jobs" in printed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rows(tmp_path) == first | {"1": rows(tmp_path)["1"]}
    here(app.main, "sweep", "sweep", cwd=tmp_path)
    assert "3 jobs, 2 finished" in capsys.readouterr().out
    assert "Too few jobs" in (tmp_path / "sweep" / "sweep.html").read_text()


def test_an_objective_that_there_is_not_is_an_error_before_the_first_job(tmp_path, capsys):
    printed = sweep(tmp_path, "seed=1,2", "objective=wine.f1", capsys=capsys, code=1)
    assert re.search(says("objective", value="wine.f1"), printed)
    assert not (tmp_path / "sweep").exists()


@browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)], ids=["desktop-light", "phone-dark"])
def test_a_browser_draws_the_page_of_a_sweep(width, scheme, tmp_path):
    write_sweep_page(tmp_path, write_sweep(tmp_path))
    told, messages, _ = open_page(tmp_path / "sweep.html", tmp_path, width, 5000, scheme)
    check_drawn((tmp_path / "sweep.html").read_text(), width, told, messages)
    assert told["drawn"] == "3"


def test_an_interrupted_search_continues(tmp_path, capsys, monkeypatch):
    trials = ["hparams_search=tpe", "hydra.sweeper.n_trials=3"]
    finish_stage, calls = Run._finish_stage, []

    def stop_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        finish_stage(*arguments)

    monkeypatch.setattr(Run, "_finish_stage", stop_second)
    printed = sweep(tmp_path, *trials, capsys=capsys, code=130)
    assert f"the same command with hydra.sweep.dir={tmp_path / 'sweep'} skip_finished=true continues it" in printed
    assert [row["status"] for row in rows(tmp_path).values()] == ["finished", "unfinished"]
    before = rows(tmp_path)
    printed = sweep(tmp_path, *trials, capsys=capsys)
    assert "best: mean_score" in printed
    after = rows(tmp_path)
    assert [row["status"] for row in after.values()] == ["finished"] * 3
    assert len({row["optimizer.lr"] for row in after.values()}) == 3
    assert after["0"] == before["0"]
    assert after["1"]["optimizer.lr"] == before["1"]["optimizer.lr"]
    assert len(calls) == 4


def test_an_interval_needs_a_search(tmp_path, capsys):
    printed = sweep(tmp_path, "pruning.density=interval(0.1,0.2)", capsys=capsys, code=1)
    assert "it needs a search, such as hparams_search=tpe" in printed
