"""Print results in the terminal."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from rich.console import Console

from msh.runs.results import Results, RouterForm, RouterResult, comparison
from msh.runs.score_tables import BASELINES, tasks_table
from msh.runs.tables import Column, Table
from msh.runs.words import counted

ASCII = {"↑": "^", "↓": "v", "×": "x", "·": "-", "–": "-", "…": "~", "█": "#", "░": "."}
"""Characters to print on terminals that lack ours."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(ASCII.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("msh", _replace)


def new_console() -> Console:
    """Open the terminal, or the file that stands in its place, where lines may be longer than a terminal's.

    Letters that it cannot encode are replaced by ones that it can.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="msh")
    console = Console()
    return console if console.is_terminal else Console(width=110)


def print_results(results: Results, console: Console | None = None) -> None:
    """Print a line per task and ensemble, the guarantee's outcome, the network's used share, and the run time."""
    console = console or new_console()
    names = ("task", "metric", "test", *BASELINES, "density", "weights", "flops", "forgetting")
    tasks_table(results, names, ensembles=True).print(console, f"{results.experiment}, seed {results.seed}")
    if others := results.not_evaluated:
        console.print(f"not evaluated, as this run does not have their data: {', '.join(others)}")
    if results.router is not None:
        console.print(router_line(results.router))
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    console.print(
        f"frozen tasks compared {comparison(results.guarantee)}: {counted(checked, 'time')}, {violations} changed; "
        f"network used: {results.owned:.1%} of {results.capacity['prunable']:,} weights; {results.wall_seconds:.0f} s"
    )


def router_line(router: RouterResult) -> str:
    """Say how often inputs without a task find it."""
    both = router["class_incremental"]
    return (
        f"inputs without a task: {router['accuracy']:.1%} find the right one of those with such inputs"
        + ("" if both is None else f", {both:.1%} the right class too")
        + f" (router: {'; '.join(map(_rule, router['forms']))})"
    )


def _rule(form: RouterForm) -> str:
    return form["rule"] + ("" if form.get("validated", True) else ", not validated with all tasks")


def print_scores(rows: Sequence[Mapping[str, object]], console: Console | None = None) -> None:
    """Print evaluated scores: task, metric, score, with all digits."""
    columns = [Column[Any](name, itemgetter(name), words=name != "score") for name in ("task", "metric", "score")]
    Table("scores", columns, rows).print(console or new_console())
