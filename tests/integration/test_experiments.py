"""Run every experiment config, and every option to debug, prune and reuse."""

import csv
import json
import re
import sys
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image
from running import ROOT, few_steps
from sources import instead_of

import msh
from messages import says
from msh.files.state_file import read_state
from msh.subnetworks import CRITERIA, SCHEDULES, MultiSubnetwork
from msh.subnetworks.blocks import is_in_blocks
from msh.training.config import register
from msh.training.evaluation import evaluate, load_run
from msh.training.shared import SharedNetwork
from tokenizer_files import byte_pairs

register()

EXPERIMENTS = sorted(
    str(path.relative_to(ROOT / "conf" / "experiment").with_suffix(""))
    for path in (ROOT / "conf" / "experiment").rglob("*.yaml")
)
QUICK = ["+experiment=sequential", "tasks=[wine,iris]", "logger=none", "trainer.max_epochs=2"]


@pytest.fixture
def learned(train_here):
    """Run the command on two small tasks; return (results.json, run folder)."""

    def run(*overrides):
        folder, _ = train_here(*QUICK, *few_steps("wine", "iris"), *overrides)
        results = json.loads((folder / "results.json").read_text())
        assert results["status"] == "finished"
        assert results["forgetting"] == 0.0
        assert results["guarantee"] == {"checked": 1, "violations": 0}
        return results, folder

    return run


def column(folder, name):
    """Read a column of metrics.csv, without empty cells."""
    with (folder / "metrics.csv").open() as file:
        return [row[name] for row in csv.DictReader(file) if row[name]]


def saved_tensors(folder):
    """The tensors of a run's network by name, owner maps and dense weights as the network has them."""
    state = read_state(folder / "network.safetensors", "network").state.state_dict()
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


def owned(folder):
    """({owner: weights it owns in each tensor}, sizes of the tensors)."""
    maps = [tensor for name, tensor in saved_tensors(folder).items() if name.startswith("owners.")]
    return {owner: [int((tensor == owner).sum()) for tensor in maps] for owner in (1, 2)}, [t.numel() for t in maps]


IMAGES = {"MNIST": ([1, 28, 28], 10), "FashionMNIST": ([1, 28, 28], 10)}
IMAGES |= {"CIFAR10": ([3, 32, 32], 10), "CIFAR100": ([3, 32, 32], 100)}


SMALLER = {"width": 8, "depth": 2, "hidden": 8, "linear": "[8]"}


@cache
def small(experiment):
    """Overrides: a small backbone, random data instead of real ones, and two variants of each task."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"])
    overrides = [f"backbone.{key}={value}" for key, value in SMALLER.items() if key in config.backbone]
    if config.backbone.get("library"):
        pytest.importorskip("transformers", reason="needs msh[hf]")
    if "channels" in config.backbone:
        overrides.append(f"backbone.channels={[4] * len(config.backbone.channels)}".replace(" ", ""))
    for task, settings in config.tasks.items():
        overrides += random_data(task, settings.source)
        variants = settings.variants if isinstance(settings.variants, DictConfig) else {}
        for transform, arguments in variants.items():
            few = 2 if isinstance(arguments, int) else str(list(arguments[:2])).replace(" ", "")
            overrides.append(f"tasks.{task}.variants.{transform}={few}")
    return [*overrides, "threads=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]


def random_data(task, source):
    """Return overrides that replace a task's data by random data of the same shape, unless the data is bundled."""
    kind = source._target_.removeprefix("msh.tasks.")
    if kind in ("text.hugging_face", "text.csv_text"):
        return instead_of(task, "words", classes=46 if task == "reuters" else 2, examples=92, length=16)
    if kind == "text.texts":
        return instead_of(task, "sentences", length=32)
    if kind == "tables.csv_table":
        return instead_of(task, "numbers")
    if source.get("name") in IMAGES:
        shape, classes = IMAGES[source.name]
    elif kind in ("images.image_folder", "faces.utkface"):
        shape, classes = [3, source.size, source.size], {"gender": 2, "ethnicity": 5}.get(source.get("label"), 10)
    else:
        return []
    return instead_of(task, shape=str(shape).replace(" ", ""), classes=classes, examples=4 * classes)


RUNS = [(name, "best") for name in EXPERIMENTS] + [(name, "paper") for name in EXPERIMENTS if name.startswith("paper/")]


