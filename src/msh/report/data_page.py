"""Show tasks' data before training: in the terminal, and as a page with samples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from msh.report.pages import Page, Section, write_page
from msh.runs.tables import Column, Table
from msh.tasks import Task
from msh.tasks.image_step import ReadImages
from msh.tasks.outputs import IGNORED
from msh.tasks.steps import Quantiles, Scale, Tokenize
from msh.tasks.table_plan import describe
from msh.tasks.table_step import ReadTable
from msh.tasks.windows import Windowed

SAMPLES = 8
"""Training examples on the page."""
SHOWN_FEATURES = 12
"""Features of an example on the page."""
SHOWN_ROWS, SHOWN_COLUMNS = 2, 40
"""Rows of a table that are shown as written, and columns of each."""
SHOWN_NUMBERS = 4
"""Features of a column that are shown; the others are counted."""
SHOWN_LETTERS = 300
"""Letters of a text that the page shows, and a token for five; cells and the terminal have a quarter of them."""


def facts_of(task: Task) -> list[tuple[str, str]]:
    """List (name, value) of what a task's data are."""
    counts = ", ".join(f"{name} {len(split):,}" for name, split in task.splits.items())
    facts = [("kind", task.kind), ("examples", counts), ("input shape", " x ".join(map(str, task.input_shape)))]
    if task.steps and isinstance(step := task.steps[0], ReadImages):
        facts.append(("images", f"{step.mode}, {step.size[0]} x {step.size[1]} pixels, {step.fit}"))
    if task.tokens is not None:
        facts += task.tokens.facts
    if task.kind == "regression":
        targets = task.splits["train"].targets
        for number, (low, high) in enumerate(zip(targets.amin(0).tolist(), targets.amax(0).tolist(), strict=True)):
            facts.append((f"target {number}" if task.outputs > 1 else "target", f"{low:g} to {high:g}"))
    return facts


def classes_of(task: Task) -> Table[Any] | None:
    """Count the examples of each class or label in each split; None for a regression and a language model."""
    if task.kind in ("regression", "lm"):
        return None
    counts = {}
    for name, split in task.splits.items():
        if task.kind == "multilabel":
            counts[name] = split.targets.sum(0).long().tolist()
        else:
            counts[name] = split.targets[split.targets != IGNORED].bincount(minlength=task.outputs).tolist()
    names = task.names or tuple(map(str, range(task.outputs)))
    columns = [Column[Any]("label" if task.kind == "multilabel" else "class", itemgetter(0), words=True)]
    columns += [Column(name, itemgetter(place), ",") for place, name in enumerate(counts, start=1)]
    return Table("Classes", columns, list(zip(names, *counts.values(), strict=True)))


