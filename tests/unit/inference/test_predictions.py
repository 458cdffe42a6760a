"""Rows of predictions: facts about an input and its answers side by side, whatever a task's values are called."""

import csv
import json
from argparse import ArgumentParser

import numpy as np
import pytest
import torch

import msh
from frozen import frozen
from msh.cli import predict
from msh.files.state_file import save_network
from msh.inference.predictions import Predictions, RoutedPredictions
from msh.tasks import RawData, Split, build_task
from msh.tasks.outputs import Outputs

NAMES = ("index", "input", "task", "index (predicted)", "price")
VALUES = torch.arange(10, dtype=torch.float64).view(2, 5)


def predictions(kind="regression"):
    outputs = Outputs(kind, 5, NAMES)
    return Predictions("a", outputs, VALUES, VALUES, (0, 3))


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_an_answer_never_hides_the_position_of_its_input(kind):
    found = predictions(kind)
    columns = ["index (predicted) (predicted)", *NAMES[1:]]
    assert [list(row.values()) for row in found.to_rows()] == [[0, 0, 1, 2, 3, 4], [3, 5, 6, 7, 8, 9]]
    assert list(found.to_rows()[0]) == ["index", *columns]
    frame = found.to_pandas()
    assert (frame.index.tolist(), list(frame.columns)) == ([0, 3], columns)
    assert frame.to_numpy().tolist() == VALUES.tolist()


def test_an_answer_never_hides_the_task_that_gave_it():
    routed = RoutedPredictions({"a": predictions()}, ("a", "a"), (0, 3))
    columns = ["task", "index (predicted) (predicted)", "input", "task (predicted)", *NAMES[3:]]
    frame = routed.to_pandas()
    assert (frame.index.tolist(), list(frame.columns)) == ([0, 3], columns)
    assert frame["task"].tolist() == ["a", "a"]
    assert frame.drop(columns="task").to_numpy().tolist() == VALUES.tolist()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "printed"])
def test_the_command_line_names_each_input(suffix, tmp_path, capsys):
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    split = Split(inputs, torch.randn(40, 3, generator=torch.Generator().manual_seed(1)))
    task = build_task("a", RawData("regression", split, split, 3, None, ("index", "input", "price")))
    backbone = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 8, "depth": 2}
    path, data, out = tmp_path / "network.safetensors", tmp_path / "in.npy", tmp_path / f"out.{suffix}"
    save_network(path, frozen(backbone, [task]))
    np.save(data, inputs[:2].numpy())
    parser = ArgumentParser()
    predict.arguments(parser)
    to_file = [] if suffix == "printed" else ["-o", str(out)]
    predict.predict(parser.parse_args([str(path), str(data), *to_file]))
    if suffix == "parquet":
        pandas = pytest.importorskip("pandas")
        rows = pandas.read_parquet(out).to_dict("records")
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        text = capsys.readouterr().out if suffix == "printed" else out.read_text()
        rows = list(csv.DictReader(text.splitlines()))
    assert [row.pop("input") for row in rows] == [f"{data}:1", f"{data}:2"]
    assert [list(row) for row in rows] == [["index (predicted)", "input (predicted)", "price"]] * 2
    assert [list(map(float, row.values())) for row in rows] == msh.load(path).predict(inputs[:2]).values.tolist()
