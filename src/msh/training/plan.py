"""What a run is going to do, worked out and checked before any training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf

from msh.errors import one_of, suggestion
from msh.subnetworks import CRITERIA, GRANULARITIES, SCHEDULES, Budget, Criterion, Granularity, Schedule, ScoreStart
from msh.tasks.loaders import LENGTHS, Uneven
from msh.training.config import StageConfig

MAX_TASKS = 2**15 - 2
"""Tasks of a run at most: owner ids of 16 bits tell so many apart; 0 is nobody's."""
BASELINES = ("dense", "finetune", "joint")
STARTS = ("fresh", "backbone")


@dataclass(frozen=True)
class Stage:
    """Tasks that are trained together.

    Attributes:
        index: place in the curriculum, from 0.
        tasks: names.
        max_epochs: at least 1.
        uneven: "cycle" or "shortest": where an epoch ends if tasks have different numbers of batches.
        loss_weights: factors of the losses of some of the tasks, more than 0, instead of those in `tasks`.
    """

    index: int
    tasks: tuple[str, ...]
    max_epochs: int
    uneven: Uneven = "cycle"
    loss_weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Fit:
    """One `Trainer.fit` of a stage.

    Attributes:
        name: unique within the run, such as "stage 2/4 wine: train".
        key: the same as a file name, such as "stage-01-train".
        epochs: at least 1.
        prunes: masks are narrowed in this fit.
        last: the stage ends with it.
        uneven: of the stage.
        batches: of an epoch, if not those that `uneven` makes of the tasks' data.
    """

    name: str
    key: str
    epochs: int
    prunes: bool
    last: bool
    uneven: Uneven = "cycle"
    batches: int | None = None


@dataclass(frozen=True)
class Gate:
    """How far a task is pruned below its budget: as far as its validation metric allows.

    Attributes:
        step: sparsity added at a time, in (0, 1).
        maximum: sparsity at which it ends at the latest, in (0, 1).
        patience: epochs in which the metric may recover from a step, at least 1.
        tolerance: share of the dense network's metric that may be lost, at least 0.
        until: share of the stage after which it ends at the latest, in (0, 1].
    """

    step: float
    maximum: float
    patience: int
    tolerance: float
    until: float


@dataclass(frozen=True)
class Pruning:
    """The pruning settings, resolved.

    Attributes:
        budgets: task name to its budget.
        criterion: scores weights.
        schedule: the path to the budget.
        begin: share of the stage before the first round, in [0, 1].
        end: share of the stage until the last cut, in [begin, 1].
        rounds: number of cuts.
        rewind: epoch that survivors are set back to after each cut, or None.
        rescale: keep norms over cuts.
        sample: training examples for gradients.
        granularity: what is kept: single weights or whole units.
        gate: pruning below the budgets, or None.
        scores: what learned scores start from.
        allow_empty_layers: a budget may leave a task no weight of some layers.
    """

    budgets: dict[str, Budget]
    criterion: Criterion
    schedule: Schedule
    begin: float
    end: float
    rounds: int
    rewind: int | None
    rescale: bool
    sample: int
    granularity: Granularity = "weight"
    gate: Gate | None = None
    scores: ScoreStart = "magnitude"
    allow_empty_layers: bool = False


def check_number(tasks: int) -> None:
    """Raise where a run would have more tasks than owner ids.

    Raises:
        ValueError: naming both numbers.
    """
    if tasks > MAX_TASKS:
        raise ValueError(f"tasks names {tasks} tasks: a network has owner ids for {MAX_TASKS} at most")


def read_curriculum(curriculum: Any, tasks: Sequence[str], max_epochs: int, uneven: Uneven = "cycle") -> list[Stage]:
    """Turn the config's curriculum into stages.

    Args:
        curriculum: list of stages: a task name, a list of them, or {tasks: [...]} with further keys, as
            `msh.training.config.StageConfig` has them; None: one task a stage.
        tasks: names of the run's tasks, in order.
        max_epochs: of stages that do not say otherwise.
        uneven: the same.
    Raises:
        ValueError: a stage is empty or not of a known form, a task is unknown, missing or named twice, or there are
            more than the owner maps have ids for.
    """
    if not tasks:
        raise ValueError("tasks is empty: name at least one, such as tasks=bundled or tasks=[digits,wine]")
    check_number(len(tasks))
    if isinstance(curriculum, ListConfig):
        curriculum = OmegaConf.to_container(curriculum, resolve=True)
    if curriculum is None:
        curriculum = [[task] for task in tasks]
    if not isinstance(curriculum, list):
        raise ValueError(f"curriculum = {curriculum!r} is not allowed: a list of stages is, each a list of task names")
    usual = {"max_epochs": max_epochs, "uneven": uneven}
    stages = [_read_stage(i, entry, tasks, usual) for i, entry in enumerate(curriculum)]
    named = Counter(task for stage in stages for task in stage.tasks)
    for task in tasks:
        if named[task] != 1:
            raise ValueError(f"curriculum names task {task!r} {named[task]} times: every task belongs to one stage")
    return stages