def print_data(tasks: Mapping[str, Task], console: Console) -> None:
    """Print each task's facts, column plan, first training example and class counts."""
    for name, task in tasks.items():
        console.print(name, style="bold", markup=False)
        for fact, value in facts_of(task):
            console.print(f"  {fact}: {value}", markup=False, highlight=False)
        if task.steps and isinstance(task.steps[0], ReadTable):
            console.print(describe(task.steps[0]), markup=False, highlight=False)
        if (samples := samples_of(task, 1, SHOWN_LETTERS // 4)) is not None:
            console.print(f"{samples.title}:", markup=False, highlight=False)
            samples.print(console)
        if (classes := classes_of(task)) is not None:
            classes.print(console)


def write_data_page(tasks: Mapping[str, Task], warnings: Sequence[str], path: Path) -> None:
    """Write a page with samples of each task, and the warnings of its data.

    Raises:
        OSError: it cannot be written.
    """
    sections = [_section(number, task) for number, task in enumerate(tasks.values())]
    examples = sum(len(split) for task in tasks.values() for split in task.splits.values())
    tiles = [("tasks", f"{len(tasks):,}"), ("examples", f"{examples:,}")]
    write_page(path, Page("Data", "as training would read them", tiles, sections, notes=warnings))


def _section(number: int, task: Task) -> Section:
    tables = [table for table in (_columns(task), classes_of(task)) if table is not None]
    inputs = task.splits["train"].inputs[:SAMPLES]
    images: list[tuple[str, str]] = []
    if (samples := samples_of(task, SHOWN_ROWS if is_table(task) else SAMPLES)) is not None:
        tables.append(samples)
    elif inputs.dim() == 4 and inputs.shape[1] in (1, 3):
        targets = task.splits["train"].targets[:SAMPLES]
        images = [
            (_uri(image), _target(task, target)) for image, target in zip(_pixels(task, inputs), targets, strict=True)
        ]
    else:
        tables.append(_rows(inputs))
    lead = "; ".join(f"{name}: {value}" for name, value in facts_of(task))
    return Section(f"task-{number}", task.name, lead, tables=tables, images=images)


def is_table(task: Task) -> bool:
    """Tell whether a task's inputs are rows of a table."""
    return bool(task.steps) and isinstance(task.steps[0], ReadTable)


def samples_of(task: Task, examples: int, letters: int = SHOWN_LETTERS) -> Table[Any] | None:
    """Show the first training examples as written, beside what the network gets.

    Args:
        task: of rows of a table, or of texts; None for others, which have no such samples.
        examples: their number, at most SAMPLES.
        letters: of a text that are shown.
    """
    split = task.splits["train"]
    if split.raw is None:
        return None
    raw = split.raw[:examples]
    if isinstance(step := task.steps[0], Tokenize | Windowed):
        rows = [
            (
                _target(task, target),
                _cut(text if isinstance(text, str) else " ".join(text), letters),
                _listed(step.names(tokens), letters // 5, " "),
            )
            for text, tokens, target in zip(raw, split.inputs[:examples], split.targets, strict=False)
        ]
        names = ("class" if task.kind == "classification" else "target", "text", "tokens")
        columns = [Column[Any](name, itemgetter(i), words=True, wraps=True) for i, name in enumerate(names)]
        return Table("First training examples, as written and as tokens", columns, rows)
    assert isinstance(step, ReadTable)
    return _cells(task, step, raw)


def _cells(task: Task, step: ReadTable, raw: Any) -> Table[Any]:
    """Show rows of a table: a line per column, as written and as features."""
    split = task.splits["train"]
    inputs, start = split.inputs[: len(raw)], 0
    is_split = all(isinstance(later, Scale | Quantiles) for later in task.steps[1:])  # others mix the columns
    becomes: dict[str, list[str]] = {}
    roles: dict[str, str] = {column.name: column.role for column in step.columns}
    for column in step.columns:
        if column.role == "dropped":
            if column.note == "target":
                becomes[column.name] = [_target(task, target) for target in split.targets[: len(raw)]]
                roles[column.name] = "target"
            continue
        if is_split:
            numbers = inputs[:, start : start + column.features].tolist()
            becomes[column.name] = [_listed([f"{value:.3g}" for value in row], SHOWN_NUMBERS, ", ") for row in numbers]
        start += column.features
    rows = []
    for name in list(raw.columns)[:SHOWN_COLUMNS]:
        pairs = zip(raw[name].map(_cell), becomes.get(name, [""] * len(raw)), strict=True)
        rows.append((name, roles.get(name, ""), *(text for pair in pairs for text in pair)))
    columns = [Column[Any]("column", itemgetter(0), words=True), Column[Any]("role", itemgetter(1), words=True)]
    for number in range(1, len(raw) + 1):
        columns.append(Column(f"row {number}", itemgetter(2 * number), words=True, wraps=True))
        features = itemgetter(2 * number + 1)
        columns.append(Column(f"becomes {number}", features, header="becomes", words=True, wraps=True))
    more = len(raw.columns) - SHOWN_COLUMNS
    title = "First training rows, as written and as the network gets them"
    return Table(title + (f" ({more} more columns)" if more > 0 else ""), columns, rows)


def _cell(cell: str) -> str:
    return _cut(cell, SHOWN_LETTERS // 4)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[:letters]} ..."


def _listed(words: Sequence[str], shown: int, mark: str) -> str:
    more = [f"... ({len(words)})"] if len(words) > shown else []
    return mark.join([*words[:shown], *more])


def _columns(task: Task) -> Table[Any] | None:
    if not task.steps or not isinstance(task.steps[0], ReadTable):
        return None
    columns = [
        Column[Any]("column", lambda column: column.name, words=True),
        Column[Any]("role", lambda column: column.role, words=True),
        Column[Any]("features", lambda column: column.features),
        Column[Any]("note", lambda column: column.note, words=True, wraps=True),
    ]
    return Table("Columns", columns, task.steps[0].columns)


def _rows(inputs: Tensor) -> Table[Any]:
    flat = inputs.flatten(1)[:, :SHOWN_FEATURES].tolist()
    columns = [Column[Any]("training example", itemgetter(0), words=True)]
    columns += [Column(f"input {place}", itemgetter(place + 1), ".4g") for place in range(len(flat[0]))]
    rows = [(str(number), *row) for number, row in enumerate(flat)]
    return Table("First inputs, as the network gets them", columns, rows)


def _pixels(task: Task, inputs: Tensor) -> Tensor:
    """Undo the last scaling, and convert images to uint8 (images, height, width, channels)."""
    if task.steps and isinstance(scale := task.steps[-1], Scale):
        inputs = inputs * scale.scale + scale.shift
    levels = (inputs / inputs.max().clamp(min=1)).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)


def _uri(pixels: Tensor) -> str:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _target(task: Task, target: Tensor) -> str:
    if task.kind == "classification":
        return task.names[int(target)] if task.names else str(int(target))
    if task.kind == "regression":
        return ", ".join(f"{value:g}" for value in target.tolist())
    if task.kind == "lm":
        return f"{task.count(target)} next tokens"
    if task.kind == "token_classification":
        return _listed([task.names[number] for number in target[target != IGNORED].tolist()], SHOWN_FEATURES, " ")
    names = task.names or tuple(map(str, range(task.outputs)))
    return ", ".join(name for name, holds in zip(names, target.tolist(), strict=True) if holds)
