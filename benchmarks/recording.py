"""Run records: each run's results.json, settings and processor, copied into the repository.

Run folders are large and stay on the machine that made them. From these records the documents can be rewritten on any
machine, so that rows can be measured one by one, wherever there is time.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf, open_dict

from benchmarks.configs import compose
from benchmarks.document import processor
from benchmarks.runs import Step, state_of
from benchmarks.scores import PROCESSOR, read_run
from msh.files.yaml_files import read_config
from msh.runs.results import FILE_NAME
from msh.training.settings import INCIDENTAL

CONFIG = Path(".hydra") / "config.yaml"


def record_of(step: Step, root: Path, records: Path) -> Step:
    """Move a step's folder from below `root`, the folder of the runs, to below `records`."""
    return replace(step, folder=records / step.folder.relative_to(root))


def write_records(steps: Iterable[Step], root: Path, records: Path) -> None:
    """Record the runs whose curriculum is learned; a new record replaces an earlier one.

    A record with all baselines stays until the run in `root` has them too.

    Args:
        steps: with all their baselines; those with other settings, or not done, are skipped.
        root: folder of the runs.
        records: folder of the records.
    """
    for step in steps:
        state, target = state_of(step).what, record_of(step, root, records)
        run = read_run(step.folder) if state in ("finished", "unfinished") else None
        if run is None:
            continue
        if state == "unfinished" and state_of(target).what == "finished":
            continue
        (target.folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(step.folder / FILE_NAME, target.folder / FILE_NAME)
        OmegaConf.save(_without_incidental(step.folder / CONFIG), target.folder / CONFIG)
        (target.folder / PROCESSOR).write_text(f"{run.processor or processor()}\n")


def steps_to_do(steps: Sequence[Step], options: argparse.Namespace, records: Path) -> Sequence[Step]:
    """Select the steps to do: all, or with `--missing` those without a finished record.

    From a record that lacks a baseline a run folder is made, so that only the baseline is trained.

    Args:
        steps: in order, their folders below `options.output_dir`.
        options: from `benchmarks.runs.command_line`.
        records: folder of the records.
    """
    if not options.missing:
        return steps
    todo = []
    for step in steps:
        record = record_of(step, options.output_dir.resolve(), records)
        state = state_of(record).what
        if state != "finished":
            todo.append(step)
            if state == "unfinished" and state_of(step).what == "new":
                _restore(step, record.folder)
    return todo


def _restore(step: Step, record: Path) -> None:
    run = read_run(record)
    if run is None:
        return
    threads = run.threads
    overrides = [*step.overrides, "logger=csv", *([] if threads is None else [f"threads={threads}"])]
    (step.folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(compose(*overrides, output_dir=step.folder), step.folder / CONFIG)
    OmegaConf.save(overrides, step.folder / ".hydra" / "overrides.yaml")
    for name in (FILE_NAME, PROCESSOR):
        shutil.copyfile(record / name, step.folder / name)


def _without_incidental(path: Path) -> object:
    """Read a config without the keys that do not affect results: folders, loggers."""
    config = read_config(path)
    with open_dict(config):
        for key in INCIDENTAL:
            parent, _, name = key.rpartition(".")
            block = OmegaConf.select(config, parent) if parent else config
            if block is not None:
                block.pop(name, None)
    return config
