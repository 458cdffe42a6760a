"""Measure the costs of msh against the dense network in the same run.

    python -m benchmarks.run [--only 1,5,roofline] [--add] [--quick] [--threads 2] [--device cpu] [--data-dir DIR]

Writes benchmarks/results.json and the table in docs/performance.md; with --quick or --output-dir, both go into another
folder. Rows that --only leaves out, and those measured on another maker's processors, keep their records.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    epoch,
    gpu,
    gradual,
    growth,
    inference,
    memory,
    others,
    overhead,
    parallel,
    peers,
    roofline,
    serving,
    startup,
    steps,
    storage,
    structured,
    subnormal,
)
from benchmarks.arguments import names_of, new_parser, positive
from benchmarks.document import machine, write_table
from benchmarks.records import FILE_NAME, Record, merge, read, write
from benchmarks.timing import Settings

ROOT = Path(__file__).resolve().parents[1]
ROWS: dict[str, Callable[[Settings], Iterator[Record]]] = {
    "1": steps.sparse,
    "2": steps.convolutional,
    "3": steps.unpruned,
    "4": gradual.gradual,
    "5": epoch.epochs,
    "6": parallel.parallel,
    "7": memory.memory,
    "8": memory.switching,
    "9": storage.storage,
    "10": inference.unstructured,
    "11": structured.structured,
    "12": startup.start_up,
    "13": growth.growth,
    "14": overhead.overhead,
    "15": subnormal.subnormal,
    "16": serving.serving,
    "17": inference.all_tasks,
    "18": inference.exports,
    "19": others.others,
    "20": memory.step_memory,
    "21": peers.peers,
    "block": structured.blocks,
    "gpu": gpu.gpu,
    "roofline": roofline.roofline,
    "compile": steps.compiled,
}
"""Row (or another section) to the function that measures it."""
USUAL = [row for row in ROWS if row != "gpu"]


def measure(rows: Sequence[str], settings: Settings, console: Console) -> list[Record]:
    """Measure rows one after another; print a line for each."""
    torch.set_flush_denormal(True)  # as runs do
    torch.set_num_threads(settings.threads)
    records = []
    for row in rows:
        torch.manual_seed(0)
        start = time.monotonic()
        new = [replace(record, machine=machine(settings.device)) for record in ROWS[row](settings)]
        records += new
        console.print(f"row {row}: {len(new)} records, {time.monotonic() - start:.0f} s")
    return records


def show(records: Sequence[Record], console: Console) -> None:
    table = Table("id", "value", "target", "met", "dense", "unit")
    for record in records:
        cells = ["" if x is None else f"{x:.4g}" for x in (record.value, record.target)]
        met = {None: "", True: "yes", False: "no"}[record.met]
        table.add_row(record.id, *cells, met, "" if record.dense is None else f"{record.dense:.4g}", record.unit)
    console.print(table)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(__doc__)
    rows = f"rows, separated by commas: {','.join(ROWS)}"
    parser.add_argument("--only", dest="rows", metavar="ROWS", type=names_of(ROWS), default=USUAL, help=rows)
    add = "add to the records of earlier runs on such a machine: the table has the median of the runs"
    parser.add_argument("--add", action="store_true", help=add)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats, in about two minutes")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=positive, help="rounds of each row, instead of its own number")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="folder of the real data sets")
    parser.add_argument("--output-dir", type=Path, help="folder for results.json and performance.md")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    return options


def paths(output_dir: Path | None, quick: bool) -> tuple[Path, Path]:
    """Return the paths of results.json and the document; a quick run never overwrites a full one."""
    if output_dir is None and quick:
        output_dir = ROOT / "outputs" / "benchmarks" / "quick"
    if output_dir is None:
        return ROOT / "benchmarks" / FILE_NAME, ROOT / "docs" / "performance.md"
    return output_dir / FILE_NAME, output_dir / "performance.md"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    settings = Settings(options.threads, options.device, options.quick, options.repeats, options.data_dir)
    console = Console(width=140)
    results, document = paths(options.output_dir, options.quick)
    new: list[Record] = []
    failed: list[str] = []
    for row in options.rows:
        try:
            measured = measure([row], settings, console)
        except Exception:
            traceback.print_exc()
            failed.append(row)
            continue
        write(results, merge(read(results), measured, [row], options.add))
        new += measured
    write_table(document, read(results))
    show(new, console)
    targeted = [record for record in new if record.met is not None]
    console.print(machine(options.device))
    console.print(f"{sum(r.met for r in targeted)} of {len(targeted)} targets met; {results}, {document}")
    if failed:
        sys.exit(f"rows that failed, and keep their records: {', '.join(failed)}")


if __name__ == "__main__":
    main()
