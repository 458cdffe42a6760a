"""Write a task of a trained network for other programs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from msh.cli.own import add_allow, allowed

ALL = "all"
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, network or subnetwork file, or hf://user/name")
    parser.add_argument(
        "--task",
        help="the task; may be left out if there is one only; all: every task, in one file (unless one is called so)",
    )
    parser.add_argument(
        "--format", choices=[*SUFFIXES], help="onnx; pt2: torch.export; safetensors: a network file; default: of FILE"
    )
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", required=True, help="file to write")
    parser.add_argument("--quantize", choices=["int8"], help="ONNX: type of the weights")
    parser.add_argument("--base", help="network file with the tasks that a subnetwork file's task reads")
    add_allow(parser)


def export(given: Namespace) -> None:
    """Write the file, and say what it holds.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument or a file is invalid, or the task cannot be exported.
    """
    from msh.errors import Problems, one_of
    from msh.inference.export import export_all, export_file, export_task
    from msh.inference.predictor import load

    with Problems() as problems:
        if given.format is None:
            problems.check(one_of, "-o: the suffix", given.out.suffix, list(SUFFIXES.values()))
        kind = given.format or given.out.suffix[1:]
        if given.quantize is not None and kind != "onnx":
            problems.add(f"--quantize {given.quantize} needs --format onnx, not {kind}")
    predictor = load(given.source, base=given.base, classes=allowed(given.allow))
    task = None if given.task == ALL and ALL not in predictor.tasks else predictor.task(given.task).name
    if task is None and given.quantize is not None:
        raise ValueError(f"--quantize {given.quantize} needs one task, not --task {ALL}: tasks share their weights")
    if kind == "safetensors":
        export_file(given.source, task, given.out)
        notes = {}
    elif task is None:
        notes = export_all(predictor, given.out, kind)
    else:
        notes = export_task(predictor, task, given.out, kind, given.quantize is not None)
    for key, value in notes.items():
        print(f"{key}: {value}")
    print(f"written: {given.out} ({given.out.stat().st_size:,} bytes)")
