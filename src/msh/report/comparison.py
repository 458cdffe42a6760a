"""Several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msh.report.maps import capacity_plot
from msh.report.pages import Legend, Page, Row, Section, Table, legend_of, write_page
from msh.report.plots import Drawn, Plot, curves_plot, scores_plot
from msh.report.run_page import FILE_NAME
from msh.runs.colours import colours_of
from msh.runs.facts import RunFacts
from msh.runs.words import ARROWS, duration, number, share
from msh.subnetworks import Capacity

Settings = Mapping[str, Sequence[Any]]
"""Dotted key of a setting in which runs differ, to its value in each of them."""


def write_comparison(runs: Sequence[RunFacts], settings: Settings, path: Path) -> None:
    """Write a page that compares runs.

    Args:
        runs: two or more.
        settings: in which they differ.
        path: of the page.
    Raises:
        OSError: it cannot be written.
    """
    named = dict(zip(run_names(runs), runs, strict=True))
    write_page(path, _page_of(named, settings, path))


def run_names(runs: Sequence[RunFacts]) -> list[str]:
    """What runs are called: as much of the ends of their folders' paths as tells them apart."""
    parts = [run.folder.absolute().parts for run in runs]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("a run folder is named twice")


def _page_of(runs: Mapping[str, RunFacts], settings: Settings, path: Path) -> Page:
    colours = colours_of(list(runs))
    found = [
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
        sections=[section for section in found if section],
    )


def _tasks(runs: Mapping[str, RunFacts]) -> list[str]:
    return list(dict.fromkeys(task for run in runs.values() for task in run.tasks))


def _legend(colours: Mapping[str, str]) -> Legend:
    return Legend([(name, colour, False) for name, colour in colours.items()])


def _summary(runs: Mapping[str, RunFacts], colours: Mapping[str, str], path: Path) -> Section:
    columns = ["run", "experiment", "status", "seed", "tasks learned", "mean forgetting", "violations", "owned", "took"]
    rows = []
    for name, run in runs.items():
        results = run.results
        learned = sum(task.test is not None for task in results.tasks.values())
        capacity, guarantee = results.capacity, results.guarantee
        cells = [name, results.experiment, results.status, str(results.seed), f"{learned} of {len(results.tasks)}"]
        cells += ["" if results.forgetting is None else f"{results.forgetting:g}"]
        cells += [f"{guarantee['violations']} of {guarantee['checked']:,}"]
        cells += [share(capacity["owned"], capacity["prunable"]) if capacity else "", duration(results.wall_seconds)]
        report = run.folder / FILE_NAME
        link = Path(os.path.relpath(report, path.absolute().parent)).as_posix() if report.is_file() else ""
        rows.append(Row(cells, colour=colours[name], link=link))
    return Section("runs", "Runs", tables=[Table("Runs", columns, rows, words=3)])


def _scores(runs: Mapping[str, RunFacts], colours: Mapping[str, str]) -> Section | None:
    kinds: dict[tuple[str, str], list[str]] = {}
    for run in runs.values():
        for task, result in run.results.tasks.items():
            named = kinds.setdefault((result.metric, result.direction), [])
            named += [task] if task not in named else []
    plots: list[Plot] = []
    rows: list[Row] = []
    for (metric, direction), tasks in kinds.items():
        found = {
            name: {task: score for task in tasks if (score := _score(run, task, metric)) is not None}
            for name, run in runs.items()
        }
        for task in tasks:
            scores = [found[name].get(task) for name in runs]
            rows.append(_row_of(task, f"{metric} {ARROWS[direction]}", scores, direction))
        if any(found.values()):
            plots.append(scores_plot(f"scores-{len(plots)}", metric, found, colours, f"{metric} on the test split"))
    if not rows:
        return None
    lead = "On the test split, measured after the last stage so far; the best of a line stands out."
    table = Table("Scores", ["task", "metric", *runs], rows, words=2)
    return Section("scores", "Scores", lead, _legend(colours), plots, [table])


def _score(run: RunFacts, task: str, metric: str) -> float | None:
    found = run.results.tasks.get(task)
    return found.test if found is not None and found.metric == metric else None


def _row_of(task: str, metric: str, scores: Sequence[float | None], direction: str) -> Row:
    known = [score for score in scores if score is not None]
    best = (max if direction == "max" else min)(known) if known else None
    places = frozenset(place + 2 for place, score in enumerate(scores) if score is not None and score == best)
    return Row([task, metric, *map(number, scores)], task, best=places if len(known) > 1 else frozenset())


def _curves(runs: Mapping[str, RunFacts], colours: Mapping[str, str]) -> Section | None:
    by_metric: dict[str, list[Drawn]] = {}
    for name, run in runs.items():
        for curve in run.curves_of("val"):
            by_metric.setdefault(curve.quantity, []).append(Drawn(f"{name} {curve.task}", colours[name], curve))
    plots = [curves_plot(f"curves-{i}", metric, drawn) for i, (metric, drawn) in enumerate(by_metric.items())]
    if not plots:
        return None
    lead = "On the validation split while each task was learned. Find a task above to see it alone."
    return Section("curves", "Learning curves", lead, _legend(colours), plots)


def _capacity(runs: Mapping[str, RunFacts]) -> Section | None:
    tasks = _tasks(runs)
    owned = {name: run.ownership.total() for name, run in runs.items() if run.ownership and run.ownership.owners}
    if not owned:
        return None
    bars = [
        Capacity(name, total.shape, {task: total.owned.get(task, 0) for task in tasks}, total.free)
        for name, total in owned.items()
    ]
    colours = colours_of(tasks)
    lead = "Who owns the weights of each run's network."
    plots = [capacity_plot("capacity", bars, colours, noun="networks")]
    return Section("capacity", "Capacity", lead, legend_of(colours, free=True), plots)


def _settings(runs: Mapping[str, RunFacts], settings: Settings) -> Section:
    rows = [Row([key, *("" if value is None else str(value) for value in values)]) for key, values in settings.items()]
    if not rows:
        return Section("settings", "Settings", "All settings are the same.")
    table = Table("Settings", ["setting", *runs], rows, words=len(runs) + 1, long=True)
    return Section("settings", "Settings", "Those in which the runs differ.", tables=[table])
