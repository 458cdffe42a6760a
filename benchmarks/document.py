"""Write tables into documents, between two markers; text around the markers stays."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.records import maker_of

BEGIN, END = "<!-- table: make bench -->", "<!-- end of table -->"
SUMMARY = "<!-- table: summary of make bench -->"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
KINDS = ("single weights", "blocks", "whole units")
OVERVIEW = {
    "step of FC 6 x 1000, batch 128": ("1-batch128", "block-fc-step128", "11-fc-step128"),
    "step of the paper's conv net, batch 128": ("2-batch128", None, "11-conv-step128"),
    "step of a narrow ResNet-18, batch 64": ("19-resnet-weight", None, "19-resnet-unit"),
    "step of a small ViT, batch 32": ("19-vit-weight", "19-vit-block", "19-vit-unit"),
    "step of a small GPT, batch 16": ("19-gpt-weight", "19-gpt-block", "19-gpt-unit"),
    "forward of FC 6 x 1000, frozen, batch 32": ("10-density0.1-batch32", "block-fc-frozen32", "11-fc-frozen32"),
    "forward of the conv net, frozen, batch 32": (None, None, "11-conv-frozen32"),
    "peak memory of a step of FC 6 x 1000": ("20-fc-weight", "20-fc-block", "20-fc-unit"),
    "peak memory of a step of the ResNet-18": ("20-resnet-weight", "20-resnet-block", "20-resnet-unit"),
    "peak memory of a step of the ViT": ("20-vit-weight", "20-vit-block", "20-vit-unit"),
    "peak memory of a step of the GPT": ("20-gpt-weight", "20-gpt-block", "20-gpt-unit"),
}
"""Lines of the summary: ids of the records for each of KINDS."""


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
        path.write_text(f"# Performance\n\n{SUMMARY}\n{END}\n\n{BEGIN}\n{END}\n")
    sentences = dict.fromkeys(record["machine"] for record in records)
    replace_between(path, SUMMARY, "\n".join([*sentences, _targets_met(records)]) + "\n\n" + summary(records))
    replace_between(path, BEGIN, by_maker(records))


def makers_of(records: Sequence[Mapping]) -> list[str]:
    """List the makers of the processors that records are of."""
    return list(dict.fromkeys(maker_of(record["machine"]) for record in records))


def summary(records: Sequence[Mapping]) -> str:
    """Format the main ratios as a Markdown table, with each maker's value in a cell."""
    makers = makers_of(records)
    known = {(record["id"], maker_of(record["machine"])): record["value"] for record in records}
    head = f"share of the dense network's ({' / '.join(makers)})"
    lines = []
    for what, ids in OVERVIEW.items():
        found = [[known.get((id or "", maker)) for maker in makers] for id in ids]
        cells = [" / ".join("–" if x is None else f"{x:.2f}" for x in row) if any(row) else "–" for row in found]
        lines.append({head: what} | dict(zip(KINDS, cells, strict=True)))
    return table([line for line in lines if set(line.values()) != {line[head], "–"}], [head, *KINDS])


def _targets_met(records: Sequence[Mapping]) -> str:
    """Count the targets that are met on each maker's processors, in a sentence."""
    parts = []
    for maker in makers_of(records):
        met = [r["met"] for r in records if maker_of(r["machine"]) == maker and r["met"] is not None]
        parts.append(f"{maker} {sum(met)} of {len(met)}")
    return f"Targets met: {', '.join(parts)}."


def by_maker(records: Sequence[Mapping]) -> str:
    """Format records as a Markdown table with a line for each id, and columns for each maker's processors."""
    lines: dict[str, dict[str, object]] = {}
    columns = [f"{maker}{column}" for maker in makers_of(records) for column in ("", " target", " dense")]
    for record in records:
        line = lines.setdefault(record["id"], {"id": record["id"], "what": record["what"], "unit": record["unit"]})
        target = record["target"] if record["met"] in (None, True) else f"{_cell(record['target'])}, **missed**"
        own = (_with_spread(record), target, record["dense"])
        maker = maker_of(record["machine"])
        line |= zip((maker, f"{maker} target", f"{maker} dense"), own, strict=True)
    columns = ["id", "what", *columns, "unit"]
    return table([dict.fromkeys(columns) | line for line in lines.values()], columns)


def _with_spread(record: Mapping) -> str:
    """Format a record's value, with the spread of its rounds or runs and the number of runs."""
    runs = record["runs"] or ()
    spread = [] if record["spread"] is None else [_cell(record["spread"])]
    notes = [*spread, *([f"{len(runs)} runs"] if len(runs) > 1 else [])]
    return _cell(record["value"]) + (f" ({', '.join(notes)})" if notes else "")


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
