"""Search among settings: Optuna chooses the trials, the launcher runs them, and the study is on disk.

Several processes may share a search. A trial belongs to the process that holds the lock on its file in the sweep's
folder; the operating system releases it when the process ends, however it ends, and another one takes the trial over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from msh.cli.jobs import Jobs, Outcome, without_hydra
from msh.errors import invalid, one_of
from msh.runs.objectives import OVERALL, objective_names
from msh.tasks.seeds import derive_seed
from msh.training.settings import INCIDENTAL, differences

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

STUDY_FILE = "study.log"
"""Optuna's journal of the study, in the sweep's folder."""
LOCKS = ".trials"
"""Folder, in the sweep's, of the locks on the study and on its trials."""
TAGS = ("log", "int")
WAYS = {"max": "maximize", "min": "minimize"}


def search(settings: Any, overrides: Mapping[str, Override], jobs: Jobs) -> list[Outcome]:
    """Run trials until there are as many as wanted, those of an earlier call among them.

    Trials that were running when a search was stopped come first. A trial that fails is marked so, and counts.
    The next trial follows from (seed, number of the trial) and the trials before it.

    Args:
        settings: see `hydra_plugins.msh_sweeper.MshSweeperConfig`.
        overrides: the varying and the fixed settings, by key.
        jobs: of the search.
    Returns:
        The outcomes of this call's trials.
    Raises:
        ValueError: a setting, the search space or an objective is not allowed; no job has begun then.
        HydraException: a value of the search space cannot be composed; no job has begun then.
        RuntimeError: Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise RuntimeError("a search needs Optuna: pip install 'msh[search]'")
    fixed = [str(override.input_line) for override in overrides.values() if not override.is_sweep_override()]
    varying = [override for override in overrides.values() if override.is_sweep_override()]
    for key in ("n_trials", "n_jobs"):
        if (number := getattr(settings, key)) < 1:
            raise invalid(f"hydra.sweeper.{key}", ">= 1", number)
    if not varying:
        raise ValueError("a search needs something to try, such as 'optimizer.lr=tag(log,interval(0.0003,0.01))'")
    space = {override.get_key_element(): read_distribution(override) for override in varying}
    _check_values(jobs, fixed, space)
    directions = read_directions(jobs.config.objective, settings.directions)
    with _locked(jobs.folder):
        study = open_study(jobs.folder, directions, _settings_of(jobs.config, varying, directions), settings.storage)
    outcomes = []
    while True:
        with _locked(jobs.folder):
            claimed = _claim_trials(study, jobs.folder, settings, space)
        if not claimed:
            break
        try:
            done = jobs.run([[*fixed, *_assignments(trial.params)] for trial, _ in claimed])
            for (trial, _), outcome in zip(claimed, done, strict=True):
                _tell(study, trial.number, outcome.values)
            outcomes += done
        finally:
            for _, lock in claimed:
                lock.release()
    _log_best(study, list(directions))
    return outcomes


# ---- the search space


def read_distribution(override: Override) -> BaseDistribution:
    """Translate the values of a key from Hydra's grammar to Optuna's; both ends of an interval are included.

    Raises:
        ValueError: there is no value, or a tag or the bounds are not allowed.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if override.is_choice_sweep():
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    assert isinstance(value, IntervalSweep | RangeSweep)
    for tag in value.tags:
        one_of(f"the tag of {override.input_line}", tag, TAGS)
    log_scale = "log" in value.tags
    try:
        if isinstance(value, IntervalSweep):
            low, high = cast(float, value.start), cast(float, value.end)
            if "int" in value.tags or isinstance(low, int):
                return IntDistribution(int(low), int(high), log=log_scale)
            return FloatDistribution(low, high, log=log_scale)
        values = sorted(cast(list[float], list(override.sweep_iterator())))
        if all(isinstance(value, int) for value in values):
            return IntDistribution(int(values[0]), int(values[-1]), log=log_scale, step=abs(int(value.step)))
        return FloatDistribution(values[0], values[-1], step=None if log_scale else abs(float(value.step)))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{override.input_line} cannot be searched: {error}") from error


