"""The jobs of a sweep: each in a folder of its own, none of them the end of the others, and none done twice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from msh.files.yaml_files import read_config
from msh.runs.objectives import objective_values, read_objectives
from msh.runs.results import FILE_NAME, UNFINISHED, Results
from msh.training.config import run_config
from msh.training.settings import INCIDENTAL, identity, on_disk

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job that is to be launched.

    Attributes:
        key: the identity of its config: of jobs that are the same, one is launched.
        folder: its run folder.
        overrides: that the launcher is given.
    """

    key: str
    folder: Path
    overrides: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        values: its objectives; None if it is not finished.
    """

    folder: Path
    values: tuple[float, ...] | None


class Jobs:
    """Launches jobs into the folder of a sweep.

    A job is known by its composed config. With `skip_finished`, one that is finished in the sweep's folder is left as
    it is, and one that was stopped there goes on; any other gets a folder that is not in use.

    Args:
        config: the sweep's, composed without what is swept over.
        context: of Hydra.
        launcher: that the user chose.
    Raises:
        ValueError: the folder has jobs already, and `skip_finished` is not set.
    """

    def __init__(self, config: DictConfig, context: HydraContext, launcher: Launcher) -> None:
        self.config, self.context, self.launcher = config, context, launcher
        self.folder = Path(config.hydra.sweep.dir).resolve()
        self.known: dict[str, Path] = {}
        """Identity of a job's config to its folder."""
        self.outcomes: dict[str, Outcome] = {}
        """The same to what became of the job, in this process."""
        for path in sorted(self.folder.rglob(".hydra/config.yaml")):
            self.known[identity(read_config(path), INCIDENTAL)] = path.parent.parent
        if self.known and not config.skip_finished:
            raise ValueError(
                f"{self.folder} has {len(self.known)} jobs already: skip_finished=true goes on with them, or choose "
                "another hydra.sweep.dir"
            )
        numbers = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit()]
        self.next_number = max(numbers, default=-1) + 1

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """A job's config, with Hydra's own settings.

        Raises:
            ValueError: it has a key that there is not, or an objective.
            HydraException: it cannot be composed.
        """
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        own = run_config(without_hydra(config))
        read_objectives(own.objective, list(own.tasks) if own.task is None else [own.task])
        return config

    def run(self, batch: Sequence[Sequence[str]]) -> list[Outcome]:
        """Do jobs, at once if the launcher can.

        Args:
            batch: of each job, its overrides.
        Returns:
            What became of each.
        Raises:
            ValueError: one of them is not allowed; none is begun then.
            HydraException: one cannot be composed; none is begun then.
        """
        configs = [self.compose(overrides) for overrides in batch]
        keys = [identity(without_hydra(config), INCIDENTAL) for config in configs]
        coming: dict[str, Job] = {}
        first = self.next_number
        for key, config, overrides in zip(keys, configs, batch, strict=True):
            if key not in coming and not self._is_done(key, config):
                coming[key] = self._place(key, config, list(overrides))
        self._launch(list(coming.values()), first)
        return [self.outcomes[key] for key in keys]

    def _is_done(self, key: str, config: DictConfig) -> bool:
        if key in self.outcomes and self.outcomes[key].values is not None:
            return True
        folder = self.known.get(key)
        if folder is None or on_disk(folder, without_hydra(config), INCIDENTAL).what != "finished":
            return False
        log.info("%s is finished already", folder)
        self.outcomes[key] = Outcome(folder, _values(folder, config))
        return True

    def _place(self, key: str, config: DictConfig, overrides: list[str]) -> Job:
        """Choose a job's folder: its own from before, or a new one."""
        folder = self.known.get(key)
        what = "new" if folder is None else on_disk(folder, without_hydra(config), INCIDENTAL).what
        if folder is None or what == "other":
            folder = self.folder / self._free_name(config)
        where = [f"hydra.sweep.dir='{self.folder}'", f"hydra.sweep.subdir='{folder.relative_to(self.folder)}'"]
        self.known[key] = folder
        job = Job(key, folder, [*overrides, *where])
        return _going_on(job) if what == "unfinished" else job

    def _free_name(self, config: DictConfig) -> str:
        """A folder for a job of this config, as hydra.sweep.subdir says."""
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = self.next_number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            name = str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before
        self.next_number += 1
        folder = self.folder / name
        if folder.exists() or folder in self.known.values():
            raise ValueError(
                f"hydra.sweep.subdir = {name!r} is the folder of another job: it has to differ from job to job, as the "
                "usual ${hydra.job.num} does"
            )
        return name

    def _launch(self, jobs: list[Job], number: int) -> None:
        """Launch jobs, numbered from here.

        Where a process was killed, its launcher ends them all. Those that have not begun are launched again; then, one
        at a time, those that were under way: one of them may be what the process died of.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        for job in jobs:
            (job.folder / UNFINISHED).unlink(missing_ok=True)
        cut_off: list[Job] = []
        while jobs:
            begun = self._launch_at_once(jobs, number)
            cut_off += [job for job in begun if not _is_finished(job.folder)]
            jobs = [job for job in jobs if job not in begun] if begun else []
        for job in map(_going_on, cut_off):
            log.info("%s was cut off, and is launched again", job.folder)
            self._launch_at_once([job], number)

    def _launch_at_once(self, jobs: list[Job], number: int) -> list[Job]:
        """Launch jobs, and note what becomes of them; returns those that had begun when a process was killed."""
        try:
            returned: Sequence[JobReturn | None] = self.launcher.launch(
                [job.overrides for job in jobs], initial_job_idx=number
            )
        except BrokenExecutor as error:
            begun = [job for job in jobs if (job.folder / UNFINISHED).exists() or _is_finished(job.folder)]
            if not begun:
                raise
            log.error("a process was killed: %s", error)
            for job in begun:
                self._note(job, None)
            return begun
        for job, result in zip(jobs, returned, strict=True):
            self._note(job, result)
        return []

    def _note(self, job: Job, returned: JobReturn | None) -> None:
        """Keep what became of a job: as it was returned, or else as its folder tells."""
        values: tuple[float, ...] | None = None
        if returned is None:
            values = _values(job.folder, self.config) if _is_finished(job.folder) else None
        elif returned.status == JobStatus.COMPLETED:
            value = returned.return_value
            values = () if value is None else tuple(value) if isinstance(value, Sequence) else (value,)
        self.outcomes[job.key] = Outcome(job.folder, values)


def without_hydra(config: DictConfig) -> DictConfig:
    """The config that a run has, in which Hydra's own is not."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _going_on(job: Job) -> Job:
    """The job, which goes on where its run was stopped, if it had come as far as that."""
    resume = f"resume='{job.folder}'"
    if resume in job.overrides or not (job.folder / FILE_NAME).exists():
        return job
    return replace(job, overrides=[*job.overrides, resume, "hydra.output_subdir=null"])


def _is_finished(folder: Path) -> bool:
    try:
        return Results.load(folder).status == "finished" and not (folder / UNFINISHED).exists()
    except (ValueError, FileNotFoundError):
        return False


def _values(folder: Path, config: Any) -> tuple[float, ...]:
    results = Results.load(folder)
    return tuple(objective_values(results, read_objectives(config.objective, list(results.tasks))))
