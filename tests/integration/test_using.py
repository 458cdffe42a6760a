"""What a run has learned is used elsewhere: no data, no config, a new process; bitwise the run's own outputs."""

import contextlib
import csv
import io
import json
import shutil

import forking
import numpy as np
import pytest
import torch
from PIL import Image
from running import SMALL, here

import msh
from msh.cli import app, evaluate, train
from msh.files.state_file import open_safetensors, write_safetensors
from msh.inference.computing import Computing
from msh.training.callbacks.guarantee import RECORDS
from msh.training.evaluation import load_run

TASKS = """
birds:
  source:
    _target_: msh.tasks.images.image_folder
    path: ${paths.data_dir}/birds
    size: 8
  batch_size: 8
houses:
  source:
    _target_: msh.tasks.tables.csv_table
    path: ${paths.data_dir}/houses.csv
    target: price
    kind: regression
  batch_size: 8
flats:
  source:
    _target_: msh.tasks.tables.csv_table
    path: ${paths.data_dir}/flats.csv
    target: sold
  batch_size: 8
mails:
  source:
    _target_: msh.tasks.text.csv_text
    path: ${paths.data_dir}/mails.csv
    text: message
    label: label
    vocabulary: 40
    length: 6
  stem:
    _target_: msh.tasks.stems.TokenStem
    width: 4
    pooling: mean
  batch_size: 8
"""
CLASSES = {"birds": ("crow", "wren"), "flats": ("no", "yes"), "mails": ("ham", "spam")}


