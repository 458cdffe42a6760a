"""Bad input: one clear message before any training, and nothing overwritten."""

import json
import re

import pytest
from running import few_steps
from sources import instead_of

from messages import says

EXPERIMENT = "+experiment=sequential"


@pytest.fixture
def refused(train_here, tmp_path):
    """Run the command, check that it fails before it begins and leaves no folder; return the message."""

    def run(*overrides, experiment=EXPERIMENT):
        with pytest.raises(AssertionError) as caught:
            train_here(experiment, "logger=csv", "trainer.max_epochs=1", *overrides)
        message = str(caught.value)
        assert "error: " in message
        assert "Traceback" not in message
        assert not (tmp_path / "run").exists()
        return message

    return run


def has(message, *parts):
    """Check that all of these regular expressions match in a message."""
    missing = [part for part in parts if not re.search(part, message)]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("pruning.densty=0.1", ["pruning.densty", "did you mean 'pruning.density'"]),
        ("+pruning.densty=0.1", ["there is no setting pruning.densty", "did you mean 'density'"]),
        ("+sede=3", ["there is no setting sede", "did you mean 'seed'"]),
        ("+tasks.wine.batchsize=4", ["there is no setting tasks.wine.batchsize", "did you mean 'batch_size'"]),
        ("backbone=mpl", ["backbone/mpl", "did you mean 'mlp'"]),
        ("tasks=winee", ["tasks/winee", "did you mean 'wine'"]),
        ("tasks.wine.los_weight=2", ["tasks.wine.los_weight", "did you mean 'loss_weight'"]),
        ("tasks.winee.loss_weight=2", ["winee is not a task of this run", r"tasks=\[NAME", "did you mean 'wine'"]),
        ("+tasks.winee.loss_weight=2", ["winee is not a task of this run", r"tasks=\[NAME"]),
        ("tasks=[wine,digts]", ["tasks/digts", "did you mean 'digits'"]),
    ],
)
def test_an_unknown_key_group_or_option_is_refused_with_the_nearest_name(override, parts, refused):
    has(refused(override), *parts)


def test_an_unknown_experiment_is_refused_with_the_nearest_name(refused):
    has(refused(experiment="+experiment=sequental"), "experiment/sequental", "did you mean 'sequential'")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["pruning.density=0"], [says("pruning.density", "in (0, 1]", 0)]),
        (["pruning.density=1.5"], [says("pruning.density", "in (0, 1]", 1.5)]),
        (["pruning.density={digits:0.1,wine:0.1}", "tasks=[digits]"], ["pruning.density names 'wine'", "not a task"]),
        (["reuse=some"], ["reuse must be one of none, all, learned.*, got 'some'"]),
        (
            ["owner_maps=layer.1.weight"],
            ["owner_maps must be one of .*got 'layer.1.weight'", "did you mean 'layers.1.weight'"],
        ),
        (["baseline=[joint,fintune]"], [says("baseline[1]", value="fintune", meant="finetune")]),
        (["curriculum=[[digits,wine],[]]", "tasks=[digits,wine]"], [r"curriculum\[1\] has no task"]),
        (["curriculum=[[digits,winee]]"], [r"curriculum\[0\] names 'winee'", "did you mean 'wine'"]),
        (
            ["curriculum=[{tasks:[digits,wine],loss_weights:{wines:2}}]", "tasks=[digits,wine]"],
            [r"curriculum\[0\].loss_weights names 'wines'", "did you mean 'wine'"],
        ),
        (["tasks.wine.loss_weight=0"], [says("tasks.wine.loss_weight", "> 0", 0.0)]),
        (["uneven=cylce"], ["uneven must be one of .*, got 'cylce'", "did you mean 'cycle'"]),
        (["baseline=dens"], [says("baseline[0]", value="dens", meant="dense")]),
        (
            ["guarantee.on_violation=warning"],
            ["guarantee.on_violation must be one of .*, got 'warning'", "did you mean 'warn'"],
        ),
        (
            ["tasks.wine.metric=acuracy"],
            ["tasks.wine.metric must be one of .*, got 'acuracy'", "did you mean 'accuracy'"],
        ),
        (["tasks.wine.batch_size=0"], [says("tasks.wine.batch_size", ">= 1", 0)]),
        (["tasks.wine.source.name=vine"], ["source.name must be one of .*, got 'vine'", "did you mean 'wine'"]),
        (["curriculum=[digits,winee]"], [r"curriculum\[1\] names 'winee'", "did you mean 'wine'"]),
        (["curriculum=[digits,wine,wine]"], ["curriculum names task '", "every task belongs to one stage"]),
        (["tasks=[wine,wine]"], ["tasks names 'wine' more than once"]),
        (["seed=one"], ["seed", "could not be converted to Integer"]),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.patience=0"],
            [says("early_stopping.patience", ">= 1", 0)],
        ),
        (["evaluation.batch_size=0"], ["evaluation.batch_size must be >= 1, got 0"]),
        (["evaluation.batch_size=few"], ["evaluation.batch_size", "could not be converted to Integer"]),
        (["optimizer.lr=-1"], ["optimizer cannot be built from .*'lr': -1.*: Invalid learning rate: -1"]),
        (["optimizer.lr=much"], ["optimizer cannot be built from .*'lr': 'much'"]),
        (["+optimizer.rate=1"], ["there is no setting optimizer.rate; torch.optim.AdamW takes params, lr, "]),
        (
            ["+backbone.weight=w.pt"],
            ["there is no setting backbone.weight; .*MLP takes .*, width, .*did you mean 'width'"],
        ),
        (["+tasks.wine.source.fold=1"], ["there is no setting tasks.wine.source.fold; .* takes name, test_fraction"]),
        (["tasks.wine.source.nam=1"], ["no setting tasks.wine.source.nam; .* takes name, .*did you mean 'name'"]),
        (["scheduler.max_lr=-1"], ["scheduler cannot be built from .*: it begins with a learning rate of -0.04"]),
        (["+scheduler.steps=9"], ["there is no setting scheduler.steps; .* did you mean 'total_steps'"]),
        (
            ["prune_scheduler={_target_:torch.optim.lr_scheduler.StepLR,_partial_:true}"],
            ["prune_scheduler cannot be built from .* 'step_size'"],
        ),
    ],
)
def test_an_invalid_value_is_refused(overrides, parts, refused):
    has(refused(*overrides), *parts)