@pytest.mark.parametrize(("experiment", "procedure"), RUNS)
def test_every_experiment_runs_with_debug_fdr_and_leaves_no_results(experiment, procedure, train_here):
    overrides = [f"+experiment={experiment}", f"procedure={procedure}", "+debug=fdr"]
    folder, printed = train_here(*overrides, *small(experiment), small=False)
    assert "frozen tasks compared bitwise" in printed
    assert ", 0 changed" in printed
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert not (folder / "results.json").exists()
    assert not list(folder.rglob("*.ckpt"))


def test_the_demo_has_an_experiment():
    assert "sequential" in EXPERIMENTS


def test_the_usual_benchmarks_of_continual_learning_have_experiments():
    names = {"permuted_mnist", "permuted_mnist_50", "rotated_mnist", "split_mnist", "split_fashion_mnist"}
    names |= {"split_cifar10", "split_cifar100"}
    assert {f"benchmark/{name}" for name in names} <= set(EXPERIMENTS)


def test_every_experiment_in_the_paper_has_a_config():
    names = {"mnist_fashion_fc", "mnist_fashion_conv", "mnist_fashion_boston", "four_domains", "cifar_mnist_fashion"}
    names |= {"easy_hard_fashion", "self_ensemble_fashion", "reuters_transformer", "utkface_cifar"}
    assert {f"paper/{name}" for name in names} <= set(EXPERIMENTS)


def test_debug_limit_takes_a_few_batches_and_epochs(train_here):
    folder, printed = train_here("+experiment=sequential", "tasks=[digits,wine]", "debug=limit", "logger=csv")
    steps = [int(step) for step in column(folder, "step")]
    assert max(steps) < 3 * (62 + 12) / 2  # half of three whole epochs of both
    assert {"digits", "wine"} <= set(printed.split())


def test_debug_overfit_memorizes_its_batches(train_here):
    overrides = ["tasks=wine", "debug=overfit", "logger=csv", "pruning.density=0.5", "trainer.log_every_n_steps=1"]
    folder, _ = train_here("+experiment=sequential", *overrides)
    losses = [float(loss) for loss in column(folder, "wine/train/loss")]
    assert len(losses) == 50 * 3
    assert sum(losses[-3:]) < 0.2 * sum(losses[:3])


def test_debug_profiler_reports_times(train_here):
    folder, printed = train_here("+experiment=sequential", "tasks=wine", "debug=profiler", "logger=none")
    assert "Profiler Report" in printed + (folder / "train.log").read_text()


@pytest.mark.parametrize("pruning", ["at_init", "gradual", "lottery"])
def test_every_way_of_pruning_keeps_its_density(pruning, learned):
    epochs = ["trainer.max_epochs=10"] if pruning == "lottery" else []  # it rewinds to the end of an epoch
    _, folder = learned(f"pruning={pruning}", "pruning.density=0.25", *epochs)
    counts, sizes = owned(folder)
    assert counts[1] == counts[2] == [round(0.25 * size) for size in sizes]


COMBINED = [
    ("magnitude", "linear", "sgd", "cosine"),
    ("gradient", "cubic", "adam", "constant"),
    ("weight_gradient", "exponential", "adamw", "one_cycle"),
    ("random", "one_shot", "adamw", "cosine"),
    ("learned", "linear", "adam", "one_cycle"),
]


@pytest.mark.parametrize(("criterion", "schedule", "optimizer", "scheduler"), COMBINED)
def test_every_criterion_and_schedule_prunes_to_the_budget(criterion, schedule, optimizer, scheduler, learned):
    pruning = [f"pruning/criterion={criterion}", f"pruning/schedule={schedule}", "pruning.weights=100"]
    _, folder = learned(*pruning, "pruning.density=null", f"optimizer={optimizer}", f"scheduler={scheduler}")
    counts, _ = owned(folder)
    assert [sum(counts[owner]) for owner in (1, 2)] == [100, 100]


def test_every_criterion_schedule_optimizer_and_scheduler_is_tested_above():
    criteria, schedules, *others = (set(column) for column in zip(*COMBINED, strict=True))
    assert (criteria, schedules) == (set(CRITERIA), set(SCHEDULES))
    folders = [ROOT / "conf" / group for group in ("optimizer", "scheduler")]
    assert others == [{path.stem for path in folder.glob("*.yaml")} for folder in folders]


