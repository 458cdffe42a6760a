"""Run a curriculum: stage after stage in one network, each task in its own subnetwork.

Source: Renn et al. 2022, arXiv 2207.08821: prune the network to a subnetwork for a task, then let the remaining weights
learn other tasks, in parallel or in sequence.
"""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger

from msh.files.state_file import DTYPES, save_network, save_subnetwork
from msh.inference.computing import flushes_denormal
from msh.runs.ownership import chosen_layers
from msh.runs.results import FILE_NAME, Results, TaskResult
from msh.subnetworks import Capacity
from msh.tracking.tracking import Tracking, make_logger
from msh.tracking.wandb_run import new_run_id
from msh.training import life
from msh.training.baselines import Baselines
from msh.training.build import add_task
from msh.training.callbacks import Freeze, Guarantee
from msh.training.config import RunConfig
from msh.training.ensembles import evaluate_ensembles
from msh.training.fitting import evaluate_tasks, run_fit, steps_per_epoch
from msh.training.plan import Fit, Stage
from msh.training.preemption import PREEMPTION, REQUEUE, PreemptedError, requeue
from msh.training.prepare import Prepared, build_module, prepare
from msh.training.ranks import is_rank_zero
from msh.training.state import RunState

log = logging.getLogger(__name__)


def train(config: RunConfig, folder: Path, write_report: Callable[[Path], object] | None = None) -> Results:
    """Do a run, or resume one that was stopped.

    Args:
        config: of the run.
        folder: the run folder, new or to be resumed.
        write_report: called with the folder when the run ends, `report=true` and results.json is complete.
    Returns:
        What results.json holds.
    Raises:
        ValueError: a setting or the data is not allowed, or more weights are asked for than there are.
        FileNotFoundError: data is missing, or the folder to resume is not a run folder.
        RuntimeError: another process works in the folder.
        PreemptedError: a signal ended the run; it can be resumed.
    """
    with locked(folder), PREEMPTION.watched():
        prepared = prepare(config)
        return Run(prepared, folder, _results(prepared, folder), write_report).go()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the run folder against other processes until this one ends, however it ends; locks may be nested."""
    if not is_rank_zero():
        yield
        return
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"{folder} is in use: another process works on this run; wait until it has ended") from error
    try:
        yield
    finally:
        lock.release()


def _results(prepared: Prepared, folder: Path) -> Results:
    config, tasks = prepared.config, prepared.tasks
    if config.resume is not None:
        return Results.load(folder)
    if is_rank_zero() and (folder / FILE_NAME).exists():
        raise ValueError(f"{folder} holds a run already: resume it (resume={folder}), or choose another hydra.run.dir")
    rows = {
        name: TaskResult(metric=tasks[name].metric, direction=tasks[name].direction, stage=stage.index)
        for stage in prepared.fits
        for name in stage.tasks
    }
    curriculum = [list(stage.tasks) for stage in prepared.fits]
    return Results(config.name, config.seed, curriculum, rows, run_id=new_run_id())


class Run:
    """A run and its steps; `go` takes them all.

    Args:
        prepared: the run, checked and not begun.
        folder: the run folder.
        results: new, or those of the run so far.
        write_report: see `train`.
    """

    def __init__(
        self,
        prepared: Prepared,
        folder: Path,
        results: Results,
        write_report: Callable[[Path], object] | None = None,
    ) -> None:
        self.prepared, self.folder, self.results, self.report = prepared, folder, results, write_report
        self.config, self.tasks, self.network = prepared.config, prepared.tasks, prepared.network
        self.fits = prepared.fits
        config = self.config
        self.writes = is_rank_zero() and not config.trainer.fast_dev_run
        self.module = build_module(prepared)
        self.state = RunState(folder / "checkpoints", self.writes)
        self.guarantee = Guarantee(
            folder / "checkpoints" / "guarantee",
            config.guarantee.examples,
            config.guarantee.on_violation,
            config.evaluation.batch_size,
        )
        self.owner_maps = chosen_layers(self.network.names.prunable, config.owner_maps)
        self.loggers: list[Logger] = []
        self.started = time.monotonic()
        self.seconds_before = results.wall_seconds
        self.baselines = Baselines(
            config, folder, self.tasks, list(self.fits), results, self._save_results, self.writes
        )

    def go(self) -> Results:
        """Train the remaining stages, then the baselines; complete the run folder."""
        if self.results.status == "finished" and not self.results.missing(self.config.baselines):
            log.info("%s is finished already", self.folder)
            return self.results
        self.results.status = "running"
        self.results.flush_denormal = flushes_denormal()
        self._save_results()
        self._make_loggers()
        try:
            self._learn_curriculum()
            self._evaluate_ensembles()
            self.baselines.learn(self.config.baselines)
        except PreemptedError as stop:
            self._stopped(stop)
            raise
        except Exception:
            self.results.status = "failed"
            self._save_results()
            self._write_report()
            self.tracking.close("failed")
            raise
        self.results.status = "finished"
        self._save_results()
        self._write_report()
        self.tracking.ended(self.results, self.module.run_step)
        self.tracking.close("success")
        return self.results

    def _stopped(self, stop: PreemptedError) -> None:
        self.results.status = "stopped"
        self._save_results()
        self.tracking.close("stopped")
        if self.writes:
            name = signal.Signals(stop.signum).name
            log.warning("stopped by %s: %s continues the run", name, shlex.quote(f"resume={self.folder}"))
            if stop.signum == REQUEUE:
                requeue()

    # ---- stages

    def _learn_curriculum(self) -> None:
        """Train each stage's fits, then evaluate all tasks trained so far; skip steps that are done."""
        self._record_learned()
        ended = self._restore()
        if self._is_evaluated():
            if not ended:  # its checkpoints are gone
                self.module.run_step = self._steps_after(-1)
            return
        number = 0  # of the fit within the run
        for stage, fits in self.fits.items():
            for fit in fits:
                if number >= ended:
                    self._do_fit(number, stage, fit)
                number += 1
            if len(self.results.matrix) <= stage.index:
                if self.config.resume is not None and number == ended:
                    self.tracking.rewind_stage(self.module.run_step)
                self._finish_stage(stage)

    def _is_evaluated(self) -> bool:
        """Return true if all scores but the baselines' are known: the rest of the run needs no network."""
        return (
            len(self.results.matrix) == len(self.fits)
            and self.prepared.ensembles.keys() <= self.results.ensemble.keys()
        )

    def _restore(self) -> int:
        """Load the network saved after the last fit that ended; return the number of fits that have ended."""
        ended, file, counted = self.state.newest()
        if file is not None:
            for task in file.state.tasks:
                if task not in self.network.tasks:
                    add_task(self.network, self.tasks[task], self.config)
            self.network.load_state_dict(file.state.state_dict())
        self.module.run_step = counted.get("step", 0)
        self.guarantee.checked, self.guarantee.violations = counted.get("checked", 0), counted.get("violations", 0)
        return ended

    def _do_fit(self, number: int, stage: Stage, fit: Fit) -> None:
        """Do a fit's part of a stage: begin its tasks, prune, train the remaining weights, freeze them."""
        for task in stage.tasks:
            if task not in self.network.tasks:
                life.begin(self.network, self.tasks[task], self.config, self.prepared.plan)
        if not fit.prunes and self.config.pruning.end == 0:
            life.prune_before_training(self.prepared, self.module, stage)
            life.compact(self.network, stage.tasks)
        callbacks: list[pl.Callback] = [life.pruner(self.prepared, stage)] if fit.prunes else []
        if fit.last:
            callbacks += [Freeze(), self.guarantee]
        seconds = run_fit(
            self.module,
            fit,
            stage.tasks,
            self.config,
            self.folder,
            self.state.fit_folder(fit.key),
            callbacks,
            self.loggers,
            self._steps_after(number),
        )
        if fit.prunes and not fit.last:
            life.compact(self.network, stage.tasks)
        for task in stage.tasks:
            self.results.tasks[task].train_seconds += seconds
        counted = {"checked": self.guarantee.checked, "violations": self.guarantee.violations}
        self.state.fit_ended(number, fit.key, self.network, counted | {"step": self.module.run_step})
        self._save_results()
        PREEMPTION.release()

    def _steps_after(self, number: int) -> int:
        """Count the batches of the curriculum's fits after this one."""
        coming = [(stage, fit) for stage, fits in self.fits.items() for fit in fits][number + 1 :]
        return sum(
            fit.epochs * steps_per_epoch([self.tasks[task] for task in stage.tasks], fit.uneven, self.config.trainer)
            for stage, fit in coming
        )

    def _record_learned(self) -> None:
        """Record the tasks of the network that the run starts from, to check them after later stages."""
        for task in self.network.tasks:
            if is_rank_zero() and not self.guarantee.has(task):
                self.guarantee.record(self.module, task)

    def _finish_stage(self, stage: Stage) -> None:
        """Evaluate a stage and write its files; after an error, a resumed run does so again."""
        before = deepcopy(self.results)
        try:
            self._evaluate_and_write(stage)
        except BaseException:
            self.results = before
            raise

    def _evaluate_and_write(self, stage: Stage) -> None:
        """Evaluate every task trained so far, and write the stage's files."""
        learned = self.network.tasks
        val = evaluate_tasks(self.module, stage.tasks, "val", self.config, self.folder)
        test = evaluate_tasks(self.module, learned, "test", self.config, self.folder, self.loggers)
        capacity = self.network.state.total()
        for task in stage.tasks:
            self._describe(task, val[task], capacity)
            if self.writes:
                path = self.folder / "subnetworks" / f"{task}.safetensors"
                save_subnetwork(path, self.network, task, DTYPES[self.config.files.dtype], self.prepared.notes)
        self.results.add_row(test)
        self.results.capacity = {"prunable": capacity.size, "owned": capacity.taken, "free": capacity.free}
        self.results.guarantee = {"checked": self.guarantee.checked, "violations": self.guarantee.violations}
        if self.writes:
            path = self.folder / "network.safetensors"
            save_network(path, self.network, self.prepared.notes, self.config.files.free_weights)
        self.tracking.stage_ended(self.results, self.module.run_step)
        self._save_results()
        for task in stage.tasks:
            log.info("learned %s: %s %.4f on the test split", task, self.tasks[task].metric, test[task])

    def _evaluate_ensembles(self) -> None:
        if not self.results.ensemble:
            self.results.ensemble = evaluate_ensembles(
                self.prepared.ensembles, self.network, self.tasks, self.config, self.folder
            )
            self._save_results()

    def _describe(self, task: str, val: float, capacity: Capacity) -> None:
        result, sub = self.results.tasks[task], self.network.subnetwork(task)
        result.val = val
        if result.direction == "min":
            result.val_constant = self.tasks[task].constant_score("val")
        result.weights = capacity.owned[task]
        result.density = result.weights / capacity.size
        result.weights_read = self.network.view(task).read_counts(task)
        result.weights_reused = sum(result.weights_read.values())
        result.weights_private = sum(t.numel() for t in sub.private_tensors().values() if t.is_floating_point())

    # ---- results and logs

    def _save_results(self) -> None:
        if self.writes:
            self.results.wall_seconds = self.seconds_before + time.monotonic() - self.started
            self.results.save(self.folder)

    def _write_report(self) -> None:
        """Write report.html; a failure does not end the run."""
        if not (self.writes and self.config.report and self.report):
            return
        try:
            self.report(self.folder)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.warning("report.html was not written: %s; `msh report %s` tries again", reason, self.folder)

    def _make_loggers(self) -> None:
        settings = _settings(self.config)
        if not self.config.trainer.fast_dev_run:
            try:
                self.loggers = [make_logger(logger) for logger in settings["logger"].values() if logger]
            except Exception:
                if self.writes and self.config.resume is None:
                    (self.folder / FILE_NAME).unlink()  # no fit has begun: the folder stays free
                raise
        self.tracking = Tracking(self.folder, self.loggers, self.owner_maps, self.writes)
        self.tracking.begin(settings, self.tasks)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Resolve all settings, as trackers show them."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(asdict(config)), resolve=True))