@pytest.mark.parametrize("name", ["a b", "a/b", "v1.2", "Ünï", "all"])
def test_a_name_that_a_task_cannot_have_is_refused_before_any_training(name, refused, tmp_path):
    """Also where the task comes late in the curriculum."""
    (tmp_path / "my" / "tasks").mkdir(parents=True)
    source = "{source: {_target_: msh.tasks.bundled.bundled, name: iris}}"
    (tmp_path / "my" / "tasks" / "mine.yaml").write_text(f'"{name}": {source}\n')
    message = refused("--config-dir", str(tmp_path / "my"), "tasks=[wine,mine]")
    has(message, "task name must be ", re.escape(name))


def test_all_that_is_wrong_without_data_is_told_at_once(refused):
    wrong = ["optimizer.lr=-1", "tasks.wine.metric=acuracy", "backbone.width=0", "tasks.wine.source.nam=x"]
    message = refused("tasks=wine", *wrong)
    has(message, "4 problems:", "- optimizer cannot be built", "- tasks.wine.metric must be one of", "source.nam;")
    has(message, says("- backbone.width", ">= 1", 0))


@pytest.mark.parametrize(
    ("overrides", "end"),
    [
        (["network=nope"], "network = nope: there is no file nope"),
        (["plan=nope"], "plan = nope: there is no file nope"),
        (
            ["tasks=table", "tasks.table.source.path=nope.csv", "tasks.table.source.target=y"],
            "tasks.table.source.path = nope.csv: there is no file nope.csv",
        ),
    ],
)
def test_a_path_that_does_not_exist_is_named_with_its_key(overrides, end, refused):
    assert refused(*overrides).strip().endswith(end)


def test_budgets_over_capacity_name_task_layer_wanted_and_free(refused):
    message = refused("tasks=[digits,wine]", "pruning.density={digits:0.7,wine:0.6}")
    has(message, "task 'wine' wants 1229 weights of layer 'layers.1.weight', but only 614 are free")


def test_budgets_over_capacity_of_the_whole_network(refused):
    message = refused("tasks=[wine,iris]", "pruning.density=0.6", "pruning.scope=network")
    has(message, "task 'iris' wants 864 weights of the whole network, but only 576 are free")