def test_an_equal_share_divides_the_whole_network_among_tasks(learned):
    results, folder = learned("pruning.share=equal", "pruning.density=null")
    counts, sizes = owned(folder)
    assert counts[1] == counts[2] == [size // 2 for size in sizes]
    assert results["capacity"]["free"] == 0


def test_a_gate_prunes_below_the_budget_and_hands_the_rest_to_the_next_task(learned):
    gate = ["pruning.gate.step=0.1", "pruning.gate.maximum=0.8", "pruning.gate.tolerance=9"]  # nothing is too bad
    share = ["pruning.share=equal", "pruning.density=null"]
    _, folder = learned("pruning=gated", *gate, *share, "trainer.max_epochs=7")
    counts, sizes = owned(folder)
    assert counts[1] == [round(0.2 * size) for size in sizes]  # of its half, in three steps
    assert counts[2] == [round(0.5 * size) for size in sizes]  # of the .8 that are left, in as many


def test_no_network_evaluates_larger_batches_than_set(learned, monkeypatch):
    sizes = []
    for kind in (MultiSubnetwork, SharedNetwork):
        forward = kind.forward

        def look(self, inputs, task=None, forward=forward):
            sizes.append(len(inputs))
            return forward(self, inputs, task)

        monkeypatch.setattr(kind, "forward", look)
    batches = [f"tasks.{task}.batch_size=6" for task in ("wine", "iris")]
    how = ["pruning=at_init", "pruning.criterion=gradient", "baseline=[dense,finetune,joint]", "trainer.max_epochs=1"]
    results, folder = learned(*how, *batches, "evaluation.batch_size=6")
    scores = {row["task"]: row["score"] for row in evaluate(folder)}
    assert scores == {task: row["test"] for task, row in results["tasks"].items()}
    assert max(sizes) == 6


def test_over_the_whole_network_scores_decide_where_weights_are_kept(learned):
    results, folder = learned("pruning.scope=network", "pruning.density=0.1")
    counts, sizes = owned(folder)
    assert [sum(counts[owner]) for owner in (1, 2)] == [round(0.1 * sum(sizes))] * 2
    assert counts[1] != [round(0.1 * size) for size in sizes]
    assert results["tasks"]["wine"]["weights"] == round(0.1 * sum(sizes))


def test_reuse_reads_earlier_weights_and_owns_none_of_them(learned):
    results, _ = learned("reuse=all")
    wine, iris = results["tasks"]["wine"], results["tasks"]["iris"]
    assert (wine["weights_reused"], iris["weights_reused"]) == (0, wine["weights"])
    assert results["capacity"]["owned"] == wine["weights"] + iris["weights"]


def test_a_task_with_learned_reads_is_identical_in_its_files(learned):
    results, folder = learned("pruning=learned", "reuse=learned", "pruning.density=0.6", "pruning.scores=random")
    wine, iris = results["tasks"]["wine"], results["tasks"]["iris"]
    budget = sum(round(0.6 * size) for size in owned(folder)[1])  # more than is free: the rest is read
    assert (wine["weights"], wine["weights_read"], wine["weights_reused"]) == (budget, {}, 0)
    assert iris["weights"] + iris["weights_reused"] == budget
    assert iris["weights_read"] == {"wine": iris["weights_reused"]}
    assert 0.4 * budget < iris["weights_reused"] < 0.8 * budget
    state = read_state(folder / "subnetworks" / "iris.safetensors", "subnetwork").state
    entry, read = state.tasks["iris"], sum(int(mask.sum()) for mask in state.read("iris").values())
    assert (entry.reads, read) == (("wine",), iris["weights_reused"])
    _, _, network = load_run(folder)
    assert network.digest("iris") == entry.digest
    scores = {name: row["test"] for name, row in results["tasks"].items()}
    assert {row["task"]: row["score"] for row in evaluate(folder)} == scores


def test_a_curriculum_sets_order_and_epochs_and_each_task_its_density(learned):
    curriculum = "curriculum=[iris,{tasks:[wine],max_epochs:1}]"
    results, _ = learned(curriculum, "pruning.density={wine:0.5,iris:0.25}")
    assert results["curriculum"] == [["iris"], ["wine"]]
    assert results["matrix"][0][list(results["tasks"]).index("wine")] is None
    assert {task: row["stage"] for task, row in results["tasks"].items()} == {"iris": 0, "wine": 1}
    assert {task: round(row["density"], 2) for task, row in results["tasks"].items()} == {"iris": 0.25, "wine": 0.5}


def test_the_papers_conv_net_learns_small_images(train_here):
    images = instead_of("digits", shape="[1,11,11]", examples=30)
    plain = ["threads=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none", "trainer.max_epochs=2"]
    overrides = ["+experiment=sequential", "backbone=paper_conv", "tasks=digits", *images, *plain]
    folder, _ = train_here(*overrides, small=False)
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["tasks"]["digits"]["weights"] == round(0.1 * results["capacity"]["prunable"])


def test_variants_are_learned_one_after_another_and_evaluated_again(train_here):
    source = instead_of("split_mnist", shape="[1,28,28]", classes=10, examples=200)
    plain = ["threads=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none", "trainer.max_epochs=2"]
    overrides = ["+experiment=benchmark/split_mnist", "backbone.width=16", *source, *plain]
    folder, _ = train_here(*overrides, small=False)
    results = json.loads((folder / "results.json").read_text())
    assert results["curriculum"] == [[f"split_mnist_{i}"] for i in range(5)]
    assert results["guarantee"] == {"checked": 10, "violations": 0}
    rows = evaluate(folder, unsafe=True)
    assert {row["task"]: row["score"] for row in rows} == {
        name: task["test"] for name, task in results["tasks"].items()
    }


def test_texts_and_tables_in_the_docs_train(train_here, tmp_path):
    (tmp_path / "data").mkdir()
    mails = [f"{'win a prize' if i % 3 else 'see you'} number {i}" for i in range(60)]
    rows = "".join(f"{mail},{'spam' if i % 3 else 'ham'}\n" for i, mail in enumerate(mails))
    (tmp_path / "data" / "mails.csv").write_text("message,label\n" + rows)
    rows = "".join(f"{i % 7},{i % 5},{3 * (i % 7) - i % 5}\n" for i in range(60))
    (tmp_path / "data" / "houses.csv").write_text("rooms,age,price\n" + rows)
    configs = tmp_path / "conf" / "tasks"
    configs.mkdir(parents=True)
    for name, text in yaml_examples().items():
        (configs / f"{name}.yaml").write_text(text)
    config_dir = ["--config-dir", str(tmp_path / "conf")]
    overrides = ["+experiment=sequential", f"paths.data_dir={tmp_path / 'data'}", "logger=none"]
    short = ["trainer.max_epochs=6", "tasks.mails.batch_size=4", "tasks.mails.repeat=4", "report=true"]
    folder, _ = train_here(*overrides, "tasks=[mails,houses]", *short, *config_dir)
    results = json.loads((folder / "results.json").read_text())
    assert {name: task["metric"] for name, task in results["tasks"].items()} == {"mails": "accuracy", "houses": "mse"}
    assert results["tasks"]["mails"]["test"] > 0.9
    words = sum(len(mail.split()) for mail in mails)
    assert results["tasks"]["mails"]["tokens"] == {"texts": 60, "longer": 0, "tokens": words, "cut": 0, "unknown": 22}
    assert results["tasks"]["houses"]["tokens"] is None
    assert "longer than source.length" in (folder / "report.html").read_text()
    assert results["guarantee"]["violations"] == 0
    assert evaluate(folder) == [
        {"task": name, "metric": task["metric"], "score": task["test"]} for name, task in results["tasks"].items()
    ]


def test_image_folders_and_transforms_in_the_docs_train(train_here, tmp_path):
    configs = tmp_path / "conf" / "tasks"
    configs.mkdir(parents=True)
    examples = yaml_examples()
    for name in ("birds", "day_and_night"):
        (configs / f"{name}.yaml").write_text(examples[name])
        for part in ("train", "test"):
            for place, label in enumerate(("crow", "wren", "hawk", "swan")):
                (tmp_path / "data" / "birds" / part / label).mkdir(parents=True, exist_ok=True)
                for i in range(6):
                    image = Image.new("RGB", (9, 8 + i), (60 * place, 10 * i, 0))
                    image.save(tmp_path / "data" / "birds" / part / label / f"{i}.jpg")
    config_dir = ["--config-dir", str(tmp_path / "conf")]
    overrides = ["+experiment=sequential", f"paths.data_dir={tmp_path / 'data'}", "logger=none"]
    folder, _ = train_here(*overrides, "tasks=[birds,day_and_night]", "trainer.max_epochs=2", *config_dir)
    results = json.loads((folder / "results.json").read_text())
    assert list(results["tasks"]) == ["birds", "day_and_night_0", "day_and_night_1"]


def test_a_folder_of_texts_in_the_docs_trains_and_predicts_without_its_tokenizer(train_here, tmp_path):
    texts = {}
    for number in range(30):
        for label, words in (("good", "a fine film"), ("bad", "a dull one")):
            path = tmp_path / "data" / "reviews" / label / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{words}, number {number}")
            texts[path.read_text()] = label
    tokenizer = tmp_path / "data" / "tokenizer.json"
    byte_pairs(tmp_path / "data")
    (tmp_path / "conf" / "tasks").mkdir(parents=True)
    (tmp_path / "conf" / "tasks" / "reviews.yaml").write_text(yaml_examples()["reviews"])
    overrides = ["+experiment=sequential", f"paths.data_dir={tmp_path / 'data'}", "logger=none", "tasks=[reviews]"]
    short = ["trainer.max_epochs=8", "tasks.reviews.batch_size=4", "tasks.reviews.repeat=12"]
    folder, _ = train_here(*overrides, *short, "--config-dir", str(tmp_path / "conf"))
    assert json.loads((folder / "results.json").read_text())["tasks"]["reviews"]["test"] > 0.9
    tokenizer.unlink()
    answers = msh.load(folder).predict("reviews", list(texts))
    right = [answer == label for answer, label in zip(answers.labels, texts.values(), strict=True)]
    assert sum(right) > 0.9 * len(right)


def test_the_scenes_in_the_docs_train(train_here, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "data.md").read_text()
    [code] = re.findall(r"```python\n# my_scenes.py\n(.*?)```", page, flags=re.S)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_scenes.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    labels = torch.arange(100) % 2
    images = torch.randn(100, 8, 8, generator=torch.Generator().manual_seed(0))
    words = torch.randint(1, 50, (100, 5)) + 49 * labels[:, None]
    (tmp_path / "data").mkdir()
    torch.save({"image": images, "words": words, "labels": labels}, tmp_path / "data" / "scenes.pt")
    (tmp_path / "conf" / "tasks").mkdir(parents=True)
    (tmp_path / "conf" / "tasks" / "scenes.yaml").write_text(yaml_examples()["scenes"])
    overrides = ["tasks=[scenes]", "backbone=module", "backbone.target=my_scenes.Net", "logger=none"]
    data, short = (
        f"paths.data_dir={tmp_path / 'data'}",
        ["trainer.max_epochs=30", "pruning.density=0.5", "tasks.scenes.batch_size=8"],
    )
    quick = [*short, "threads=1", "callbacks=none", "report=false", "--config-dir", str(tmp_path / "conf")]
    folder, _ = train_here(*overrides, data, *quick, small=False)
    assert json.loads((folder / "results.json").read_text())["tasks"]["scenes"]["test"] > 0.8
    classes = {"my_scenes.Net": sys.modules["my_scenes"].Net}
    answers = msh.load(folder, classes=classes).predict("scenes", {"image": images.numpy(), "words": words.numpy()})
    assert sum(int(a) == b for a, b in zip(answers.labels, labels.tolist(), strict=True)) > 80


def test_the_data_module_in_the_docs_trains(train_here, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "data.md").read_text()
    [code] = re.findall(r"```python\n# my_package.py\n(.*?)```", page, flags=re.S)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_package.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    states = torch.arange(100) % 2
    signals = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) + 3 * states[:, None]
    (tmp_path / "data").mkdir()
    torch.save({"signals": signals, "states": states}, tmp_path / "data" / "sensors.pt")
    (tmp_path / "conf" / "tasks").mkdir(parents=True)
    (tmp_path / "conf" / "tasks" / "sensors.yaml").write_text(yaml_examples()["sensors"])
    overrides = ["+experiment=sequential", f"paths.data_dir={tmp_path / 'data'}", "logger=none", "tasks=[sensors,wine]"]
    short = ["trainer.max_epochs=4", "tasks.sensors.batch_size=8", *few_steps("wine")]
    short += ["--config-dir", str(tmp_path / "conf")]
    scores = []
    for seed in (0, 0):
        folder, _ = train_here(*overrides, *short, f"seed={seed}", folder=str(len(scores)))
        scores.append(json.loads((folder / "results.json").read_text())["tasks"]["sensors"]["test"])
    assert scores[0] == scores[1] > 0.9
    assert evaluate(folder, unsafe=True)[0]["score"] == scores[1]