def _read_stage(index: int, entry: Any, tasks: Sequence[str], usual: Mapping[str, Any]) -> Stage:
    key = f"curriculum[{index}]"
    given = dict(entry) if isinstance(entry, Mapping) else {"tasks": entry}
    for name in given:
        one_of(f"a key of {key}", name, [field.name for field in fields(StageConfig)])
    names = given.get("tasks") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list):
        raise ValueError(f"{key} = {names!r} is not allowed: a task name, a list of them, or {{tasks: [...]}} is")
    if not names:
        raise ValueError(f"{key} has no task")
    for name in names:
        if name not in tasks:
            raise ValueError(
                f"{key} names {name!r}, which is not in tasks: {', '.join(tasks)}{suggestion(str(name), tasks)}"
            )
    chosen = {name: usual[name] if given.get(name) is None else given[name] for name in usual}
    epochs, uneven = chosen["max_epochs"], chosen["uneven"]
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"max_epochs = {epochs!r} of {key} is not allowed: a whole number of at least 1 is")
    one_of(f"uneven of {key}", uneven, LENGTHS)
    return Stage(index, tuple(names), epochs, uneven, _read_loss_weights(key, names, given.get("loss_weights")))


def _read_loss_weights(key: str, names: Sequence[str], given: Any) -> tuple[tuple[str, float], ...]:
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise ValueError(f"loss_weights = {given!r} of {key} is not allowed: a mapping from task to number is")
    for name, weight in given.items():
        if name not in names:
            raise ValueError(
                f"loss_weights of {key} names {name!r}, which is not a task of the stage: {', '.join(names)}"
                f"{suggestion(str(name), names)}"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight < math.inf:
            raise ValueError(f"loss_weights = {weight!r} of {key}, task {name!r}, is not allowed: a number above 0 is")
    return tuple(given.items())


def read_pruning(config: DictConfig, tasks: Sequence[str]) -> Pruning:
    """Resolve the config's pruning settings.

    Raises:
        ValueError: a name or a number is not allowed, or a mapping misses a task or names an unknown one.
    """
    budgets = {}
    for task in tasks:
        given = {key: _of_task(f"pruning.{key}", config[key], task, tasks) for key in ("density", "weights")}
        if config.density is not None and (given["weights"] is not None or config.share is not None):
            raise ValueError("pruning.weights and pruning.share replace pruning.density: pass pruning.density=null")
        density = None if given["density"] is None else _number("pruning.density", given["density"])
        weights = given["weights"]
        if weights is not None and (isinstance(weights, bool) or not isinstance(weights, int)):
            raise ValueError(f"pruning.weights = {weights!r} is not allowed: a whole number is, or a mapping from task")
        try:
            budgets[task] = Budget(density, weights, config.share, config.scope)
        except ValueError as error:
            raise ValueError(f"pruning, task {task!r}: {error}") from error
    if not 0.0 <= config.begin <= config.end <= 1.0:
        raise ValueError(
            f"pruning.begin = {config.begin}, pruning.end = {config.end} are not allowed: 0 <= begin <= end <= 1 is"
        )
    for key, least in (("rounds", 1), ("sample", 1)):
        if config[key] < least:
            raise ValueError(f"pruning.{key} = {config[key]} is not allowed: at least {least} is")
    one_of("pruning.granularity", config.granularity, GRANULARITIES)
    one_of("pruning.start", config.start, STARTS)
    if config.granularity != "weight" and config.scope != "tensor":
        raise ValueError(
            f"pruning.scope = {config.scope!r} is not allowed with pruning.granularity = {config.granularity!r}: "
            "whole units need pruning.scope=tensor"
        )
    criterion, schedule = _name(config.criterion), _name(config.schedule)
    one_of("pruning.criterion", criterion, CRITERIA)
    one_of("pruning.schedule", schedule, SCHEDULES)
    if CRITERIA[criterion].learned:
        _check_learned(config)
    return Pruning(
        budgets=budgets,
        criterion=CRITERIA[criterion],
        schedule=SCHEDULES[schedule],
        begin=config.begin,
        end=config.end,
        rounds=config.rounds,
        rewind=config.rewind,
        rescale=config.rescale,
        sample=config.sample,
        granularity=config.granularity,
        gate=_read_gate(config),
        scores=config.scores,
        allow_empty_layers=config.allow_empty_layers,
    )


def _check_learned(config: DictConfig) -> None:
    """Refuse settings under which scores learn nothing, or that they do not go with."""
    one_of("pruning.scores", config.scores, get_args(ScoreStart))
    if config.begin == config.end:
        raise ValueError(
            f"pruning.begin = {config.begin:g}, pruning.end = {config.end:g} are not allowed with "
            "pruning.criterion = 'learned': scores learn from begin to end; pruning=learned has such settings"
        )
    for key, only in (("granularity", "weight"), ("rewind", None)):
        if config[key] != only:
            raise ValueError(
                f"pruning.{key} = {config[key]!r} is not allowed with pruning.criterion = 'learned': "
                f"{'null' if only is None else repr(only)} is"
            )


def _read_gate(config: DictConfig) -> Gate | None:
    gate = config.gate
    if gate.step is None:
        return None
    limits = {
        "step": (0.0 < gate.step < 1.0, "in (0, 1)"),
        "maximum": (0.0 < gate.maximum < 1.0, "in (0, 1)"),
        "patience": (gate.patience >= 1, "at least 1"),
        "tolerance": (0.0 <= gate.tolerance < math.inf, "at least 0"),
        "until": (config.end < gate.until <= 1.0, f"above pruning.end = {config.end:g}, and at most 1,"),
    }
    for key, (right, allowed) in limits.items():
        if not right:
            raise ValueError(f"pruning.gate.{key} = {gate[key]} is not allowed: {allowed} is")
    if config.granularity != "weight":
        raise ValueError(
            f"pruning.granularity = {config.granularity!r} is not allowed with pruning.gate.step: 'weight' is"
        )
    if config.rewind is not None:
        raise ValueError(f"pruning.rewind = {config.rewind} is not allowed with pruning.gate.step: null is")
    return Gate(gate.step, gate.maximum, gate.patience, gate.tolerance, gate.until)


def check_gate(
    gate: Gate, wanted: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int], trainer: DictConfig
) -> None:
    """Refuse a gate that could never be passed, or has nothing to decide by.

    Args:
        gate: of the run.
        wanted: task to its budget, as planned.
        sizes: tensor name to its number of weights.
        trainer: the config's.
    Raises:
        ValueError: naming the setting.
    """
    for task, counts in wanted.items():
        sparsity = 1.0 - sum(counts.values()) / sum(sizes.values())
        if gate.maximum <= sparsity:
            raise ValueError(
                f"pruning.gate.maximum = {gate.maximum} is not allowed: the budget of task {task!r} has sparsity "
                f"{sparsity:.4g} already, and the gate starts there; raise the maximum, or the density"
            )
    if trainer.limit_val_batches is not None and not trainer.limit_val_batches:
        raise ValueError("trainer.limit_val_batches = 0 is not allowed with pruning.gate.step: the metric decides")
    if trainer.check_val_every_n_epoch != 1:
        raise ValueError(
            f"trainer.check_val_every_n_epoch = {trainer.check_val_every_n_epoch} is not allowed with "
            "pruning.gate.step: 1 is"
        )


