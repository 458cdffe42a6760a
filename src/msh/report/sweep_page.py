"""Write sweep.html, the report of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msh.report.importance import importances
from msh.report.pages import Legend, Page, Section, write_page
from msh.report.plots import chart_plot
from msh.report.run_page import FILE_NAME as REPORT
from msh.report.sweep_plots import front_plot, importance_chart, parallel_plot
from msh.report.sweeps import DENSITY, JOB, JobRow, described, jobs_table, setting_columns
from msh.runs.colours import RAMP
from msh.runs.tables import Column, Mark, Table
from msh.runs.words import SCORE, duration, number

FILE_NAME = "sweep.html"


def write_sweep_page(folder: Path, rows: Sequence[JobRow]) -> None:
    """Write sweep.html into the folder of a sweep.

    Args:
        folder: of the sweep.
        rows: its jobs, at least one.
    Raises:
        OSError: it cannot be written.
    """
    write_page(folder / FILE_NAME, _page_of(folder, rows))


def _page_of(folder: Path, rows: Sequence[JobRow]) -> Page:
    done = [row for row in rows if row.status == "finished"]
    scored = sorted((row for row in done if row.scored), key=_score, reverse=True)
    failed = sum(row.status == "failed" for row in rows)
    open_jobs = len(rows) - len(done) - failed
    sections = [
        _jobs(folder, [*scored, *(row for row in rows if row not in scored)]),
        _front(scored),
        _parallel(scored),
        _importance(rows),
        _means(scored),
        _failures(rows),
    ]
    return Page(
        title="Sweep",
        subtitle=f"{', '.join(dict.fromkeys(row.results.experiment for row in rows if row.results))} · {folder.name}",
        tiles=[
            ("jobs finished", f"{len(done)} of {len(rows)}"),
            ("best mean score on validation data", number(scored[0].final_score) if scored else "–"),
            ("all jobs took", duration(sum(row.seconds or 0.0 for row in rows))),
        ],
        notes=[
            *([f"{failed} of {len(rows)} jobs failed."] if failed else []),
            *([f"{open_jobs} of {len(rows)} jobs are running, or were stopped."] if open_jobs else []),
        ],
        sections=[section for section in sections if section],
        find="job",
        source=f" from {folder.absolute()}",
    )


def _score(row: Any) -> float:
    score: float = row.final_score
    return score


def _jobs(folder: Path, rows: Sequence[JobRow]) -> Section:
    lead = (
        "The mean score is taken over the tasks, on validation data; errors, where less is better, count as 1 - error "
        "/ error of a constant answer. A job's name leads to its report. All scores are in sweep.csv."
    )
    table = jobs_table(rows, link=lambda row: f"{row.name}/{REPORT}" if (folder / row.name / REPORT).is_file() else "")
    return Section("jobs", "Jobs", lead, tables=[table])


def _front(scored: Sequence[JobRow]) -> Section | None:
    if not scored:
        return None
    lead = "No job has a better score with as few weights as a job on the line."
    return Section("front", "Score against density", lead, plots=[front_plot(scored)])


def _parallel(scored: Sequence[JobRow]) -> Section | None:
    if not scored or not scored[0].settings:
        return None
    ends = (f"score {number(scored[-1].final_score)}", number(scored[0].final_score))
    lead = "A line is a job: it goes through the job's value of each setting."
    return Section("parallel", "Settings and scores", lead, Legend(ramp=RAMP, ends=ends), [parallel_plot(scored)])


def _importance(rows: Sequence[JobRow]) -> Section:
    shares, reason = importances(rows)
    title = "Importance of settings"
    if not shares:
        return Section("importance", title, reason)
    lead = "The share of the scores' variance over the jobs that each setting explains alone (functional analysis of "
    lead += "variance, scaled to a sum of 1)."
    return Section("importance", title, lead, plots=[chart_plot(importance_chart(shares))])


@dataclass(frozen=True)
class _Mean:
    """Jobs that differ only in their seeds."""

    settings: dict[str, str]
    jobs: list[JobRow]

    @property
    def score(self) -> float:
        return statistics.mean(map(_score, self.jobs))

    @property
    def spread(self) -> float | None:
        return statistics.stdev(map(_score, self.jobs)) if len(self.jobs) > 1 else None


def _means(scored: Sequence[JobRow]) -> Section | None:
    """Average over the seeds, if some jobs differ only in their seeds."""
    groups: dict[tuple[str, ...], _Mean] = {}
    for row in scored:
        settings = {key: value for key, value in row.settings.items() if key != "seed"}
        groups.setdefault(tuple(settings.values()), _Mean(settings, [])).jobs.append(row)
    if not scored or "seed" not in scored[0].settings or len(scored[0].settings) == 1 or len(groups) == len(scored):
        return None
    rows: list[Any] = list(groups.values())
    best = max(row.score for row in rows)

    def mark(row: _Mean) -> Mark:
        return "best" if row.score == best else ""

    columns: list[Column[Any]] = [
        *setting_columns(rows[0].settings),
        Column("mean score", lambda row: row.score, SCORE, mark=mark),
        Column("standard deviation", lambda row: row.spread, SCORE),
        Column("density", lambda row: statistics.mean(job.density for job in row.jobs), DENSITY.form),
        Column("seeds", lambda row: len(row.jobs)),
    ]
    find = lambda row: " ".join(f"{key}={value}" for key, value in row.settings.items())  # noqa: E731
    return Section("seeds", "Means over seeds", tables=[Table("Means over seeds", columns, rows, find)])


def _failures(rows: Sequence[JobRow]) -> Section | None:
    unfinished = [row for row in rows if row.status != "finished"]
    if not unfinished:
        return None
    reason = Column[JobRow](
        "reason", lambda row: f"{row.status}: {row.error}".removesuffix(": "), words=True, wraps=True
    )
    lead = "With skip_finished=true and the same hydra.sweep.dir, the same command repeats these jobs, and no others."
    table = Table("Unfinished jobs", [JOB, reason], unfinished, described)
    return Section("failures", "Not finished", lead, tables=[table])