def yaml_examples():
    """The task configs in docs/data.md: name to text."""
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), flags=re.S)
    return {text.split(":")[0]: text for text in examples}


def test_early_stopping_ends_a_fit_that_no_longer_improves(train_here):
    overrides = ["tasks=wine", "callbacks=early_stopping", "callbacks.early_stopping.min_delta=100", "logger=csv"]
    folder, _ = train_here("+experiment=sequential", *overrides, "trainer.max_epochs=30", "pruning=at_init")
    assert max(int(epoch) for epoch in column(folder, "epoch")) == 3


def test_a_run_without_a_progress_bar_ends_the_same(train_here):
    bar = ["trainer.enable_progress_bar=false"]
    folder, _ = train_here(*QUICK, "tasks=iris", *few_steps("iris"), "callbacks=default", *bar)
    assert json.loads((folder / "results.json").read_text())["status"] == "finished"


def test_runs_with_equal_seeds_are_bitwise_equal_and_others_differ(train_here):
    iris = [*QUICK, "tasks=iris", *few_steps("iris")]
    folders = [train_here(*iris, f"seed={seed}", folder=str(i))[0] for i, seed in enumerate((0, 0, 1))]
    one, same, other = (saved_tensors(folder) for folder in folders)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["backbone.layers.1.weight"], other["backbone.layers.1.weight"])


