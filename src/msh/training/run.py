"""Run a curriculum: stage after stage in one network, each task in its own subnetwork.

Source: Renn et al. 2022, arXiv 2207.08821: prune the network to a subnetwork for a task, then let the remaining weights
learn other tasks, in parallel or in sequence.
"""

from __future__ import annotations

import logging
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from msh.files.state_file import DTYPES, fill_network, save_network, save_subnetwork
from msh.inference.computing import flushes_denormal
from msh.runs import words
from msh.runs.metrics import read_rows
from msh.runs.ownership import chosen_layers
from msh.runs.results import FILE_NAME, Results, TaskResult, finite
from msh.subnetworks import Capacity
from msh.subnetworks.modules import flops_share
from msh.subnetworks.small import computes_small
from msh.tasks.task import metric_in
from msh.tasks.tokens import TokenCounts
from msh.tracking.tracking import Tracking, make_logger
from msh.tracking.wandb_run import new_run_id
from msh.training import life
from msh.training.baselines import Baselines
from msh.training.build import add_task, computing
from msh.training.callbacks import Freeze, Guarantee, ReportUntrained
from msh.training.callbacks.guarantee import RECORDS
from msh.training.config import RunConfig
from msh.training.ensembles import evaluate_ensembles
from msh.training.examples import write_examples
from msh.training.fitting import evaluate_tasks, run_fit, steps_per_epoch
from msh.training.machine import machine
from msh.training.origin import ORIGIN, record_origin
from msh.training.plan import Fit, Stage
from msh.training.preemption import PREEMPTION, PreemptedError
from msh.training.prepare import Prepared, build_module, prepare
from msh.training.ranks import agree, is_rank_zero
from msh.training.routing import fit_router
from msh.training.same_data import check_same_data, data_record
from msh.training.state import Counted, RunState
from msh.training.trainers import connect, device_of

log = logging.getLogger(__name__)


def train(config: RunConfig, folder: Path, write_report: Callable[[Path], object] | None = None) -> Results:
    """Do a run, or resume one that was stopped; a finished one is left as it is, but for trackers that lack values.

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
    connect(config.trainer, folder)
    with locked(folder), PREEMPTION.watched():
        if config.resume is not None:
            results = Results.load(folder)
            if results.status == "finished" and not results.missing(config.baselines):
                log.info("%s is finished already: these are its results", folder)
                if not results.incomplete_trackers:
                    return results
                log.info("logging what they lack to %s", ", ".join(results.incomplete_trackers))
        log.info(announcement(config, folder))
        try:
            prepared = prepare(config)
            return Run(prepared, folder, _results(prepared, folder), write_report).go()
        except PreemptedError as stop:
            if is_rank_zero():
                _stopped(folder, stop.signum)
            raise


def _stopped(folder: Path, signum: int) -> None:
    """Put the run's SLURM job back into the queue, if the signal asks for it; or say how to resume the run."""
    PREEMPTION.postponed = True  # SLURM may send more signals
    name = signal.Signals(signum).name
    if PREEMPTION.requeue(signum):
        log.warning("stopped by %s: the job is back in the queue, and continues the run", name)
    elif (folder / FILE_NAME).exists():
        log.warning("stopped by %s: %s continues the run", name, shlex.quote(f"resume={folder}"))


def announcement(config: RunConfig, folder: Path) -> str:
    """Say in one line what a run trains, and where: also after a bare `msh train`."""
    names = list(config.tasks) if config.task is None else [config.task]
    stages = len(names) if config.curriculum is None or config.task else len(config.curriculum)
    device = config.trainer.accelerator
    if device == "auto":
        device = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    block = config.backbone
    backbone = str(block.get("name") or block.get("target") or block.get("_target_")).rpartition(".")[2]
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return (
        f"{'resuming' if config.resume else 'training'} {config.name}: {some}; {stages} stage{'s' * (stages > 1)}, "
        f"{config.trainer.max_epochs} epochs each, backbone {backbone}, on {device}; into {folder}"
    )


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
    config = prepared.config
    if config.resume is not None:
        return Results.load(folder)
    if is_rank_zero() and (folder / FILE_NAME).exists():
        raise ValueError(f"{folder} holds a run already: resume it (resume={folder}), or choose another hydra.run.dir")
    rows = {name: _new_row(prepared, name, stage) for stage in prepared.fits for name in stage.tasks}
    curriculum = [list(stage.tasks) for stage in prepared.fits]
    return Results(config.name, config.seed, curriculum, rows, run_id=new_run_id())


