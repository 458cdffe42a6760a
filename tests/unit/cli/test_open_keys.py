"""Overrides add keys to mappings that take any, and to no other part of the config."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from msh.cli.composing import use_own_loader
from msh.cli.configs import compose_config, config_folder
from msh.cli.errors import message_of
from msh.cli.resume import check_same_run, compose_resumed
from msh.runs.results import Results
from msh.training.config import RunConfig, register
from msh.training.typed import open_mapping

register()


@pytest.mark.parametrize(
    ("key", "above"),
    [
        ("tasks.wine.source.decimal", "tasks.wine.source"),
        ("tasks.wine.source.columns.a", "tasks.wine.source"),
        ("tasks.wine.loss.weight", "tasks.wine.loss"),
        ("backbone.args.width", "backbone"),
        ("pruning.density.wine", "pruning.density"),
        ("ensembles.both", "ensembles"),
        ("callbacks.mine", "callbacks"),
        ("callbacks.mine.every", "callbacks.mine"),
        ("trainer.profiler.filename", "trainer.profiler"),
        *((key, None) for key in ("tasks.wine", "tasks.wine.sorce", "pruning.densty", "sede", "seed.x", "hydra.x.y")),
    ],
)
def test_the_open_mapping_above_a_key_is_found(key, above):
    assert open_mapping(RunConfig, key) == above


def composed(*overrides):
    GlobalHydra.instance().clear()
    use_own_loader()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["tasks.wine.source.empty=drop"], "tasks.wine.source.empty", "drop"),
        (["tasks.wine.source.decimal=','"], "tasks.wine.source.decimal", ","),
        (["tasks.wine.source.columns.a.kind=text"], "tasks.wine.source.columns.a.kind", "text"),
        (["backbone=module", "backbone.target=x.Y", "backbone.args.width=3"], "backbone.args.width", 3),
        (["optimizer.maximize=true"], "optimizer.maximize", True),
        (["pruning.density={wine:0.1}", "pruning.density.iris=0.2"], "pruning.density.iris", 0.2),
        (["ensembles.both=[wine,iris]"], "ensembles.both", ["wine", "iris"]),
        (["callbacks.mine={_target_:x.Y}"], "callbacks.mine._target_", "x.Y"),
        (["callbacks.mine.every=3", "callbacks.mine._target_=x.Y"], "callbacks.mine.every", 3),
        (["tasks.wine.loss._target_=x.Y", "tasks.wine.loss.weight=[1,2]"], "tasks.wine.loss.weight", [1, 2]),
        (["logger=csv", "logger.csv.flush=9"], "logger.csv.flush", 9),
    ],
)
@pytest.mark.parametrize("plus", ["", "++"])
def test_a_key_of_an_open_mapping_needs_no_plus(overrides, key, value, plus):
    overrides = ["tasks=[wine,iris]", *overrides[:-1], plus + overrides[-1]]
    config = composed(*overrides)
    assert OmegaConf.select(config, key) == value
    assert list(config.hydra.overrides.task) == overrides  # as typed


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_overrides_set_a_source_that_a_tasks_file_leaves_out(plus, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text("mine: {batch_size: 8}")
    keys = [f"{plus}tasks.mine.source._target_=x.Y", f"{plus}tasks.mine.source.of.which=3"]
    config = composed(f"hydra.searchpath=[file://{tmp_path}]", "tasks=mine", *keys)
    assert config.tasks.mine.source == {"_target_": "x.Y", "of": {"which": 3}}
    assert config.tasks.mine.batch_size == 8


@pytest.mark.parametrize(
    "override",
    [
        "tasks.wine.sorce.decimal=x",
        "tasks.winee.source.decimal=x",
        "callbacks.progres=null",
        "callbacks.progres.leave=true",
        "logger.wandb.project=x",
        "pruning.densty=0.1",
        "prune_scheduler.T_max=1",
    ],
)
def test_other_keys_are_refused_as_before(override):
    with pytest.raises(Exception, match=r"not in struct|not.* subclass of|Could not override"):
        composed("tasks=wine", "logger=none", override)


@pytest.mark.parametrize(
    ("overrides", "end"),
    [
        (["prune_scheduler.T_max=1"], None),
        (["trainer.max_epoch=1"], "did you mean 'trainer.max_epochs'?"),
        (["prunin.density=1"], "did you mean 'pruning'?"),
    ],
)
def test_the_group_of_an_unknown_key_is_not_suggested(overrides, end):
    with pytest.raises(Exception, match="Could not override") as caught:
        composed(*overrides)
    message = message_of(caught.value)
    assert message.endswith(end) if end else "did you mean" not in message


def test_every_command_composes_so():
    assert compose_config(["tasks=wine", "tasks.wine.source.fold=3"]).tasks["wine"].source["fold"] == 3


def test_a_resumed_run_keeps_such_a_key_and_sees_a_new_value(tmp_path):
    folder, started = tmp_path / "run", ["tasks=wine", "tasks.wine.source.fold=3"]
    config = composed(*started)
    (folder / ".hydra").mkdir(parents=True)
    Results("train", 0, [], {}, run_id="x", status="running").save(folder)
    OmegaConf.save(config.hydra.overrides.task, folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(
        OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), folder / ".hydra" / "config.yaml"
    )
    for again in ([], started, ["++tasks.wine.source.fold=3"]):
        check_same_run(compose_resumed(folder, None, again), folder)
    for other in ("tasks.wine.source.fold=4", "tasks.wine.source.shuffle=1"):
        with pytest.raises(ValueError, match=other.partition("=")[0]):
            check_same_run(compose_resumed(folder, None, [other]), folder)
