"""Check every architecture, and write the table of docs/compatibility.md: `make compat`."""

import sys
import time
import traceback
from pathlib import Path

import torch

from compat.architectures import ARCHITECTURES
from compat.checking import ROWS, check

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
HEADINGS = (
    "starts by name",
    "right weights prunable",
    "gradients as in torch",
    "bitwise after the next task",
    "loads from its file",
    "exports (pt2)",
    "layers with whole units",
    "tensors in blocks",
)
START = "<!-- written by make compat -->"


def read_table(document: Path) -> dict[str, dict[str, str]]:
    """Read the document's rows: architecture to column to result."""
    rows = {}
    for line in document.read_text().partition(START)[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] not in ("architecture", "---"):
            rows[cells[0].strip("`")] = dict(zip(ROWS, (cell.replace("`", "") for cell in cells[1:]), strict=True))
    return rows


def write(document: Path) -> int:
    """Check every architecture and write the table; return the number of checks that raised an error."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    lines, failed = [START, ""], 0
    for library, several in ARCHITECTURES.items():
        lines += [f"## {library}", "", "| " + " | ".join(["architecture", *HEADINGS]) + " |"]
        lines.append("|" + "---|" * (1 + len(HEADINGS)))
        for architecture in several:
            started = time.monotonic()
            try:
                found = check(architecture)
            except Exception:
                traceback.print_exc()
                found, failed = dict.fromkeys(ROWS, "error"), failed + 1
            cells = [found[row] for row in ROWS]
            lines.append("| " + " | ".join([f"`{architecture.name}`", *cells]) + " |")
            print(f"{time.monotonic() - started:5.1f} s", lines[-1], flush=True)
        lines.append("")
    before = document.read_text().partition(START)[0]
    document.write_text(before + "\n".join(lines).rstrip() + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(write(DOCUMENT) > 0)
