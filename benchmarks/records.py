"""Records of measurements, their targets, and their file."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.targets import target_of

FILE_NAME = "results.json"


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        id: the row's number and the case, such as "1-batch32"; other sections have a word in place of the number.
        what: description: quantity, network, comparison; or why there is no value.
        value: the number; lower is better if there is a target. None: it could not be measured.
        target: upper bound. None: no bound.
        met: value <= target; None without a target, False without a value.
        dense: the dense network's number (or another reference's) in the same run, if any.
        unit: of the value and, after "dense in", of the dense number.
        threads: CPU threads.
        repeats: rounds behind the median.
        spread: first and last quartile of the rounds' ratios, if the value is their median; over several runs, the
            lowest and the highest value.
        machine: sentence about the processor and the libraries, from `document.machine`.
        runs: values of whole runs of the benchmark, if there are several; the value is their median.
    """

    id: str
    what: str
    value: float | None
    target: float | None = field(init=False)
    met: bool | None = field(init=False)
    dense: float | None
    unit: str
    threads: int
    repeats: int
    spread: Sequence[float] | None = None
    machine: str = ""
    runs: Sequence[float] | None = None

    def __post_init__(self) -> None:
        target = target_of(self.id, maker_of(self.machine))
        met = None if target is None else self.value is not None and self.value <= target
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "met", met)

    def joined(self, earlier: Mapping) -> Record:
        """Add this run to an earlier record of the same case on the same machine."""
        if self.value is None or earlier["value"] is None:
            return self
        runs = [*(earlier["runs"] or [earlier["value"]]), self.value]
        return replace(self, value=statistics.median(runs), spread=[min(runs), max(runs)], runs=runs)


def maker_of(machine: str) -> str:
    """Name a processor's maker: "AMD", "Intel", or the first word of its name."""
    return "Intel" if "Intel" in machine else machine.removeprefix("Measured on ").partition(" ")[0]


def row_of(id: str) -> str:
    """Return the row part of a record's id."""
    return id.partition("-")[0]


def read(path: Path) -> list[dict]:
    """Read the records in a file; none without the file."""
    return json.loads(path.read_text()) if path.exists() else []


def merge(earlier: Iterable[dict], records: Sequence[Record], rows: Iterable[str], add: bool = False) -> list[dict]:
    """Replace earlier records with new ones, row by row, or add these to them; sort by row.

    Args:
        earlier: records from a file.
        records: new ones, of one machine.
        rows: rows just measured; their earlier records are dropped, but for those on other makers' processors.
        add: keep the values of earlier runs on the same machine, too.
    """
    measured, makers = set(rows), {maker_of(record.machine) for record in records}
    earlier = list(earlier)
    others = [r for r in earlier if row_of(r["id"]) not in measured or maker_of(r["machine"]) not in makers]
    if add:
        known = {(record["id"], record["machine"]): record for record in earlier}
        before = [known.get((record.id, record.machine)) for record in records]
        records = [new.joined(old) if old else new for new, old in zip(records, before, strict=True)]
    return sorted([*others, *map(asdict, records)], key=lambda record: _place(row_of(record["id"])))


def update(path: Path, key: str, records: Mapping[str, list[dict]]) -> None:
    """Write new records into a file; what has no new ones keeps its earlier ones.

    Args:
        path: of the file.
        key: of a record, that says to what it belongs.
        records: what is measured, in order, to its new records.
    """
    earlier = read(path)
    write(path, [r for id, new in records.items() for r in new or [old for old in earlier if old[key] == id]])


def _place(row: str) -> tuple[int, str]:
    return (int(row), "") if re.fullmatch(r"\d+", row) else (1000, row)


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
