"""In tests: `python -m golden.elsewhere` does the float64 runs as older processors would, and prints what differs."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from golden.recording import SCORES64, environment, largest_difference, read
from golden.runs import RUNS, record_scores

PROCESSORS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
"""Processor to the environment that keeps torch and its libraries to the instructions it has."""


def measure(names: list[str]) -> None:
    """Do these runs in this process, and print for each the largest difference from its record, as a line of JSON."""
    torch.set_num_threads(1)
    recorded = read(SCORES64)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = record_scores(name, Path(folder) / "run")
        row = [environment()["capability"], name, largest_difference(recorded[name], found)]
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Measure the runs that the arguments name, all by default, on each processor."""
    parser = argparse.ArgumentParser("python -m golden.elsewhere", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--here", action="store_true", help="in this process, on this processor alone")
    arguments = parser.parse_args()
    names = arguments.names or [*RUNS]
    if arguments.here:
        return measure(names)
    for variables in PROCESSORS.values():
        command = [sys.executable, "-m", "golden.elsewhere", "--here", *names]
        subprocess.run(command, env=os.environ | variables, check=True)
    return None


if __name__ == "__main__":
    main()
