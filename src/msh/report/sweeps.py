"""Read a sweep's jobs from their folders; write sweep.csv, and print a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from msh.errors import is_under
from msh.files.atomic import write_text
from msh.files.yaml_files import DAMAGES, read_config, read_overrides
from msh.report.terminal import new_console
from msh.runs.objectives import mean_density, mean_score
from msh.runs.results import ENDED, UNFINISHED, Results
from msh.runs.tables import Column, Mark, Table
from msh.runs.words import duration, number

CSV_NAME = "sweep.csv"


@dataclass(frozen=True)
class JobRow:
    """A job.

    Attributes:
        name: its folder, relative to the sweep's.
        settings: key to value, for keys that differ among the sweep's jobs.
        status: "finished", "failed" or "unfinished".
        error: its last line, or "".
        results: its scores, or None.
        mean_score: on validation data, see `mean_score`; None if a task lacks it.
        density: mean over the tasks; None if a task lacks it.
    """

    name: str
    settings: dict[str, str]
    status: str
    error: str
    results: Results | None
    mean_score: float | None = None
    density: float | None = None

    @property
    def final_score(self) -> float | None:
        """Mean score, for a finished job."""
        return self.mean_score if self.status == "finished" else None

    @property
    def scored(self) -> bool:
        """True for a finished job with score and density."""
        return self.final_score is not None and self.density is not None


def read_sweep(folder: Path, leave_out: Sequence[str] = ()) -> list[JobRow]:
    """Read a sweep's jobs, ordered by folder.

    Args:
        folder: the sweep's.
        leave_out: dotted keys that are not reported as settings, nor the keys below them.
    Raises:
        FileNotFoundError: there is no job below the folder.
    """
    jobs = sorted((path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")), key=_natural)
    if not jobs:
        raise FileNotFoundError(f"{folder} is not the folder of a sweep: no run folder is below it")
    overrides = [_settings(path, leave_out) for path in jobs]
    keys = dict.fromkeys(key for settings in overrides for key in settings)
    differing = [key for key in keys if len({_comparable(settings.get(key)) for settings in overrides}) > 1]
    for path, settings in zip(jobs, overrides, strict=True):
        if missing := [key for key in differing if key not in settings]:
            settings |= _composed(path, missing)
    values = {key: _spelled_alike([settings[key] for settings in overrides]) for key in differing}
    shown = [key for key in differing if len(set(values[key])) > 1]
    return [_row(folder, path, {key: values[key][place] for key in shown}) for place, path in enumerate(jobs)]


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Return a sort key that takes numbers in names as numbers."""
    parts = re.findall(r"\d+|\D+", str(path))
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _settings(job: Path, leave_out: Sequence[str]) -> dict[str, str]:
    pairs = [override.lstrip("+~").partition("=") for override in read_overrides(job / ".hydra" / "overrides.yaml")]
    return {key: value for key, _, value in pairs if not is_under(key, leave_out)}


def _composed(job: Path, keys: Sequence[str]) -> dict[str, str]:
    """Read settings that a job was not started with: a group's option, or the composed value; "" if unknown."""
    found: dict[str, str] = {}
    for file, prefix in (("hydra.yaml", "hydra.runtime.choices."), ("config.yaml", "")):
        try:
            config = read_config(job / ".hydra" / file)
        except (FileNotFoundError, ValueError):
            continue
        for key in keys:
            try:
                value = OmegaConf.select(config, prefix + key, default="")
            except (*DAMAGES, OmegaConfBaseException):  # a damaged value; a reference that only the run resolves
                continue
            if value != "":
                found.setdefault(key, _written([*value] if key == "tasks" else value))
    return {key: found.get(key, "") for key in keys}


def _written(value: Any) -> str:
    """Write a value of a config as on the command line."""
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value, resolve=False)
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ": ")).replace('"', "")


def _comparable(value: str | None) -> str | float | None:
    """Return a number for a setting that is one, so that 1e-3 is 0.001."""
    try:
        number = float(value or "")
    except ValueError:
        return value
    return value if math.isnan(number) else number


