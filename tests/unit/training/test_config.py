"""The typed config: every bound, conflicting settings, and all problems of a config at once."""

import math

import pytest
from omegaconf import OmegaConf
from toys import make_run

from messages import says
from msh.subnetworks import CRITERIA
from msh.training import variants
from msh.training.config import PruningConfig, RunConfig, plain_values, register, run_config, stored_config
from msh.training.plan import stages_of
from msh.training.typed import ConfigError, convert, hydra_schema

TASKS = ["digits", "wine", "iris"]


def stages(curriculum, tasks=TASKS, max_epochs=5):
    config = make_run(tasks, curriculum=curriculum, trainer={"max_epochs": max_epochs})
    return [(stage.index, stage.tasks, stage.max_epochs) for stage in stages_of(config)]


def pruning(**changes):
    return make_run(TASKS, pruning=changes).pruning


# ---- curriculum


def test_without_a_curriculum_each_task_is_a_stage_in_order():
    assert stages(None) == [(0, ("digits",), 5), (1, ("wine",), 5), (2, ("iris",), 5)]


@pytest.mark.parametrize(
    "curriculum",
    [
        ["wine", "digits", "iris"],
        [["wine"], ["digits"], ["iris"]],
        [{"tasks": ["wine"]}, {"tasks": "digits"}, "iris"],
        ["wine", {"tasks": ["digits"], "max_epochs": 5}, ["iris"]],
    ],
)
def test_a_curriculum_may_be_written_in_several_ways(curriculum):
    assert stages(curriculum) == [(0, ("wine",), 5), (1, ("digits",), 5), (2, ("iris",), 5)]


def test_a_stage_may_set_its_epochs():
    assert stages(["wine", {"tasks": ["digits"], "max_epochs": 9}, "iris"])[1] == (1, ("digits",), 9)


def test_stages_may_have_several_tasks_in_any_mixture():
    assert stages([["wine", "iris"], "digits"]) == [(0, ("wine", "iris"), 5), (1, ("digits",), 5)]
    assert stages([{"tasks": TASKS, "max_epochs": 2}]) == [(0, tuple(TASKS), 2)]


def test_a_stage_may_set_its_loss_weights_and_the_end_of_its_epochs():
    entry = {"tasks": ["wine", "iris"], "loss_weights": {"iris": 2, "wine": 0.5}, "uneven": "shortest"}
    first, second = stages_of(make_run(TASKS, curriculum=[entry, "digits"]))
    assert (first.uneven, dict(first.loss_weights)) == ("shortest", {"iris": 2, "wine": 0.5})
    assert (second.uneven, second.loss_weights) == ("cycle", ())


def test_the_name_of_a_block_in_the_curriculum_stands_for_its_variants():
    config = make_run({"many": {"variants": 2}, "iris": {}}, curriculum=[["many", "iris"]])
    assert [stage.tasks for stage in stages_of(config)] == [("many_0", "many_1", "iris")]


def test_more_tasks_than_owner_ids_are_refused(monkeypatch):
    assert variants.MAX_TASKS == 2**15 - 2
    monkeypatch.setattr(variants, "MAX_TASKS", 3)
    assert len(make_run("abc").tasks) == 3
    with pytest.raises(ValueError, match="the number of tasks must be <= 3, one owner id each, got 4"):
        make_run("abcd")


def test_a_run_needs_a_task():
    with pytest.raises(ValueError, match="tasks is empty: name at least one"):
        make_run([])


