"""`msh train`, `python train.py`: compose a config, train, print the results."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log
from hydra.types import RunMode
from lightning_fabric.utilities.warnings import PossibleUserWarning
from omegaconf import DictConfig, OmegaConf

from msh.cli.app import show_help
from msh.cli.arguments import by_key, flag_value, split_arguments, unquoted
from msh.cli.composing import command
from msh.cli.continuing import continued
from msh.cli.errors import recorded, user_errors
from msh.cli.inherited import drop_inherited
from msh.cli.processes import check_shared_folder
from msh.cli.resume import check_same_run, compose_resumed, of_new_run, run_to_resume
from msh.errors import refuse_password
from msh.files.atomic import write_text
from msh.runs.results import FILE_NAME, UNFINISHED, Results
from msh.training.config import register, run_config
from msh.training.settings import INCIDENTAL, on_disk

log = logging.getLogger(__name__)

WARNINGS: dict[str, type[Warning]] = {
    # `msh.training.launch` says what is to be said of it, once.
    r"The `srun` command is available on your system but is not used": PossibleUserWarning,
    # Epochs are logged, however few batches they have.
    r"The number of training batches \(\d+\) is smaller than the logging interval Trainer": PossibleUserWarning,
    # Batches are taken from memory by index: worker processes would only slow that down.
    r"The '\w+' does not have many workers which may be a bottleneck": PossibleUserWarning,
    # Lightning 2.6 uses these two; their replacement is not in torch before 2.15.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": FutureWarning,
    r"`broadcast_buffers` is deprecated": FutureWarning,
}
"""Start of warnings that are not shown, to their category."""

USERS_FOLDER: ContextVar[Path | None] = ContextVar("USERS_FOLDER", default=None)
"""The run folder, if it existed before the command."""

register()


@command("config")
def _train(config: DictConfig) -> float | tuple[float, ...] | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    drop_inherited(config, cast(DictConfig, HydraConfig.get()))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        with recorded(folder):
            return _objectives(run_composed(config, folder), config)
    with failed_start_removed(folder):
        return _objectives(run_composed(config, folder), config)


def _objectives(results: Results, config: DictConfig) -> float | tuple[float, ...] | None:
    """Return what a sweep optimizes; None if there is nothing."""
    from msh.runs.objectives import objective_values, read_objectives

    values = tuple(objective_values(results, read_objectives(config.objective, list(results.tasks))))
    return values[0] if len(values) == 1 else values or None


@contextmanager
def failed_start_removed(folder: Path, has_log: bool = True) -> Iterator[None]:
    """If a start fails before the run begins, remove the files it wrote, and the folder unless it existed before.

    Args:
        folder: the run folder, which Hydra or the caller has made.
        has_log: files that the process logs to are there.
    """
    before = set(folder.iterdir())
    try:
        yield
    except BaseException:
        _remove_failed_start(folder, before, has_log)
        raise


def _remove_failed_start(folder: Path, before: set[Path], has_log: bool) -> None:
    from msh.training.ranks import is_rank_zero
    from msh.training.run import locked

    if not is_rank_zero():
        return
    try:
        with locked(folder):
            if (folder / FILE_NAME).exists():
                return
            if has_log:
                _leave_log_file()
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not before and folder.resolve() != USERS_FOLDER.get():
            folder.rmdir()
    except (RuntimeError, OSError) as error:  # another process works there
        log.debug("%s was not removed: %s", folder, error)


def _resume(folder: Path, flags: list[str], overrides: list[str]) -> None:
    """Resume the run in a folder with the config that is stored there."""
    config = compose_resumed(folder, flag_value(flags, "--config-dir", "-cd"), overrides)
    if flag_value(flags, "--cfg", "-c") is not None:
        print(OmegaConf.to_yaml(_without_hydra(config)))
        return
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    run_alone(config, folder)


def _without_hydra(config: DictConfig) -> DictConfig:
    own: DictConfig = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return own


def run_alone(config: DictConfig, folder: Path) -> Results:
    """Train outside of Hydra's commands, unless the folder holds the results already.

    Args:
        config: with Hydra's part; `resume` names the folder of a run to resume.
        folder: the run folder.
    """
    from msh.training.ranks import is_rank_zero

    HydraConfig.instance().set_config(config)
    try:
        results = run_composed(_without_hydra(config), folder)
    finally:
        HydraConfig.instance().cfg = None
    if config.resume is not None and is_rank_zero():
        (folder / UNFINISHED).unlink(missing_ok=True)  # of a sweep's job
    return results


def run_composed(config: DictConfig, folder: Path) -> Results:
    """Train, unless the folder holds the results already."""
    from msh.report.terminal import print_results
    from msh.training.launch import check_multi_node
    from msh.training.ranks import agree, is_rank_zero
    from msh.training.run import locked, train
    from msh.training.trainers import connect

    if config.resume is None:
        config = continued(config)
    own = run_config(config)
    if HydraConfig.get().runtime.choices.get("trainer") == "multi_node":
        check_multi_node()
    _check_tasks_named_once(HydraConfig.get().overrides.task)
    quiet_lightning()
    _keep_bar_lines_off_the_terminal()
    if not is_rank_zero():
        _leave_words_to_the_first_process()
    connect(own.trainer, folder)
    with ExitStack() as stack:

        def claim() -> str | None:
            stack.enter_context(locked(folder))
            return _found(config, folder)

        try:
            found = agree(claim)
        except (RuntimeError, ValueError):
            _leave_log_file()
            raise
        results = train(replace(own, resume=found), folder, _write_report)
    if is_rank_zero() and results.capacity:
        print_results(results)
        print(f"run folder: {folder}")
    return results


def _found(config: DictConfig, folder: Path) -> str | None:
    """Look what the run folder holds, and make it ready for a new run.

    Returns:
        The folder, as `resume`, of a finished run or of one to resume; None for a new run.
    Raises:
        ValueError: the folder holds another run, or one that `resume` must name.
    """
    from msh.training.ranks import is_rank_zero

    if config.resume is not None:
        check_same_run(config, folder)
        return str(config.resume)
    found = on_disk(folder, config, INCIDENTAL)
    if found.what == "finished":
        return str(folder)
    if not is_rank_zero():  # rank 0 has begun or resumed the run, and then started this process
        return str(folder) if found.what == "unfinished" else None
    if found.what == "unfinished" and HydraConfig.get().mode == RunMode.MULTIRUN:
        check_same_run(config, folder)
        return str(folder)
    if found.what == "other":
        first, *more = found.why.split("; ")
        also = f", and {len(more)} more" if more else ""
        raise ValueError(f"{folder} holds another run ({first}{also}): choose another hydra.run.dir")
    if found.what == "unfinished":
        resume = shlex.quote(f"resume={folder}")
        raise ValueError(f"{folder} holds this run, unfinished: {resume} continues it; or choose another hydra.run.dir")
    _store(config, folder)
    return None


def _store(config: DictConfig, folder: Path) -> None:
    """Write the composed config into a new run folder, in Hydra's files.

    Hydra itself would write it before it calls us: also into the folder of another run.
    """
    stored = folder / ".hydra"
    write_text(stored / "hydra.yaml", OmegaConf.to_yaml({"hydra": HydraConfig.get()}))
    write_text(stored / "overrides.yaml", OmegaConf.to_yaml(HydraConfig.get().overrides.task))
    write_text(stored / "config.yaml", OmegaConf.to_yaml(config))  # last: with it, the folder is a run's


def _leave_log_file() -> None:
    """Log nothing more to train.log: the folder is another run's."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def _write_report(folder: Path) -> None:
    from msh.report.run_page import write_report

    write_report(folder)