def _new_row(prepared: Prepared, name: str, stage: Stage) -> TaskResult:
    if name not in prepared.tasks:
        metric, direction = metric_in(prepared.network.subnetwork(name).recipe)
        return TaskResult(metric, direction, stage.index, evaluated=False)
    task = prepared.tasks[name]
    tokens = task.tokens if isinstance(task.tokens, TokenCounts) else None  # windows lose none
    return TaskResult(task.metric, task.direction, stage.index, tokens=tokens)


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
            folder / RECORDS,
            config.guarantee.examples,
            config.guarantee.on_violation,
            config.evaluation.batch_size,
        )
        self.untrained = ReportUntrained()
        self.owner_maps = chosen_layers(self.network.names.prunable, config.owner_maps)
        self.started = time.monotonic()
        self.seconds_before = results.wall_seconds
        self.baselines = Baselines(
            config, folder, self.tasks, prepared.trained_on, results, self._save_results, self.writes
        )

    def go(self) -> Results:
        """Train the remaining stages, then the baselines; complete the run folder."""
        if self.results.status == "finished" and not self.results.missing(self.config.baselines):
            self._complete_trackers()
            return self.results
        self.results.status = "running"
        self.results.flush_denormal = flushes_denormal()
        self._name_machine()
        agree(self._record_origin)
        agree(self._save_results)  # loggers of all ranks may read it
        self._make_loggers()
        try:
            self._learn_curriculum()
            self._evaluate_ensembles()
            self._fit_router()
            self.baselines.learn(self.config.baselines)
        except PreemptedError:
            PREEMPTION.postponed = True  # SLURM may send more signals
            self.results.status = "stopped"
            self._save_results()
            self._close_trackers("stopped")
            raise
        except Exception:
            self.results.status = "failed"
            self._save_results()
            self._write_report()
            self._close_trackers("failed")
            raise
        self.results.status = "finished"
        self._set_incomplete(self.tracking.names)  # until they are closed
        self._save_results()
        self._write_report()
        self._end_trackers()
        return self.results

    def _complete_trackers(self) -> None:
        """Log a finished run to the trackers that lack values."""
        names = self.results.incomplete_trackers
        if not names:
            return
        self.module.run_step = self._last_step()
        self._make_loggers(only=names)
        self.tracking.stage_ended(self.results, self.module.run_step)
        self._end_trackers()
        for name in names:
            if name not in self.results.incomplete_trackers:
                log.info("logged all values to %s", name)

    def _end_trackers(self) -> None:
        """Log the outcome, close the trackers, and record those that lack values."""
        self.tracking.ended(self.results, self.module.run_step)
        self._close_trackers("success")

    def _close_trackers(self, status: str) -> None:
        self.tracking.close(status)
        before = self.results.incomplete_trackers
        self._set_incomplete(self.tracking.off)
        if self.results.incomplete_trackers != before:
            self._save_results()

    def _set_incomplete(self, names: Sequence[str]) -> None:
        """Record which of this session's trackers lack values; an earlier session may have had others."""
        others = [name for name in self.results.incomplete_trackers if name not in self.tracking.names]
        self.results.incomplete_trackers = [*others, *names]

    # ---- stages

    def _learn_curriculum(self) -> None:
        """Train each stage's fits, then evaluate all tasks trained so far; skip steps that are done."""
        self._record_learned()
        ended = self._restore()
        if self._is_evaluated():
            if not ended:  # its checkpoints are gone
                self.module.run_step = self._last_step()
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
        begun = self.state.data(file)
        check_same_data(self.state.folder, self.tasks, begun, "resume with the data that the run began with")
        if file is not None:
            for task in file.state.tasks:
                if task not in self.network.tasks:
                    add_task(self.network, self.tasks[task], self.config)
            fill_network(self.state.folder, self.network, file)
        self.module.run_step = int(counted.get("step", 0))
        self.guarantee.counts = cast(Any, {"checked": 0, "violations": 0} | counted)
        return ended

    def _do_fit(self, number: int, stage: Stage, fit: Fit) -> None:
        """Do a fit's part of a stage: begin its tasks, prune, train the remaining weights, freeze them."""
        agree(lambda: self._record_data(stage.tasks))
        for task in stage.tasks:
            if task not in self.network.tasks:
                life.begin(self.network, self.tasks[task], self.config, self.prepared.plan)
        begun = all(self.network.subnetwork(task).phase == "masked" for task in stage.tasks)
        if begun and not fit.prunes:
            life.prune_before_training(self.prepared, self.module, stage)
            life.compact(self.network, stage.tasks)
        callbacks: list[pl.Callback] = [life.pruner(self.prepared, stage)] if fit.prunes else []
        if fit.regrows:
            callbacks.append(life.regrower(self.prepared, stage))
        is_first = stage == next(stage for stage, fits in self.fits.items() if fits)
        if is_first:
            callbacks.append(self.untrained)
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
            self.tracking.loggers,
            self._steps_after(number),
        )
        if fit.prunes and not fit.last:
            life.compact(self.network, stage.tasks)
        if is_first and fit.last and is_rank_zero():
            self.untrained.report()
        for task in stage.tasks:
            self.results.tasks[task].train_seconds += seconds
        counted = cast(Counted, self.guarantee.counts) | {"step": self.module.run_step}
        self.state.fit_ended(number, fit.key, self.network, counted)
        self._save_results()
        PREEMPTION.release()

    def _record_data(self, tasks: Sequence[str]) -> None:
        """Record the data of tasks that begin, to compare those that a resumed run reads."""
        before = self.state.data()
        new = {task: data_record(self.tasks[task]) for task in tasks if task not in before}
        if new:
            self.state.record_data(before | new)

    def _steps_after(self, number: int, window: int = 1) -> int:
        """Count the batches of the curriculum's fits after this one, or windows of accumulated gradients."""
        coming = [(stage, fit) for stage, fits in self.fits.items() for fit in fits][number + 1 :]
        batches = [
            (fit, steps_per_epoch([self.tasks[task] for task in stage.tasks], fit.uneven, self.config.trainer))
            for stage, fit in coming
        ]
        return sum(fit.epochs * math.ceil(each / window) for fit, each in batches)

    def _last_step(self) -> int:
        """Return the run's last optimizer step when its checkpoints are gone: that of metrics.csv, or as planned."""
        try:
            _, rows = read_rows(self.folder / "metrics.csv")
        except ValueError:
            rows = []
        planned = self._steps_after(-1, self.config.trainer.accumulate_grad_batches)
        return max((int(row["step"]) for row in rows), default=planned)

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
        learned = [task for task in self.network.tasks if task in self.tasks]
        new = [task for task in stage.tasks if task in self.tasks]
        val = evaluate_tasks(self.module, new, "val", self.config, self.folder)
        test = evaluate_tasks(self.module, learned, "test", self.config, self.folder, self.tracking.loggers)
        capacity = self.network.state.total()
        for task in stage.tasks:
            self._describe(task, val.get(task), capacity)
            if self.writes:
                path = self.folder / "subnetworks" / f"{task}.safetensors"
                save_subnetwork(path, self.network, task, DTYPES[self.config.files.dtype], self.prepared.notes)
        self.results.add_row(test)
        self.results.capacity = {"prunable": capacity.size, "owned": capacity.taken, "free": capacity.free}
        self.results.guarantee = self.guarantee.counts
        self._save_network()
        self.tracking.stage_ended(self.results, self.module.run_step)
        self._save_results()
        for task in new:
            word = "learned" if self.fits[stage] else "evaluated"
            log.info("%s %s: %s %s on the test split", word, task, self.tasks[task].metric, words.number(test[task]))
        if not stage.index and (others := self.results.not_evaluated):
            log.info("without data, so not evaluated, and compared by their digests: %s", ", ".join(others))

    def _evaluate_ensembles(self) -> None:
        if not self.results.ensemble:
            self.results.ensemble = evaluate_ensembles(
                self.prepared.ensembles, self.network, self.tasks, self.config, self.folder
            )
            self._save_results()

    def _fit_router(self) -> None:
        """Choose how inputs without a task find it, evaluate that, and write it into the network file."""
        done = self.results.router is not None or self.config.trainer.fast_dev_run
        if done or set(self.network.tasks) != set(self.results.tasks):  # in a resumed run, checkpoints may be gone
            return
        before = self._routes()
        self.results.router = agree(lambda: fit_router(self.network, self.tasks, self.config))
        if self._routes() != before:
            self._save_network()
        self._save_results()

    def _routes(self) -> dict[str, Any]:
        return {task: self.network.subnetwork(task).recipe.get("router") for task in self.network.tasks}

    def _describe(self, task: str, val: float | None, capacity: Capacity) -> None:
        result = self.results.tasks[task]
        result.val = val
        if result.direction == "min" and result.evaluated:
            result.val_constant = finite(self.tasks[task].constant_score("val"))
        result.weights = capacity.owned[task]
        result.density = result.weights / capacity.size
        result.weights_read = self.network.view(task).read_counts(task)
        result.weights_reused = sum(result.weights_read.values())
        result.weights_private = self.network.subnetwork(task).as_state().private_count
        result.granularity = self.network.subnetwork(task).granularity
        if computes_small(self.network.subnetwork(task)):
            result.flops = flops_share(self.network, task)

    # ---- results and logs

    def _record_origin(self) -> None:
        """Write into the run folder where the run starts, so that it may be resumed elsewhere, and from there alone."""
        origin, record, is_new = self.prepared.origin, self.folder / ORIGIN, self.config.resume is None
        if self.writes and (is_new or (origin is not None and not record.is_file())):
            record_origin(record, origin, self.network, self.prepared.notes)

    def _name_machine(self) -> None:
        """Note which machine works on the run from here on."""
        here = str(machine(device_of(self.config.trainer)))
        if self.results.computed_on[-1:] != [here]:
            self.results.computed_on.append(here)

    def _save_network(self) -> None:
        if self.writes:
            path = self.folder / "network.safetensors"
            save_network(path, self.network, self.prepared.notes, self.config.files.free_weights)

    def _save_results(self) -> None:
        if self.writes:
            self.results.wall_seconds = self.seconds_before + time.monotonic() - self.started
            self.results.save(self.folder)

    def _write_report(self) -> None:
        """Write report.html; a failure does not end the run."""
        if not (self.writes and self.config.report and self.report):
            return
        try:
            known = [task for task, row in self.results.tasks.items() if row.weights is not None and row.evaluated]
            tasks = {task: (self.tasks[task], computing(self.config, self.tasks[task])) for task in known}
            write_examples(self.folder, self.network, tasks)
            self.report(self.folder)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.warning("report.html was not written: %s; `msh report %s` tries again", reason, self.folder)

    def _make_loggers(self, only: Sequence[str] = ()) -> None:
        """Start the trackers: an error ends a new run, which has lost nothing yet; a resumed one continues without.

        Args:
            only: names of the loggers to make; all when empty.
        """
        settings, new = _settings(self.config), self.config.resume is None
        try:
            named = {} if self.config.trainer.fast_dev_run else settings["logger"]
            chosen = {name: logger for name, logger in named.items() if logger and (not only or name in only)}
            loggers = {name: make_logger(logger) for name, logger in chosen.items()}
            self.tracking = Tracking(self.folder, loggers, self.owner_maps, self.writes)
            self.tracking.begin(settings, self.tasks, strict=new)
        except BaseException:
            if self.writes and new:
                (self.folder / FILE_NAME).unlink()  # no fit has begun: the folder stays free
            raise


def _settings(config: RunConfig) -> dict[str, Any]:
    """Resolve all settings, as trackers show them."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(asdict(config)), resolve=True))