WEIGHTED = {"tasks": TASKS}
FIRST = r"curriculum\[0\]"


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ([["digits", "wnie"], "iris"], rf"{FIRST} names 'wnie', .*not in tasks.*did you mean 'wine'"),
        ([["digits", "wine", "wine"], "iris"], "curriculum names task 'wine' 2 times"),
        ([["digits", 3], "iris"], says("curriculum[0].tasks[1]", "text", 3)),
        ([WEIGHTED | {"uneven": "cylce"}], says("curriculum[0].uneven", "one of cycle, shortest", "cylce", "cycle")),
        ([WEIGHTED | {"loss_weights": {"wnie": 1}}], rf"{FIRST}.loss_weights names 'wnie', .*mean 'wine'"),
        ([WEIGHTED | {"loss_weights": {"wine": 0}}], says("curriculum[0].loss_weights.wine", "> 0", 0)),
        ([WEIGHTED | {"loss_weights": {"wine": -1.0}}], says("curriculum[0].loss_weights.wine", "> 0", -1.0)),
        ([WEIGHTED | {"loss_weights": {"wine": True}}], says("curriculum[0].loss_weights.wine", "a number", True)),
        ([WEIGHTED | {"loss_weights": {"wine": math.nan}}], says("curriculum[0].loss_weights.wine", "> 0", math.nan)),
        ([WEIGHTED | {"loss_weights": [1, 2, 3]}], says("curriculum[0].loss_weights", "a mapping", [1, 2, 3])),
        ([{"tasks": ["digits"], "max_epochs": True}], says("curriculum[0].max_epochs", "a whole number", True)),
        ([{"tasks": ["digits"], "max_epochs": 1.5}], says("curriculum[0].max_epochs", "a whole number", 1.5)),
        ([{"tasks": ["digits"], "max_epochs": "9"}], says("curriculum[0].max_epochs", "a whole number", "9")),
        ([{"tasks": ["digits"], "max_epochs": 0}], says("curriculum[0].max_epochs", ">= 1", 0)),
        (["digits", "wine"], r"curriculum names task 'iris' 0 times: every task belongs to one stage"),
        (["digits", "wnie", "iris"], r"curriculum\[1\] names 'wnie', .*did you mean 'wine'"),
        (["digits", [], "wine", "iris"], r"curriculum\[1\] has no task"),
        (["digits", None, "wine", "iris"], r"curriculum\[1\] has no task"),
        (["digits", {"max_epochs": 3}], r"curriculum\[1\] has no task"),
        ([{"task": ["digits"]}], rf"there is no setting {FIRST}.task; .*did you mean 'tasks'"),
        ("digits", says("curriculum", "a list", "digits")),
        ({"digits": 1}, says("curriculum", "a list", {"digits": 1})),
        ([3, "digits"], says("curriculum[0].tasks", "a list", 3)),
    ],
)
def test_a_wrong_curriculum_is_refused(curriculum, message):
    with pytest.raises(ConfigError, match=message):
        stages(curriculum)


# ---- pruning


def test_one_density_holds_for_every_task():
    config = make_run(TASKS, pruning={"density": 0.25})
    assert [config.budget(task).density for task in TASKS] == [0.25] * 3
    assert (config.pruning.criterion, config.pruning.schedule) == ("magnitude", "cubic")


def test_density_may_be_a_mapping_from_task_to_number():
    densities = {"digits": 0.5, "wine": 0.25, "iris": 1}
    config = make_run(TASKS, pruning={"density": densities})
    assert {task: config.budget(task).density for task in TASKS} == densities


def test_weights_and_share_replace_density():
    config = make_run(TASKS, pruning={"density": None, "weights": {"digits": 9, "wine": 8, "iris": 7}})
    assert [config.budget(task).weights for task in TASKS] == [9, 8, 7]
    assert make_run(TASKS, pruning={"density": None, "share": "equal"}).budget("iris").share == "equal"