@pytest.mark.parametrize("pruning", ["gradual", "at_init"])
def test_tasks_of_whole_neurons_meet_their_budgets_from_below(pruning, learned):
    settings = ["pruning.granularity=unit", "pruning.density=0.3", "pruning.criterion=weight_gradient"]
    results, folder = learned(*settings, f"pruning={pruning}")
    state = read_state(folder / "network.safetensors", "network").state
    wanted, prunable = results["capacity"]["prunable"] * 0.3, results["capacity"]["prunable"]
    assert prunable == 32 * 13 + 32 * 32
    for owner, row in enumerate(results["tasks"].values(), start=1):
        assert row["weights"] <= wanted < row["weights"] + 32
        first, second = (state.owners[f"layers.{place}.weight"] == owner for place in (1, 3))
        assert first.all(1).sum() == first.any(1).sum()
        assert torch.equal(second, second.any(1)[:, None] & first.any(1))
        assert row["flops"] == pytest.approx(row["density"])


@pytest.mark.parametrize(
    ("settings", "kept"), [([], "unit"), (["reuse=all"], "weight"), (["pruning=at_init"], "weight")]
)
def test_tasks_of_a_wide_network_keep_units_where_the_settings_allow_it(settings, kept, learned):
    results, folder = learned("backbone.width=300", *settings)
    assert ("tasks keep whole units" in (folder / "train.log").read_text()) == (kept == "unit")
    prunable = 300 * 13 + 300 * 300
    for row in results["tasks"].values():
        assert (row["granularity"], row["weights"]) == (kept, prunable // 10)
        assert (row["flops"] is None) == (kept == "weight")
    assert [row["score"] for row in evaluate(folder)] == [row["test"] for row in results["tasks"].values()]


def test_a_task_that_is_added_keeps_what_the_networks_tasks_do(train_here):
    short = ["logger=none", "trainer.max_epochs=2", "backbone.width=300"]
    before, _ = train_here(*short, "tasks=[wine]", "pruning.granularity=weight", *few_steps("wine"), folder="before")
    folder, _ = train_here(*short, "tasks=[iris]", f"network={before}", *few_steps("iris"), folder="after")
    rows = json.loads((folder / "results.json").read_text())["tasks"]
    assert {row["granularity"] for row in rows.values()} == {"weight"}


@pytest.mark.parametrize("pruning", ["gradual", "at_init"])
def test_tasks_share_units_where_there_are_too_few(pruning, learned):
    results, folder = learned("pruning.granularity=unit", "pruning.density=0.45", f"pruning={pruning}")
    owners = read_state(folder / "network.safetensors", "network").state.owners
    for owner, row in enumerate(results["tasks"].values(), start=1):
        counts = [int((owners[f"layers.{place}.weight"] == owner).sum()) for place in (1, 3)]
        assert counts == [round(0.45 * 32 * 13), round(0.45 * 32 * 32)]
        assert 0.45 < row["flops"] <= 1
    rows = owners["layers.1.weight"]
    assert ((rows == 1).any(1) & (rows == 2).any(1)).any()
    assert results["guarantee"]["violations"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        ["pruning=gradual", "pruning.criterion=gradient"],
        ["pruning=at_init", "pruning.criterion=weight_gradient"],
        ["pruning=lottery", "pruning.rewind=0", "pruning.criterion=random"],
        ["pruning=learned", "reuse=learned"],
        ["pruning=gradual", "reuse=all"],
    ],
)
def test_tasks_of_blocks_have_exactly_their_budgets(settings, learned):
    results, folder = learned("pruning.granularity=block", "pruning.density=0.3", *settings)
    state = read_state(folder / "network.safetensors", "network").state
    sizes = {"layers.1.weight": (2, 1), "layers.3.weight": (2, 2)}
    for task, row in results["tasks"].items():
        assert state.task(task).blocks == sizes
        used = {name: mask | state.read_mask(task, name) for name, mask in state.owned(task).items()}
        used = used if "reuse=learned" in settings else state.owned(task)
        assert all(is_in_blocks(used[name], size) for name, size in sizes.items())
        assert [int(used[name].sum()) for name in sizes] == [2 * 62, 4 * 76]  # of 208 and 256 blocks
        assert row["weights"] == int(sum(mask.sum() for mask in state.owned(task).values()))


