"""A run of tasks with the same form of input chooses a router, which its file carries: no data is needed to route."""

import csv
import json

import numpy as np
import pytest
import torch
from running import SMALL, few_steps, here
from sklearn.datasets import load_digits

import msh
from msh.cli import app, train
from msh.files.state_file import read_state
from msh.inference.router import RULES
from msh.report.terminal import new_console, print_results
from msh.runs.results import Results
from msh.training.evaluation import load_run

HALVES = "tasks.digits.variants={split_classes:[[0,1,2,3,4],[5,6,7,8,9]]}"
IMAGES = load_digits().images[:200, None]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A run of two halves of the digits, and of a table; its folder."""
    folder = tmp_path_factory.mktemp("split") / "run"
    settings = ["tasks=[digits,wine]", HALVES, "trainer.max_epochs=6", "logger=none", f"hydra.run.dir={folder}"]
    here(train.main, "+experiment=sequential", *settings, *SMALL, cwd=folder.parent)
    return folder


def test_results_say_how_often_the_router_is_right(split):
    """The scores are those of the predictor, by the file alone, on the raw test split."""
    results = Results.load(split)
    [form] = results.router["forms"]
    names = [*RULES, *(f"{rule}, standardized" for rule in RULES)]
    assert sorted(form["validation"]) == sorted(names)
    assert form["validation"][form["rule"]] == max(form["validation"].values())
    assert form["candidates"] == ["digits_0", "digits_1"]
    _, tasks, _ = load_run(split)
    predictor = msh.load(split)
    both = []
    for name in form["candidates"]:
        test = tasks[name].splits["test"]
        pixels = tasks[name].as_read("test", torch.arange(len(test))) * 16
        assert torch.allclose(pixels, pixels.round(), atol=1e-4)
        found = predictor.predict(pixels.round())
        right = np.array([task == name for task in found.tasks])
        assert right.mean() == pytest.approx(results.router["tasks"][name], abs=2.1 / len(test))  # rounding
        labels = [tasks[name].names[target] for target in test.targets]
        both.append((right & np.array([a == b for a, b in zip(found.labels, labels, strict=True)])).mean())
    assert np.mean(both) == pytest.approx(results.router["class_incremental"], abs=0.02)
    assert results.router["accuracy"] == pytest.approx(np.mean(list(results.router["tasks"].values())))
    assert results.router["accuracy"] > 0.6


def test_the_terminal_says_so(split, capsys):
    print_results(Results.load(split), new_console())
    assert "inputs without a task:" in capsys.readouterr().out


def test_routes_are_those_of_each_task_after_reloading(split, tmp_path):
    first = msh.load(split).predict(IMAGES)
    (tmp_path / "copy.safetensors").write_bytes((split / "network.safetensors").read_bytes())
    predictor = msh.load(tmp_path / "copy.safetensors")
    found = predictor.predict(IMAGES)
    assert found.tasks == first.tasks
    assert set(found.tasks) == {"digits_0", "digits_1"}
    for name in set(found.tasks):
        rows = [row for row, task in enumerate(found.tasks) if task == name]
        assert torch.equal(found.parts[name].raw[rows], predictor.predict(name, IMAGES).raw[rows])
        assert torch.equal(found.parts[name].raw, first.parts[name].raw)
        for row in rows[:5]:
            assert found[row] == predictor.predict(name, IMAGES)[row]


def test_the_command_routes_and_exports_all(split, tmp_path):
    np.save(tmp_path / "digits.npy", IMAGES)
    from PIL import Image

    for i in range(3):
        Image.fromarray((IMAGES[i, 0] * 15.9).astype("uint8")).save(tmp_path / f"{i}.png")
    here(app.main, "predict", split, *sorted(tmp_path.glob("*.png")), "-o", tmp_path / "answers.csv", cwd=tmp_path)
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    expected = msh.load(split).predict(sorted(tmp_path.glob("*.png")))
    assert [(row["task"], row["label"]) for row in rows] == list(zip(expected.tasks, expected.labels, strict=True))
    columns = msh.load(split).tasks["wine"].steps[0].inputs
    (tmp_path / "wine.csv").write_text(",".join(columns) + "\n" + ",".join("1" * len(columns)) + "\n")
    here(app.main, "predict", split, tmp_path / "wine.csv", "-o", tmp_path / "wines.csv", cwd=tmp_path)
    assert [row["task"] for row in csv.DictReader((tmp_path / "wines.csv").read_text().splitlines())] == ["wine"]
    with pytest.raises(SystemExit):  # files of two kinds
        here(app.main, "predict", split, tmp_path / "wine.csv", tmp_path / "0.png", cwd=tmp_path)
    with pytest.raises(SystemExit):  # tasks with other inputs
        here(app.main, "export", split, "--task", "all", "-o", tmp_path / "all.pt2", cwd=tmp_path)
    here(app.main, "export", split, "--task", "all", "-o", tmp_path / "all.safetensors", cwd=tmp_path)
    assert list(msh.load(tmp_path / "all.safetensors").tasks) == ["digits_0", "digits_1", "wine"]
    assert msh.load(tmp_path / "all.safetensors").predict(IMAGES).tasks == msh.load(split).predict(IMAGES).tasks


def test_a_run_without_tasks_of_one_form_has_no_router(tmp_path):
    """Two copies of the same data cannot be told apart; a table and images are by their form."""
    folder = tmp_path / "run"
    settings = ["tasks=[digits,wine]", "tasks.wine.variants=2", "trainer.max_epochs=2", "logger=none"]
    settings += few_steps("digits", "wine")
    here(train.main, "+experiment=sequential", *settings, f"hydra.run.dir={folder}", *SMALL, cwd=tmp_path)
    assert json.loads((folder / "results.json").read_text())["router"] is None
    predictor = msh.load(folder)
    assert predictor.predict(IMAGES).tasks == ("digits",) * 200
    with pytest.raises(ValueError, match="name the task: the inputs fit wine_0, wine_1, and the file has no router"):
        predictor.predict(dict.fromkeys(predictor.tasks["wine_0"].steps[0].inputs, 1.0))


def grown(network, folder, *settings, **tasks):
    """Add tasks of some digits, name to classes, to a network without its tasks' data; (its results, predictor)."""
    (folder.parent / "my" / "tasks").mkdir(parents=True, exist_ok=True)
    for name, classes in tasks.items():
        source = "  source: {_target_: msh.tasks.bundled.bundled, name: digits}\n"
        block = f"{name}:\n{source}  transforms: [split_classes: {classes}]\n  normalize: all\n  batch_size: 16\n"
        (folder.parent / "my" / "tasks" / f"{name}.yaml").write_text(block)
    own = ["--config-dir", "my", "+experiment=sequential", f"hydra.run.dir={folder}", "trainer.max_epochs=6"]
    own += ["logger=none", *(["tasks=[" + ",".join(tasks) + "]"] if tasks else [])]
    small = SMALL if network is None else [f"network={network}", *(one for one in SMALL if "backbone" not in one)]
    here(train.main, *own, *small, *settings, cwd=folder.parent)
    return Results.load(folder), msh.load(folder)


