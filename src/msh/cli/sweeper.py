"""A sweep: its jobs, all combinations or those that a search chooses, and what they came to."""

from __future__ import annotations

import itertools
import logging
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
from msh.report.sweeps import CSV_NAME, print_sweep, read_sweep, write_csv
from msh.training.settings import INCIDENTAL

log = logging.getLogger(__name__)


def run_sweep(
    settings: Any, arguments: Sequence[str], config: DictConfig, context: HydraContext, launcher: Launcher
) -> list[Outcome]:
    """Do a sweep, and show what its jobs came to.

    Args:
        settings: as `hydra_plugins.msh_sweeper.MshSweeperConfig` has them.
        arguments: of the command line, but for Hydra's own.
        config: composed without what is swept over.
        context: of Hydra.
        launcher: that the user chose.
    Returns:
        What became of each job.
    Raises:
        ValueError: a setting is not allowed; no job is begun then.
        HydraException: a job cannot be composed; none is begun then.
        RuntimeError: jobs failed, and all others are done; of a search, all of them failed.
    """
    overrides = read_overrides(settings.params, arguments, context)
    jobs = Jobs(config, context, launcher)
    try:
        grid = settings.n_trials is None
        outcomes = jobs.run(combinations(overrides)) if grid else search(settings, overrides, jobs)
    finally:
        if any(path.is_dir() for path in jobs.known.values()):
            _summarize_if_possible(jobs.folder)
    failed = [outcome.folder.name for outcome in outcomes if outcome.values is None]
    if failed and (grid or len(failed) == len(outcomes)):
        raise RuntimeError(
            f"{len(failed)} of {len(outcomes)} jobs failed: {', '.join(failed)}; the same command with "
            f"hydra.sweep.dir={jobs.folder} skip_finished=true does these again"
        )
    return outcomes


def read_overrides(params: dict[str, str], arguments: Sequence[str], context: HydraContext) -> dict[str, Override]:
    """What is swept over, and what is fixed, by key; the command line's replace those of hydra.sweeper.params."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    written = [f"{key}={value}" for key, value in params.items()]
    return {override.key_or_group: override for override in parser.parse_overrides([*written, *arguments])}


def combinations(overrides: dict[str, Override]) -> list[list[str]]:
    """Every combination of the values, the last key's changing fastest: of each job, its overrides.

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
            "hparams_search=tpe; all combinations are tried of a,b,c, choice(...) and range(...)"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _summarize_if_possible(folder: Path) -> None:
    """Let no trouble with the summary hide what became of the jobs."""
    try:
        summarize(folder)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        log.warning("not all of the summary was written: %s; `msh sweep %s` tries again", what, folder)


def summarize(folder: Path) -> None:
    """Show what the jobs of a sweep came to, and write sweep.csv and sweep.html.

    Raises:
        FileNotFoundError: the folder is not a sweep's.
    """
    from msh.report.sweep_page import FILE_NAME, write_sweep_page

    rows = read_sweep(folder, INCIDENTAL)
    write_csv(folder / CSV_NAME, rows)
    print_sweep(rows)
    write_sweep_page(folder, rows)
    print(f"written: {folder / CSV_NAME}, {folder / FILE_NAME}")
