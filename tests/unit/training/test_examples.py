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
from msh.inference.predictor import as_examples
from msh.runs.examples import file_of, read_examples
from msh.tasks import RawData, Split, build_task
from msh.tasks.images import image_folder
from msh.tasks.tables import table
from msh.tasks.task import Task
from msh.training.examples import LARGEST, NUMBER, write_examples

BACKBONE = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 8, "depth": 1}


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
    again = pd.read_csv(tmp_path / file_of(examples))
    features = task.steps[0](again)
    for step in task.steps[1:]:
        features = step(features)
    places = torch.linspace(0, len(task.splits["test"]) - 1, NUMBER).round().long()
    torch.testing.assert_close(features, task.splits["test"].inputs[places], rtol=1e-4, atol=1e-4)
    assert all(row["size"] * 4 % 1 == 0 and isinstance(row["rooms"], int) for row in (e["input"] for e in examples))


def test_a_table_whose_words_are_hashed_has_answers_and_no_file(tmp_path):
    names = [f"street {i % 33} of the town" for i in range(80)]
    examples = written(tmp_path, flats(tmp_path, {"street": "text"}, street=names))["flats"]
    assert {example["file"] for example in examples} == {None}
    assert all(example["answer"]["price"] == pytest.approx(1e6, rel=0.1) for example in examples)
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["index.json"]


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
