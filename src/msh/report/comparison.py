"""Write a page that compares runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from msh.report.pages import REPORT, Legend, Page, Section, legend_of, write_page
from msh.report.plots import Drawn, Plot, chart_plot, curves_plot, scores_plot
from msh.runs.colours import colours_of
from msh.runs.facts import RunFacts
from msh.runs.tables import Column, Mark, Table
from msh.runs.words import ARROWS, duration, number
from msh.subnetworks.description import Capacity
from msh.tracking.figures import capacity_chart

Settings = Mapping[str, Sequence[Any]]
"""Dotted key of a setting that differs among runs, to its value in each run."""


def write_comparison(runs: Sequence[RunFacts], settings: Settings, path: Path) -> None:
    """Write a page that compares runs.

    Args:
        runs: two or more.
        settings: that differ among the runs.
        path: where the page goes.
    Raises:
        OSError: it cannot be written.
    """
    named = dict(zip(run_names(runs), runs, strict=True))
    write_page(path, _page_of(named, settings, path))


def run_names(runs: Sequence[RunFacts]) -> list[str]:
    """Name runs by their folders' last parts, as few as tell them apart."""
    parts = [run.folder.absolute().parts for run in runs]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("a run folder is named twice")


def _page_of(runs: Mapping[str, RunFacts], settings: Settings, path: Path) -> Page:
    colours = colours_of(list(runs))
    sections = [
        _summary(runs, colours, path),
        _scores(runs, colours),
        _curves(runs, colours),
        _capacity(runs),
        _settings(runs, settings),
    ]
    checked, violations = (
        sum(run.results.guarantee[key] for run in runs.values()) for key in ("checked", "violations")
    )
    experiments = dict.fromkeys(run.results.experiment for run in runs.values())
    return Page(
        title=f"{len(runs)} runs",
        subtitle=", ".join(experiments),
        tiles=[
            ("runs finished", f"{sum(run.results.status == 'finished' for run in runs.values())} of {len(runs)}"),
            ("tasks", str(len(_tasks(runs)))),
            (f"violations in {checked:,} comparisons", f"{violations:,}"),
        ],
        notes=[f"{name}: {note}" for name, run in runs.items() for note in run.notes],
        sections=[section for section in sections if section],
    )


def _tasks(runs: Mapping[str, RunFacts]) -> list[str]:
    return list(dict.fromkeys(task for run in runs.values() for task in run.tasks))


def _summary(runs: Mapping[str, RunFacts], colours: Mapping[str, str], path: Path) -> Section:
    def link(name: str) -> str:
        report = runs[name].folder / REPORT
        return Path(os.path.relpath(report, path.absolute().parent)).as_posix() if report.is_file() else ""

    def violations(name: str) -> str:
        guarantee = runs[name].results.guarantee
        return f"{guarantee['violations']} of {guarantee['checked']:,}"

    def violated(name: str) -> Mark:
        return "bad" if runs[name].results.guarantee["violations"] else ""

    columns: list[Column[str]] = [
        Column("run", str, words=True),
        Column("experiment", lambda name: runs[name].results.experiment, words=True),
        Column("status", lambda name: runs[name].results.status, words=True),
        Column("seed", lambda name: runs[name].results.seed),
        Column("tasks learned", lambda name: runs[name].results.learned),
        Column("mean forgetting", lambda name: runs[name].results.forgetting, "g"),
        Column("violations", violations, mark=violated),
        Column("owned", lambda name: runs[name].results.owned, ".1%"),
        Column("took", lambda name: runs[name].results.wall_seconds, duration),
    ]
    return Section("runs", "Runs", tables=[Table("Runs", columns, list(runs), colour=colours.__getitem__, link=link)])


def _scores(runs: Mapping[str, RunFacts], colours: Mapping[str, str]) -> Section | None:
    kinds: dict[tuple[str, str], dict[str, dict[str, float | None]]] = {}  # metric, direction: task: run: score
    for name, run in runs.items():
        for task, result in run.results.tasks.items():
            kinds.setdefault((result.metric, result.direction), {}).setdefault(task, {})[name] = result.test
    if not kinds:
        return None
    plots: list[Plot] = []
    rows = []  # (task, metric, {run: score}, best score of several runs)
    for (metric, direction), tasks in kinds.items():
        for task, by_run in tasks.items():
            known = [score for score in by_run.values() if score is not None]
            best = (max if direction == "max" else min)(known) if len(known) > 1 else None
            rows.append((task, f"{metric} {ARROWS[direction]}", by_run, best))
        scores = {
            name: {task: score for task, by_run in tasks.items() if (score := by_run.get(name)) is not None}
            for name in runs
        }
        if any(scores.values()):
            plots.append(scores_plot(f"scores-{len(plots)}", metric, scores, colours, f"{metric} on the test split"))
    columns: list[Column[Any]] = [
        Column("task", itemgetter(0), words=True),
        Column("metric", itemgetter(1), words=True),
        *(_score_column(name) for name in runs),
    ]
    lead = "On the test split, evaluated after the last stage so far; the best of a line stands out."
    table = Table("Scores", columns, rows, find=itemgetter(0))
    return Section("scores", "Scores", lead, Legend(colours), plots, [table])


def _score_column(run: str) -> Column[Any]:
    def mark(row: Any) -> Mark:
        return "best" if row[3] is not None and row[2].get(run) == row[3] else ""

    return Column(run, lambda row: row[2].get(run), number, mark=mark)


def _curves(runs: Mapping[str, RunFacts], colours: Mapping[str, str]) -> Section | None:
    by_metric: dict[str, list[Drawn]] = {}
    for name, run in runs.items():
        for curve in run.curves_of("val"):
            by_metric.setdefault(curve.quantity, []).append(Drawn(f"{name} {curve.task}", colours[name], curve))
    plots = [curves_plot(f"curves-{i}", metric, drawn) for i, (metric, drawn) in enumerate(by_metric.items())]
    if not plots:
        return None
    lead = "On the validation split during training. Find a task above to see it alone."
    return Section("curves", "Learning curves", lead, Legend(colours), plots)


def _capacity(runs: Mapping[str, RunFacts]) -> Section | None:
    tasks = _tasks(runs)
    owned = {name: run.holdings.total for name, run in runs.items() if run.holdings and run.holdings.layers}
    if not owned:
        return None
    bars = [
        Capacity(name, total.shape, {task: total.owned.get(task, 0) for task in tasks}, total.free)
        for name, total in owned.items()
    ]
    colours = colours_of(tasks)
    lead = "The owners of the weights of each run's network."
    plot = chart_plot(capacity_chart("capacity", bars, colours, noun="networks"))
    return Section("capacity", "Capacity", lead, legend_of(colours, free=True), [plot])


def _settings(runs: Mapping[str, RunFacts], settings: Settings) -> Section:
    if not settings:
        return Section("settings", "Settings", "All settings are the same.")
    columns = [Column[Any]("setting", itemgetter(0), words=True)]
    columns += [Column(name, itemgetter(place), words=True, wraps=True) for place, name in enumerate(runs, start=1)]
    table = Table("Settings", columns, [(key, *values) for key, values in settings.items()])
    return Section("settings", "Settings", "Those that differ among the runs.", tables=[table])
