"""Write a few examples of a run's test splits into its folder, as raw inputs with the network's answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msh.files.atomic import write_bytes, write_text
from msh.inference.computing import Computing
from msh.inference.predictions import Predictions
from msh.runs.examples import FOLDER, INDEX, Example
from msh.runs.words import quantity
from msh.subnetworks import MultiSubnetwork
from msh.tasks import Task
from msh.tasks.columns import Boolean, Category, Date, Filled
from msh.tasks.outputs import Outputs, outputs_from_data
from msh.tasks.steps import Scale

NUMBER, TASKS = 4, 24
"""Most examples of a task, and most tasks."""
LARGEST = 96
"""Most pixels of an image's side; a larger image is written smaller."""
MOST_NUMBERS = 4096
"""Most numbers of an array."""


def write_examples(folder: Path, network: MultiSubnetwork, tasks: Mapping[str, tuple[Task, Computing]]) -> None:
    """Write `examples/`: a file of inputs per task, or per image, and an index with answers and targets.

    Args:
        folder: the run folder.
        network: has the tasks, frozen.
        tasks: name to the task, and to how the run evaluates it.
    """
    index: dict[str, list[Example]] = {}
    for name, (task, computing) in list(tasks.items())[:TASKS]:
        split = task.splits["test"]
        rows = torch.linspace(0, len(split) - 1, min(NUMBER, len(split))).round().long().unique()
        chosen = split.take(rows)
        inputs = chosen.inputs[:]
        device = next(iter(network.weights()))[1].device
        with computing.applied(device):
            raw = network.module(name)(inputs.to(device)).cpu()
            outputs = outputs_from_data(task.data_recipe()["outputs"])
            answers = Predictions(name, outputs, raw, outputs.values(raw), tuple(range(len(raw)))).to_rows()
        shown, files = _write_inputs(folder / FOLDER, name, task, inputs)
        index[name] = [
            {
                "file": files[min(number, len(files) - 1)] if files else None,
                "input": shown[number],
                "answer": {key: value for key, value in answer.items() if key != "index"},
                "target": _target(outputs, chosen.targets[number]),
            }
            for number, answer in enumerate(answers)
        ]
    network.forget_modules()  # memory does not grow with the number of tasks
    write_text(folder / FOLDER / INDEX, json.dumps(index, indent=1) + "\n")


def _target(outputs: Outputs, target: Tensor) -> str:
    if outputs.kind == "classification":
        return outputs.label(int(target))
    if outputs.kind == "multilabel":
        return ", ".join(outputs.label(place) for place, holds in enumerate(target.tolist()) if holds)
    return ", ".join(map(quantity, target.tolist()))


def _write_inputs(folder: Path, name: str, task: Task, inputs: Tensor) -> tuple[list[Any], list[str]]:
    """Write the examples as raw inputs.

    Returns:
        (each input as a page shows it, the files' names: one for each image, or one for all examples; none if the
        preprocessing cannot be undone).
    """
    folder.mkdir(exist_ok=True)
    numbers, kind = _undone(task, inputs), task.steps[0].step if task.steps else ""
    if numbers is None:
        return [None] * len(inputs), []
    if kind == "images" and numbers.shape[1] in (1, 3):
        files = [f"{name}-{number}.png" for number in range(len(numbers))]
        for file, image in zip(files, numbers, strict=True):
            write_bytes(folder / file, _png(image))
        return list(files), files
    if kind == "tokenize":
        texts = [_text(task.steps[0], ids) for ids in inputs.tolist()]
        write_text(folder / f"{name}.txt", "\n".join(texts) + "\n")
        return list(texts), [f"{name}.txt"]
    if kind == "table" and (rows := _rows(task.steps[0], numbers)) is not None:
        import pandas as pd

        write_text(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False))
        return list(rows), [f"{name}.csv"]
    if kind == "arrays" and numbers[0].numel() <= MOST_NUMBERS:
        content = BytesIO()
        np.save(content, numbers.numpy().astype(getattr(task.steps[0], "dtype", "float32")), allow_pickle=False)
        write_bytes(folder / f"{name}.npy", content.getvalue())
        return [None] * len(inputs), [f"{name}.npy"]
    return [None] * len(inputs), []


def _undone(task: Task, inputs: Tensor) -> Tensor | None:
    """Undo all steps of the preprocessing after the first one; None where one cannot be undone."""
    for step in reversed(task.steps[1:]):
        if not isinstance(step, Scale):
            return None
        inputs = inputs.double() * step.scale + step.shift
        known = (step.shift.abs() + step.scale.abs()).double() * 1e-6  # scaled inputs are float32
        digit = 10.0 ** known.clamp(min=1e-300).log10().floor()
        inputs = (inputs / digit).round() * digit
    return inputs


def _png(image: Tensor) -> bytes:
    """Encode an image (channels, height, width) in [0, 1]."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (height, width, channels)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST, LARGEST))
    content = BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def _text(step: Any, ids: list[int]) -> str:
    """Decode token ids; a text as the task's network reads it."""
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_str(step.tokenizer).decode(ids, skip_special_tokens=True)
    return " ".join(text.split())


def _rows(step: Any, features: Tensor) -> list[dict[str, Any]] | None:
    """Turn features (rows, features) back into cells by column; None where a column's features are hashes."""
    rows: list[dict[str, Any]] = [{} for _ in features]
    start = 0
    for column in step.columns:
        if column.role == "dropped":
            continue
        if not isinstance(column, Filled | Category | Date):
            return None
        for row, values in zip(rows, features[:, start : start + column.features].tolist(), strict=True):
            row[column.name] = _cell(column, values)
        start += column.features
    return rows


def _cell(column: Filled | Category | Date, values: list[float]) -> Any:
    """Return the cell that a column reads as these features."""
    if column.missing and round(values[-1]) == 1:
        return None
    if isinstance(column, Boolean):
        return bool(round(values[0]))
    if isinstance(column, Filled):
        number = float(f"{values[0]:.9g}") if math.isfinite(values[0]) else None
        return int(number) if number is not None and number.is_integer() else number
    if isinstance(column, Category):
        place = max(range(len(values)), key=values.__getitem__) if values else 0
        return column.values[place] if place < len(column.values) and round(values[place]) == 1 else "other"
    assert isinstance(column, Date)
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=column.start) + timedelta(days=values[0])
    if column.times:
        date += timedelta(milliseconds=500)
        return date.strftime(column.format or "%Y-%m-%dT%H:%M:%S")
    return (date + timedelta(hours=12)).strftime(column.format or "%Y-%m-%d")
