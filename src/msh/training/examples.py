"""Write a few examples of a run's test splits into its folder, as raw inputs with the network's answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from msh.files.atomic import write_bytes, write_text
from msh.inference.computing import Computing
from msh.inference.language import token_answers
from msh.inference.predictions import Predictions
from msh.runs.examples import FOLDER, INDEX, Example
from msh.runs.words import quantity
from msh.subnetworks import MultiSubnetwork
from msh.tasks import Task
from msh.tasks.cells import as_text
from msh.tasks.outputs import Outputs, outputs_from_data
from msh.tasks.preprocessing import prepare
from msh.tasks.steps import ReadArrays, Tokenize
from msh.tasks.table_step import ReadTable
from msh.tasks.windows import TaggedWords, Windowed

log = logging.getLogger(__name__)

NUMBER, TASKS = 4, 24
"""Most examples of a task, and most tasks."""
LARGEST = 96
"""Most pixels of an image's side; a larger image is written smaller."""
MOST_NUMBERS = 4096
"""Most numbers of an array."""
MOST_LETTERS = 1000
"""Letters of a text, where each token has an answer: such texts may be books."""


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
        device = next(iter(network.weights()))[1].device
        if task.per_token:
            index[name] = _of_texts(folder / FOLDER, network.module(name), task, rows, computing, device)
            continue
        with computing.applied(device):
            raw = network.module(name)(chosen.inputs[:].to(device)).cpu()
            outputs = outputs_from_data(task.data_recipe()["outputs"])
            answers = Predictions(name, outputs, raw, outputs.values(raw), tuple(range(len(raw)))).to_rows()
        shown, files = _write_inputs(folder / FOLDER, name, task, rows)
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


def _of_texts(
    folder: Path, module: nn.Module, task: Task, rows: Tensor, computing: Computing, device: torch.device
) -> list[Example]:
    """Write the texts of a task's test windows, a text per line; return them with the answers to them."""
    split, step = task.splits["test"], cast(Windowed, task.steps[0])
    assert split.raw is not None
    texts = [" ".join(text.split() if isinstance(text, str) else text)[:MOST_LETTERS] for text in split.raw[rows]]
    texts = [text for text in dict.fromkeys(texts) if len(step.windows([text], strict=False).tokens)]
    if not texts:
        return []
    outputs = outputs_from_data(task.data_recipe()["outputs"])
    with computing.applied(device):
        raw, numbers = token_answers(module, outputs, step, texts, computing.batch_size, device)
    words = tuple(map(step.words, texts)) if isinstance(step, TaggedWords) else ()
    answers = Predictions(task.name, outputs, raw, numbers, tuple(range(len(texts))), {}, words).to_rows()
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{task.name}.txt", "\n".join(texts) + "\n")
    return [
        {
            "file": f"{task.name}.txt",
            "input": text,
            "answer": {key: value for key, value in answer.items() if key not in ("index", "text")},
            "target": "",
        }
        for text, answer in zip(texts, answers, strict=True)
    ]


def _target(outputs: Outputs, target: Tensor) -> str:
    if outputs.kind == "classification":
        return outputs.label(int(target))
    if outputs.kind == "multilabel":
        return ", ".join(outputs.label(place) for place, holds in enumerate(target.tolist()) if holds)
    return ", ".join(map(quantity, target.tolist()))


def _write_inputs(folder: Path, name: str, task: Task, rows: Tensor) -> tuple[list[Any], list[str]]:
    """Write test examples as raw inputs: texts and rows of tables as their file has them, others as they were read.

    Returns:
        (each input as a page shows it, the files' names: one for each image, and for each text that was a file, else
        one for all examples; none if the raw inputs are unknown).
    """
    folder.mkdir(exist_ok=True)
    kind = task.steps[0].step if task.steps else ""
    if task.splits["test"].raw is not None:
        raw = _raw_inputs(task, rows)
        if raw is not None and kind == "tokenize":
            if cast(Tokenize, task.steps[0]).files:
                files = [f"{name}-{number}.txt" for number in range(len(raw))]
                for file, text in zip(files, raw, strict=True):
                    write_text(folder / file, text)
                return list(raw), files
            texts = [" ".join(text.splitlines()) for text in raw]  # the file has a text per line
            write_text(folder / f"{name}.txt", "\n".join(texts) + "\n")
            return list(texts), [f"{name}.txt"]
        if raw is not None:
            cells = raw[cast(ReadTable, task.steps[0]).inputs]
            write_text(folder / f"{name}.csv", cells.to_csv(index=False))
            shown = [{column: as_text(cell) for column, cell in row.items()} for row in cells.to_dict("records")]
            return shown, [f"{name}.csv"]
        return [None] * len(rows), []
    numbers = task.as_read("test", rows)
    if numbers is not None and kind == "images" and numbers.shape[1] in (1, 3):
        files = [f"{name}-{number}.png" for number in range(len(numbers))]
        for file, image in zip(files, numbers, strict=True):
            write_bytes(folder / file, _png(image))
        return list(files), files
    if numbers is not None and kind == "arrays" and numbers[0].numel() <= MOST_NUMBERS:
        content = BytesIO()
        np.save(content, numbers.numpy().astype(cast(ReadArrays, task.steps[0]).dtype), allow_pickle=False)
        write_bytes(folder / f"{name}.npy", content.getvalue())
        return [None] * len(rows), [f"{name}.npy"]
    return [None] * len(rows), []


def _raw_inputs(task: Task, rows: Tensor) -> Any:
    """Read the raw inputs of test examples; None, with a warning, if their file is gone or has changed since."""
    split = task.splits["test"]
    assert split.raw is not None
    try:
        raw = split.raw[rows]
        if torch.allclose(prepare(task.steps, raw).double(), split.inputs[rows].double()):
            return raw
        reason = "the data has changed since it was loaded"
    except (OSError, ValueError) as error:
        reason = str(error)
    log.warning("task %r: the report shows no inputs of its examples: %s", task.name, reason)
    return None


def _png(image: Tensor) -> bytes:
    """Encode an image (channels, height, width) in [0, 1]."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (height, width, channels)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST, LARGEST))
    content = BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()
