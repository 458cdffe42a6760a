"""docs/results.md: a table and a figure for each row, between markers; what is written by hand around them stays."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import processor, put_section, table
from benchmarks.figures import MANY
from benchmarks.rows import Row
from benchmarks.scores import BESIDE, MEAN, Runs

HEAD = """# Results

The paper's experiments and continual-learning benchmarks, by `make reproduce` and `make reproduce-all`
(`python -m benchmarks.reproduce`), from the results.json of their runs; `results.json` beside this file has the same as
records. What stands between the markers is written again each time. In the figures, dotted lines are targets, bars the
standard deviation over the seeds, and a triangle at the edge is a score further off than the axis goes.
"""
NOTHING = "–"


def write_section(path: Path, row: Row, records: Sequence[Mapping[str, Any]], runs: Runs, figure: str) -> None:
    """Put a row's table, figure and caption between its markers; a row without markers gets a section at the end.

    Args:
        path: of the document; made if there is none.
        row: the row.
        records: its records.
        runs: its runs.
        figure: path of its figure, from the document's folder.
    """
    shown = table(_lines(records), _columns())
    text = f"{caption(row, records, runs)}\n\n{shown}\n\n![{heading(row)}]({figure})"
    put_section(path, HEAD, f"row {row.id}", heading(row), text)


def heading(row: Row) -> str:
    """A row's name for people."""
    return f"Row {row.id}: {row.title}" if row.id.isdigit() else row.title


def caption(row: Row, records: Sequence[Mapping[str, Any]], runs: Runs) -> str:
    """How a row was measured, in sentences."""
    epochs = {record["epochs"] for record in records}
    each = ", ".join(f"{record['task']} {record['epochs']}" for record in records if record["task"] != MEAN)
    command = " ".join([f"+experiment={row.experiment}", *row.overrides])
    seeds = f"seed{'s' if len(runs) > 1 else ''} {', '.join(map(str, runs))}"
    said = [f"`{command}`, {seeds}; {f'{epochs.pop()} epochs a stage' if len(epochs) == 1 else f'epochs: {each}'}."]
    counted = {name: max(record[f"{name}_seeds"] for record in records) for name in BESIDE}
    said += [f"{name}: {n} seed{'s' if n > 1 else ''}." for name, n in counted.items() if 0 < n != len(runs)]
    if row.dense_of is not None and counted["dense"]:
        said.append(f"The dense networks are those of row {row.dense_of}.")
    others = [seed for seed in runs if not row.steps(seed, Path())]
    if others:
        named = f"seed{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
        said.append(f"Of {named}: the first stages of row {row.part_of}'s runs.")
    if row.source:
        said.append(f"Authors: {row.source}.")
    guarantees = [run.results.guarantee for run in runs.values()]
    checked, changed = (sum(guarantee[key] for guarantee in guarantees) for key in ("checked", "violations"))
    where = " in the row's own runs" if others else ""
    said.append(f"Frozen tasks were compared bitwise {checked} times{where}, {changed} had changed.")
    if counted["finetune"] and len({record["metric"] for record in records}) == 1:
        forgotten = [f for run in runs.values() if (f := run.results.finetune["forgetting"]) is not None]
        said.append(f"Mean forgetting of the fine-tuned network: {statistics.mean(forgotten):.4f}.")
    threads = " or ".join(str(number) for number in sorted({run.threads or 0 for run in runs.values()}))
    processors = " or ".join(sorted({run.processor or processor() for run in runs.values()}))
    said.append(f"Seconds: training of a task's stage, CPU threads: {threads}, on {processors}.")
    return " ".join([*said, row.note] if row.note else said)


def _columns() -> list[str]:
    scores = ["mean", "std", "authors", "target", *BESIDE]
    return ["task", "metric", *scores, "density", "forgetting", "seconds", "met"]


def _lines(records: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Lines of the table: of each task, or, where there are many, of the mean, the lowest and the highest."""
    tasks = [record for record in records if record["task"] != MEAN]
    means = [record for record in records if record["task"] == MEAN]
    if len(tasks) < MANY or not means:
        return [_line(record) for record in records]
    lines = [_line({**means[0], "task": f"mean of {len(tasks)} tasks"})]
    ordered = sorted(tasks, key=lambda record: float(record["mean"]))
    ends = {"lowest": ordered[0], "highest": ordered[-1]}
    lines += [_line({**record, "task": f"{what}: {record['task']}"}) for what, record in ends.items()]
    missed = [record for record in tasks if record["missed"]]
    lines += [_line(record) for record in missed if record not in (ordered[0], ordered[-1])]
    return lines


def _line(record: Mapping[str, Any]) -> dict[str, object]:
    line: dict[str, object] = {key: _number(record[key]) for key in ("mean", "std", "authors", "target", *BESIDE)}
    line |= {"task": record["task"], "metric": f"{record['metric']} {'↑' if record['direction'] == 'max' else '↓'}"}
    line["density"] = f"{record['density']:.3f}"
    line["forgetting"] = NOTHING if record["forgetting"] is None else f"{record['forgetting']:g}"
    line["seconds"] = f"{record['seconds']:.0f}"
    met = {None: NOTHING, True: "yes", False: f"**no**: {', '.join(record['missed'])}"}
    return line | {"met": met[record["met"]]}


def _number(score: float | None) -> str:
    return NOTHING if score is None else f"{score:.4f}"
