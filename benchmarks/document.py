"""Write tables into documents, between two markers; text around the markers stays."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.records import maker_of

BEGIN, END = "<!-- table: make bench -->", "<!-- end of table -->"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
SAME, OWN = ("id", "what", "unit", "threads", "repeats"), ("value", "spread", "runs", "target", "met", "dense")
"""Columns for all makers' processors together, and for each maker's."""


def write_table(path: Path, records: Sequence[Mapping]) -> None:
    """Put a table of records and the machines' names between the document's markers.

    Args:
        path: of the document; created with the markers if missing.
        records: from `records.read`.
    Raises:
        ValueError: the document has no markers, or has them in the wrong order.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Performance\n\n{BEGIN}\n{END}\n")
    sentences = dict.fromkeys(record["machine"] for record in records)
    replace_between(path, BEGIN, "\n".join(sentences) + "\n\n" + by_maker(records))


def by_maker(records: Sequence[Mapping]) -> str:
    """Format records as a Markdown table with a line for each id, and columns for each maker's processors."""
    makers = list(dict.fromkeys(maker_of(record["machine"]) for record in records))
    lines: dict[str, dict[str, object]] = {}
    for record in records:
        line = lines.setdefault(record["id"], {column: record[column] for column in SAME})
        own = {column: record[column] for column in OWN} | {"runs": len(record["runs"] or [record["value"]])}
        line |= {f"{maker_of(record['machine'])} {column}": cell for column, cell in own.items()}
    columns = [*SAME[:2], *(f"{maker} {column}" for maker in makers for column in OWN), *SAME[2:]]
    return table([dict.fromkeys(columns) | line for line in lines.values()], columns)


def replace_between(path: Path, begin: str, text: str) -> None:
    """Put a text between a document's marker and the next end of a table.

    Raises:
        ValueError: the document has no such markers, or has them in the wrong order.
    """
    before, found, rest = path.read_text().partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{path} has no lines {begin!r} and {END!r} for the table to stand between")
    path.write_text(f"{before}{begin}\n{text}\n{END}{after}")


def put_section(path: Path, head: str, marker: str, heading: str, text: str) -> None:
    """Put a text between the markers of a section; a document without them gets the section at its end.

    Args:
        path: of the document; created if missing.
        head: first lines of a new document.
        marker: text in the section's first marker.
        heading: of a new section.
        text: for the space between the markers.
    """
    begin = f"<!-- table: {marker} -->"
    document = path.read_text() if path.exists() else head
    if begin not in document:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{document}\n## {heading}\n\n{begin}\n{END}\n")
    replace_between(path, begin, text)


def table(rows: Sequence[Mapping], columns: Sequence[str]) -> str:
    """Format rows as a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def machine(device: str) -> str:
    """Name the machine in a sentence."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    versions = f"torch {torch.__version__} and Python {platform.python_version()}"
    return f"Measured on {name}, with {versions}{'' if device == 'cuda' else f'; kernels: {kernels()}'}."


def kernels() -> str:
    """Name the libraries and vector instructions that torch computes with on the CPU."""
    built = torch.__config__.show()
    patterns = {
        "MKL": r"Math Kernel Library Version (\S+?)-",
        "oneDNN": r"MKL-DNN v(\S+)",
        "OpenMP": r"a.k.a. OpenMP (\S+)\)",
    }
    found = {name: re.search(pattern, built) for name, pattern in patterns.items()}
    return ", ".join([*(f"{n} {m[1]}" for n, m in found.items() if m), torch.backends.cpu.get_cpu_capability()])


def processor() -> str:
    """Return the CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return f"{names[0]} ({len(names)} logical cores)"
    return platform.processor() or platform.machine()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, list | tuple):
        return " to ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")