@pytest.mark.parametrize("written", ["random", {"name": "random"}])
def test_a_criterion_is_a_name_or_a_mapping_with_it(written):
    assert pruning(criterion=written).criterion == "random"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0}, says("pruning.density", "in (0, 1]", 0)),
        ({"density": 1.5}, says("pruning.density", "in (0, 1]", 1.5)),
        ({"density": math.nan}, says("pruning.density", "in (0, 1]", math.nan)),
        ({"density": "much"}, says("pruning.density", "a number", "much")),
        ({"density": True}, says("pruning.density", "a number", True)),
        ({"density": [0.1, 0.2, 0.3]}, says("pruning.density", "a mapping", [0.1, 0.2, 0.3])),
        ({"density": {"digits": 0.1, "wine": 0.1}}, r"pruning.density has no number for task 'iris'"),
        (
            {"density": {"digits": 0.1, "wine": 0.1, "iris": 0.1, "wines": 0.1}},
            r"pruning.density names 'wines', which is not a task: .*did you mean 'wine'",
        ),
        ({"density": {"digits": 0.1, "wine": 2, "iris": 0.1}}, says("pruning.density.wine", "in (0, 1]", 2)),
        ({"weights": 5}, r"pruning.weights and pruning.share replace pruning.density: pass pruning.density=null"),
        ({"share": "equal"}, r"pass pruning.density=null"),
        ({"density": None}, r"exactly one of density, weights, share"),
        ({"density": None, "weights": 5, "share": "equal"}, r"exactly one of .*got weights, share"),
        ({"density": None, "weights": 0}, says("pruning.weights", ">= 1", 0)),
        ({"density": None, "weights": "many"}, says("pruning.weights", "a whole number", "many")),
        ({"density": None, "weights": 2.5}, says("pruning.weights", "a whole number", 2.5)),
        ({"density": None, "share": "half"}, says("pruning.share", "one of equal", "half")),
        ({"scope": "layer"}, says("pruning.scope", "one of tensor, erk, epl, network", "layer")),
        ({"density": None, "share": "equal", "scope": "erk"}, says("pruning.scope", value="erk")),
        ({"start": "frsh"}, says("pruning.start", "one of fresh, backbone", "frsh", "fresh")),
        ({"granularity": "neurn"}, says("pruning.granularity", value="neurn", meant="neuron")),
        ({"granularity": "block", "scope": "network"}, says("pruning.scope", value="network")),
        ({"block_size": 32}, says("pruning.block_size", "null unless pruning.granularity is 'block'", 32)),
        ({"granularity": "block", "block_size": 0}, says("pruning.block_size", ">= 1", 0)),
        ({"granularity": "block", "block_size": [32]}, says("pruning.block_size", "[rows, columns]", [32])),
        ({"granularity": "block", "block_size": [32, 0]}, says("pruning.block_size[1]", ">= 1", 0)),
        ({"granularity": "block", "block_size": "large"}, says("pruning.block_size", "a whole number", "large")),
        ({"nm": [2, 4]}, says("pruning.nm", "null unless pruning.granularity is 'nm'", [2, 4])),
        ({"granularity": "nm"}, says("pruning.density", "null, or 0.5 with 2 of 4 weights", 0.1)),
        (
            {"granularity": "nm", "density": None, "weights": 9},
            says("pruning.weights", "null with pruning.granularity = 'nm'", 9),
        ),
        (
            {"granularity": "nm", "density": None, "share": "equal"},
            says("pruning.share", "null with pruning.granularity = 'nm'", "equal"),
        ),
        ({"granularity": "nm", "density": None, "nm": [4, 2]}, says("pruning.nm", "[N, M] with N < M", [4, 2])),
        ({"granularity": "nm", "density": None, "nm": [0, 2]}, says("pruning.nm[0]", ">= 1", 0)),
        ({"granularity": "nm", "density": None, "nm": [2]}, says("pruning.nm", "[N, M] with N < M", [2])),
        ({"granularity": "nm", "density": None, "scope": "erk"}, says("pruning.scope", value="erk")),
        ({"granularity": "channel", "scope": "erk"}, says("pruning.scope", value="erk")),
        ({"granularity": "channel", "scope": "network"}, says("pruning.scope", value="network")),
        ({"begin": 0.5, "end": 0.2}, says("pruning.begin", "<= pruning.end = 0.2", 0.5)),
        ({"begin": -0.5}, says("pruning.begin", "in [0, 1]", -0.5)),
        ({"end": 1.2}, says("pruning.end", "in [0, 1]", 1.2)),
        ({"rounds": 0}, says("pruning.rounds", ">= 1", 0)),
        ({"sample": 0}, says("pruning.sample", ">= 1", 0)),
        ({"criterion": "magnitud"}, says("pruning.criterion", value="magnitud", meant="magnitude")),
        ({"schedule": {"name": "cubik"}}, says("pruning.schedule", value="cubik", meant="cubic")),
    ],
)
def test_wrong_pruning_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        pruning(**changes)


GATE = {"step": 0.05, "maximum": 0.98, "patience": 2, "tolerance": 0.01, "until": 0.75}


def test_without_a_step_there_is_no_gate():
    assert pruning(begin=0.2, end=0.4, gate=GATE).is_gated
    assert not pruning().is_gated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0.0}, says("pruning.gate.step", "in (0, 1)", 0.0)),
        ({"step": 1.0}, says("pruning.gate.step", "in (0, 1)", 1.0)),
        ({"maximum": 1.0}, says("pruning.gate.maximum", "in (0, 1)", 1.0)),
        ({"patience": 0}, says("pruning.gate.patience", ">= 1", 0)),
        ({"tolerance": -0.1}, says("pruning.gate.tolerance", ">= 0", -0.1)),
        ({"until": 0.4}, says("pruning.gate.until", "> pruning.end = 0.4", 0.4)),
        ({"until": 1.1}, says("pruning.gate.until", "in (0, 1]", 1.1)),
    ],
)
def test_a_wrong_gate_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        pruning(begin=0.2, end=0.4, gate=GATE | changes)


