"""Every curriculum on two processes, with DDP and with shards, against one process with the same batches."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from forking import run_ranks
from ranks import end_of
from running import SMALL

SETTINGS = [
    *(setting for setting in SMALL if not setting.startswith("trainer.")),
    *("tasks=[wine,iris,diabetes]", "val_fraction=0.15", "logger=csv", "checkpoint.min_seconds=0"),
    *("tasks.wine.batch_size=16", "tasks.iris.batch_size=10", "tasks.diabetes.batch_size=16"),
    *("tasks.wine.repeat=1", "tasks.iris.repeat=1", "tasks.diabetes.repeat=1", "trainer.gradient_clip_val=1"),
    *("++callbacks.stop._target_=msh.training.callbacks.EarlyStoppingPerTask", "trainer.max_epochs=8"),
    *("++callbacks.stop.patience=1", "++callbacks.stop.min_delta=0.045"),
]
MIXED = ["+experiment=mixed", "curriculum=[[wine,diabetes],{tasks:[iris],max_epochs:4}]"]
SGD = ["optimizer=sgd", "optimizer.lr=0.05", "trainer.accumulate_grad_batches=2"]
RUNS = {
    "parallel": ["+experiment=parallel"],
    "mixed": [*MIXED, *SGD, "uneven=shortest", "reuse=all"],
    "sequential": ["+experiment=sequential", "trainer.accumulate_grad_batches=2", "baseline=[finetune,joint]"],
    "learned": [*MIXED, "pruning=learned", "reuse=learned"],
    "gated": ["+experiment=parallel", "pruning=gated"],
    "lottery": [
        "+experiment=sequential",
        "pruning=lottery",
        "pruning.rewind=0",
        "trainer.gradient_clip_algorithm=value",
    ],
    "together": ["+experiment=parallel", *SGD],
    "bf16": [*MIXED, "pruning=at_init", "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2"],
    "bf16_parallel": ["+experiment=parallel", "pruning=at_init", "trainer.precision=bf16-mixed"],
    "bf16_sequential": ["+experiment=sequential", "pruning=at_init", "trainer.precision=bf16-mixed"],
}
"""Gradients are clipped in all, accumulated in some of each curriculum, and rounded to bf16 in others."""
STRATEGIES = {"ddp": [], "fsdp": ["trainer.strategy=fsdp"]}
QUICK = ["parallel-ddp", "mixed-fsdp"]
THOROUGH = [f"{run}-{how}" for run in RUNS for how in STRATEGIES if f"{run}-{how}" not in QUICK]
THOROUGH += ["parallel-fsdp-stopped"]


def settings_of(case):
    run, how, *_ = case.split("-")
    return [*SETTINGS, *RUNS[run], "trainer=ddp_sim", *STRATEGIES[how]]


def start(folder, cases):
    """All these runs in two processes."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps({case: settings_of(case) for case in cases}))
    run_ranks(2, "tests/integration/ranks.py", folder, cwd=folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A function from a case to (each rank's record, each rank's tensors, the run folder)."""
    folder = tmp_path_factory.mktemp("two")

    def ended(case):
        group = QUICK if case in QUICK else THOROUGH
        runs = folder / ("quick" if group is QUICK else "thorough")
        if not runs.exists():
            start(runs, group)
        records = [json.loads((runs / f"{case}.{rank}.json").read_text()) for rank in (0, 1)]
        return records, [torch.load(runs / f"{case}.{rank}.pt") for rank in (0, 1)], runs / case

    return ended


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A function from a case to one process's (record, tensors, run folder)."""
    folder, results = tmp_path_factory.mktemp("one"), {}

    def ended(case):
        run = case.split("-")[0]
        if run not in results:
            run_dir = folder / run
            arguments = [*SETTINGS, *RUNS[run], "trainer=cpu", f"hydra.run.dir={run_dir}"]
            results[run] = (*end_of(run_dir, *arguments), run_dir)
        return results[run]

    return ended


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def files_of(folder):
    """Paths of the run folder's files, without checksums."""
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(re.sub(r"\.[0-9a-f]{16}\.", ".", path) for path in paths)


def assert_same_results(found, expected, rough):
    for key in ("status", "forgetting", "guarantee", "capacity", "curriculum"):
        assert found[key] == expected[key], key
    assert scores_in(found) == pytest.approx(scores_in(expected), rel=0.1 if rough else 1e-4)


def scores_in(results):
    """Return all scores, as numbers."""
    rows = [*results["matrix"], *results["finetune"]["matrix"]]
    rows += [[row[key] for key in ("val", "test", "joint")] for row in results["tasks"].values()]
    return [score for row in rows for score in row if score is not None]


def curves_of(folder):
    """(step, columns that have a value) of each row, in order."""
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return [(row["step"], sorted(name for name, value in row.items() if value)) for row in rows]


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.distributed) for case in THOROUGH)])
def test_two_processes_do_the_same_as_one(case, two, one):
    """The same masks, decisions, scores and files; weights up to rounding."""
    records, tensors, folder = two(case)
    expected, expected_tensors, folder_of_one = one(case)
    assert records[0] == records[1]
    assert {size % 2 for size in expected["examples"]} == {0, 1}  # shards of one size, and of two
    for key in ("owners", "stopped", "step", "examples"):
        assert records[0][key] == expected[key], key
    assert files_of(folder) == files_of(folder_of_one)
    assert curves_of(folder) == curves_of(folder_of_one)
    rough = "bf16" in case
    for name, value in expected_tensors.items():
        assert torch.equal(tensors[0][name], tensors[1][name]), name
        close = {"rtol": 0.02, "atol": 0.002} if rough else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(tensors[0][name], value, **close, msg=name)
    assert_same_results(results_of(folder), results_of(folder_of_one), rough)


def test_tasks_of_a_stage_stop_at_different_times(one):
    """Or the comparison of decisions would not say much."""
    records, *_ = one("parallel-ddp")
    assert len({epoch for _, epoch in records["stopped"]}) > 1


@pytest.mark.parametrize("case", [*QUICK, pytest.param(THOROUGH[-1], marks=pytest.mark.distributed)])
def test_the_run_folder_is_written_by_one_process(case, two):
    *_, folder = two(case)
    first, second = (json.loads(folder.with_name(f"{case}.{rank}.written.json").read_text()) for rank in (0, 1))
    assert {Path(path).name for path in first} >= {"results.json", "network.safetensors", "metrics.csv", "train.log"}
    assert any(".ckpt" in path for path in first)
    assert second == []
