"""sweep.html: the jobs of a sweep to look at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from msh.report.importance import importances
from msh.report.pages import Legend, Page, Row, Section, Table, write_page
from msh.report.run_page import FILE_NAME as REPORT
from msh.report.sweep_plots import front_plot, importance_plot, parallel_plot, told
from msh.report.sweeps import JobRow, short
from msh.runs.colours import RAMP
from msh.runs.words import duration, number

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
    scored = [row for row in done if not any(math.isnan(row.numbers()[name]) for name in ("mean_score", "density"))]
    found = [
        _jobs(folder, rows, scored),
        _front(scored),
        _parallel(scored),
        _importance(rows),
        _means(scored),
        _failures(rows),
    ]
    best = max((row.numbers()["mean_score"] for row in scored), default=None)
    seconds = [row.numbers()["seconds"] for row in rows if not math.isnan(row.numbers()["seconds"])]
    failed = sum(row.status == "failed" for row in rows)
    left = len(rows) - len(done) - failed
    return Page(
        title="Sweep",
        subtitle=f"{', '.join(dict.fromkeys(row.results.experiment for row in rows if row.results))} · {folder.name}",
        tiles=[
            ("jobs finished", f"{len(done)} of {len(rows)}"),
            ("best mean score on validation data", number(best) or "–"),
            ("all jobs took", duration(sum(seconds))),
        ],
        notes=[
            *([f"{failed} of {len(rows)} jobs failed."] if failed else []),
            *([f"{left} of {len(rows)} jobs are under way, or were stopped."] if left else []),
        ],
        sections=[section for section in found if section],
        find="job",
        source=f" from {folder.absolute()}",
    )


def _jobs(folder: Path, rows: Sequence[JobRow], scored: Sequence[JobRow]) -> Section:
    best = max((row.numbers()["mean_score"] for row in scored), default=None)
    settings = list(rows[0].settings)
    columns = ["job", *settings, "status", "mean score", "density", "took"]
    lines = []
    by_score = sorted(scored, key=lambda row: -row.numbers()["mean_score"])
    for row in [*by_score, *(row for row in rows if row not in scored)]:
        score, density, seconds = (row.numbers()[name] for name in ("mean_score", "density", "seconds"))
        cells = [row.name, *map(short, row.settings.values()), row.status, number(score) if row in scored else ""]
        cells += ["" if math.isnan(density) else f"{density:.3f}", "" if math.isnan(seconds) else duration(seconds)]
        link = f"{row.name}/{REPORT}" if (folder / row.name / REPORT).is_file() else ""
        marked = frozenset({len(settings) + 2}) if row in scored and score == best else frozenset()
        lines.append(Row(cells, told(row), link=link, best=marked))
    lead = (
        "The mean score is taken over the tasks, on validation data; errors, where less is better, count as 1 - error "
    )
    lead += "/ error of a constant answer. A job's name leads to its report. All scores are in sweep.csv."
    return Section("jobs", "Jobs", lead, tables=[Table("Jobs", columns, lines, words=len(settings) + 2)])


def _front(scored: Sequence[JobRow]) -> Section | None:
    if not scored:
        return None
    lead = "No job on the line is beaten by another one in both: none has a better score with as few weights."
    return Section("front", "Score against density", lead, plots=[front_plot(scored)])


def _parallel(scored: Sequence[JobRow]) -> Section | None:
    if not scored or not scored[0].settings:
        return None
    scores = [row.numbers()["mean_score"] for row in scored]
    legend = Legend(ramp=", ".join(RAMP), first=f"score {number(min(scores))}", last=number(max(scores)))
    lead = "A line is a job: it goes through its value of each setting."
    return Section("parallel", "Settings and scores", lead, legend, [parallel_plot(scored)])


def _importance(rows: Sequence[JobRow]) -> Section:
    shares, why_not = importances(rows)
    title = "Importance of settings"
    if not shares:
        return Section("importance", title, why_not)
    lead = "The share of the scores' variance over the jobs that each setting explains alone (functional analysis of "
    lead += "variance, scaled to a sum of 1)."
    return Section("importance", title, lead, plots=[importance_plot(shares)])


def _means(scored: Sequence[JobRow]) -> Section | None:
    """Means over the seeds of the jobs that are alike otherwise, where there are several."""
    groups: dict[tuple[str, ...], list[JobRow]] = {}
    for row in scored:
        others = tuple(value for key, value in row.settings.items() if key != "seed")
        groups.setdefault(others, []).append(row)
    if not scored or "seed" not in scored[0].settings or len(scored[0].settings) == 1 or len(groups) == len(scored):
        return None
    settings = [key for key in scored[0].settings if key != "seed"]
    means = {}
    for others, group in groups.items():
        scores = [row.numbers()["mean_score"] for row in group]
        density = statistics.mean(row.numbers()["density"] for row in group)
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        means[others] = (statistics.mean(scores), spread, density, len(group))
    best = max(mean for mean, *_ in means.values())
    lines = [
        Row(
            [*map(short, others), number(mean), number(spread), f"{density:.3f}", str(count)],
            " ".join(f"{key}={value}" for key, value in zip(settings, others, strict=True)),
            best=frozenset({len(settings)}) if mean == best else frozenset(),
        )
        for others, (mean, spread, density, count) in means.items()
    ]
    columns = [*settings, "mean score", "standard deviation", "density", "seeds"]
    return Section("seeds", "Means over seeds", tables=[Table("Means over seeds", columns, lines, words=len(settings))])


def _failures(rows: Sequence[JobRow]) -> Section | None:
    lines = [
        Row([row.name, f"{row.status}: {row.error}" if row.error else row.status], told(row))
        for row in rows
        if row.status != "finished"
    ]
    if not lines:
        return None
    lead = "With skip_finished=true and the same hydra.sweep.dir, the same command does these again, and no others."
    table = Table("Jobs that are not finished", ["job", "what happened"], lines, words=2, long=True)
    return Section("failures", "Not finished", lead, tables=[table])