@pytest.mark.parametrize(
    "settings",
    [
        ["pruning.criterion=gradient"],
        ["pruning.criterion=weight_gradient", "pruning.begin=0", "pruning.end=0", "pruning.rounds=1"],
        ["pruning.rewind=0", "pruning.criterion=random", "pruning.schedule=exponential"],
        ["pruning.nm=[1,2]", "pruning.begin=0", "pruning.end=0", "pruning.rounds=1", "pruning.regrow.share=0.3"],
        ["reuse=all"],
        ["reuse=learned"],
    ],
)
def test_tasks_of_n_of_m_weights_have_exactly_their_budgets(settings, learned):
    results, folder = learned("pruning=nm", *settings)
    n, m = (1, 2) if "pruning.nm=[1,2]" in settings else (2, 4)
    state = read_state(folder / "network.safetensors", "network").state
    for task, row in results["tasks"].items():
        used = state.owned(task)
        assert row["weights"] == int(sum(mask.sum() for mask in used.values()))
        if "reuse=learned" in settings:
            used = {name: mask | state.read_mask(task, name) for name, mask in used.items()}
        assert {name: int(mask.sum()) for name, mask in used.items()} == {
            name: mask.numel() * n // m for name, mask in used.items()
        }
        grouped = [mask.unflatten(1, (-1, m)) for mask in used.values() if mask.shape[1] % m == 0]
        assert all(bool((groups.sum(2) == n).all()) for groups in grouped)
        assert len(grouped) == 1  # the other layer has 13 inputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=[wine,iris,digits]"], "task 'digits' wants 2 of each 4 weights of layer .* 2 tasks fit"),
        (["pruning.nm=[3,4]"], "task 'iris' wants 3 of each 4 weights of layer .* 1 tasks fit"),
        (["pruning.density=0.3"], says("pruning.density", "null, or 0.5 with 2 of 4 weights", 0.3)),
        (["pruning.criterion=learned"], says("pruning.granularity", value="nm")),
    ],
)
def test_settings_that_n_of_m_weights_cannot_meet_are_refused_before_training(overrides, message, train_here, tmp_path):
    with pytest.raises(AssertionError, match=message):
        train_here(*QUICK, "pruning=nm", *overrides)
    assert not (tmp_path / "run" / "results.json").exists()


