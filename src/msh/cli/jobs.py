"""Run a sweep's jobs, each in the folder of its config: finished ones are skipped, stopped ones resume themselves."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from msh.cli.arguments import quoted
from msh.cli.inherited import drop_inherited
from msh.cli.submitit_jobs import tolerate_lost_jobs
from msh.files.yaml_files import read_config
from msh.runs.objectives import objective_values, read_objectives
from msh.runs.results import UNFINISHED, Results
from msh.training.config import run_config
from msh.training.settings import INCIDENTAL, identity, on_disk

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A job's run folder, and its objectives if it is finished."""

    folder: Path
    values: tuple[float, ...] | None


class Jobs:
    """Launches jobs into the folder of a sweep; a job is known by its composed config.

    Args:
        config: the sweep's, composed without the settings that vary.
        context: of Hydra.
        launcher: that the user chose.
        shared: other processes launch jobs into the folder at the same time; jobs that they do are repeated elsewhere.
    Raises:
        ValueError: the folder has jobs already, and `skip_finished` is not set.
    """

    def __init__(self, config: DictConfig, context: HydraContext, launcher: Launcher, shared: bool = False) -> None:
        self.config, self.context, self.launcher, self.shared = config, context, launcher, shared
        self.folder = Path(config.hydra.sweep.dir).resolve()
        self.folders: dict[str, Path] = {}
        """Identity of a job's config to its run folder."""
        self.stored: set[Path] = set()
        """Configs of jobs that have been read."""
        from msh.training.ranks import is_rank_zero  # imports torch, which `msh sweep` needs not

        self._read_folders()
        if self.folders and not config.skip_finished and is_rank_zero():  # others follow the first process's sweep
            raise ValueError(
                f"{self.folder} has {len(self.folders)} jobs already: skip_finished=true continues with them, or "
                "choose another hydra.sweep.dir"
            )
        self.outcomes: dict[str, Outcome] = {}
        """Identity to the outcome in this process."""
        self.next_number = 1 + max(
            (int(path.name) for path in self.folder.glob("*") if path.name.isdigit()), default=-1
        )

    def _read_folders(self) -> None:
        """Find the run folders of jobs, of this process and of others."""
        for path in sorted(set(self.folder.rglob(".hydra/config.yaml")) - self.stored):
            self.folders.setdefault(identity(read_config(path), INCIDENTAL), path.parent.parent)
            self.stored.add(path)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose a job's config, with Hydra's own settings.

        Raises:
            ValueError: a key or an objective is unknown.
            HydraException: it cannot be composed.
        """
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        drop_inherited(config, config.hydra)
        own = run_config(without_hydra(config))
        read_objectives(own.objective, list(own.tasks) if own.task is None else [own.task])
        return config

    def run(self, batch: Sequence[Sequence[str]]) -> list[Outcome]:
        """Run jobs, at once if the launcher can.

        Args:
            batch: overrides of each job; identical jobs run once.
        Returns:
            Their outcomes.
        Raises:
            ValueError: one is not allowed; none has begun then.
            HydraException: one cannot be composed; none has begun then.
        """
        configs = [self.compose(overrides) for overrides in batch]
        keys = [identity(without_hydra(config), INCIDENTAL) for config in configs]
        if self.shared:
            self._read_folders()
        first, jobs = self.next_number, {}
        for key, config, overrides in zip(keys, configs, batch, strict=True):
            if key in jobs or (key in self.outcomes and self.outcomes[key].values is not None):
                continue
            state = (
                on_disk(self.folders[key], without_hydra(config), INCIDENTAL).what if key in self.folders else "other"
            )
            if state == "finished":
                log.info("%s is finished already", self.folders[key])
                self.outcomes[key] = Outcome(self.folders[key], _objectives(self.folders[key], config))
                continue
            if state == "unfinished" and self.shared and is_in_use(self.folders[key]):
                state = "other"
            if state == "other":  # not known, damaged, or another process's
                self.folders[key] = self._new_folder(config)
            subdir = self.folders[key].relative_to(self.folder)
            where = [f"hydra.sweep.dir={quoted(str(self.folder))}", f"hydra.sweep.subdir={quoted(str(subdir))}"]
            jobs[key] = [*overrides, *where]
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        for key in jobs:
            (self.folders[key] / UNFINISHED).unlink(missing_ok=True)
        if jobs:
            self._launch(jobs, first)
        return [self.outcomes[key] for key in keys]

    def _new_folder(self, config: DictConfig) -> Path:
        """Name a job's folder as hydra.sweep.subdir says; where other processes choose folders too, make it at once.

        Raises:
            ValueError: another job has this folder.
        """
        before: Path | None = None
        while True:
            folder = self._next_folder(config)
            try:
                if folder not in self.folders.values() and not folder.exists():
                    if self.shared:
                        folder.mkdir(parents=True)
                    return folder
            except FileExistsError:
                pass
            if not self.shared or folder == before:
                name = str(folder.relative_to(self.folder))
                raise ValueError(
                    f"hydra.sweep.subdir = {name!r} is the folder of another job: it must differ between jobs, as the "
                    "usual ${hydra.job.num} does"
                )
            before = folder

    def _next_folder(self, config: DictConfig) -> Path:
        """Name a folder by the next number."""
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = self.next_number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            name = str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before
        self.next_number += 1
        return self.folder / name

    def _launch(self, jobs: Mapping[str, list[str]], number: int, again: bool = True) -> None:
        """Launch jobs, numbered from here, and record their outcomes.

        When a process is killed, its launcher stops all of them. Those that had not begun are launched again, together;
        then those that had, one at a time: one of them may be the cause.
        """
        tolerate_lost_jobs(self.launcher)
        try:
            returned: Sequence[JobReturn | None] = self.launcher.launch(list(jobs.values()), initial_job_idx=number)
        except Exception as error:
            if not _is_killed(error):
                raise
            finished = {key for key in jobs if is_finished(self.folders[key])}
            begun = [key for key in jobs if key in finished or (self.folders[key] / UNFINISHED).exists()]
            if not begun:
                raise
            log.error("a process was killed: %s", error)
            for key in begun:
                self._record(key, None)
            if waiting := {key: job for key, job in jobs.items() if key not in begun}:
                self._launch(waiting, number)
            for key in begun if again else ():
                if key not in finished:
                    log.info("%s was cut off, and is launched again", self.folders[key])
                    self._launch({key: jobs[key]}, number, again=False)
            return
        for key, result in zip(jobs, returned, strict=True):
            self._record(key, result)

    def _record(self, key: str, returned: JobReturn | None) -> None:
        """Record a job's outcome: as it was returned, or else as its folder says."""
        folder, values = self.folders[key], None
        if returned is None:
            values = _objectives(folder, self.config) if is_finished(folder) else None
        elif returned.status == JobStatus.COMPLETED:
            value = returned.return_value
            values = () if value is None else tuple(value) if isinstance(value, Sequence) else (value,)
        self.outcomes[key] = Outcome(folder, values)


def is_in_use(folder: Path) -> bool:
    """Return true if a process works on the run in a folder."""
    from msh.training.run import locked

    try:
        with locked(folder):
            return False
    except RuntimeError:
        return True


def _is_killed(error: Exception) -> bool:
    """Return true if a launcher raised this because a job's process ended without a result.

    Ray has repeated the job by then, and runs its other jobs on: they are stopped, as other launchers stop theirs.
    """
    ray = sys.modules.get("ray")
    if ray is None or not isinstance(error, ray.exceptions.RayError) or isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error, BrokenExecutor)
    ray.shutdown()
    return True


def without_hydra(config: DictConfig) -> DictConfig:
    """Return the run's part of a composed config."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def is_finished(folder: Path) -> bool:
    """Return whether a job's folder has all of its results."""
    try:
        return Results.load(folder).status == "finished" and not (folder / UNFINISHED).exists()
    except (ValueError, FileNotFoundError):
        return False


def _objectives(folder: Path, config: Any) -> tuple[float, ...]:
    results = Results.load(folder)
    return tuple(objective_values(results, read_objectives(config.objective, list(results.tasks))))
