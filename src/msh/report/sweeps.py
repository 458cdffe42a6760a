"""What the jobs of a sweep came to, read from their folders: sweep.csv, and a table in the terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from msh.errors import is_under
from msh.files.atomic import write_text
from msh.files.yaml_files import read_overrides
from msh.report.table import new_console
from msh.runs.objectives import mean_density, mean_score
from msh.runs.results import ENDED, UNFINISHED, Results

CSV_NAME = "sweep.csv"
NUMBERS = ("mean_score", "density", "seconds", "forgetting", "violations")
"""What the table has of a job beside its settings and the scores of its tasks."""


@dataclass(frozen=True)
class JobRow:
    """A job.

    Attributes:
        name: of its folder, below the sweep's.
        settings: key to what was tried of it; keys in which jobs of the sweep differ.
        status: "finished", "failed" or "unfinished".
        error: the last line of what went wrong, or "".
        results: what it has measured, or None.
    """

    name: str
    settings: dict[str, str]
    status: str
    error: str
    results: Results | None

    def numbers(self) -> dict[str, float]:
        """`NUMBERS`, nan where one is missing."""
        found = self.results
        if found is None:
            return dict.fromkeys(NUMBERS, math.nan)
        values = (mean_score(found), mean_density(found), found.wall_seconds, found.forgetting)
        return {
            name: math.nan if value is None else float(value)
            for name, value in zip(NUMBERS, (*values, found.guarantee["violations"]), strict=True)
        }


def read_sweep(folder: Path, leave_out: Sequence[str] = ()) -> list[JobRow]:
    """The jobs of a sweep, in the order of their folders' names.

    Args:
        folder: of the sweep.
        leave_out: dotted keys that are no settings to be told, nor what is below them.
    Raises:
        FileNotFoundError: there is no job below the folder.
    """
    found = sorted((path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")), key=_natural)
    if not found:
        raise FileNotFoundError(f"{folder} is not the folder of a sweep: no run folder is below it")
    given = [_settings(path, leave_out) for path in found]
    keys = dict.fromkeys(key for settings in given for key in settings)
    differing = [key for key in keys if len({settings.get(key, "") for settings in given}) > 1]
    return [
        _row(folder, path, {key: settings.get(key, "") for key in differing})
        for path, settings in zip(found, given, strict=True)
    ]


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts numbers in names as numbers."""
    parts = re.findall(r"\d+|\D+", str(path))
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _settings(job: Path, leave_out: Sequence[str]) -> dict[str, str]:
    pairs = [override.lstrip("+~").partition("=") for override in read_overrides(job / ".hydra" / "overrides.yaml")]
    return {key: value for key, _, value in pairs if not is_under(key, leave_out)}


def _row(sweep: Path, job: Path, settings: dict[str, str]) -> JobRow:
    note, results, error = job / UNFINISHED, None, ""
    try:
        results = Results.load(job)
    except FileNotFoundError:
        pass
    except ValueError as damaged:
        error = str(damaged)
    lines = note.read_text().strip().splitlines() if note.exists() else []
    error = error or (lines[-1] if lines else "")
    done = results is not None and results.status == "finished" and not lines
    status = "finished" if done else "failed" if error and error != ENDED else "unfinished"
    return JobRow(str(job.relative_to(sweep)), settings, status, error, results)


def write_csv(path: Path, rows: Sequence[JobRow]) -> None:
    """Write sweep.csv: a line per job, with TASK.val and TASK.test of every task of any of them; empty: not known."""
    tasks = list(dict.fromkeys(task for row in rows if row.results for task in row.results.tasks))
    settings = list(rows[0].settings)
    scores = [f"{task}.{split}" for task in tasks for split in ("val", "test")]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["job", *settings, "status", *NUMBERS, *scores, "error"])
    for row in rows:
        results = row.results
        known = {
            f"{task}.{split}": getattr(result, split)
            for task, result in (results.tasks.items() if results else ())
            for split in ("val", "test")
        }
        numbers = ["" if math.isnan(value) else value for value in row.numbers().values()]
        cells = [row.settings[key] for key in settings]
        writer.writerow([row.name, *cells, row.status, *numbers, *(known.get(name) for name in scores), row.error])
    write_text(path, buffer.getvalue())


def print_sweep(rows: Sequence[JobRow], console: Console | None = None) -> None:
    """Print a line per job, the best mean score marked, and the errors of those that are not finished."""
    console = console or new_console()
    table = Table(title=f"{len(rows)} jobs, {sum(row.status == 'finished' for row in rows)} finished")
    for column in ("job", *rows[0].settings, "status", "mean_score", "density", "seconds"):
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    scores = [row.numbers()["mean_score"] for row in rows if row.status == "finished"]
    best = max((score for score in scores if not math.isnan(score)), default=None)
    for row in rows:
        numbers, finished = row.numbers(), row.status == "finished"
        score = _shown(numbers["mean_score"], ".4f") if finished else ""
        if finished and numbers["mean_score"] == best:
            score = f"[bold]{score} *[/bold]"
        status = row.status if finished else f"[red]{row.status}[/red]"
        cells = [score, _shown(numbers["density"], ".3f"), _shown(numbers["seconds"], ".0f")]
        table.add_row(row.name, *map(short, row.settings.values()), status, *cells)
    console.print(table)
    for row in rows:
        if row.status != "finished":
            line = f"{row.name} {row.status}: {row.error}".removesuffix(": ")
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    console.print("mean_score is measured on validation data; * marks the best", highlight=False)


def short(value: str) -> str:
    """A setting's value as tables show it: numbers that were drawn have more places than anybody reads."""
    if len(value) <= 9:
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
