"""In tests: `python -m golden.record` records all anew; `python -m golden.record runs:gated` a part. See README.md."""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from golden.files import FILES, describe_files, make_files
from golden.recording import FOLDER, SCORES64, environment, read, write
from golden.runs import RUNS, record_run, record_scores
from golden.settings import default_settings, help_texts, option_settings


def record_runs(names: list[str]) -> None:
    """Record these runs, all when none is named; the others stay as they are."""
    before = read("runs.json")["runs"] if names and (FOLDER / "runs.json").exists() else {}
    if names and environment() != read("runs.json")["environment"]:
        raise SystemExit("runs.json was recorded on another processor or release of torch: record all runs")
    found = {}
    for name in names or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = record_run(name, Path(folder) / "run")
        print(f"run {name}: recorded")
    together = before | found
    write("runs.json", {"environment": environment(), "runs": {name: together[name] for name in RUNS}})


def record_float64(names: list[str]) -> None:
    """Record the scores of these runs in float64, of all when none is named."""
    before = read(SCORES64) if names else {}
    for name in names or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            before[name] = record_scores(name, Path(folder) / "run")
        print(f"float64 run {name}: recorded")
    write(SCORES64, {name: before[name] for name in RUNS})


def record_files(names: list[str]) -> None:
    """Write all files anew, in the formats of this release, and what is expected of them; a name is not allowed."""
    if names:
        raise SystemExit("files are recorded together: leave out names")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "made").mkdir()
        make_files(Path(folder) / "made")
        described, tensors = describe_files(Path(folder))
    save_file(tensors, FILES / "expected.safetensors")
    write("files.json", {"environment": environment(), **described})
    print("files: recorded")


def record_config(names: list[str]) -> None:
    """Record settings and options of config groups; a name is not allowed."""
    if names:
        raise SystemExit("settings are recorded together: leave out names")
    write("config.json", {"defaults": default_settings(), "options": option_settings()})
    print("config: recorded")


def record_help(names: list[str]) -> None:
    """Record help texts, all when none is named."""
    before = read("help.json") if names else {}
    found = help_texts()
    write("help.json", before | {name: found[name] for name in names or found})
    print("help: recorded")


PARTS = {
    "runs": record_runs,
    "float64": record_float64,
    "files": record_files,
    "config": record_config,
    "help": record_help,
}


def main() -> None:
    """Record what the arguments name."""
    parser = argparse.ArgumentParser("python -m golden.record", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, or one entry, as in runs:gated")
    torch.set_num_threads(1)
    wanted: dict[str, list[str]] = {}
    for given in parser.parse_args().parts or PARTS:
        part, _, name = given.partition(":")
        wanted.setdefault(part, []).extend([name] if name else [])
    for part, names in wanted.items():
        PARTS[part](names)


if __name__ == "__main__":
    main()
