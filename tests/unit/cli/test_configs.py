"""The config groups: those that users of Lightning and Hydra expect are there, and every option composes."""

import inspect
from functools import partial
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from golden.recording import read
from golden.settings import composed as compose
from golden.settings import default_settings, option_settings
from msh.backbones.named import named
from msh.cli.configs import config_folder
from msh.cli.train import _check_tasks_named_once
from msh.subnetworks import CRITERIA, SCHEDULES
from msh.training.config import NAMED, register, run_config
from msh.training.typed import ConfigError

register()
FOLDER = Path(config_folder())
EXPECTED = {
    "backbone": {"mlp", "paper_conv", "resnet18", "transformer", "torchvision", "timm", "hf", "module"},
    "callbacks": {"default", "none"},
    "debug": {"fdr", "limit", "overfit", "profiler"},
    "experiment": {"sequential"},
    "hydra": {"default"},
    "logger": {"csv", "wandb", "tensorboard", "mlflow", "none"},
    "optimizer": {"sgd", "adam", "adamw"},
    "paths": {"default"},
    "pruning": {"at_init", "early", "gradual", "gradual_later", "lottery"},
    "pruning/criterion": set(CRITERIA),
    "pruning/schedule": set(SCHEDULES),
    "scheduler": {"cosine"},
    "tasks": {"bundled", "digits", "breast_cancer", "wine", "diabetes", "mnist_fashion", "mnist", "fashion_mnist"},
    "trainer": {"cpu", "gpu", "ddp", "ddp_sim", "mps"},
}


def option(path):
    """(group, name): experiments in folders are options of the one group, named with their folder."""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    cut = 1 if parts[0] == "experiment" else -1
    return "/".join(parts[:cut]), "/".join(parts[cut:])


NEEDED = {name: ["backbone.name=resnet18"] for name in ("timm", "torchvision", "hf")}
NEEDED |= {"module": ["backbone.target=torch.nn.Linear"]}
NEEDED |= {"table": ["tasks.table.source.path=x", "tasks.table.source.target=y"], "lm": ["tasks.lm.source.path=x"]}
"""Settings that options leave to the user."""
OF_BOTH = FOLDER / "experiment_procedure"
"""Holds <experiment>/<procedure>.yaml, composed where both are chosen."""
FILES = [p for p in FOLDER.rglob("*.yaml") if p.parent != FOLDER and p.parent.name != "wandb_sweep"]
OPTIONS = sorted(option(path) for path in FILES if OF_BOTH not in path.parents)


composed = partial(compose, "config")


def targets(config):
    """Every config below one that names a `_target_`."""
    if isinstance(config, DictConfig):
        if "_target_" in config:
            yield config
        for key in config:
            yield from targets(config._get_node(key))
    elif isinstance(config, ListConfig):
        for node in config:
            yield from targets(node)


@pytest.mark.parametrize("group", EXPECTED)
def test_the_groups_that_users_rely_on_are_there(group):
    assert EXPECTED[group] <= {name for where, name in OPTIONS if where == group} | set(NAMED.get(group, ()))


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=lambda part: part)
def test_every_option_composes_into_the_schema_and_names_what_exists(group, name):
    if name == "ray_cluster":
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    config = composed(f"{group}={name}", *NEEDED.get(name, ()))
    run_config(config)
    found = list(targets(config))
    assert len({node._target_ for node in found}) >= 2  # a backbone and an optimizer at least
    for node in found:
        if named(OmegaConf.to_container(node)) is not None:  # made from these settings, not called with them
            continue
        arguments = {str(key) for key in node} - {"_target_", "_partial_"}
        inspect.signature(get_object(node._target_)).bind_partial(**dict.fromkeys(arguments))


def test_tasks_come_in_the_order_they_are_named_in():
    assert list(composed("tasks=[wine,digits,iris]").tasks) == ["wine", "digits", "iris"]
    assert list(composed("tasks=mnist_fashion").tasks) == ["mnist", "fashion_mnist"]
    assert list(composed("experiment=sequential").tasks) == ["digits", "breast_cancer", "wine", "diabetes"]


