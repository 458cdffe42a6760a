"""Prepare a run before its first step: check the settings, load the data, build the initial network."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, cast

from hydra.utils import instantiate
from pytorch_lightning.callbacks import Callback

from msh.errors import Problems, invalid, one_of
from msh.files.plans import explained_by_rounding, notes_for_tasks, notes_of_run, start_of
from msh.files.state_file import StateFile, fill_network
from msh.inference.rebuilding import add_task_of
from msh.runs.objectives import read_objectives
from msh.subnetworks import (
    CRITERIA,
    WEIGHTS,
    Blocks,
    CapacityError,
    EmptyLayerError,
    Granularity,
    MultiSubnetwork,
    NofM,
    OverlappingUnits,
    Units,
    plan_blocks,
    plan_counts,
    plan_groups,
    plan_units,
    trace_units,
)
from msh.subnetworks.description import check_task_name
from msh.subnetworks.empty import ALLOW
from msh.subnetworks.units import candidate_units, fit_units
from msh.tasks import Task
from msh.tasks.task import METRICS
from msh.training.build import (
    add_task,
    build_granularity,
    build_network,
    build_tasks,
    check_backbone,
    check_kinds,
    fit_tasks,
)
from msh.training.callbacks.allowed import build_callbacks, check_callbacks, check_monitors
from msh.training.config import RunConfig
from msh.training.effects import check_effects
from msh.training.ensembles import check_members
from msh.training.machine import set_up_torch
from msh.training.module import SubnetworkModule
from msh.training.origin import Origin, read_origin
from msh.training.plan import Fit, Stage, check_gate, fits_of, stages_of
from msh.training.precision import check_precision
from msh.training.same_data import check_same_data
from msh.training.schedulers import check_groups, check_optimizer
from msh.training.targets import unknown_arguments
from msh.training.trainers import check_trainer

log = logging.getLogger(__name__)
ALL = "all"
"""No task's name: commands that take a task's name take this for all tasks."""

ENOUGH_UNITS, ENOUGH_CHANNELS = 75, 20
"""Units of linear layers with which a task was at least as accurate as with single weights, and channels of
convolutions with which it was as accurate within the error; with 26 units, or 10 channels, it was less so."""


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check, and has not begun.

    Attributes:
        config: with the backbone's `input_shape` filled in, if a file has it.
        tasks: by name, those whose data the run has.
        network: holds the tasks that the run's network file has trained, frozen.
        fits: stage to its fits, in order; a stage that is trained already has none.
        wanted: task without an allocation, to its budget: tensor name, or "" for all, to number of elements.
        granularity: elements that tasks keep as one.
        ensembles: those whose tasks are all in this run.
        origin: the plan or network file that the run starts from, or a resumed run's record; None for other new runs.
        notes: origin of the run, written into its files.
    """

    config: RunConfig
    tasks: dict[str, Task]
    network: MultiSubnetwork
    fits: dict[Stage, list[Fit]]
    wanted: dict[str, dict[str, int]]
    granularity: Granularity
    ensembles: dict[str, list[str]]
    origin: Origin | None
    notes: dict[str, str]

    @property
    def plan(self) -> StateFile | None:
        """The plan whose allocation holds for the tasks, or None."""
        return self.origin.file if self.origin is not None and self.origin.key == "plan" else None

    @property
    def trained_on(self) -> list[Stage]:
        """List the stages as far as the run has their tasks' data."""
        return _with_data(self.fits, self.tasks)


def prepare(config: RunConfig) -> Prepared:
    """Check all that a run will need, load its data and build its network.

    Args:
        config: the run's.
    Raises:
        ValueError: a setting, a file or the data is invalid, or the tasks need more weights than there are.
        FileNotFoundError: data or a file is missing.
    """
    set_up_torch(config)
    callbacks = _check_classes(config)
    stages = stages_of(config)
    origin = read_origin(config, list(config.tasks))
    fits = _own_fits(config, stages, origin)
    check_groups(config, max((len(stage.tasks) for stage, parts in fits.items() if parts), default=1))
    names = [task for stage in _with_data(fits, config.tasks) for task in stage.tasks]
    read_objectives(config.objective, names)
    ensembles = {name: members for name, members in config.ensembles.items() if set(members) <= set(names)}
    tasks = build_tasks(config, names)
    check_members(ensembles, tasks)
    check_monitors(build_callbacks(config), tasks, _fitted_together(config, fits, names))
    for stage in fits:
        tasks |= {name: replace(tasks[name], loss_weight=weight) for name, weight in stage.loss_weights}
    check_effects(config, fits, tasks, callbacks)
    if origin is not None:
        config = config.with_input_shape(origin.input_shape)
    tasks = fit_tasks(config, tasks)
    network, notes = _build_network(config, tasks, origin)
    coming = [stage for stage, parts in fits.items() if parts and config.plan is None]
    config = choose_granularity(config, network, coming)
    granularity = build_granularity(config, network)
    prepared = Prepared(config, tasks, network, fits, {}, granularity, ensembles, origin, notes)
    if prepared.plan is not None and not config.pruning.allow_empty_layers:
        _check_plan_layers(prepared.plan, names)
    granularity, wanted = _plan_budgets(config, network, coming, granularity)
    if config.pruning.is_gated:
        check_gate(config.pruning.gate, wanted, granularity.counts(network.sizes()), config.trainer)
    return replace(prepared, granularity=granularity, wanted=wanted)


