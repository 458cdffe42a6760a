"""Records of measurements, their targets, and their file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.targets import TARGETS

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
        spread: first and last quartile of the rounds' ratios, if the value is their median.
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

    def __post_init__(self) -> None:
        target = TARGETS.get(self.id)
        met = None if target is None else self.value is not None and self.value <= target
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "met", met)


def row_of(id: str) -> str:
    """Return the row part of a record's id."""
    return id.partition("-")[0]


def read(path: Path) -> list[dict]:
    """Read the records in a file; none without the file."""
    return json.loads(path.read_text()) if path.exists() else []


def merge(earlier: Iterable[dict], records: Iterable[Record], rows: Iterable[str]) -> list[dict]:
    """Replace earlier records with new ones, row by row; sort by row.

    Args:
        earlier: records from a file.
        records: new ones.
        rows: rows just measured; their earlier records are dropped.
    """
    measured = set(rows)
    others = [record for record in earlier if row_of(record["id"]) not in measured]
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