def test_the_experiment_yields_to_what_is_said_on_the_command_line():
    config = composed("experiment=sequential", "tasks=wine", "seed=5", "pruning=lottery", "pruning.density=0.3")
    assert (config.name, list(config.tasks), config.seed) == ("sequential", ["wine"], 5)
    assert (config.pruning.density, config.pruning.schedule.name) == (0.3, "exponential")


EXPERIMENTS = [name for group, name in OPTIONS if group == "experiment"]


def test_experiments_are_called_as_their_files_and_no_two_alike():
    names = [composed(f"experiment={experiment}").name for experiment in EXPERIMENTS]
    assert names == [Path(experiment).name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)


PAPER = [name for name in EXPERIMENTS if name.startswith("paper/")]


@pytest.mark.parametrize("experiment", PAPER)
def test_the_papers_procedure_is_its_own_and_keeps_tasks_network_and_budget(experiment):
    best, paper = (composed(f"experiment={experiment}", f"procedure={name}") for name in ("best", "paper"))
    run_config(paper)
    warm_up = {"paper/reuters_transformer": 0.02, "paper/utkface_cifar": 0.01}.get(experiment, 0.0)
    pruning = paper.pruning
    assert pruning.criterion.name == ("magnitude" if warm_up else "gradient")
    assert (pruning.schedule.name, pruning.begin, pruning.end) == ("one_shot", warm_up, warm_up)
    assert (pruning.rounds, pruning.rewind, pruning.rescale) == (1, None, False)
    assert (paper.optimizer._target_, paper.optimizer.lr) == ("torch.optim.Adam", 0.001)
    assert (paper.trainer.max_epochs, paper.val_fraction) == (100, 0.2)
    assert (paper.callbacks.early_stopping.min_delta, paper.callbacks.early_stopping.patience) == (0.01, 3)
    assert (best.pruning.schedule.name, best.pruning.rescale, best.val_fraction) == ("cubic", True, None)
    for key in ("name", "backbone", "ensembles", "paper"):
        assert paper[key] == best[key], key
    kept = {key: dict(paper[key]) if key == "tasks" else paper[key] for key in ("tasks", "curriculum")}
    for task in ("boston", "imdb", "movie_reviews"):  # read as the authors read them
        if task in kept["tasks"]:
            assert paper.tasks[task] != best.tasks[task]
            kept["tasks"][task] = best.tasks[task]
    if experiment == "paper/four_domains_reviews":
        assert paper.curriculum == [["mnist", "fashion_mnist"], ["boston"], ["movie_reviews"]]
        kept["curriculum"] = best.curriculum
    for key, value in kept.items():
        assert value == best[key], key
    for key in ("density", "share", "weights", "sample"):
        assert pruning[key] == best.pruning[key], key


WHEN = ("criterion", "schedule", "begin", "end", "rounds", "rewind")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("pruning", ["at_init", "lottery"])
def test_an_experiment_leaves_when_is_pruned_to_the_group_that_is_chosen(experiment, pruning):
    chosen = composed(f"pruning={pruning}").pruning
    found = composed(f"experiment={experiment}", f"pruning={pruning}").pruning
    for key in WHEN:
        assert found[key] == chosen[key], key


@pytest.mark.parametrize("key", WHEN)
def test_no_value_is_that_of_both_options_above(key):
    assert composed("pruning=at_init").pruning[key] != composed("pruning=lottery").pruning[key]


@pytest.mark.parametrize("path", sorted(OF_BOTH.rglob("*.yaml")), ids=str)
def test_what_an_experiment_changes_under_a_procedure_is_of_both_and_comes_with_both(path):
    experiment, procedure = str(path.parent.relative_to(OF_BOTH)), path.stem
    assert experiment in EXPERIMENTS
    assert ("procedure", procedure) in OPTIONS
    changed = OmegaConf.load(path)
    both = composed(f"experiment={experiment}", f"procedure={procedure}")
    assert OmegaConf.merge(both, changed) == both
    assert OmegaConf.merge(composed(f"experiment={experiment}"), changed) != composed(f"experiment={experiment}")


