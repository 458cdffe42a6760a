"""Write a sweep's report, sweep.html."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from msh.report.importance import importances
from msh.report.pages import REPORT, Legend, Page, Section, write_page
from msh.report.plots import chart_plot
from msh.report.sweep_plots import front_plot, importance_chart, parallel_plot
from msh.report.sweeps import DENSITY, JOB, JobRow, described, jobs_table, short
from msh.runs.colours import SCORES
from msh.runs.tables import Column, Table
from msh.runs.words import duration, number

FILE_NAME = "sweep.html"
SCORE_OF = attrgetter("final_score")


def write_sweep_page(folder: Path, rows: Sequence[JobRow]) -> None:
    """Write sweep.html into the sweep's folder.

    Args:
        folder: the sweep's.
        rows: its jobs, at least one.
    Raises:
        OSError: it cannot be written.
    """
    write_page(folder / FILE_NAME, _page_of(folder, rows))


def _page_of(folder: Path, rows: Sequence[JobRow]) -> Page:
    done = [row for row in rows if row.status == "finished"]
    scored = sorted((row for row in done if row.scored), key=SCORE_OF, reverse=True)
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
            ("all jobs took", duration(sum(row.results.wall_seconds for row in rows if row.results))),
        ],
        notes=[
            *([f"{failed} of {len(rows)} jobs failed."] if failed else []),
            *([f"{open_jobs} of {len(rows)} jobs are running, or were stopped."] if open_jobs else []),
        ],
        sections=[section for section in sections if section],
        find="job",
        source=f" from {folder.absolute()}",
    )


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
    return Section("parallel", "Settings and scores", lead, Legend(ramp=SCORES, ends=ends), [parallel_plot(scored)])


def _importance(rows: Sequence[JobRow]) -> Section:
    shares, reason = importances(rows)
    title = "Importance of settings"
    if not shares:
        return Section("importance", title, reason)
    lead = "The share of the scores' variance over the jobs that each setting explains alone (functional analysis of "
    lead += "variance, scaled to a sum of 1)."
    return Section("importance", title, lead, plots=[chart_plot(importance_chart(shares))])


def _means(scored: Sequence[JobRow]) -> Section | None:
    """Average over the seeds, if some jobs differ only in their seeds."""
    keys = [key for key in scored[0].settings if key != "seed"] if scored else []
    groups: dict[tuple[str, ...], list[JobRow]] = {}
    for row in scored:
        groups.setdefault(tuple(row.settings[key] for key in keys), []).append(row)
    if not scored or "seed" not in scored[0].settings or len(groups) == len(scored):
        return None

    def mean(settings: tuple[str, ...], name: str = "final_score") -> float:
        return float(statistics.mean(map(attrgetter(name), groups[settings])))

    def spread(settings: tuple[str, ...]) -> float | None:
        scores = [*map(SCORE_OF, groups[settings])]
        return statistics.stdev(scores) if len(scores) > 1 else None

    best = max(map(mean, groups))
    columns: list[Column[tuple[str, ...]]] = [
        *(Column[Any](key, itemgetter(place), short, words=True) for place, key in enumerate(keys)),
        Column("mean score", mean, number, mark=lambda settings: "best" if mean(settings) == best else ""),
        Column("standard deviation", spread, number),
        Column("density", lambda settings: mean(settings, "density"), DENSITY.form),
        Column("seeds", lambda settings: len(groups[settings])),
    ]

    def find(settings: tuple[str, ...]) -> str:
        return " ".join(f"{key}={value}" for key, value in zip(keys, settings, strict=True)) or "all jobs"

    return Section("seeds", "Means over seeds", tables=[Table("Means over seeds", columns, list(groups), find)])


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
