"""Sweeps are scored on validation data, and the best attempt is marked."""

import json
import sys
from pathlib import Path

import pytest

from fakes import write_run
from msh.training.settings import OnDisk

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import attempts, recording  # noqa: E402
from benchmarks.attempts import FILE, Sweep, read_entries  # noqa: E402
from benchmarks.runs import state_of  # noqa: E402


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Three attempts, of which two are done: the better one on validation data is the worse one on test data."""
    for module in (attempts, recording):
        monkeypatch.setattr(module, "state_of", lambda step: OnDisk("finished" if step.folder.exists() else "new"))
    found = Sweep("s", "Tried", "fake", attempts={"plain": [], "long": ["x=1"], "missing": ["x=2"]})
    scores = {"plain": (0.9, 0.5), "long": (0.8, 0.7)}
    for name, (test, val) in scores.items():
        tasks = {"a": {"test": test, "val": val}, "b": {"test": test, "val": val + 0.1}}
        write_run(tmp_path / "s" / name / "seed-0", tasks)
    return found


def test_attempts_are_scored_on_validation_data_and_the_best_is_marked(sweep, tmp_path):
    records = attempts.records_of(sweep, tmp_path)
    assert [(r["attempt"], r["task"], r["best"]) for r in records] == [
        ("plain", "mean of 2 tasks", False),
        ("long", "mean of 2 tasks", True),
    ]
    assert [record["val"] for record in records] == pytest.approx([0.55, 0.75])
    assert not any("test" in record for record in records)


def test_the_table_may_have_single_tasks(sweep, tmp_path):
    sweep.tasks = ["b"]
    assert [(r["task"], r["val"]) for r in attempts.records_of(sweep, tmp_path)] == [
        ("b", pytest.approx(0.6)),
        ("b", pytest.approx(0.8)),
    ]
    sweep.tasks = ["c"]
    with pytest.raises(ValueError, match=r"s: tasks must be one of a, b.*, got 'c'"):
        attempts.records_of(sweep, tmp_path)


def test_the_table_may_have_ensembles(sweep, tmp_path):
    ensemble = {"metric": "accuracy", "direction": "max", "tasks": ["a", "b"], "test": 0.5, "val": 0.6}
    tasks = {"a": {"val": 0.4}, "b": {"val": 0.5}}
    write_run(tmp_path / "s" / "missing" / "seed-0", tasks, ensemble={"both": ensemble})
    sweep.attempts, sweep.tasks = {"missing": []}, ["a", "both"]
    records = attempts.records_of(sweep, tmp_path)
    assert [(r["task"], r["val"], r["epochs"]) for r in records] == [("a", 0.4, 3), ("both", 0.6, 3)]


def test_an_attempt_with_several_seeds_has_their_mean_after_the_last(sweep, tmp_path):
    sweep.seeds, sweep.tasks = [0, 7], ["a"]
    assert [step.folder.name for step in sweep.steps("long", tmp_path)] == ["seed-0", "seed-7"]
    assert attempts.records_of(sweep, tmp_path) == []
    for name, val in (("plain", 0.8), ("long", 0.8)):
        write_run(tmp_path / "s" / name / "seed-7", {"a": {"val": val}, "b": {"val": 0.1}})
    plain, long = attempts.records_of(sweep, tmp_path)
    assert (plain["val"], plain["std"]) == pytest.approx((0.65, 0.2121), abs=1e-4)
    assert (long["val"], long["seeds"], long["best"]) == (pytest.approx(0.75), [0, 7], True)
    attempts.document({"s": sweep}, tmp_path, tmp_path / "docs", tmp_path / "records")
    text = (tmp_path / "docs" / "attempts.md").read_text()
    assert "seeds 0, 7." in text
    assert "| a | accuracy | 0.7500 ± 0.0707 | **best** |" in text


def test_the_document_has_a_table_and_keeps_text_by_hand(sweep, tmp_path):
    docs = tmp_path / "docs"
    attempts.document({"s": sweep}, tmp_path, docs, tmp_path / "records")
    path = docs / "attempts.md"
    assert "| long | `x=1` | mean of 2 tasks | accuracy | 0.7500 | **best** | 3 | 0 |" in path.read_text()
    path.write_text(path.read_text() + "\nBy hand.\n")
    attempts.document({"s": sweep}, tmp_path, docs, tmp_path / "records")
    assert path.read_text().endswith("\nBy hand.\n")
    attempts.document({"s": sweep}, tmp_path / "elsewhere", docs, tmp_path / "records")
    assert len(json.loads((docs / "attempts.json").read_text())) == 2


def test_the_projects_sweeps_compose(tmp_path):
    for sweep in read_entries(FILE, Sweep).values():
        assert "as_it_is" in sweep.attempts
        for attempt in sweep.attempts:
            step = sweep.steps(attempt, tmp_path)[0]  # the others have other seeds
            assert state_of(step).what == "new"  # composes it