def _check_values(jobs: Jobs, fixed: Sequence[str], space: Mapping[str, Any]) -> None:
    """Compose every choice, and the ends of every range, once, with the first values of the other keys."""
    ends = {key: getattr(part, "choices", None) or (part.low, part.high) for key, part in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        for value in values:
            jobs.compose([*fixed, *_assignments(first | {key: value})])


def _assignments(params: Mapping[str, Any]) -> list[str]:
    """Write a trial's values as overrides; choices are texts as on the command line already."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in params.items()]


def read_directions(objective: Any, given: Sequence[str] | None) -> dict[str, str]:
    """Map each objective to "minimize" or "maximize".

    Args:
        objective: the config's.
        given: a direction for each objective, or None.
    Raises:
        ValueError: there is no objective, one of test data, or no direction for one.
    """
    names = objective_names(objective)
    if not names:
        raise ValueError("a search needs an objective, such as objective=mean_score or objective=[mean_score,density]")
    for name in names:
        if name not in OVERALL and name.endswith(".test"):
            no_test = f"{name.removesuffix('test')}val in a search: the test split chooses nothing"
            raise invalid("objective", no_test, name)
    if given is not None:
        if len(given) != len(names):
            raise invalid("hydra.sweeper.directions", f"one for each of {names}", list(given))
        for direction in given:
            one_of("hydra.sweeper.directions", direction, WAYS.values())
        return dict(zip(names, given, strict=True))
    if unknown := [name for name in names if name not in OVERALL]:
        raise ValueError(
            f"objective = {unknown[0]!r} needs a direction: minimize where its metric is an error, else maximize; "
            "hydra.sweeper.directions=[...], one for each objective"
        )
    return {name: WAYS[OVERALL[name]] for name in names}


# ---- the study


def _settings_of(config: DictConfig, varying: Sequence[Override], directions: Mapping[str, str]) -> dict[str, Any]:
    """Collect the settings that a study's trials share: trials of other settings say nothing about each other."""
    own = cast(dict[str, Any], OmegaConf.to_container(without_hydra(config)))
    params = {override.get_key_element(): str(override.input_line) for override in varying}
    return own | {"search": {"objectives": dict(directions), "params": params}}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from choosing trials."""
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCKS / "study.lock"):
        yield


def open_study(
    folder: Path, directions: Mapping[str, str], settings: Mapping[str, Any], address: str | None = None
) -> optuna.Study:
    """Open the study of a sweep's folder, or create it.

    Args:
        folder: of the sweep.
        directions: objective to its direction.
        settings: that its trials share.
        address: of a database; None: the study is a file in the folder.
    Raises:
        ValueError: the folder's study has other settings, or the address is not one.
        RuntimeError: the database cannot be used.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage: BaseStorage = (
        JournalStorage(JournalFileBackend(str(folder / STUDY_FILE))) if address is None else _database(address)
    )
    study = optuna.create_study(
        storage=storage,
        study_name="search" if address is None else str(folder),  # one database may have many studies
        directions=cast(Any, list(directions.values())),
        load_if_exists=True,
    )
    for key, (before, now) in differences(study.user_attrs.get("settings", settings), settings, INCIDENTAL).items():
        raise ValueError(
            f"{folder} has a search with {key} = {before!r}, not {now!r}: a search keeps its settings; choose another "
            "hydra.sweep.dir for others"
        )
    study.set_user_attr("settings", settings)
    return study


def _database(address: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, OperationalError

    try:
        return RDBStorage(address)
    except ImportError as error:
        cause = error.__cause__ or error
        raise RuntimeError(f"hydra.sweeper.storage needs a driver for its database: {cause}") from error
    except ArgumentError:
        bound = "the address of a database, such as postgresql://HOST/DATABASE"
        raise invalid("hydra.sweeper.storage", bound, "another text") from None  # it may hold a password
    except OperationalError as error:
        raise RuntimeError(f"the database of hydra.sweeper.storage cannot be reached: {error.orig}") from None


def _claim_trials(
    study: optuna.Study, folder: Path, settings: Any, space: dict[str, BaseDistribution]
) -> list[tuple[Trial | FrozenTrial, FileLock]]:
    """Choose as many trials as are launched at a time: those that a process has begun and left; else new ones.

    Returns:
        Each trial, with the lock by which it is this process's.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    claimed: list[tuple[Trial | FrozenTrial, FileLock]] = []
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        lock = _claim(folder, trial.number) if len(claimed) < settings.n_jobs else None
        if lock is None:
            continue
        is_running = study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING
        if is_running and trial.params.keys() == space.keys():
            claimed.append((trial, lock))
            continue
        if is_running:  # stopped while its values were chosen
            study.tell(trial.number, state=TrialState.FAIL)
        lock.release()
    if claimed:
        return claimed
    for number in range(len(study.trials), min(len(study.trials) + settings.n_jobs, settings.n_trials)):
        seed = derive_seed(settings.seed, "search", number) % 2**32
        study.sampler = TPESampler(seed=seed, n_startup_trials=settings.n_startup_trials)
        new = study.ask(space)
        lock = _claim(folder, new.number)
        assert lock is not None
        claimed.append((new, lock))
    return claimed


def _claim(folder: Path, number: int) -> FileLock | None:
    """Lock a trial for this process; None while another one has it."""
    lock = FileLock(folder / LOCKS / f"{number}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _tell(study: optuna.Study, number: int, values: Sequence[float] | None) -> None:
    from optuna.trial import TrialState

    if values is None or any(math.isnan(value) for value in values):
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, list(values))


def _log_best(study: optuna.Study, objectives: Sequence[str]) -> None:
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return
    for trial in study.best_trials:
        scores = "  ".join(f"{name} {value:.4g}" for name, value in zip(objectives, trial.values, strict=True))
        log.info("best: %s, with %s", scores, " ".join(_assignments(trial.params)))