def _with_data(stages: Iterable[Stage], tasks: Container[str]) -> list[Stage]:
    """Restrict stages to these tasks, and leave out those without any."""
    restricted = [replace(stage, tasks=tuple(task for task in stage.tasks if task in tasks)) for stage in stages]
    return [stage for stage in restricted if stage.tasks]


def _check_classes(config: RunConfig) -> list[Callback]:
    """Build what the config names and needs no data, such as trainer, optimizers and callbacks, to see if it can be.

    Returns:
        The callbacks; each fit makes new ones.
    Raises:
        ValueError: naming every problem.
    """
    callbacks: dict[str, Callback] = {}
    with Problems() as problems:
        unknown = unknown_arguments(config)
        for found in unknown.values():
            for problem in found:
                problems.add(problem)
        problems.check(check_trainer, config.trainer)
        problems.check(check_precision, config)
        if "callbacks" not in unknown:
            callbacks = problems.check(build_callbacks, config) or {}
        problems.check(check_callbacks, callbacks, config)
        problems.check(check_optimizer, config, leave_out=unknown)
        if "backbone" not in unknown:
            problems.check(check_backbone, config)
        for name, task in config.tasks.items():
            problems.check(check_task_name, name)
            if name == ALL:
                problems.add(invalid("task name", f"another one, as `msh export --task {ALL}` means all tasks", name))
            if isinstance(task.metric, str) and task.metric not in METRICS:
                problems.check(one_of, f"tasks.{name}.metric", task.metric, METRICS)
        problems.check(stages_of, config)
    return list(callbacks.values())


def _fitted_together(config: RunConfig, stages: Iterable[Stage], names: Sequence[str]) -> list[Sequence[str]]:
    """List the tasks of every fit of the run, with its baselines."""
    together: list[Sequence[str]] = [stage.tasks for stage in _with_data(stages, names)]
    together += [names] if "joint" in config.baselines else []
    return together + [[name] for name in names if {"dense", "finetune"} & set(config.baselines)]


def _own_fits(config: RunConfig, stages: Sequence[Stage], origin: Origin | None) -> dict[Stage, list[Fit]]:
    """List the stages to train, with their fits: all; one task from a plan; or the tasks that a network lacks.

    A plan's task keeps the fit names that it has in the whole curriculum: its random draws follow from them.
    """
    if config.task is not None:
        stage = next(stage for stage in stages if config.task in stage.tasks)
        return {_only(stage, [config.task], 0): fits_of(stage, len(stages), config.pruning)}
    learned = [] if origin is None else origin.learned
    if not learned:
        return {stage: fits_of(stage, len(stages), config.pruning) for stage in stages}
    new = [(stage, [task for task in stage.tasks if task not in learned]) for stage in stages]
    coming = [_only(stage, tasks, index) for index, (stage, tasks) in enumerate(filter(itemgetter(1), new), start=1)]
    first = Stage(0, tuple(learned), config.trainer.max_epochs)
    return {first: []} | {stage: fits_of(stage, 1 + len(coming), config.pruning) for stage in coming}


def _only(stage: Stage, tasks: Sequence[str], index: int) -> Stage:
    weights = tuple((task, weight) for task, weight in stage.loss_weights if task in tasks)
    return replace(stage, index=index, tasks=tuple(tasks), loss_weights=weights)