BATCHES = {
    "mnist_fashion_fc": ([512, 512], 0.1),
    "mnist_fashion_conv": ([512, 512], 0.1),
    "mnist_fashion_boston": ([512, 512, 32], 0.1),
    "four_domains": ([512, 512, 32, 32], 0.1),
    "four_domains_reviews": ([512, 512, 32, 32], 0.1),
    "cifar_mnist_fashion": ([512, 512, 512], 0.1),
    "easy_hard_fashion": ([512, 512], 0.2),
    "self_ensemble_fashion": ([512], None),
    "reuters_transformer": ([256], 0.1),
    "utkface_cifar": ([256, 256, 256, 256], None),
}


@pytest.mark.parametrize("experiment", PAPER)
def test_experiments_of_the_paper_have_its_batches_and_sparsity(experiment):
    config = composed(f"experiment={experiment}")
    batches, density = BATCHES[Path(experiment).name]
    assert [task.batch_size for task in config.tasks.values()] == batches
    assert config.pruning.density == density
    assert config.pruning.share == (None if density else "equal")


def test_debugging_wins_over_the_experiment():
    assert composed("experiment=sequential", "debug=fdr").trainer.fast_dev_run is True


def test_density_may_be_given_as_a_mapping():
    config = composed("tasks=[wine,digits]", "pruning.density={wine:0.2,digits:0.1}")
    assert OmegaConf.to_container(config.pruning.density) == {"wine": 0.2, "digits": 0.1}


def test_the_paper_network_is_the_default():
    config = composed("experiment=sequential")
    assert (config.backbone.width, config.backbone.depth, config.pruning.density) == (1000, 6, 0.1)


# ---- settings only grow: those that users could type, they can, with the same defaults


RECORDED = read("config.json")


def changed(recorded, found):
    """(key, recorded value, value now) of settings that are gone or differ."""
    return [(key, value, found.get(key, "gone")) for key, value in recorded.items() if found.get(key, "gone") != value]


def test_every_setting_is_there_with_its_default():
    found = default_settings()
    for name, recorded in RECORDED["defaults"].items():
        assert changed(recorded, found[name]) == [], name


def test_every_option_of_a_group_sets_what_it_did():
    found = option_settings()
    missing = RECORDED["options"].keys() - found.keys()
    assert missing == set()
    for name, recorded in RECORDED["options"].items():
        assert changed(recorded, found[name]) == [], name


# ---- the command


@pytest.mark.parametrize("overrides", [["tasks=[wine,wine]"], ["seed=1", "tasks=[wine,digits,wine]"]])
def test_a_task_named_twice_is_refused(overrides):
    with pytest.raises(ValueError, match="tasks names 'wine' more than once"):
        _check_tasks_named_once(overrides)


def test_tasks_named_once_are_accepted():
    assert _check_tasks_named_once(["tasks=[wine,digits]", "tasks.wine.batch_size=4", "tasks=bundled"]) is None


def test_settings_that_must_be_set_are_named_together():
    keys = ("tasks.table.source.path", "tasks.table.source.target")
    with pytest.raises(ConfigError) as error:
        run_config(composed("tasks=table"))
    assert [line.split(" ")[0] for line in error.value.problems] == list(keys)


@pytest.mark.parametrize("tasks", ["table", "[wine,table]"])
def test_a_table_is_pruned_early_unless_another_option_is_chosen(tasks):
    def pruning(*overrides):
        return composed(*overrides).pruning

    assert pruning(f"tasks={tasks}") == pruning("pruning=early") != pruning()
    assert pruning(f"tasks={tasks}", "pruning=gradual") == pruning()
    assert pruning(f"tasks={tasks}", "pruning.end=0.5").end == 0.5
    assert pruning(f"tasks={tasks}", "procedure=paper") == pruning("procedure=paper")
