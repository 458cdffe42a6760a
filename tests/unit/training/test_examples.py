"""Examples of the test split are written as raw inputs, which the network's preprocessing reads as it read the data."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from frozen import frozen
from msh.inference.computing import Computing
from msh.inference.inputs import read_inputs
from msh.inference.predictor import as_examples
from msh.runs.examples import file_of, read_examples
from msh.tasks import RawData, Split, build_task
from msh.tasks.images import image_folder
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data
from msh.tasks.tables import table
from msh.tasks.task import Task
from msh.tasks.text import texts
from msh.tasks.tokens import Texts
from msh.training.examples import LARGEST, NUMBER, write_examples

BACKBONE = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 8, "depth": 1}


def places(task):
    """The test examples that are written."""
    return torch.linspace(0, len(task.splits["test"]) - 1, NUMBER).round().long()


def written(folder, *tasks):
    network = frozen(BACKBONE, tasks)
    write_examples(folder, network, {task.name: (task, Computing(8)) for task in tasks})
    return read_examples(folder)


def flats(folder, columns=None, **more):
    """A table with numbers, missing cells, categories, booleans and dates."""
    rows = 80
    frame = pd.DataFrame(
        {
            "size": [37.25 + 1.5 * (i % 13) for i in range(rows)],
            "rooms": [i % 7 for i in range(rows)],
            "heat": [("gas", "oil", None)[i % 3] for i in range(rows)],
            "lift": [("yes", "no")[i % 5 > 2] for i in range(rows)],
            "listed": [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(rows)],
            **more,
            "price": [1e6 + 1000 * (i % 17) for i in range(rows)],
        }
    )
    frame.to_csv(folder / "flats.csv", index=False)
    return build_task("flats", table(str(folder / "flats.csv"), target="price", kind="regression", columns=columns))


def test_rows_are_read_as_the_test_splits_features(tmp_path):
    task: Task = flats(tmp_path)
    examples = written(tmp_path, task)["flats"]
    assert len(examples) == NUMBER
    again = pd.read_csv(tmp_path / file_of(examples), dtype=str)
    assert torch.equal(prepare(task.steps, again), task.splits["test"].inputs[places(task)])
    lines = (tmp_path / "flats.csv").read_text().splitlines()[1:]
    for example in examples:
        assert any(line.startswith(",".join(cell or "" for cell in example["input"].values())) for line in lines)


@pytest.mark.parametrize("suffix", ["csv", "xlsx", "parquet"])
def test_rows_of_a_test_file_of_any_kind_are_read_again(suffix, tmp_path):
    pytest.importorskip({"xlsx": "openpyxl", "parquet": "pyarrow"}.get(suffix, "pandas"), reason="needs msh[tables]")
    frame = pd.DataFrame({"code": [f"0{i % 4}" for i in range(60)], "share": [i / 4 for i in range(60)]})
    frame["note"], frame["day"] = [f"a note {i % 9}, of many" for i in range(60)], pd.Timestamp("2024-02-03")
    frame["day"] += pd.to_timedelta(range(60), "D")
    frame["odd"] = [("no", "yes")[i % 2] for i in range(60)]
    files = {}
    for part, rows in (("path", frame), ("test_path", frame[::-1])):
        files[part] = str(tmp_path / f"{part}.{suffix}")
        {"csv": rows.to_csv, "xlsx": rows.to_excel, "parquet": rows.to_parquet}[suffix](files[part], index=False)
    task = build_task("odd", table(target="odd", columns={"note": "text", "code": "category"}, **files))
    examples = written(tmp_path, task)["odd"]
    read = read_inputs([task.steps], [str(tmp_path / file_of(examples))]).examples
    assert torch.equal(prepare(task.steps, read), task.splits["test"].inputs[places(task)])
    assert [float(example["input"]["share"]) for example in examples] == [14.75, 9.75, 5, 0]
    assert examples[0]["input"]["note"] == "a note 5, of many"


def test_numbers_are_written_as_in_the_file(tmp_path):
    rows = "".join(f"{i},250;{i}.000;$1.{i:03};{i % 2}\n" for i in range(1, 61))
    (tmp_path / "commas.csv").write_text("size;number;price;odd\n" + rows)
    task = build_task("commas", table(str(tmp_path / "commas.csv"), "odd", decimal=","))
    examples = written(tmp_path, task)["commas"]
    assert all(example["input"]["size"].endswith(",250") for example in examples)
    assert all(example["input"]["number"].endswith(".000") for example in examples)
    read = read_inputs([task.steps], [str(tmp_path / file_of(examples))]).examples
    assert torch.equal(prepare(task.steps, read), task.splits["test"].inputs[places(task)])


def test_texts_are_those_of_the_data_on_a_line_each(tmp_path):
    words = [f"A Film no. {i}\nof words that are NEVER\u2028in the vocabulary" for i in range(40)]
    labels = Split(torch.arange(40), torch.arange(40) % 2)
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    task = build_task("films", RawData("classification", labels, labels, 2, Texts(words, 5, 4)), stem=stem)
    examples = written(tmp_path, task)["films"]
    assert examples[0]["input"] == "A Film no. 0 of words that are NEVER in the vocabulary"
    lines = (tmp_path / file_of(examples)).read_text().splitlines()
    assert lines == [example["input"] for example in examples]


def test_texts_that_were_files_are_files_again(tmp_path):
    for name in ("ham", "spam"):
        (tmp_path / "mails" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "mails" / name / f"{i}.txt").write_text(f"{name} no. {i}\n\nwith several lines\n")
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    task = build_task("mails", texts(str(tmp_path / "mails"), vocabulary=30, length=9), stem=stem)
    examples = written(tmp_path, task)["mails"]
    files = [str(tmp_path / "examples" / example["file"]) for example in examples]
    read = read_inputs([steps_from_data(steps_to_data(task.steps))], files)
    assert (read.examples, read.names) == ([example["input"] for example in examples], files)
    assert torch.equal(prepare(task.steps, read.examples), task.splits["test"].inputs[places(task)])
    folder = read_inputs([task.steps], [str(tmp_path / "mails")])
    assert len(folder.examples) == 40
    (tmp_path / "more.jsonl").write_text('"a b"\n"c"\n')
    assert read_inputs([task.steps], [str(tmp_path / "more.jsonl")]).examples == ["a b", "c"]


@pytest.mark.parametrize("change", ["other cells", "fewer rows", "gone"])
def test_data_that_has_changed_is_shown_without_inputs_and_named(change, tmp_path, caplog):
    task, file = flats(tmp_path), tmp_path / "flats.csv"
    lines = file.read_text().splitlines()
    if change == "gone":
        file.unlink()
    else:
        kept = [lines[0], *reversed(lines[1:])] if change == "other cells" else lines[:9]
        file.write_text("\n".join(kept) + "\n")
    examples = written(tmp_path, task)["flats"]
    assert {(example["file"], example["input"]) for example in examples} == {(None, None)}
    assert all(example["answer"]["price"] == pytest.approx(1e6, rel=0.1) for example in examples)
    assert "task 'flats': the report shows no inputs of its examples" in caplog.text


@pytest.mark.parametrize(("mode", "side"), [("L", 8), ("RGB", 8), ("RGB", 150)])
def test_images_are_the_pixels_that_were_read_and_large_ones_are_made_small(mode, side, tmp_path):
    random, pixels = np.random.default_rng(0), set()
    for name in ("crow", "wren"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for i in range(12):
            image = random.integers(0, 256, (side, side, 3) if mode == "RGB" else (side, side), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "birds" / name / f"{i}.png")
            pixels.add(image.tobytes())
    examples = written(tmp_path, build_task("birds", image_folder(str(tmp_path / "birds"), size=side)))["birds"]
    for example in examples:
        with Image.open(tmp_path / "examples" / example["file"]) as image:
            assert (image.mode, image.size) == (mode, (min(side, LARGEST),) * 2)
            if side <= LARGEST:
                assert np.asarray(image).tobytes() in pixels


def test_arrays_are_written_in_one_file(tmp_path):
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    split = Split(inputs, torch.arange(20) % 2)
    task = build_task("arrays", RawData("classification", split, split, 2, None, ("low", "high")))
    examples = written(tmp_path, task)["arrays"]
    array = np.load(io.BytesIO((tmp_path / file_of(examples)).read_bytes()))
    np.testing.assert_allclose(as_examples(task.steps, array), inputs[[0, 6, 13, 19]], rtol=1e-5, atol=1e-5)
    assert [example["target"] for example in examples] == ["low", "low", "high", "high"]
    json.loads((tmp_path / "examples" / "index.json").read_text())