LEARNED = {"criterion": "learned", "begin": 0.2, "end": 0.4}
GATED = {"begin": 0.2, "end": 0.4, "gate": GATE}


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (
            GATED,
            {"granularity": "neuron"},
            says("pruning.granularity", "'weight' or 'block' with pruning.gate.step", "neuron"),
        ),
        (GATED, {"rewind": 0}, says("pruning.rewind", "null with pruning.gate.step", 0)),
        (LEARNED, {"begin": 0.0, "end": 0.0}, r"pruning.begin must be < pruning.end .*got 0 and 0: scores learn"),
        (LEARNED, {"begin": 0.4}, r"pruning.begin must be < pruning.end .*got 0.4 and 0.4"),
        (LEARNED, {"scores": "magnitud"}, says("pruning.scores", value="magnitud", meant="magnitude")),
        (LEARNED, {"granularity": "neuron"}, says("pruning.granularity", value="neuron")),
        (LEARNED, {"rewind": 0}, says("pruning.rewind", value=0)),
    ],
)
def test_conflicting_settings_are_refused(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        pruning(**settings | changes)


# ---- other settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, []), ("joint", ["joint"]), (["joint", "dense", "joint"], ["dense", "joint"]), ([], [])],
)
def test_baselines_are_a_name_or_a_list(given, expected):
    assert make_run(TASKS, baseline=given).baselines == expected


def test_an_ensemble_names_its_tasks():
    ensembles = {"both": ["digits", "wine"], "rest": ["iris", "digits", "wine"]}
    assert make_run(TASKS, ensembles=ensembles).ensembles == ensembles


