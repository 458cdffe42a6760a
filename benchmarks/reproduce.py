"""Run the paper's experiments and the benchmarks of continual learning; write docs/results.md, .json and figures.

    python -m benchmarks.reproduce --data-dir DIR [--all] [--rows 1,4] [--seeds 0,1] [--jobs 2] [--missing]

The rows are listed in benchmarks/reproduce.yaml, their runs go to outputs/reproduce. A finished run is skipped, a
stopped one is resumed, one with other settings is moved aside: you can stop the command (Ctrl-C) and repeat it.
The first seed of all rows comes first. The documents are rewritten after every run from the records of all runs
(benchmarks/run_records), so that rows measured on another machine stay in them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import names_of
from benchmarks.figures import draw
from benchmarks.recording import steps_to_do, write_records
from benchmarks.records import update
from benchmarks.results_document import heading, write_section
from benchmarks.rows import Row, check_baselines, check_dense, check_part, composed, epochs_of, read_rows
from benchmarks.runs import Step, command_line, do, state_of
from benchmarks.scores import Runs, beginning_of, read_run, records_of


def plan(rows: Sequence[Row], seeds: Sequence[int] | None, root: Path) -> list[Step]:
    """Order the steps of all rows, seed by seed.

    Args:
        rows: in order.
        seeds: seeds to run; all when None.
        root: folder of the runs.
    """
    ordered = sorted({seed for row in rows for seed in row.seeds if seeds is None or seed in seeds})
    return [step for seed in ordered for row in rows if seed in row.seeds and (step := row.step(seed, root))]


def measured(row: Row, rows: Mapping[str, Row], root: Path) -> Runs:
    """Read a row's runs with the row's settings, or the first stages of the runs in `part_of`."""
    runs = {}
    for seed in row.seeds:
        step = row.step(seed, root)
        if step and state_of(step).what in ("finished", "unfinished") and (run := read_run(step.folder)):
            runs[seed] = run
    if row.part_of is not None:
        tasks = list(epochs_of(composed(row)))
        for seed, run in measured(rows[row.part_of], rows, root).items():
            if seed in row.seeds:
                runs.setdefault(seed, beginning_of(run, tasks))
    return dict(sorted(runs.items()))


def document(rows: Mapping[str, Row], root: Path, folder: Path, run_records: Path) -> None:
    """Record finished runs; write results.md, results.json and figures. Rows without runs stay unchanged.

    Args:
        rows: all rows.
        root: folder of the runs.
        folder: folder of the documents.
        run_records: folder of the run records.
    """
    write_records(plan(list(rows.values()), None, root), root, run_records)
    runs = {id: measured(row, rows, run_records) for id, row in rows.items()}
    records: dict[str, list[dict[str, Any]]] = {id: [] for id in rows}
    for id, row in rows.items():
        if runs[id]:
            baselines, dense = runs[row.baselines_of or id], runs[row.dense_of or row.baselines_of or id]
            records[id] = records_of(row, runs[id], baselines, dense)
            figure = f"figures/row_{id}.png"
            draw(records[id], heading(row), folder / figure)
            write_section(folder / "results.md", row, records[id], runs[id], figure)
    update(folder / "results.json", "row", records)


def parse(arguments: Sequence[str], rows: Mapping[str, Row]) -> argparse.Namespace:
    parser = command_line(__doc__, "reproduce")
    parser.add_argument("--all", action="store_true", help="also the rows that take long")
    parser.add_argument("--rows", type=names_of(rows), help=f"of {','.join(rows)}")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], help="of each row's")
    options = parser.parse_args(arguments)
    options.rows = options.rows or [id for id, row in rows.items() if options.all or row.group == "core"]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    rows = read_rows()
    options = parse(sys.argv[1:] if arguments is None else arguments, rows)
    root = options.output_dir.resolve()
    for row in (rows[id] for id in options.rows):
        if row.dense_of is not None:
            check_dense(row, rows[row.dense_of])
        if row.baselines_of is not None:
            check_baselines(row, rows[row.baselines_of])
        if row.part_of is not None:
            check_part(row, rows[row.part_of])
    steps = plan([rows[id] for id in options.rows], options.seeds, root)
    records = options.records_dir / "reproduce"
    todo = steps_to_do(steps, options, records)
    do(todo, options, lambda: document(rows, root, options.document_dir, records))


if __name__ == "__main__":
    main()