def _build_network(
    config: RunConfig, tasks: dict[str, Task], origin: Origin | None
) -> tuple[MultiSubnetwork, dict[str, str]]:
    """Build the network that a run starts with, and the notes for its files."""
    names = None if origin is None else list(origin.file.state.owners)
    if origin is not None:
        recipes = {task: origin.file.state.task(task).recipe for task in origin.learned}
        check_kinds(tasks, recipes)
        check_same_data(origin.path, tasks, recipes, "name a task of other data otherwise, or train it again (retrain)")
    network = build_network(config, tasks, names)
    start = start_of(network)
    if origin is None:
        return network, notes_of_run(start, cast(Any, network.backbone).input_shape, config.seed)
    if origin.start != start:
        if not explained_by_rounding(origin.file.state, network.state):
            raise ValueError(
                f"{origin.key} {origin.path} starts from other weights than this run with seed={config.seed}: "
                "seed, backbone with its pretrained weights, and torch version must be the same"
            )
        log.warning(
            "%s %s was made on another kind of processor, which rounds initial weights otherwise: its tasks are used "
            "unchanged, and free weights differ in their last digits",
            *(origin.key, origin.path),
        )
    if origin.key == "plan":
        return network, notes_for_tasks(origin.file)
    state = origin.file.state
    for task in origin.learned:
        if task in tasks:
            add_task(network, tasks[task], config.with_granularity(state.task(task).granularity))
        else:
            add_task_of(origin.path, network, state, state.task(task))
    fill_network(origin.path, network, origin.file)
    return network, notes_of_run(origin.start, origin.input_shape, config.seed)


# ---- budgets


def choose_granularity(config: RunConfig, network: MultiSubnetwork, stages: Sequence[Stage]) -> RunConfig:
    """Fill in the granularity where the config leaves it open: units that tasks may share, or else single weights.

    Args:
        config: the run's.
        network: with the tasks that it has learned already.
        stages: to train.
    """
    if config.pruning.granularity is not None:
        return config
    why = _against_units(config, network, stages)
    if why:
        log.info("tasks keep single weights, and not whole units: %s", why)
        return config.with_granularity("weight")
    log.info("tasks keep whole units, which they may share; pruning.granularity=weight keeps single weights")
    return config.with_granularity("unit")


def _against_units(config: RunConfig, network: MultiSubnetwork, stages: Sequence[Stage]) -> str:
    """Say why tasks should keep single weights, with which more settings and backbones work; "" if they need not."""
    pruning = config.pruning
    usual = {
        "reuse": (config.reuse, "none"),
        "pruning.scope": (pruning.scope, "tensor"),
        "pruning.start": (pruning.start, "fresh"),
        "pruning.gate.step": (pruning.gate.step, None),
        "pruning.regrow.share": (pruning.regrow.share, None),
        "pruning.rewind": (pruning.rewind, None),
        "pruning.allow_empty_layers": (pruning.allow_empty_layers, False),
    }
    for key, (value, needed) in usual.items():
        if value != needed:
            return f"{key} is {value}"
    if CRITERIA[pruning.criterion].learned:
        return f"pruning.criterion is {pruning.criterion}"
    if pruning.end == 0:
        return "pruning.end is 0, so that they are chosen before training"
    for task in network.tasks:
        if (other := network.subnetwork(task).granularity) != "unit":
            return f"so do the network's (task {task} has granularity {other})"
    try:
        graph = trace_units(network)
    except ValueError as error:
        return str(error)
    if not graph.is_chain:
        layer, reason = next(iter(graph.whole.items()), ("", ""))
        return (
            f"layer {layer} would stay whole ({reason})"
            if layer
            else "layers of the backbone share units or have them in groups"
        )
    for task, counts in plan_weights(config.with_granularity("unit"), network, stages).items():
        units = fit_units(graph, sum(counts.values())) or dict.fromkeys(graph.layers, 0)
        for name in graph.layers:
            linear = len(graph.layers[name].shape) == 2
            enough, what = (ENOUGH_UNITS, "units") if linear else (ENOUGH_CHANNELS, "channels")
            if units[name] < enough:
                return f"task {task} would keep about {units[name]} {what} of layer {name}, fewer than {enough}"
    return ""