EMPTY = [
    ("pruning.scope=tensor", "task 'wine' would get no weight of layer 'layers.1.weight', of which 416 are free"),
    ("pruning.scope=epl", "task 'wine' would get no weight of layer 'layers.3.weight', of which 1024 are free"),
    ("pruning.scope=network", "task 'wine' would get 1 weights of the whole network, fewer than its 2 layers"),
    ("pruning.granularity=neuron", "task 'wine' wants 1 weights, but one unit of each layer"),
]


@pytest.mark.parametrize(("setting", "problem"), EMPTY)
def test_a_budget_that_empties_a_layer_is_refused_with_the_smallest_that_works(setting, problem, refused):
    message = refused("tasks=[wine,iris]", setting, "pruning.density=0.0005")
    has(message, problem, r"density must be >= [0-9.e-]+, got 0.0005")


def test_a_cut_by_scores_that_empties_a_layer_ends_the_run_before_it_trains(train_here, tmp_path):
    def run(density, folder, *more):
        settings = ["pruning=at_init", "pruning.criterion=gradient", "pruning.scope=network", "trainer.max_epochs=1"]
        chosen = ["tasks=wine", *few_steps("wine"), f"pruning.density={density}", *settings, *more]
        return train_here(EXPERIMENT, "logger=csv", *chosen, folder=folder)

    with pytest.raises(AssertionError, match=r"'wine' would keep no weight of layer .* density must be >=") as caught:
        run(0.002, "small")
    least = float(re.search(r"density must be >= ([0-9.e-]+)", str(caught.value)).group(1))
    assert not (tmp_path / "small" / "metrics.csv").exists()
    with pytest.raises(AssertionError, match=r"'wine' would keep no weight of layer"):
        run(0.95 * least, "smaller")
    run(least, "least")
    run(0.002, "allowed", "pruning.allow_empty_layers=true")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("missing", "task 'wine', train split: 5 inputs are NaN or infinite"),
        ("infinite", "task 'wine', test split: 2 inputs are NaN or infinite"),
        ("class", "task 'wine', train split: targets hold the class 3, but the head has 3 classes: 0 to 2"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(bad, message, refused):
    assert message in refused("tasks=[iris,wine]", *instead_of("wine", bad=bad))


def test_a_missing_data_directory_is_named_with_the_missing_files(refused, tmp_path):
    message = refused("tasks=mnist", f"paths.data_dir={tmp_path / 'nowhere'}", "+tasks.mnist.source.download=false")
    has(message, "MNIST is not in the data directory", f"{tmp_path / 'nowhere'}", "train-images-idx3-ubyte")


def test_image_files_cut_short_are_named(refused, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x02")
    message = refused("tasks=mnist", f"paths.data_dir={tmp_path / 'data'}")
    has(message, f"MNIST files in {tmp_path / 'data'} cannot be read: cut short or damaged")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["+tasks.wine.transforms=[{split_classes:[0,5]}]"],
            [says("tasks.wine.transforms.split_classes[1]", "a class of the train split (0, 1, 2)", 5)],
        ),
        (["tasks.wine.transforms=[{split_classes:[1]}]"], ["split_classes must be .*at least two classes"]),
        (
            ["tasks.wine.transforms=[{rotat:3}]"],
            ["a transform of tasks.wine must be one of .*, got 'rotat'", "did you mean 'rotate'"],
        ),
        (["+tasks.wine.variants.split_clases=[[0,1]]"], ["did you mean 'split_classes'"]),
        (["tasks.wine.normalize_target=minmax"], ["tasks.wine.normalize_target = minmax needs a regression"]),
        (
            ["tasks=movie_reviews", "paths.data_dir=nowhere"],
            [r"source.path = nowhere/text/movie_reviews.csv: there is no file nowhere/text/.*paths.data_dir=DIR"],
        ),
    ],
)
def test_invalid_transforms_are_refused(overrides, parts, refused):
    has(refused(*overrides), *parts)