def test_tasks_of_a_stage_divide_the_blocks(train_here):
    settings = ["pruning.granularity=block", "pruning.density=0.5", "pruning.block_size=4", "curriculum=[[wine,iris]]"]
    folder, _ = train_here(*QUICK, *few_steps("wine", "iris"), *settings)
    state = read_state(folder / "network.safetensors", "network").state
    for task in ("wine", "iris"):
        owned = state.owned(task)
        assert all(is_in_blocks(mask, (4, 4)) for mask in owned.values())
        assert owned["layers.3.weight"].any(0).all()
        assert owned["layers.3.weight"].any(1).all()
        assert int(owned["layers.3.weight"].sum()) == 16 * 32
    assert state.total().free == 0


def test_a_gate_prunes_blocks_below_their_budget(learned):
    gated = ["pruning=gated", "trainer.max_epochs=6", "pruning.gate.tolerance=1.0"]
    results, folder = learned("pruning.granularity=block", "pruning.density=0.3", "pruning.block_size=[4,8]", *gated)
    state = read_state(folder / "network.safetensors", "network").state
    for task, row in results["tasks"].items():
        owned = state.owned(task)["layers.3.weight"]
        assert is_in_blocks(owned, (4, 8))
        assert 0 < int(owned.sum()) < 32 * 9  # of 32 blocks
        assert row["density"] < 0.3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning.density=0.6"], "task 'iris' wants 124 blocks of layer .*, but only 84 of its 208 are free"),
        (["pruning.block_size=16"], says("density", ">= 0.25", 0.1)),
        (["pruning.scope=erk"], says("pruning.scope", value="erk")),
    ],
)
def test_settings_that_blocks_cannot_meet_are_refused_before_training(overrides, message, train_here, tmp_path):
    with pytest.raises(AssertionError, match=message):
        train_here(*QUICK, "pruning.granularity=block", *overrides)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["pruning.granularity=neurons"],
            "pruning.granularity must be one of .*, got 'neurons'; did .*'neuron'",
        ),
        (["pruning.granularity=neuron", "pruning.scope=network"], says("pruning.scope", value="network")),
        (["pruning.granularity=neuron", "reuse=all"], says("reuse", value="all")),
        (["pruning.granularity=neuron", "pruning.density=0.4"], "task 'iris' wants 18 of the 32 units of layer"),
        (
            ["pruning.granularity=unit", "pruning.overlap=false", "pruning.density=0.4"],
            "wants 18 of the 32 units of layer .*or let tasks share units with pruning.overlap=true",
        ),
        (["pruning.granularity=unit", "pruning.density=0.6"], "wants 250 weights of layer .*, but only 166 are free"),
        (["pruning.overlap=true"], says("pruning.overlap", value=True)),
        (["pruning.granularity=neuron", "pruning.density=0.005"], "one unit of each layer .* takes 14"),
    ],
)
def test_settings_that_conflict_with_whole_units_are_refused_before_training(overrides, message, train_here, tmp_path):
    with pytest.raises(AssertionError, match=message):
        train_here(*QUICK, *overrides)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning=gradual", "pruning.regrow.share=0.3"], says("pruning.end", value=0.33)),
        (["pruning=regrow", "pruning.rewind=0"], says("pruning.rewind", value=0)),
        (["pruning=regrow", "pruning.granularity=unit"], says("pruning.regrow.by", value="gradient")),
        (["pruning=regrow", "pruning.regrow.share=1.5"], says("pruning.regrow.share", value=1.5)),
        (["pruning=regrow", "trainer.strategy=fsdp"], says("pruning.regrow.share", value=0.3)),
    ],
)
def test_settings_that_conflict_with_regrowth_are_refused_before_training(overrides, message, train_here, tmp_path):
    with pytest.raises(AssertionError, match=message):
        train_here(*QUICK, *overrides)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_parallel_stage_regrows_each_task_apart(train_here):
    folder, _ = train_here(*QUICK, "pruning=regrow", "curriculum=[[iris,wine]]", "pruning.density=0.45")
    results = json.loads((folder / "results.json").read_text())
    owners = read_state(folder / "network.safetensors", "network").state.owners
    for owner, row in enumerate(results["tasks"].values(), start=1):
        counts = [int((owners[f"layers.{place}.weight"] == owner).sum()) for place in (1, 3)]
        assert counts == [round(0.45 * 32 * 13), round(0.45 * 32 * 32)]
        assert row["test"] > 0.3


def test_neurons_of_a_backbone_with_convolutions_are_refused_before_training(train_here):
    conv = ["backbone=paper_conv", "backbone.input_shape=[1,11,11]", "pruning.granularity=neuron"]
    with pytest.raises(AssertionError, match=r"pruning.granularity 'neuron' .*'layers.0' \(Conv2d\)"):
        train_here(*QUICK, *conv, "threads=1", "trainer.accelerator=cpu", small=False)
