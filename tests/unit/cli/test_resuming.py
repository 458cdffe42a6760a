"""Finding the run to go on with, and the arguments that compose its config again."""

import sys

import pytest
from omegaconf import OmegaConf

from msh.cli.resume import check_same_run, find_run, rewrite_arguments
from msh.runs.results import Results

NOW = {"flush_denormal": True, "master_weights": True, "evaluation": {"batch_size": None}}
NOW |= {"pruning": {"allow_empty_layers": False}}
"""Settings that configs of earlier releases lack."""


def make_run(folder, status="running", overrides=("experiment=sequential", "seed=3"), **config):
    (folder / ".hydra").mkdir(parents=True)
    results = Results("sequential", 3, [], {}, run_id="x", status=status)
    results.save(folder)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"name": "sequential", "seed": 3, **config}), folder / ".hydra" / "config.yaml")
    return folder


def rewritten(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    rewrite_arguments()
    assert sys.argv[0] == "train.py"
    return sys.argv[1:]


# ---- which run


def test_a_run_folder_is_found_by_its_path(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert find_run("run", {}) == find_run(f"'{folder}'", {}) == folder.resolve()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("results.json", r"is not a run folder: it has no results\.json"),
        (".hydra/overrides.yaml", r"is not a run folder: it has no \.hydra/overrides\.yaml"),
        (".hydra/config.yaml", r"is not a run folder: it has no \.hydra/config\.yaml"),
    ],
)
def test_a_folder_that_lacks_a_file_of_a_run_is_none(missing, message, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        find_run(str(folder), {})


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume = .*nowhere: there is no such folder"):
        find_run(str(tmp_path / "nowhere"), {})


def test_auto_is_the_newest_unfinished_run_of_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs" / "sequential"
    make_run(root / "2026-01-01_00-00-00")
    newest = make_run(root / "2026-01-02_00-00-00", status="failed")
    make_run(root / "2026-01-03_00-00-00", status="finished")
    make_run(tmp_path / "outputs" / "other" / "2026-01-09_00-00-00")
    damaged = make_run(root / "2026-01-08_00-00-00")
    (damaged / "results.json").write_text("{")
    assert find_run("auto", {"experiment": "experiment=sequential"}) == newest.resolve()


def test_auto_looks_below_the_output_folder_of_the_command(tmp_path):
    run = make_run(tmp_path / "elsewhere" / "sequential" / "2026-01-01_00-00-00")
    overrides = {
        "experiment": "experiment=sequential",
        "paths.output_dir": f"paths.output_dir={tmp_path / 'elsewhere'}",
    }
    assert find_run("auto", overrides) == run.resolve()


def test_auto_finds_a_run_of_an_experiment_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "outputs" / "four_domains" / "2026-01-01_00-00-00")
    assert find_run("auto", {"experiment": "experiment=paper/four_domains"}) == run.resolve()


def test_auto_without_an_unfinished_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs" / "sequential" / "2026-01-03_00-00-00", status="finished")
    with pytest.raises(FileNotFoundError, match="there is no unfinished run below outputs/sequential"):
        find_run("auto", {"experiment": "experiment=sequential"})


# ---- arguments


def test_a_plus_before_groups_of_the_defaults_list_is_taken_off(monkeypatch):
    found = rewritten(monkeypatch, "+experiment=paper/a", "+procedure=paper", "+debug=fdr", "+trainer.x=1", "seed=3")
    assert found == ["experiment=paper/a", "procedure=paper", "debug=fdr", "+trainer.x=1", "seed=3"]