def _plan_budgets(
    config: RunConfig,
    network: MultiSubnetwork,
    stages: Sequence[Stage],
    granularity: Granularity,
) -> tuple[Granularity, dict[str, dict[str, int]]]:
    """Plan the budgets of these stages' tasks from the free weights: task to weights, to blocks or to units.

    Returns:
        The granularity, in which units overlap if `pruning.overlap` is true, or null and disjoint ones do not suffice;
        and the budgets.
    """
    if not isinstance(granularity, Units):
        return granularity, plan_weights(config, network, stages, granularity)
    graph, overlap = granularity.graph, config.pruning.overlap
    if not graph.is_chain:
        if overlap is False:
            why = "true or null, as not every layer of the backbone has units of its own that tasks may keep"
            raise invalid("pruning.overlap", why, overlap)
        if graph.whole:
            log.info(
                "tasks keep whole units of %d of the backbone's %d layers; the others stay whole, such as %s (%s)",
                *(len(graph.layers) - len(graph.whole), len(graph.layers), *next(iter(graph.whole.items()))),
            )
    elif overlap is None and config.pruning.share is not None:
        log.info("the tasks share units, so that each owns an equal part of the weights")
    elif not overlap:
        owners = {name: network.owners[name] for name in network.names.prunable}
        free = {name: int(mask.sum()) for name, mask in candidate_units(graph, network.free(), owners).items()}
        budgets = {task: config.budget(task) for stage in stages for task in stage.tasks}
        try:
            plan = plan_units(graph, budgets, free)
            log.info("each task keeps units of its own; with pruning.overlap=true tasks would share units")
            return granularity, plan
        except EmptyLayerError:
            raise
        except CapacityError as error:
            if config.pruning.granularity != "unit":
                raise
            if overlap is False:
                raise CapacityError(f"{error}; or let tasks share units with pruning.overlap=true") from error
            log.info("the tasks need more units than there are: they share units, and own different weights of them")
    return OverlappingUnits(graph), plan_weights(config, network, stages)


def plan_weights(
    config: RunConfig, network: MultiSubnetwork, stages: Sequence[Stage], granularity: Granularity = WEIGHTS
) -> dict[str, dict[str, int]]:
    """Plan the budgets of these stages' tasks from the weights or blocks that are free now.

    With `reuse=learned` each stage has the whole network: its tasks may read the weights that are not free.

    Raises:
        EmptyLayerError: a task would get no weight in a layer, and `pruning.allow_empty_layers` is false.
        CapacityError: a task needs more weights or blocks than are free.
    """
    allow_empty = config.pruning.allow_empty_layers
    shapes = {name: tuple(weight.shape) for name, weight in network.weights()}
    sizes, available = granularity.counts(network.sizes()), network.free()
    if isinstance(granularity, Blocks):
        available = granularity.whole(available)
    free = {name: int(mask.sum()) for name, mask in available.items()}
    parts = [[task for stage in stages for task in stage.tasks]]
    if config.reuse == "learned" and config.pruning.share is None:
        parts, free = [list(stage.tasks) for stage in stages], sizes
        available = {name: mask | True for name, mask in available.items()}
    wanted: dict[str, dict[str, int]] = {}
    for part in parts:
        budgets = {task: config.budget(task) for task in part}
        if isinstance(granularity, NofM):
            wanted |= plan_groups(granularity.groups, part, available, allow_empty)
        elif isinstance(granularity, Blocks):
            wanted |= plan_blocks(sizes, sum(network.sizes().values()), budgets, free, allow_empty)
        else:
            owning = sum(network.subnetwork(task).phase not in ("new", "masked") for task in network.tasks)
            wanted |= plan_counts(sizes, budgets, free, shapes, allow_empty, owning if free is not sizes else 0)
    if stages and config.reuse_of_tasks == "none" and not allow_empty:
        _check_any_free(stages[0].tasks, wanted, free)
    return wanted


def _check_any_free(tasks: Sequence[str], wanted: Mapping[str, Mapping[str, int]], free: Mapping[str, int]) -> None:
    """Check that every layer has a free weight, for tasks whose scores will divide a budget over the layers."""
    for task in tasks:
        for layer, count in free.items():
            if "" in wanted[task] and not count:
                raise EmptyLayerError(
                    f"task {task!r} would get no weight of layer {layer!r}, of which 0 are free; give the network "
                    f"more weights, or {ALLOW}"
                )


def _check_plan_layers(plan: StateFile, tasks: Sequence[str]) -> None:
    for layer in plan.state.capacity():
        for task in tasks:
            if not layer.owned[task]:
                raise EmptyLayerError(
                    f"the plan has no weight of layer {layer.name!r} for task {task!r}: make another with a higher "
                    f"density, or {ALLOW}"
                )


def build_module(prepared: Prepared) -> SubnetworkModule:
    """Build the module that trains and evaluates a run's tasks."""
    config = prepared.config
    return SubnetworkModule(prepared.network, prepared.tasks, instantiate(config.optimizer), config.seed)
