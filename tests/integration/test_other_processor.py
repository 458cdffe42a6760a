"""Continue a run, take its network up and evaluate it on a processor with other vector instructions."""

import json
import shutil

import forking
import pytest
import torch
from running import SMALL, few_steps, here

from golden.recording import told_to_end_after
from msh.cli import app, plan, train
from msh.files.state_file import read_state

ELSEWHERE = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Keeps torch and its libraries to instructions that every x86-64 processor has."""
SETTINGS = ["+experiment=sequential", *SMALL, "logger=none", "trainer.max_epochs=2", "pruning.density=0.3"]
SETTINGS += ["backbone.norm=true", "checkpoint.min_seconds=0"]
TWO = ["tasks=[wine,iris]", *few_steps("wine", "iris")]

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"),
    reason="this processor has no vector instructions to do without",
)


def elsewhere(script, *arguments, cwd):
    """Run a command as on another processor; returns what it printed."""
    return " ".join(forking.run(script, *arguments, cwd=cwd, **ELSEWHERE).split())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that ended within its second task."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    settings = [*SETTINGS, "tasks=[wine,digits]", *few_steps("wine", "digits")]
    with told_to_end_after(40), pytest.raises(SystemExit):
        here(train.main, *settings, f"hydra.run.dir={folder}", cwd=folder.parent)
    assert list(json.loads((folder / "results.json").read_text())["matrix"])
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_is_resumed_and_says_how_frozen_tasks_were_compared(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    printed = elsewhere("train.py", f"resume={tmp_path / 'run'}", cwd=tmp_path)
    results = results_of(tmp_path / "run")
    first, second = results["computed_on"]
    assert torch.backends.cpu.get_cpu_capability() in first
    assert "ONEDNN_MAX_CPU_ISA=SSE41" in second
    guarantee = results["guarantee"]
    assert (guarantee["checked"], guarantee["violations"], guarantee["rounded"]) == (1, 0, 1)
    assert 0 < guarantee["largest_difference"] < 1e-5
    assert "compared 1 on another machine than the record's: weights bitwise, outputs to within" in printed
    assert "task wine was recorded on another machine" in printed


def test_a_run_is_evaluated_and_compared(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    here(train.main, f"resume={tmp_path / 'run'}", cwd=tmp_path)
    printed = elsewhere("evaluate.py", f"run={tmp_path / 'run'}", cwd=tmp_path)
    assert "scores: " in printed
    assert "on another machine than the record's: weights bitwise" in printed
    assert "0 changed" in printed


def test_a_run_adds_tasks_to_a_network(tmp_path):
    here(train.main, *SETTINGS, "tasks=[wine]", *few_steps("wine"), "hydra.run.dir=here", cwd=tmp_path)
    more = [*SETTINGS, *TWO, "network=here", "hydra.run.dir=there"]
    printed = elsewhere("train.py", *more, cwd=tmp_path)
    assert "made on another kind of processor" in printed
    assert results_of(tmp_path / "there")["guarantee"] == {"checked": 1, "violations": 0}
    old, new = (read_state(tmp_path / name / "network.safetensors") for name in ("here", "there"))
    assert old.state.digest("wine") == new.state.digest("wine")
    assert old.notes["start"] == new.notes["start"]


def test_a_plans_tasks_are_trained_apart_and_merged(tmp_path):
    settings = [*SETTINGS, "pruning=at_init", *TWO]
    here(plan.main, *settings, "-o", "plan", cwd=tmp_path)
    here(train.main, *settings, "plan=plan", "task=wine", "hydra.run.dir=here", cwd=tmp_path)
    elsewhere("train.py", *settings, "plan=plan", "task=iris", "hydra.run.dir=there", cwd=tmp_path)
    here(app.main, "merge", "plan", "here", "there", "-o", "merged", cwd=tmp_path)
    for task, run in (("wine", "here"), ("iris", "there")):
        (merged, own) = (read_state(tmp_path / path).state for path in ("merged", f"{run}/network.safetensors"))
        assert merged.digest(task) == own.digest(task)
