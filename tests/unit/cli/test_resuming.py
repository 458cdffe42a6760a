"""Finding the run to resume, and composing its config from the stored one."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from msh.cli.arguments import by_key, split_arguments
from msh.cli.configs import config_folder
from msh.cli.resume import check_same_run, compose_resumed, find_run, run_to_resume
from msh.runs.results import Results
from msh.training.config import register

register()


def make_run(folder, status="running", overrides=("experiment=sequential", "seed=3"), **config):
    (folder / ".hydra").mkdir(parents=True)
    results = Results("sequential", 3, [], {}, run_id="x", status=status)
    results.save(folder)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"name": "sequential", "seed": 3, **config}), folder / ".hydra" / "config.yaml")
    return folder


def make_whole_run(folder, *overrides, forget=(), **changes):
    """A run folder with all that the overrides compose, but for the settings to forget."""
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", list(overrides)))
    for key in forget:
        parts = key.split(".")
        del (config if len(parts) == 1 else config[parts[0]])[parts[-1]]
    return make_run(folder, overrides=overrides, **config | changes)


def resumed(folder, *arguments):
    flags, overrides = split_arguments(arguments)
    assert run_to_resume(flags, by_key(overrides) | {"resume": str(folder)}) == folder.resolve()
    return compose_resumed(folder, None, overrides)


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
    assert find_run("auto", {"experiment": "sequential"}) == newest.resolve()


def test_auto_looks_below_the_output_folder_of_the_command(tmp_path):
    run = make_run(tmp_path / "elsewhere" / "sequential" / "2026-01-01_00-00-00")
    overrides = {"experiment": "sequential", "paths.output_dir": str(tmp_path / "elsewhere")}
    assert find_run("auto", overrides) == run.resolve()


def test_auto_finds_a_run_of_an_experiment_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "outputs" / "four_domains" / "2026-01-01_00-00-00")
    assert find_run("auto", {"experiment": "paper/four_domains"}) == run.resolve()


def test_auto_without_an_unfinished_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs" / "sequential" / "2026-01-03_00-00-00", status="finished")
    with pytest.raises(FileNotFoundError, match="there is no unfinished run below outputs/sequential"):
        find_run("auto", {"experiment": "sequential"})


# ---- arguments


def test_flags_are_separated_from_overrides_in_every_order():
    flags, overrides = ["--config-dir", "my=dir", "-m", "--info", "defaults"], ["seed=1", "~logger", "+x=2"]
    assert split_arguments([*flags, *overrides]) == (flags, overrides)
    assert split_arguments([*overrides, *flags]) == (flags, overrides)
    assert split_arguments(["seed=1", *flags, "~logger", "+x=2"]) == (flags, overrides)


def test_a_plus_before_groups_of_the_defaults_list_is_taken_off():
    _, found = split_arguments(["+experiment=paper/a", "+procedure=paper", "+debug=fdr", "+trainer.x=1", "seed=3"])
    assert found == ["experiment=paper/a", "procedure=paper", "debug=fdr", "+trainer.x=1", "seed=3"]


def test_a_sources_file_and_target_are_taken_as_they_are(tmp_path):
    file = tmp_path / "a (1), b=2.csv"
    file.write_text("x\n")
    key = "tasks.table.source"
    given = [f"{key}.path={file}", f"{key}.target=price (€), 1999", f"{key}.target=2000", f"{key}.target='a b'"]
    _, found = split_arguments([*given, f"{key}.target=[a,b]", f"{key}.path=${{paths.data_dir}}/a.csv"])
    values = [override.value() for override in OverridesParser.create().parse_overrides(found)]
    assert values[:4] == [str(file), "price (€), 1999", "2000", "a b"]
    assert found[4:] == [f"{key}.target=[a,b]", f"{key}.path=${{paths.data_dir}}/a.csv"]


def test_a_run_is_new_or_resumed(tmp_path):
    folder = make_run(tmp_path / "run")
    assert run_to_resume([], {}) is run_to_resume([], {"resume": "null"}) is None
    assert run_to_resume([], {"resume": str(folder)}) == folder.resolve()
    assert run_to_resume([], {"resume": "auto", "hydra.run.dir": str(folder)}) == folder.resolve()
    assert run_to_resume([], {"resume": "auto", "hydra.run.dir": str(tmp_path / "new")}) is None


def test_resume_and_multirun_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="leave out --multirun"):
        run_to_resume(["--multirun"], {"resume": str(make_run(tmp_path / "run"))})


# ---- the config


def test_a_resumed_run_has_its_own_settings_and_folder(tmp_path):
    folder = make_whole_run(tmp_path / "run", "experiment=sequential", "seed=3", "pruning=lottery")
    config = resumed(folder, "+experiment=sequential", "logger=none", "trainer=gpu", "+paths.data_dir=x")
    assert (config.seed, config.name, config.pruning.schedule.name) == (3, "sequential", "exponential")
    assert (config.logger, config.trainer.accelerator, config.paths.data_dir) == ({}, "gpu", "x")
    assert config.resume == config.hydra.run.dir == config.hydra.runtime.output_dir == str(folder)
    check_same_run(config, folder)


def test_overrides_that_a_run_was_started_with_may_be_given_again(tmp_path):
    started = ["experiment=sequential", "tasks=[wine,iris]", "pruning=lottery", "pruning.density=0.2", "seed=4"]
    folder = make_whole_run(tmp_path / "run", *started)
    config, again = resumed(folder), resumed(folder, *started)
    assert {key: config[key] for key in config if key != "hydra"} == {
        key: again[key] for key in again if key != "hydra"
    }


@pytest.mark.parametrize(
    ("override", "key"), [("seed=4", "seed"), ("tasks=[wine]", "tasks"), ("backbone=resnet18", "backbone")]
)
def test_a_new_value_is_seen(override, key, tmp_path):
    folder = make_whole_run(tmp_path / "run", "experiment=sequential")
    with pytest.raises(ValueError, match=f"was started with {key}"):
        check_same_run(resumed(folder, override), folder)


def test_another_experiment_is_refused(tmp_path):
    folder = make_whole_run(tmp_path / "run", "experiment=sequential")
    with pytest.raises(ValueError, match="started with experiment = sequential, not parallel"):
        resumed(folder, "+experiment=parallel")


def test_a_run_of_an_earlier_release_is_resumed_as_that_release_did(tmp_path):
    lacking = ["flush_denormal", "evaluation", "master_weights", "pruning.allow_empty_layers"]
    config = resumed(make_whole_run(tmp_path / "run", forget=lacking))
    assert (config.flush_denormal, config.evaluation.batch_size, config.master_weights) == (False, 500, True)
    assert not config.pruning.allow_empty_layers


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


def test_all_settings_that_differ_are_named(tmp_path):
    folder = make_run(tmp_path / "run", density=0.1, epochs=[1])
    config = OmegaConf.create({"name": "sequential", "seed": 4, "density": 0.3, "epochs": [2]})
    changed = r"started with density = 0.1, not 0.3; epochs = \[1\], not \[2\]; seed = 3, not 4: a resumed run"
    with pytest.raises(ValueError, match=changed):
        check_same_run(config, folder)
    many = OmegaConf.create({"name": "sequential", **{f"key_{i}": 1 for i in range(20)}})
    with pytest.raises(ValueError, match=r"; and 11 more: a resumed run"):
        check_same_run(many, folder)


def test_another_experiment_is_named(tmp_path):
    folder = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="is a run of experiment 'sequential', not 'other'"):
        check(folder, name="other")


CALLS = {
    "backbone": {"_target_": "os.system"},
    "callbacks": {"a": {"_target_": "msh.training.callbacks.RestoreBest", "x": [{"_target_": "os.system"}]}},
    "scheduler": {"_target_": "${name}"},
    "optimizer": {"_target_": "torch.optim.${name}"},
    "logger": {"a": "${ oc.create:x}"},
    "tasks": "${oc.decode:x}",
    "pruning": {"_target_": ["os.system"]},
}


@pytest.mark.parametrize("part", CALLS)
def test_a_stored_config_may_not_call_any_code(part, tmp_path):
    folder = make_whole_run(tmp_path / "run", **{part: CALLS[part]})
    with pytest.raises(ValueError, match=rf"config\.yaml: {part}\S* = .* is not allowed"):
        resumed(folder)


@pytest.mark.parametrize(
    "given",
    ["backbone._target_=mine.Net", "+backbone={_target_: mine.Net, x: 2}", "--config-dir", "searchpath", "unsafe"],
)
def test_code_that_the_command_line_names_is_trusted(given, tmp_path):
    folder = make_whole_run(tmp_path / "run", backbone={"_target_": "mine.Net", "x": 1})
    with pytest.raises(ValueError, match=r"backbone\._target_ = 'mine\.Net' is not allowed"):
        resumed(folder)
    own = tmp_path / "own"
    if given in ("--config-dir", "searchpath"):
        (own / "backbone").mkdir(parents=True)
        (own / "backbone" / "net.yaml").write_text("_target_: mine.Net\n")
    if given == "--config-dir":
        config = compose_resumed(folder, str(own), [])
    else:
        named = {"unsafe": "unsafe=true", "searchpath": f"hydra.searchpath=[file://{own}]"}
        config = resumed(folder, named.get(given, given))
    assert config.backbone._target_ == "mine.Net"


def test_an_option_of_the_users_own_may_be_added(tmp_path):
    (tmp_path / "it's" / "logger").mkdir(parents=True)
    (tmp_path / "it's" / "logger" / "own.yaml").write_text("own: {_target_: mine.Logger}\n")
    config = compose_resumed(make_whole_run(tmp_path / "run"), str(tmp_path / "it's"), ["logger=own"])
    assert config.logger == {"own": {"_target_": "mine.Logger"}}


@pytest.mark.parametrize("name", ["msh.training.callbacks.EarlyStoppingPerTask", "torch.optim.SGD"])
def test_classes_of_msh_and_torch_are_called_again(name, tmp_path):
    folder = make_whole_run(tmp_path / "run", callbacks={"a": {"_target_": name}})
    assert resumed(folder).callbacks.a._target_ == name


def test_a_stored_config_does_not_change_hydra(tmp_path):
    evil = {"hydra": {"job_logging": {"handlers": {"x": {"()": "os.system"}}}}, "defaults": [{"hydra/launcher": "x"}]}
    config = resumed(make_whole_run(tmp_path / "run", **evil))
    assert "x" not in config.hydra.job_logging.handlers
    assert config.hydra.runtime.choices["hydra/launcher"] == "basic"


def test_a_stored_config_of_no_run_is_named(tmp_path):
    folder = make_run(tmp_path / "run", tasks=[1])
    with pytest.raises(ValueError, match=r"config\.yaml is not the config of a run"):
        resumed(folder)
