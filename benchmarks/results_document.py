"""Write docs/results.md: a table and a figure per row, between markers; text around the markers stays."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import processor, put_section, table
from benchmarks.figures import MANY
from benchmarks.rows import Row
from benchmarks.scores import BESIDE, MEAN, Runs
from msh.runs.words import counted

HEAD = """# Results

Scores on the paper's experiments and on continual-learning benchmarks. You can repeat them with
`make reproduce DATA_DIR=DIR` and `make reproduce-all DATA_DIR=DIR` ([paper.md](paper.md) says more); both rewrite the
text between the markers. `results.json` in this folder holds the same numbers. In the figures, dotted lines are targets
and bars the standard deviation over the seeds; a triangle at the edge is a score outside the axis.
"""
NOTHING = "–"


def write_section(path: Path, row: Row, records: Sequence[Mapping[str, Any]], runs: Runs, figure: str) -> None:
    """Put a row's table, figure and caption between its markers; a row without markers gets a section at the end.

    Args:
        path: of the document; created if missing.
        row: the row.
        records: its records.
        runs: its runs.
        figure: path of its figure, from the document's folder.
    """
    shown = table(_lines(records), _columns())
    text = f"{caption(row, records, runs)}\n\n{shown}\n\n![{heading(row)}]({figure})"
    put_section(path, HEAD, f"row {row.id}", heading(row), text)


def heading(row: Row) -> str:
    """Return a row's heading."""
    return f"Row {row.id}: {row.title}" if row.id.isdigit() else row.title


def caption(row: Row, records: Sequence[Mapping[str, Any]], runs: Runs) -> str:
    """Describe a row's runs in sentences."""
    epochs = {record["epochs"] for record in records}
    each = ", ".join(f"{record['task']} {record['epochs']}" for record in records if record["task"] != MEAN)
    command = " ".join([f"+experiment={row.experiment}", *row.overrides])
    seeds = f"seed{'s' if len(runs) > 1 else ''} {', '.join(map(str, runs))}"
    length = f"{epochs.pop()} epochs per stage" if len(epochs) == 1 else f"epochs: {each}"
    sentences = [f"`{command}`, {seeds}; {length}."]
    seeds_of = {name: max(record[f"{name}_seeds"] for record in records) for name in BESIDE}
    sentences += [f"{name}: {n} seed{'s' if n > 1 else ''}." for name, n in seeds_of.items() if 0 < n != len(runs)]
    if row.dense_of is not None and seeds_of["dense"]:
        sentences.append(f"Dense networks: from row {row.dense_of}.")
    if row.baselines_of is not None and any(seeds_of.values()):
        sentences.append(f"Baselines: from row {row.baselines_of}.")
    others = [seed for seed in runs if row.step(seed, Path()) is None]
    if others:
        which = f"seed{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
        sentences.append(f"Runs for {which}: the first stages in row {row.part_of}.")
    if row.source:
        sentences.append(f"Authors: {row.source}.")
    guarantees = [run.results.guarantee for run in runs.values()]
    checked, changed = (sum(guarantee[key] for guarantee in guarantees) for key in ("checked", "violations"))
    where = " in this row's runs" if others else ""
    sentences.append(f"Frozen tasks compared bitwise{where}: {counted(checked, 'time')}, {changed} changed.")
    forgotten = [f for run in runs.values() if (f := run.results.finetune["forgetting"]) is not None]
    if forgotten and len({record["metric"] for record in records}) == 1:
        sentences.append(f"Mean forgetting when fine-tuned: {statistics.mean(forgotten):.4f}.")
    threads = " or ".join(str(number) for number in sorted({run.threads or 0 for run in runs.values()}))
    processors = " or ".join(sorted({run.processor or processor() for run in runs.values()}))
    sentences.append(f"Seconds: training time per stage; CPU threads: {threads}, on {processors}.")
    return " ".join([*sentences, row.note] if row.note else sentences)


def _columns() -> list[str]:
    scores = ["mean", "std", "authors", "target", *BESIDE]
    return ["task", "metric", *scores, "density", "forgetting", "seconds", "met"]


def _lines(records: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Make the table's lines: one per task; with many tasks, mean, lowest, highest and missed targets."""
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
