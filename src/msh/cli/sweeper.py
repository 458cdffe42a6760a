"""Run a sweep: all combinations of settings, or a search among them; then show the results of its jobs."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from msh.cli.jobs import Jobs, Outcome
from msh.cli.search import search
from msh.cli.submitit_jobs import is_submitit
from msh.report.sweeps import CSV_NAME, print_sweep, read_sweep, write_csv
from msh.training.settings import INCIDENTAL

log = logging.getLogger(__name__)


def run_sweep(
    settings: Any, arguments: Sequence[str], config: DictConfig, context: HydraContext, launcher: Launcher
) -> list[Outcome]:
    """Run a sweep.

    Args:
        settings: see `hydra_plugins.msh_sweeper.MshSweeperConfig`.
        arguments: overrides of the command line, without Hydra's own.
        config: composed without the settings that vary.
        context: of Hydra.
        launcher: that the user chose.
    Returns:
        The outcomes of the jobs.
    Raises:
        ValueError: a setting is not allowed; no job has begun then.
        HydraException: a job cannot be composed; none has begun then.
        RuntimeError: jobs failed, and all others are done; in a search, all of them failed.
    """
    from msh.training.ranks import is_rank_zero  # imports torch, which `msh sweep` needs not

    overrides = read_overrides(settings.params, arguments, context)
    is_grid = settings.n_trials is None
    jobs = Jobs(config, context, launcher, shared=not is_grid)
    again = f"the same command with {shlex.quote(f'hydra.sweep.dir={jobs.folder}')} skip_finished=true"
    try:
        outcomes = jobs.run(combinations(overrides)) if is_grid else search(settings, overrides, jobs)
    except (KeyboardInterrupt, SystemExit):
        left = ", once its jobs have left the queue: scancel ends them" if is_submitit(launcher) else ""
        log.warning("the sweep was stopped: %s continues it%s", again, left)
        raise
    finally:
        if is_rank_zero() and any(folder.is_dir() for folder in jobs.folders.values()):
            _summarize_if_possible(jobs.folder)
    failed = [outcome.folder.name for outcome in outcomes if outcome.values is None]
    if is_rank_zero() and failed and (is_grid or len(failed) == len(outcomes)):
        raise RuntimeError(f"{len(failed)} of {len(outcomes)} jobs failed: {', '.join(failed)}; {again} repeats these")
    return outcomes


def read_overrides(params: dict[str, str], arguments: Sequence[str], context: HydraContext) -> dict[str, Override]:
    """Parse the varying and the fixed settings, by key; the command line's replace those of hydra.sweeper.params."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    written = [f"{key}={value}" for key, value in params.items()]
    return {override.key_or_group: override for override in parser.parse_overrides([*written, *arguments])}


def combinations(overrides: dict[str, Override]) -> list[list[str]]:
    """Write the overrides of each job of a grid; the last key's value changes fastest.

    Raises:
        ValueError: a key has an interval, whose values cannot be counted.
    """
    return [list(job) for job in itertools.product(*map(_values, overrides.values()))]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ValueError(
            f"{override.input_line}: an interval has no end of values, so it needs a search, such as "
            "hparams_search=tpe; a grid takes a,b,c, choice(...) and range(...)"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _summarize_if_possible(folder: Path) -> None:
    """Summarize, and let no trouble with that hide the end of the jobs."""
    try:
        summarize(folder)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        log.warning("the summary is incomplete: %s; `msh sweep %s` tries again", problem, folder)


def summarize(folder: Path) -> None:
    """Show the results of a sweep's jobs, and write sweep.csv and sweep.html.

    Raises:
        FileNotFoundError: the folder is not a sweep's.
    """
    from msh.report.sweep_page import FILE_NAME, write_sweep_page

    rows = read_sweep(folder, INCIDENTAL)
    write_csv(folder / CSV_NAME, rows)
    print_sweep(rows)
    write_sweep_page(folder, rows)
    print(f"written: {folder / CSV_NAME}, {folder / FILE_NAME}")