def _spelled_alike(values: Sequence[str]) -> list[str]:
    """Spell equal numbers as the first of them."""
    first: dict[str | float | None, str] = {}
    return [first.setdefault(_comparable(value), value) for value in values]


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
    score, density = (mean_score(results), mean_density(results)) if results else (math.nan, math.nan)
    known = (None if math.isnan(value) else value for value in (score, density))
    return JobRow(str(job.relative_to(sweep)), settings, status, error, results, *known)


JOB: Column[JobRow] = Column("job", attrgetter("name"), words=True)
STATUS: Column[JobRow] = Column(
    "status", attrgetter("status"), words=True, mark=lambda row: "" if row.status == "finished" else "bad"
)
DENSITY: Column[JobRow] = Column("density", attrgetter("density"), ".3f")


def _from_results(
    name: str, value: Callable[[Results], Any], form: str | Callable[[Any], str] = "", header: str = ""
) -> Column[JobRow]:
    return Column(name, lambda row: value(row.results) if row.results else None, form, header)


SECONDS = _from_results("seconds", attrgetter("wall_seconds"), duration, "took")


def setting_columns(keys: Iterable[str]) -> list[Column[Any]]:
    """Make a column per setting, for rows with `settings`."""

    def column(key: str) -> Column[Any]:
        return Column(key, lambda row: row.settings[key], short, words=True)

    return [column(key) for key in keys]


def jobs_table(rows: Sequence[JobRow], **how: Any) -> Table[JobRow]:
    """Make the jobs' table for people; the best mean score is marked.

    Args:
        rows: at least one.
        how: see `Table`.
    """
    best = max((row.final_score for row in rows if row.final_score is not None), default=None)

    def mark(row: JobRow) -> Mark:
        return "best" if best is not None and row.final_score == best else ""

    score = Column[JobRow]("mean_score", attrgetter("final_score"), number, "mean score", mark=mark)
    columns = [JOB, *setting_columns(rows[0].settings), STATUS, score, DENSITY, SECONDS]
    return Table("Jobs", columns, rows, described, **how)


def write_csv(path: Path, rows: Sequence[JobRow]) -> None:
    """Write sweep.csv: a line per job, with TASK.val and TASK.test for every task; unknown values are empty."""

    def score(task: str, split: str) -> Column[JobRow]:
        return _from_results(f"{task}.{split}", lambda results: getattr(results.tasks.get(task), split, None))

    tasks = dict.fromkeys(task for row in rows if row.results for task in row.results.tasks)
    columns = [
        *(JOB, *setting_columns(rows[0].settings), STATUS),
        *(Column[JobRow]("mean_score", attrgetter("mean_score")), DENSITY, SECONDS),
        _from_results("forgetting", attrgetter("forgetting")),
        _from_results("violations", lambda results: results.guarantee["violations"]),
        *(score(task, split) for task in tasks for split in ("val", "test")),
        Column[JobRow]("error", attrgetter("error")),
    ]
    write_text(path, Table("sweep", columns, rows).csv())


def print_sweep(rows: Sequence[JobRow], console: Console | None = None) -> None:
    """Print a line per job, with the best mean score marked, and unfinished jobs' errors."""
    console = console or new_console()
    finished = sum(row.status == "finished" for row in rows)
    jobs_table(rows).print(console, f"{len(rows)} jobs, {finished} finished")
    for row in rows:
        if row.status != "finished":
            line = f"{row.name} {row.status}: {row.error}".removesuffix(": ")
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    console.print("mean score: on validation data; * marks the best", highlight=False)


def described(row: JobRow) -> str:
    """Return a job's name and settings in a line."""
    return " ".join([row.name, *(f"{key}={short(value)}" for key, value in row.settings.items())])


def short(value: str) -> str:
    """Shorten a setting's value for tables: long numbers get four digits."""
    if len(value) <= 9:
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