def test_a_task_without_the_others_data_takes_over_their_rule(split, tmp_path, capsys):
    """Tasks without data keep their statistics; the new one has its own."""
    results, predictor = grown(split, tmp_path / "run", new=[7, 8, 9])
    [form] = results.router["forms"]
    before, after, old = msh.load(split).tasks, predictor.tasks, ["digits_0", "digits_1"]
    assert (form["candidates"], form["rule"]) == ([*old, "new"], before["digits_0"].route.name)
    assert (form["validated"], form["validation"]) == (False, {})
    assert list(results.router["tasks"]) == ["new"]
    for name in old:
        changed = {"tasks": [*old, "new"], "validated": False}
        assert after[name].route.to_data() == before[name].route.to_data() | changed
    found = predictor.predict(IMAGES)
    assert not found.validated
    assert set(found.tasks) == {*old, "new"}
    assert predictor.predict(IMAGES, among=["digits_0"]).tasks == ("digits_0",) * 200
    capsys.readouterr()
    print_results(results, new_console())
    assert "not validated with all tasks" in " ".join(capsys.readouterr().out.split())
    from PIL import Image

    Image.fromarray((IMAGES[0, 0] * 15.9).astype("uint8")).save(tmp_path / "digit.png")
    here(app.main, "predict", tmp_path / "run", tmp_path / "digit.png", "-o", tmp_path / "out.csv", cwd=tmp_path)
    assert "is not validated" in capsys.readouterr().err


def test_a_task_of_another_form_changes_no_route(split, tmp_path):
    results, predictor = grown(split, tmp_path / "run", "tasks=[iris]", *few_steps("iris"))
    assert results.router is None
    before, after = msh.load(split).tasks, predictor.tasks
    for name in ("digits_0", "digits_1"):
        assert after[name].route.to_data() == before[name].route.to_data()
    found = predictor.predict(IMAGES)
    assert (found.tasks, found.validated) == (msh.load(split).predict(IMAGES).tasks, True)


def test_tasks_that_are_added_one_by_one_are_routed(tmp_path):
    """The first task alone has the rule that suits all kinds; the second one takes it over."""
    results, _ = grown(None, tmp_path / "first", low=[0, 1, 2, 3, 4])
    assert results.router is None
    results, predictor = grown(tmp_path / "first", tmp_path / "second", high=[5, 6, 7, 8, 9])
    assert results.router["forms"][0]["rule"] == "means, standardized"
    found = predictor.predict(IMAGES)
    is_high = np.array([task == "high" for task in found.tasks])
    right = (is_high == (load_digits().target[:200] > 4)).mean()
    assert (right > 0.6, found.validated) == (True, False)


def test_tasks_without_a_stored_rule_are_named(tmp_path, capsys):
    """The network of an earlier release has no statistics of its only task: there is no router, and the log says so."""
    grown(None, tmp_path / "first", "trainer.max_epochs=1", low=[0, 1, 2, 3, 4])
    file = read_state(tmp_path / "first" / "network.safetensors")
    del file.state.tasks["low"].recipe["router"]
    earlier, second = tmp_path / "earlier.safetensors", tmp_path / "second"
    file.write(earlier)
    results, predictor = grown(earlier, second, "trainer.max_epochs=1", high=[5, 6, 7, 8, 9])
    assert results.router is None
    printed = " ".join(capsys.readouterr().out.split())
    assert "not routed between low, high: low has no rule, and this run does not have its data" in printed
    with pytest.raises(ValueError, match="name the task: the inputs fit low, high, and the file has no router"):
        predictor.predict(IMAGES)
