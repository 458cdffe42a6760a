"""Answer the inputs that a command line names, with a trained network."""

from __future__ import annotations

import csv
import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from msh.cli.own import add_allow, allowed

SOME_BAD = 3
"""Exit code where some inputs were skipped."""
FORMATS = (".csv", ".jsonl", ".parquet")


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, network or subnetwork file, or hf://user/name")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images: files, folders, patterns; tables: CSV, TSV, JSONL, Parquet, Excel; texts: one per line, or per "
        "file if the task was trained on files, or a table with --column; arrays: NPY, or a JSON list per line; - is "
        "standard input",
    )
    parser.add_argument(
        "--task", help="the task; without it, the most confident of the tasks that read such inputs answers each"
    )
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help=f"file to write: {', '.join(FORMATS)}")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="show the K most probable classes")
    parser.add_argument("--column", help="texts in a table: the column with the texts")
    parser.add_argument("--encoding", default="utf-8", help="of CSV files, JSONL and texts; default: utf-8")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help=f"answer the inputs that can be read, name the others, and exit with {SOME_BAD}; by default, nothing is "
        "answered if an input is bad",
    )
    parser.add_argument("--base", help="network file with the tasks that a subnetwork file's task reads")
    add_allow(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")
    parser.add_argument("--batch-size", type=int, metavar="N", help="inputs per batch; default: as the run evaluated")


def predict(given: Namespace) -> None:
    """Predict, and write or print the answers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument, a file or an input is invalid.
    """
    from msh.errors import Problems, at_least, one_of
    from msh.inference.inputs import read_inputs
    from msh.inference.predictions import AnyPredictions, with_facts
    from msh.inference.predictor import load

    with Problems() as problems:
        problems.check(at_least, "--top", 1, given.top)
        if given.batch_size is not None:
            problems.check(at_least, "--batch-size", 1, given.batch_size)
        if given.out is not None:
            problems.check(one_of, "-o: the suffix", given.out.suffix, FORMATS)
    predictor = load(given.source, base=given.base, classes=allowed(given.allow), device=given.device)
    tasks = [predictor.task(name) for name in (predictor.candidates if given.task is None else [given.task])]
    inputs = read_inputs([task.steps for task in tasks], given.inputs, given.column, given.encoding)
    how = {"batch_size": given.batch_size, "skip_bad": given.skip_bad, "names": inputs.names}
    readers = [task.name for task in tasks if task.steps[0].step == inputs.kind]
    answers: AnyPredictions = (
        predictor.predict(inputs.examples, among=readers, **how)
        if len(tasks) > 1
        else predictor.predict(tasks[0].name, inputs.examples, **how)
    )
    rows = [with_facts({"input": inputs.names[row.pop("index")]}, row) for row in answers.to_rows(given.top)]
    if given.out is not None:
        _write(rows, given.out)
        print(f"written: {given.out} ({len(rows)} rows)")
    elif sys.stdout.isatty():
        _show(rows, tasks[0].unit if len(tasks) == 1 else "")
    else:
        _write_csv(rows, sys.stdout)
    if not getattr(answers, "validated", True):
        print(
            "the router that chose each input's task is not validated: tasks were added without the others' data; "
            "--task names the task",
            file=sys.stderr,
        )
    for index, reason in answers.errors.items():
        print(f"skipped: {inputs.names[index]}: {reason}", file=sys.stderr)
    if answers.errors:
        sys.exit(SOME_BAD)


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    import io

    from msh.files.atomic import write_bytes, write_text

    if out.suffix == ".csv":
        text = io.StringIO(newline="")
        _write_csv(rows, text)
        write_text(out, text.getvalue())
    elif out.suffix == ".jsonl":
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pandas as pd

        content = io.BytesIO()
        try:
            pd.DataFrame(rows).to_parquet(content)
        except ImportError as error:
            raise ValueError(f"{out}: Parquet needs pyarrow: pip install 'msh[tables]'") from error
        write_bytes(out, content.getvalue())


def _write_csv(rows: list[dict[str, Any]], file: Any) -> None:
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))  # several tasks may have several
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _show(rows: list[dict[str, Any]], unit: str) -> None:
    """Print a table that fits the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for column in columns:
        is_text = column in ("input", "task") or column.startswith("label")
        title = f"{column} ({unit})" if unit and not is_text else column
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in cells))
    Console().print(table)
