"""What documents are written from: of each run its results.json, settings and processor, kept beside the documents.

Run folders are large and stay on the machine that made them. With these few files in the repository, documents are
written again anywhere, and rows can be measured one by one, on whatever machine has time.
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


def kept(step: Step, root: Path, kept_root: Path) -> Step:
    """The step whose folder is where a step's run is kept.

    Args:
        step: its folder is below `root`.
        root: folder of the runs.
        kept_root: folder of those that are kept.
    """
    return replace(step, folder=kept_root / step.folder.relative_to(root))


def keep(steps: Iterable[Step], root: Path, kept_root: Path) -> None:
    """Keep the runs whose curriculum is learned, in place of earlier ones.

    A kept run that has all baselines stays until the one in `root` has them too.

    Args:
        steps: with all their baselines; those of other settings, or not done, are passed over.
        root: folder of the runs.
        kept_root: folder of those that are kept.
    """
    for step in steps:
        found, target = state_of(step).what, kept(step, root, kept_root)
        run = read_run(step.folder) if found in ("finished", "unfinished") else None
        if run is None:
            continue
        if found == "unfinished" and state_of(target).what == "finished":
            continue
        (target.folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(step.folder / FILE_NAME, target.folder / FILE_NAME)
        OmegaConf.save(_without_incidental(step.folder / CONFIG), target.folder / CONFIG)
        (target.folder / PROCESSOR).write_text(f"{run.processor or processor()}\n")


def only_missing(steps: Sequence[Step], options: argparse.Namespace, name: str) -> Sequence[Step]:
    """What is to be done of steps with `--missing`, all of them without it; a dry run makes no run folders.

    Args:
        steps: in order, their folders below `options.output_dir`.
        options: of `benchmarks.runs.command_line`.
        name: of the folder of records in docs/runs.
    """
    if not options.missing:
        return steps
    root, kept_root = options.output_dir.resolve(), options.document_dir / "runs" / name
    found = missing(steps, root, kept_root)
    if not options.dry_run:
        put_back(found, root, kept_root)
    return found


def missing(steps: Iterable[Step], root: Path, kept_root: Path) -> list[Step]:
    """The steps that no record has: not done by any machine.

    Args:
        steps: in order.
        root: folder of the runs.
        kept_root: folder of those that are kept.
    """
    return [step for step in steps if state_of(kept(step, root, kept_root)).what != "finished"]


def put_back(steps: Iterable[Step], root: Path, kept_root: Path) -> None:
    """Where a run is kept that lacks a baseline, and is not in `root`, make a run folder there of its record.

    The baseline is all that is trained in it then.

    Args:
        steps: see `missing`.
        root: see there.
        kept_root: see there.
    """
    for step in steps:
        record = kept(step, root, kept_root)
        if state_of(record).what == "unfinished" and state_of(step).what == "new" and (run := read_run(record.folder)):
            _put_back(step, record.folder, run.threads)


def _put_back(step: Step, record: Path, threads: int | None) -> None:
    overrides = [*step.overrides, "logger=csv", *([] if threads is None else [f"threads={threads}"])]
    (step.folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(compose(*overrides, output_dir=step.folder), step.folder / CONFIG)
    OmegaConf.save(overrides, step.folder / ".hydra" / "overrides.yaml")
    for name in (FILE_NAME, PROCESSOR):
        shutil.copyfile(record / name, step.folder / name)


def _without_incidental(path: Path) -> object:
    """A config without what says nothing of its run's results: where its files were, what it logged."""
    config = read_config(path)
    with open_dict(config):
        for key in INCIDENTAL:
            parent, _, name = key.rpartition(".")
            block = OmegaConf.select(config, parent) if parent else config
            if block is not None:
                block.pop(name, None)
    return config