def task(**settings):
    return {"tasks": {"wine": settings}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": ["dense", "fintune"]}, says("baseline[1]", value="fintune", meant="finetune")),
        ({"baseline": "fintune"}, says("baseline[0]", value="fintune", meant="finetune")),
        ({"ensembles": {"wine": ["digits", "iris"]}}, r"ensembles.wine: there is a task of this name"),
        ({"ensembles": {"all": ["wine", "d"]}}, r"ensembles.all names 'd', which is not in tasks: digits, wine, iris"),
        ({"ensembles": {"all": ["wine"]}}, says("ensembles.all", "two or more different tasks", ["wine"])),
        ({"ensembles": {"all": []}}, says("ensembles.all", "two or more different tasks", [])),
        ({"ensembles": {"all": ["wine", "iris", "wine"]}}, says("ensembles.all", value=["wine", "iris", "wine"])),
        ({"evaluation": {"batch_size": 0}}, says("evaluation.batch_size", ">= 1", 0)),
        ({"evaluation": {"batch_size": True}}, says("evaluation.batch_size", "a whole number", True)),
        ({"evaluation": {"batch_size": 1.5}}, says("evaluation.batch_size", "a whole number", 1.5)),
        ({"guarantee": {"on_violation": "warning"}}, says("guarantee.on_violation", value="warning", meant="warn")),
        ({"files": {"dtype": "float23"}}, says("files.dtype", value="float23", meant="float32")),
        ({"reuse": "some"}, says("reuse", "one of none, all, learned, backbone", "some")),
        ({"uneven": "cylce"}, says("uneven", "one of cycle, shortest", "cylce", "cycle")),
        ({"owner_maps": {"a": 1}}, says("owner_maps", "a list", {"a": 1})),
        ({"objective": "mean_scor"}, "mean_scor"),
        ({"val_fraction": 1.0}, says("val_fraction", "in (0, 1)", 1.0)),
        ({"trainer": {"devices": {"a": 1}}}, says("trainer.devices", value={"a": 1})),
        ({"trainer": {"max_epochs": 0}}, says("trainer.max_epochs", ">= 1", 0)),
        ({"trainer": {"accumulate_grad_batches": 0}}, says("trainer.accumulate_grad_batches", ">= 1", 0)),
        (task(batch_size=0), says("tasks.wine.batch_size", ">= 1", 0)),
        (task(loss_weight=0.0), says("tasks.wine.loss_weight", "> 0", 0.0)),
        (task(normalize="feture"), says("tasks.wine.normalize", value="feture", meant="feature")),
        (task(normalize_target="max"), says("tasks.wine.normalize_target", "one of minmax", "max")),
        (task(batchsize=3), r"there is no setting tasks.wine.batchsize; .*did you mean 'batch_size'"),
        ({"prunning": {}}, r"there is no setting prunning; the config has .*did you mean 'pruning'"),
        ({"experimet": "x"}, r"there is no setting experimet; .*did you mean 'experiment'"),
        ({"tasks": {"wine": {"source": None}}}, says("tasks.wine.source", "a mapping", None)),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_run(TASKS, **changes)


def test_tasks_must_be_a_mapping():
    with pytest.raises(ConfigError, match=says("tasks", "a mapping", [])):
        convert(RunConfig, {"backbone": {}, "optimizer": {}, "tasks": []})


def test_a_setting_without_a_default_is_named():
    with pytest.raises(ConfigError, match="backbone is missing"):
        convert(RunConfig, {"optimizer": {}, "tasks": {"a": {"source": {}}}})


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        make_run(TASKS, pruning={"rounds": 0, "sample": 0, "begn": 1}, reuse="al", trainer={"devices": {}})
    assert len(caught.value.problems) == 5
    assert str(caught.value).startswith("5 problems:\n- there is no setting pruning.begn")
    for part in (says("pruning.rounds", ">= 1", 0), says("reuse", value="al", meant="all")):
        assert any(problem.startswith(part.split("\\")[0]) for problem in caught.value.problems)


# ---- Hydra and run folders


def test_hydra_knows_every_key_and_its_default():
    schema = OmegaConf.structured(hydra_schema(PruningConfig))
    assert OmegaConf.to_container(schema) == {
        "density": 0.1,
        "weights": None,
        "share": None,
        "scope": "tensor",
        "granularity": "weight",
        "block_size": None,
        "nm": None,
        "overlap": None,
        "start": "fresh",
        "criterion": "magnitude",
        "scores": "magnitude",
        "schedule": "cubic",
        "begin": 0.0,
        "end": 0.0,
        "rounds": 1,
        "rewind": None,
        "rescale": True,
        "sample": 1000,
        "allow_empty_layers": False,
        "gate": {"step": None, "maximum": 0.98, "patience": 2, "tolerance": 0.01, "until": 0.75},
        "regrow": {"share": None, "rounds": 20, "until": 0.75, "sample": 500, "by": "gradient"},
    }
    assert CRITERIA.keys() >= {"magnitude"}
    register()


def test_interpolations_are_resolved_but_for_those_of_loggers():
    values = {"tasks": {"a": {"source": {"root": "${paths.data_dir}"}}}, "paths": {"data_dir": "here"}}
    config = OmegaConf.create(values | {"backbone": {}, "optimizer": {}, "logger": {"csv": {"directory": "${later}"}}})
    converted = run_config(config)
    assert converted.tasks["a"].source == {"root": "here"}
    assert converted.logger == {"csv": {"directory": "${later}"}}
    assert plain_values(config)["paths"] == {"data_dir": "here"}


def test_configs_of_earlier_releases_reproduce_these_releases():
    values = {"tasks": {"a": {"source": {}}}, "backbone": {}, "optimizer": {}}
    config = stored_config(values | {"pruning": {"rounds": 3}})
    assert (config.evaluation.batch_size, config.flush_denormal, config.pruning.rounds) == (500, False, 3)
    assert stored_config(values | {"evaluation": {"batch_size": None}}).evaluation.batch_size is None
    with pytest.raises(ConfigError, match=says("pruning", "a mapping", 3)):
        stored_config(values | {"pruning": 3})


@pytest.mark.parametrize(
    ("tasks", "settings", "key"),
    [
        ({"a": {"stem": {"b": 1}}}, {}, "tasks.a.stem"),
        (["a"], {"callbacks": {"mine": {"b": 1}}}, "callbacks.mine"),
    ],
)
def test_a_block_without_a_target_is_refused_with_its_key(tasks, settings, key):
    with pytest.raises(ConfigError, match=f"{key} must be a block with _target_, a class or function, got {{'b': 1}}"):
        make_run(tasks, **settings)