def _of_task(key: str, value: Any, task: str, tasks: Sequence[str]) -> Any:
    if not isinstance(value, DictConfig):
        return value
    for name in value:
        if name not in tasks:
            raise ValueError(f"{key} names {name!r}, which is not a task{suggestion(str(name), tasks)}")
    if task not in value:
        raise ValueError(f"{key} has no number for task {task!r}")
    return value[task]


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} = {value!r} is not allowed: a number in (0, 1] is, or a mapping from task to number")
    return float(value)


def _name(value: Any) -> str:
    return str(value.get("name")) if isinstance(value, DictConfig) else str(value)


def fits_of(stage: Stage, stages: int, pruning: Pruning) -> list[Fit]:
    """The fits of a stage: one in which masks are narrowed, then one that trains what is left.

    Raises:
        ValueError: survivors are to be rewound to an epoch that is not before the first cut, or a gate has no dense
            epoch to compare with.
    """
    if pruning.gate is not None and pruning.begin * stage.max_epochs < 1:
        raise ValueError(
            f"pruning.begin = {pruning.begin} is not allowed with pruning.gate.step: stage {stage.index} trains "
            f"{pruning.begin * stage.max_epochs:g} epochs dense (pruning.begin x max_epochs), "
            "and the gate compares with at least one"
        )
    end = pruning.end if pruning.gate is None else pruning.gate.until
    pruned = min(stage.max_epochs, math.ceil(end * stage.max_epochs - 1e-9))
    if pruning.rewind is not None and not 0 <= pruning.rewind <= pruning.begin * stage.max_epochs:
        raise ValueError(
            f"pruning.rewind = {pruning.rewind} is not allowed: the first cut of stage {stage.index} comes after "
            f"{pruning.begin * stage.max_epochs:g} epochs (pruning.begin x max_epochs)"
        )
    title = f"stage {stage.index + 1}/{stages} {'+'.join(stage.tasks)}"
    parts = [("prune", pruned), ("train", stage.max_epochs - pruned)]
    wanted = [(kind, epochs) for kind, epochs in parts if epochs > 0]
    return [
        Fit(
            f"{title}: {kind}",
            f"stage-{stage.index:03d}-{kind}",
            epochs,
            kind == "prune",
            kind == wanted[-1][0],
            stage.uneven,
        )
        for kind, epochs in wanted
    ]


def read_baselines(given: Any) -> list[str]:
    """The baselines that are asked for, in the order in which they are trained.

    Args:
        given: None, a name, or a list of names.
    Raises:
        ValueError: one is unknown.
    """
    names = [] if given is None else list(given) if isinstance(given, ListConfig | list) else [given]
    for name in names:
        one_of("baseline", name, BASELINES)
    return [name for name in BASELINES if name in names]