def write_data(folder):
    """Images, tables with categories and missing values, texts; small."""
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES["birds"]):
        (folder / "birds" / name).mkdir(parents=True)
        for i in range(24):
            pixels = random.integers(0, 100, (10, 9, 3)) + 120 * number
            Image.fromarray(pixels.astype("uint8")).save(folder / "birds" / name / f"{i}.png")
    rows = ["rooms,street,built,price"]
    flats = ["rooms,floor,heating,sold"]
    mails = ["message,label"]
    for i in range(60):
        street = ("High Road", "Mill Lane", "Park Row")[i % 3]
        rows.append(f"{i % 7},{street if i % 11 else ''},{1950 + i % 40},{1e6 + 1000 * (i % 7) + 100 * (i % 3)}")
        flats.append(f"{i % 5},{i % 3 if i % 9 else 'NA'},{('gas', 'oil')[i % 2]},{('no', 'yes')[i % 5 > 2]}")
        mails.append(f'"buy {"gold" if i % 2 else "milk"}, item {i % 9}",{("ham", "spam")[i % 2]}')
    for name, lines in (("houses", rows), ("flats", flats), ("mails", mails)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A run that was moved, and whose data is gone, with copies of the raw inputs.

    Returns (run folder, folder with raw inputs, task to the test split's tensors, task to the run's outputs for them).
    """
    place = tmp_path_factory.mktemp("used")
    data = place / "data"
    write_data(data)
    (place / "my" / "tasks").mkdir(parents=True)
    (place / "my" / "tasks" / "four.yaml").write_text(TASKS)
    folder, moved = place / "run", place / "elsewhere" / "run of June"
    settings = [f"paths.data_dir={data}", "trainer.max_epochs=3", "logger=none", *SMALL]
    own = ["--config-dir", str(place / "my"), "+experiment=sequential", "tasks=four", f"hydra.run.dir={folder}"]
    here(train.main, *own, *settings, cwd=place)
    _, tasks, network = load_run(folder)
    prepared = {name: task.splits["test"].inputs[:] for name, task in tasks.items()}
    with Computing(flush_denormal=True).applied(torch.device("cpu")):
        outputs = {
            name: torch.cat([network.module(name)(batch) for batch in inputs.split(tasks[name].batch_size)]).clone()
            for name, inputs in prepared.items()
        }
    shutil.move(data, place / "inputs")
    moved.parent.mkdir()
    shutil.move(folder, moved)
    return moved, place / "inputs", prepared, outputs


def raw_inputs(folder, task):
    """Raw inputs of a task, as a user has them: (examples, the input column of texts or None)."""
    if task == "birds":
        return sorted(folder.rglob("*.png"))
    rows = list(csv.DictReader((folder / f"{task}.csv").read_text().splitlines()))
    return [row["message"] for row in rows] if task == "mails" else rows


def test_rows(predictor, folder, task, prepared):
    """The raw inputs of the test split, in its order, found by the tensors that they become."""
    raw = raw_inputs(folder, task)
    places = {row.numpy().tobytes(): i for i, row in enumerate(predictor.prepare(task, raw))}
    return [raw[places[row.numpy().tobytes()]] for row in prepared[task]]


test_rows.__test__ = False
NAMES = ["birds", "houses", "flats", "mails"]


def test_the_file_tells_what_can_be_asked(used):
    predictor = msh.load(used[0])
    assert {name: task.kind for name, task in predictor.tasks.items()} == {
        "birds": "classification",
        "houses": "regression",
        "flats": "classification",
        "mails": "classification",
    }
    assert {name: task.names for name, task in predictor.tasks.items() if name != "houses"} == CLASSES


@pytest.mark.parametrize("task", NAMES)
def test_raw_inputs_get_the_runs_outputs_bitwise(used, task):
    folder, inputs, prepared, outputs = used
    predictor = msh.load(folder / "network.safetensors")
    answers = predictor.predict(task, test_rows(predictor, inputs, task, prepared))
    assert torch.equal(answers.raw, outputs[task])


@pytest.mark.parametrize("task", NAMES)
def test_a_new_process_answers_the_same_on_the_command_line(used, task, tmp_path):
    folder, inputs, prepared, _ = used
    predictor = msh.load(folder)
    rows = test_rows(predictor, inputs, task, prepared)
    if task == "birds":
        files = [str(file) for file in rows]
    elif task == "mails":
        (tmp_path / "in.txt").write_text("\n".join(rows) + "\n")
        files = [str(tmp_path / "in.txt")]
    else:
        with (tmp_path / "in.csv").open("w") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        files = [str(tmp_path / "in.csv")]
    printed = forking.run("msh", "predict", folder, "--task", task, *files, cwd=tmp_path)
    found = list(csv.DictReader(io.StringIO(printed)))
    expected = predictor.predict(task, rows).to_rows()
    key = "price" if task == "houses" else "probability"
    assert [row[key] for row in found] == [str(row[key]) for row in expected]
    assert [row.get("label") for row in found] == [row.get("label") for row in expected]


def test_bad_rows_are_named_and_may_be_skipped(used, tmp_path, capsys):
    folder, inputs, _, _ = used
    lines = (inputs / "houses.csv").read_text().splitlines()[:4]
    lines[2] = lines[2].replace(lines[2].split(",")[0], "many", 1)
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    arguments = ["predict", folder, "--task", "houses", tmp_path / "bad.csv"]
    with pytest.raises(SystemExit) as stop:
        here(app.main, *arguments, cwd=tmp_path)
    error = capsys.readouterr().err
    assert (stop.value.code, "bad.csv" in error, "'rooms'" in error, "'many'" in error) == (1, True, True, True)
    with pytest.raises(SystemExit) as stop:
        here(app.main, *arguments, "--skip-bad", "-o", tmp_path / "out.jsonl", cwd=tmp_path)
    assert stop.value.code == 3
    assert len([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]) == 2


def test_rows_without_a_column_are_refused_and_unseen_categories_are_not(used):
    predictor = msh.load(used[0])
    row = {"rooms": 3, "street": "A street that no one has seen", "built": 1970}
    assert len(predictor.predict("houses", row)) == 1
    with pytest.raises(ValueError, match=r"task 'houses'.*'built'"):
        predictor.predict("houses", {"rooms": 3, "street": "Park Row"})


@pytest.mark.parametrize("changed", [False, True])
def test_evaluate_exits_with_another_code_where_a_task_has_changed(used, tmp_path, capsys, changed):
    run = shutil.copytree(used[0], tmp_path / "run")
    record = run / RECORDS / "flats.safetensors"
    tensors, metadata = open_safetensors(record)
    write_safetensors(record, tensors, metadata | ({"digest": "0" * 64} if changed else {}))
    with pytest.raises(SystemExit) if changed else contextlib.nullcontext() as stop:
        here(evaluate.main, f"run={run}", f"paths.data_dir={used[1]}", cwd=tmp_path)
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*NAMES, "evaluation.json"])
    assert ("guarantee violated: task 'flats' has changed" in printed) == changed
    assert len(json.loads((run / "evaluation.json").read_text())) == len(NAMES)
    if changed:
        assert stop.value.code == evaluate.VIOLATED == 4


@pytest.mark.parametrize("task", NAMES)
def test_an_export_computes_what_the_predictor_does(used, task, tmp_path):
    folder, inputs, prepared, _ = used
    predictor = msh.load(folder)
    rows = test_rows(predictor, inputs, task, prepared)
    here(app.main, "export", folder, "--task", task, "-o", tmp_path / "task.pt2", cwd=tmp_path)
    first = predictor.tasks[task].steps[0]
    found = torch.export.load(tmp_path / "task.pt2").module()(first(rows))[-1]
    torch.testing.assert_close(found, predictor.predict(task, rows).numbers, rtol=1e-5, atol=1e-5)