def _keep_bar_lines_off_the_terminal() -> None:
    """Send to the log file alone what the progress line shows anyway, and let the rest be printed above that line."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(lambda record: not getattr(record, "in_bar", False))
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.stream = _CurrentStdout()


class _CurrentStdout:
    """Writes to the stdout of the moment, which the progress line replaces while it is there."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


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


def quiet_lightning() -> None:
    """Keep Lightning's notes on devices and tips out of the way; its warnings still show."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)
    for message, category in WARNINGS.items():
        warnings.filterwarnings("ignore", message=message, category=category)


def checked(overrides: Sequence[str]) -> dict[str, str]:
    """Check overrides before Hydra shows them; return their values, as typed, by key.

    Raises:
        ValueError: one holds a password, or several processes would not find one run folder.
    """
    given = by_key(overrides)
    for key, value in given.items():
        refuse_password(key, value)
    check_shared_folder(given)
    return given


def main() -> None:
    """Run the command with the process's arguments."""
    with user_errors():
        flags, overrides = split_arguments(sys.argv[1:])
        if show_help("train", flags):
            return
        given = checked(overrides)
        folder = run_to_resume(flags, given)
        if folder is not None:
            _resume(folder, flags, overrides)
        else:
            chosen = Path(unquoted(given.get("hydra.run.dir", "")))
            USERS_FOLDER.set(chosen.resolve() if "hydra.run.dir" in given and chosen.exists() else None)
            sys.argv[1:] = [*flags, *of_new_run(overrides)]
            _train()


if __name__ == "__main__":
    main()
