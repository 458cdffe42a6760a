"""`msh train`, `python train.py`: compose a config, do the run, show the table."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from msh.cli.configs import config_folder
from msh.cli.errors import recorded, user_errors
from msh.cli.processes import share_folder
from msh.cli.resume import rewrite_arguments
from msh.runs.results import UNFINISHED
from msh.training.config import register, run_config

register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")
def _train(config: DictConfig) -> float | tuple[float, ...] | None:
    from hydra.core.hydra_config import HydraConfig

    from msh.training.ranks import is_rank_zero

    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        with recorded(folder):
            return _run(config, folder, HydraConfig.get().overrides.task)
    values = _run(config, folder, HydraConfig.get().overrides.task)
    if is_rank_zero():
        (folder / UNFINISHED).unlink(missing_ok=True)  # of a sweep's job that went on by itself
    return values


def _run(config: DictConfig, folder: Path, overrides: Iterable[str]) -> float | tuple[float, ...] | None:
    """Do a run, or go on with one; returns its objectives."""
    from msh.cli.resume import check_same_run
    from msh.report.terminal import print_results
    from msh.runs.objectives import objective_values, read_objectives
    from msh.training.ranks import is_rank_zero
    from msh.training.run import train

    _check_tasks_named_once(overrides)
    _quiet_lightning()
    _keep_bar_lines_off_the_terminal()
    if not is_rank_zero():
        _leave_words_to_the_first_process()
    if config.resume is not None:
        check_same_run(config, folder)
    results = train(run_config(config), folder, _write_report)
    if is_rank_zero() and results.capacity:
        print_results(results)
        print(f"run folder: {folder}")
    values = tuple(objective_values(results, read_objectives(config.objective, list(results.tasks))))
    return values[0] if len(values) == 1 else values or None


def _write_report(folder: Path) -> None:
    from msh.report.run_page import write_report

    write_report(folder)


def _keep_bar_lines_off_the_terminal() -> None:
    """Send what a live progress bar shows anyway to the log file alone: printed, it would tear the bar."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(lambda record: not getattr(record, "in_bar", False))


def _leave_words_to_the_first_process() -> None:
    """Let this process say only what is wrong with it: what all of them know, the first one tells."""
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.ERROR if isinstance(handler, logging.FileHandler) else logging.WARNING)


def _check_tasks_named_once(overrides: Iterable[str]) -> None:
    """Raise when `tasks=[...]` names a task twice: Hydra would merge the two."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        names = override.value() if override.key_or_group == "tasks" else None
        if isinstance(names, list):
            twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
            if twice:
                raise ValueError(f"tasks names {', '.join(map(repr, twice))} more than once: name every task once")


def _quiet_lightning() -> None:
    """Keep Lightning's notes on devices and tips out of the way; its warnings still show."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # epochs are logged all the same
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # inside Lightning 2.6 itself
    # What takes its place is not in torch before 2.15, and still sends all buffers at the start.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    # Batches are taken from memory by index: worker processes would only slow that down.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def main() -> None:
    """Run the command with the process's arguments."""
    with user_errors():
        share_folder()
        rewrite_arguments()
        _train()


if __name__ == "__main__":
    main()
