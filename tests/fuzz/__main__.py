"""Print a table of outcomes by kind of file: in tests/, `python -m fuzz --inputs 10000 --seed 0`."""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fuzz.harness import fuzz
from fuzz.kinds import make_kinds


def main() -> None:
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only this kind; more than once for several")
    parser.add_argument("--number", type=int, help="only this input of the kind")
    parser.add_argument("--folder", type=Path, help="where inputs that fail are kept; a temporary one when not given")
    parser.add_argument("--messages", action="store_true", help="show how often each error was given")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="msh-fuzz-"))
    if given.in_process:
        _one(given.kind[0], range(given.inputs) if given.number is None else [given.number], given.seed, folder)
        return
    kinds = given.kind or list(make_kinds(folder / "seeds"))
    each = -(-given.inputs // len(kinds))
    sys.exit(_all(kinds, each, given, folder))


def _all(kinds: list[str], each: int, given: argparse.Namespace, folder: Path) -> int:
    """Run each kind in a separate process, so that a crash is reported too."""
    print(f"{'kind':22}{'inputs':>8}{'read':>8}{'refused':>9}{'failures':>10}{'seconds':>9}")
    failed, totals = 0, [0, 0, 0]
    for kind in kinds:
        started = time.monotonic()
        found = _apart(kind, each, given, folder / kind.replace(" ", "-"))
        seconds, failures = time.monotonic() - started, found["failures"]
        count = found["read"] + found["refused"] + len(failures)
        failed += len(failures)
        totals = [a + b for a, b in zip(totals, (count, found["read"], found["refused"]), strict=True)]
        print(f"{kind:22}{count:8}{found['read']:8}{found['refused']:9}{len(failures):10}{seconds:9.1f}", flush=True)
        shown: set[str] = set()
        for number, problem in failures.items():
            if problem[:60] not in shown:
                print(f"  input {number}: {problem}")
            shown.add(problem[:60])
        if given.messages:
            for message, times in sorted(found["messages"].items(), key=lambda item: -item[1]):
                print(f"  {times:6} {message:.200}")
    print(f"{'all':22}{totals[0]:8}{totals[1]:8}{totals[2]:9}{failed:10}")
    if failed:
        print(f"inputs that failed are in {folder}/KIND/failed; one again: --seed {given.seed} --kind KIND --number N")
    return int(failed > 0)


def _apart(kind: str, each: int, given: argparse.Namespace, folder: Path) -> dict:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "fuzz", "--in-process", "--kind", kind, "--inputs", str(each)]
    command += ["--seed", str(given.seed), "--folder", str(folder)]
    command += [] if given.number is None else ["--number", str(given.number)]
    code = subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode
    if code == 0:
        return json.loads((folder / "outcome.json").read_text())
    last = (folder / "number").read_text() if (folder / "number").exists() else "-1"
    return {"read": 0, "refused": 0, "failures": {last: f"the process ended with {code}"}, "messages": {}}


def _one(name: str, numbers: list[int] | range, seed: int, folder: Path) -> None:
    logging.disable()
    torch.set_num_threads(1)
    outcome = fuzz(make_kinds(folder / "seeds")[name], numbers, seed, folder)
    (folder / "outcome.json").write_text(json.dumps(vars(outcome)))


if __name__ == "__main__":
    main()