def test_a_resumed_run_has_its_own_overrides_and_folder(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", overrides=["experiment=sequential", "seed=3", "+trainer.x=1"], **NOW)
    found = rewritten(monkeypatch, "+experiment=sequential", f"resume={folder}", "logger=none")
    assert set(found) == {
        "experiment=sequential",
        "seed=3",
        "+trainer.x=1",
        "logger=none",
        f"resume='{folder.resolve()}'",
        f"hydra.run.dir='{folder.resolve()}'",
        "hydra.output_subdir=null",
        "hydra.mode=RUN",
    }


def test_a_run_of_an_earlier_release_is_resumed_as_that_release_did(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", overrides=["seed=3"])
    found = rewritten(monkeypatch, f"resume={folder}")
    assert {"flush_denormal=false", "evaluation.batch_size=500", "master_weights=true"} < set(found)


def test_a_new_value_of_a_resumed_run_replaces_the_old_one(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    found = rewritten(monkeypatch, f"resume={folder}", "seed=4")
    assert "seed=4" in found
    assert "seed=3" not in found


def test_resume_and_multirun_do_not_go_together(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="leave out --multirun"):
        rewritten(monkeypatch, "--multirun", f"resume={folder}")


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_folder_that_holds_a_run_is_refused(quote, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run already: resume it \(resume="):
        rewritten(monkeypatch, f"hydra.run.dir={quote}{folder}{quote}")


def test_a_folder_without_a_run_is_taken(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    assert rewritten(monkeypatch, f"hydra.run.dir={tmp_path / 'run'}") == [f"hydra.run.dir={tmp_path / 'run'}"]


# ---- the same run


def check(folder, **config):
    check_same_run(OmegaConf.create({"name": "sequential", "seed": 3, **config}), folder)


def test_the_same_config_goes_on(tmp_path):
    folder = make_run(tmp_path / "run", pruning={"density": 0.1})
    check(folder, pruning={"density": 0.1})
    with pytest.raises(ValueError, match=r"was started with pruning.density = 0.1, not 0.2"):
        check(folder, pruning={"density": 0.2})


@pytest.mark.parametrize("key", ["resume", "logger", "callbacks", "checkpoint", "paths"])
def test_what_does_not_change_the_results_may_be_changed(key, tmp_path):
    folder = make_run(tmp_path / "run", **{key: {"x": 1}, "trainer": {"devices": 1, "precision": 32}})
    check(folder, **{key: {"x": 2, "y": {"z": 3}}, "trainer": {"devices": 2, "precision": 32}})
    with pytest.raises(ValueError, match=r"was started with trainer.precision = 32, not 16"):
        check(folder, **{key: {"x": 2}, "trainer": {"devices": 1, "precision": 16}})


def test_a_run_of_an_earlier_release_goes_on_with_what_its_release_did(tmp_path):
    folder = make_run(tmp_path / "run", pruning={"density": 0.1})
    check(folder, pruning={"density": 0.1, "allow_empty_layers": False}, evaluation={"batch_size": None})
    with pytest.raises(ValueError, match=r"was started with pruning.allow_empty_layers = false, not true"):
        check(folder, pruning={"density": 0.1, "allow_empty_layers": True})


def test_a_setting_whose_name_only_begins_like_a_changeable_one_may_not(tmp_path):
    folder = make_run(tmp_path / "run", paths_of_others=1)
    with pytest.raises(ValueError, match="paths_of_others = 1, not 2"):
        check(folder, paths_of_others=2)


def test_a_setting_that_is_new_or_gone_is_named(tmp_path):
    folder = make_run(tmp_path / "run", tasks={"wine": 1})
    with pytest.raises(ValueError, match=r"was started with tasks.iris = null, not 1"):
        check(folder, tasks={"wine": 1, "iris": 1})
    with pytest.raises(ValueError, match=r"was started with tasks.wine = 1, not null"):
        check(folder)


def test_another_experiment_is_named(tmp_path):
    folder = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="is a run of experiment 'sequential', not 'other'"):
        check(folder, name="other")


@pytest.mark.parametrize(
    "override",
    [
        "backbone._target_=os.system",
        "+backbone={_target_: os.system}",
        "callbacks.a={_target_: msh.training.callbacks.RestoreBest, x: {_target_: os.system}}",
        "callbacks.a._target_=${name}",
        "backbone=${oc.decode:x}",
        "backbone=${ oc.create:x}",
        "hydra.searchpath=[file:///elsewhere]",
        "hydra/launcher=joblib",
    ],
)
def test_what_a_run_folder_would_have_called_is_refused_unless_it_is_given_again(override, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", overrides=["seed=3", override])
    with pytest.raises(ValueError, match=r"overrides\.yaml: .* is not allowed: it could have any code called"):
        rewritten(monkeypatch, f"resume={folder}")
    assert override in rewritten(monkeypatch, f"resume={folder}", override)


@pytest.mark.parametrize(
    "override",
    [
        "++callbacks.a._target_=msh.training.callbacks.EarlyStoppingPerTask",
        "+callbacks.a={_target_: 'pytorch_lightning.callbacks.LearningRateMonitor'}",
        "optimizer._target_=torch.optim.SGD",
    ],
)
def test_what_msh_torch_and_lightning_define_is_called_again(override, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", overrides=["seed=3", override])
    assert override in rewritten(monkeypatch, f"resume={folder}")
