"""The table at the end of a run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from msh.runs.results import Results
from msh.runs.words import ARROWS, number


def print_results(results: Results, console: Console | None = None) -> None:
    """Print a line per task (metric, score, baselines' scores, density, weights, forgetting) and one per ensemble."""
    console = console or new_console()
    baselines = [
        name
        for name in ("dense", "finetune", "joint")
        if any(getattr(task, name) is not None for task in results.tasks.values())
    ]
    table = Table(title=f"{results.experiment}, seed {results.seed}")
    columns = ["task", "metric", "test", *baselines, "density", "weights", "forgetting"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", no_wrap=True)
    for name, task in results.tasks.items():
        arrow = ARROWS[task.direction]
        forgetting = results.forgetting_of(name)
        row = [name, f"{task.metric} {arrow}", number(task.test)]
        row += [number(getattr(task, name)) for name in baselines]
        row += [f"{task.density:.3f}" if task.density is not None else "", f"{task.weights or 0:,}"]
        table.add_row(*row, "" if forgetting is None else f"{forgetting:g}")
    for name, found in results.ensemble.items():
        arrow = ARROWS[found["direction"]]
        table.add_row(f"{name} of {len(found['tasks'])}", f"{found['metric']} {arrow}", number(found["test"]))
    console.print(table)
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    share = results.capacity["owned"] / results.capacity["prunable"]
    console.print(
        f"frozen tasks compared bitwise: {checked} times, {violations} changed; "
        f"network used: {share:.1%} of {results.capacity['prunable']:,} weights; {results.wall_seconds:.0f} s"
    )


def print_scores(rows: list[dict[str, object]], console: Console | None = None) -> None:
    """Print measured scores: task, metric, score."""
    table = Table()
    for column in ("task", "metric", "score"):
        table.add_column(column, justify="right" if column == "score" else "left", no_wrap=True)
    for row in rows:
        table.add_row(str(row["task"]), str(row["metric"]), str(row["score"]))
    (console or new_console()).print(table)


def new_console() -> Console:
    """The terminal; or a file, in which lines may be longer than a terminal's."""
    console = Console()
    return console if console.is_terminal else Console(width=110)