BAD_FILES = {
    "bad text encoding": ("movie_reviews", r"movie_reviews.csv is not in utf-8: byte 18 \(line 2\) is 0xe9"),
    "a missing column": ("movie_reviews", says("source.label", value="sentiment", meant="sentimnt")),
    "words where numbers belong": ("boston", r"boston.csv, line 2, column 'medv': 'dear' is not a finite number"),
    "a damaged image": ("cifar10_images", r"train/cat/0.jpg cannot be read: cut short or damaged"),
    "a damaged face": ("[utkface]", r"UTKFace/20_1_0_1.jpg cannot be read: cut short or damaged"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_files_are_named_before_any_training(bad, refused, tmp_path):
    (tmp_path / "text").mkdir()
    column = "sentimnt" if bad == "a missing column" else "sentiment"
    (tmp_path / "text" / "movie_reviews.csv").write_bytes(f"text,{column}\ncaf\xe9,1\n".encode("latin-1"))
    if bad == "a missing column":
        (tmp_path / "text" / "movie_reviews.csv").write_text(f"text,{column}\nfine,1\n")
    (tmp_path / "tabular").mkdir()
    (tmp_path / "tabular" / "boston.csv").write_text("rm,medv\n6,dear\n")
    for name in ("cifar10-jpeg/train/cat/0.jpg", "cifar10-jpeg/test/cat/0.jpg", "UTKFace/20_1_0_1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"\xff\xd8 cut short")
    tasks, message = BAD_FILES[bad]
    has(refused(f"tasks={tasks}", f"paths.data_dir={tmp_path}"), message)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_a_run_is_refused_and_not_changed(train_here):
    folder, _ = train_here(EXPERIMENT, "tasks=wine", *few_steps("wine"), "logger=csv", "trainer.max_epochs=1")
    before = contents(folder)
    assert {"results.json", "config.yaml", "metrics.csv"} <= {path.name for path in before}
    for overrides in (["seed=1"], ["trainer.max_epochs=2", "reuse=all"]):
        with pytest.raises(AssertionError, match=r"holds another run \(.*choose another hydra\.run\.dir"):
            train_here(EXPERIMENT, "tasks=wine", *overrides)
        assert contents(folder) == before


@pytest.mark.parametrize("setting", ["pruning.density=2", "paths.data_dir=nowhere"])
@pytest.mark.parametrize("files", [["notes.txt"], []])
def test_a_failed_start_leaves_a_folder_that_was_there_as_it_was(setting, files, train_here, tmp_path):
    (tmp_path / "run").mkdir()
    for name in files:
        (tmp_path / "run" / name).write_text("precious")
    with pytest.raises(AssertionError, match="error: "):
        train_here(EXPERIMENT, "tasks=movie_reviews", setting)
    assert [path.name for path in (tmp_path / "run").iterdir()] == files


def test_a_failed_start_takes_nothing_from_a_start_that_is_under_way(train_here, tmp_path):
    (tmp_path / "run").mkdir()

    def other_start(*arguments):
        (tmp_path / "run" / ".hydra").mkdir()
        raise RuntimeError("the folder is in use")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msh.training.run.locked", other_start)
        with pytest.raises(AssertionError, match="in use"):
            train_here(EXPERIMENT, "tasks=wine")
    assert (tmp_path / "run" / ".hydra").is_dir()


def test_invalid_tracker_settings_leave_the_folder_free(refused):
    has(refused("logger=wandb", "logger.wandb.project=null"), "logger.wandb.project names no project")


def test_an_output_folder_that_is_a_file_is_refused(train_here, tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(AssertionError, match=r"error: .*/run"):
        train_here(EXPERIMENT, "tasks=wine")
    assert (tmp_path / "run").read_text() == "precious"


DIVERGING = {
    "a rate too high": ["tasks=wine", "optimizer.lr=1e30"],
    "data too large": [
        *("tasks=[iris,wine]", *few_steps("iris"), *instead_of("wine", bad="huge"), "tasks.wine.normalize=none"),
    ],
}


@pytest.mark.parametrize("cause", DIVERGING)
def test_a_loss_that_becomes_nan_stops_the_run_and_says_why(cause, train_here, tmp_path):
    settings = ["pruning=at_init", "optimizer=sgd", "trainer.max_epochs=2", "logger=none"]
    with pytest.raises(AssertionError, match=r"loss of 'wine' became NaN or infinite in epoch \d+ of stage"):
        train_here(EXPERIMENT, *settings, *DIVERGING[cause])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    learned = ["iris"] if cause == "data too large" else []
    assert results["status"] == "failed"
    assert [name for name, row in results["tasks"].items() if row["test"] is not None] == learned
    assert sorted(path.stem for path in (tmp_path / "run").glob("subnetworks/*")) == learned
