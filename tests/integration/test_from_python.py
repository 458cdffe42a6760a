"""`msh.train` takes what the command line takes: groups, paths of any name, runs to resume."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import yaml
from running import SMALL, few_steps
from torch import nn

import msh
from msh.cli.arguments import split_arguments
from msh.runs.results import Results
from msh.training.state import RunState

FEW = [*SMALL, "logger=none", "trainer.max_epochs=1"]
TWO = ["tasks=[wine,iris]", *few_steps("wine", "iris"), *FEW]


class KilledError(RuntimeError):
    """Stands for the end of a process."""


@pytest.fixture
def kill(monkeypatch):
    """Start a run, and end it after some fits."""
    ended = RunState.fit_ended

    def start(*overrides, fits=2, **how):
        done = []

        def ends(*arguments):
            ended(*arguments)
            done.append(1)
            if len(done) == fits:
                raise KilledError

        with monkeypatch.context() as patched:
            patched.setattr(RunState, "fit_ended", ends)
            with pytest.raises(KilledError):
                msh.train(*overrides, **how)

    return start


def digest(folder):
    return hashlib.sha256((folder / "network.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder, results = msh.train(*TWO, f"hydra.run.dir={tmp_path_factory.mktemp('undisturbed') / 'run'}")
    assert results == Results.load(folder)
    return folder


def test_a_run_is_resumed_without_its_settings(kill, undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "run, 1 [x]"
    monkeypatch.chdir(tmp_path)
    kill(*TWO, f"hydra.run.dir='{folder}'")
    found, results = msh.train(f"resume={folder}")
    assert found == folder
    assert results.status == "finished"
    assert results == Results.load(folder)
    assert digest(folder) == digest(undisturbed)
    assert msh.train(f"resume={folder}") == (folder, results)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_same_call_starts_a_run_and_resumes_it(kill, undisturbed, tmp_path):
    call = [*TWO, "resume=auto", f"hydra.run.dir={tmp_path / 'run'}"]
    kill(*call)
    folder, results = msh.train(*call)
    assert results.status == "finished"
    assert digest(folder) == digest(undisturbed)


def test_other_settings_for_a_run_to_resume_are_refused(kill, tmp_path):
    kill(*TWO, f"hydra.run.dir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match=r"was started with seed = 0, not 1"):
        msh.train(f"resume={tmp_path / 'run'}", "seed=1")
    with pytest.raises(FileNotFoundError, match=r"resume = .*other: there is no such folder"):
        msh.train(f"resume={tmp_path / 'other'}")


@pytest.mark.parametrize("more", [[], ["pruning.start=fresh"]])
def test_a_module_is_passed_again_to_resume_its_run(more, kill, tmp_path):
    settings = [o for o in FEW if not o.startswith("backbone")] + ["tasks=[wine]", *few_steps("wine"), *more]
    given = nn.Sequential(nn.Flatten(), nn.Linear(13, 16), nn.ReLU())
    whole, _ = msh.train(*settings, f"hydra.run.dir={tmp_path / 'whole'}", backbone=given)
    kill(*settings, f"hydra.run.dir={tmp_path / 'run'}", fits=1, backbone=given)
    with pytest.raises(ValueError, match=r"shares a module that Python passed: .*backbone=MODULE"):
        msh.train(f"resume={tmp_path / 'run'}")
    folder, results = msh.train(f"resume={tmp_path / 'run'}", backbone=given)
    assert results.status == "finished"
    assert digest(folder) == digest(whole)


def test_groups_that_the_command_line_adds_are_chosen(tmp_path):
    settings = ["tasks=[iris]", *few_steps("iris"), *FEW]
    _, results = msh.train("+experiment=sequential", *settings, f"hydra.run.dir={tmp_path / 'run'}")
    assert results.experiment == "sequential"


@pytest.mark.parametrize("plus", ["", "+"])
def test_a_quick_check_of_the_code_returns_results_and_writes_none(plus, tmp_path):
    settings = ["tasks=[iris]", *few_steps("iris"), *SMALL]
    folder, results = msh.train(f"{plus}debug=fdr", *settings, f"hydra.run.dir={tmp_path / 'run'}")
    assert (folder, list(results.tasks)) == (tmp_path / "run", ["iris"])
    assert not (folder / "results.json").exists()


def test_paths_and_columns_of_any_name_are_taken_as_they_are(undisturbed, tmp_path):
    first = np.random.default_rng(0).normal(size=60)
    path = tmp_path / "t, 1 [x].csv"
    pd.DataFrame({"a": first, "price (EUR), net": np.where(first > 0, "p", "q")}).to_csv(path, index=False)
    source = [f"tasks.table.source.path={path}", "tasks.table.source.target=price (EUR), net"]
    folder, results = msh.train("tasks=table", *source, *FEW, f"hydra.run.dir={tmp_path / 'run'}")
    assert list(results.tasks) == ["table"]
    network = tmp_path / "a b=ü, [x] {y} $z.safetensors"
    network.write_bytes((folder / "network.safetensors").read_bytes())
    settings = ["tasks=[iris]", *few_steps("iris"), *FEW]
    _, results = msh.train(f"network={network}", *settings, f"hydra.run.dir={tmp_path / 'more'}")
    assert "iris" in results.tasks


@pytest.mark.parametrize("flag", ["--config-dir=my", "-m", "--help"])
def test_flags_of_the_command_line_are_refused(flag):
    assert split_arguments([flag])[0] == [flag]
    with pytest.raises(ValueError, match=rf"overrides must be settings, .* got '{flag}'"):
        msh.train(flag, "tasks=[iris]")


def test_a_password_is_refused_before_anything_shows_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="an address without a password") as caught:
        msh.train("tasks=[iris]", "logger=mlflow", "logger.mlflow.tracking_uri=https://me:secret@host")
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [230, 231])
def test_a_task_may_have_as_long_a_name_as_files_allow(length, tmp_path):
    name, first = "x" * length, np.random.default_rng(0).normal(size=60)
    path = tmp_path / "t.csv"
    pd.DataFrame({"a": first, "y": np.where(first > 0, "p", "q")}).to_csv(path, index=False)
    (tmp_path / "tasks").mkdir()
    source = {"_target_": "msh.tasks.tables.table", "path": str(path), "target": "y"}
    (tmp_path / "tasks" / "long.yaml").write_text(yaml.safe_dump({name: {"source": source}}, width=1000))
    own = [f"hydra.searchpath=[file://{tmp_path}]", "tasks=[long,iris]", "report=true", "baseline=[dense,joint]"]
    settings = [*(o for o in FEW if o != "report=false"), *own, f"hydra.run.dir={tmp_path / 'run'}"]
    if length > 230:
        with pytest.raises(ValueError, match="task name must be at most 230 characters long"):
            msh.train(*settings)
        assert not (tmp_path / "run").exists()
        return
    folder, _ = msh.train(*settings)
    assert (folder / "report.html").exists()
    assert msh.load(folder).predict(name, [{"a": 1.0}]).labels
