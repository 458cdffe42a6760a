"""Lay out a run's stages and fits before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from msh.errors import invalid
from msh.tasks.options import Uneven
from msh.training.config import GateConfig, PruningConfig, RunConfig, StageConfig, TrainerConfig


@dataclass(frozen=True)
class Stage:
    """Tasks that are trained together: a `StageConfig` with every setting filled in.

    Attributes:
        index: in the curriculum, from 0.
        tasks: names.
        max_epochs: >= 1.
        uneven: "cycle" or "shortest": end of an epoch if tasks have different numbers of batches.
        loss_weights: (task, factor > 0) for losses, instead of the factors in `tasks`.
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
        key: the name as a file name, such as "stage-001-train".
        epochs: >= 1.
        prunes: this fit narrows the masks.
        last: the stage ends with this fit.
        uneven: the stage's.
        batches: per epoch; None: as `uneven` and the tasks' data determine.
        regrows: this fit replaces weights of compact tasks.
    """

    name: str
    key: str
    epochs: int
    prunes: bool
    last: bool
    uneven: Uneven = "cycle"
    batches: int | None = None
    regrows: bool = False

    @property
    def searches(self) -> bool:
        """True if the fit changes which weights the tasks own, so that none of its epochs is the best."""
        return self.prunes or self.regrows


def stages_of(config: RunConfig) -> list[Stage]:
    """List the stages of a run's curriculum."""
    curriculum = config.curriculum or [StageConfig(tasks=[task]) for task in config.tasks]
    return [
        Stage(
            index,
            tuple(stage.tasks),
            stage.max_epochs or config.trainer.max_epochs,
            stage.uneven or config.uneven,
            tuple((stage.loss_weights or {}).items()),
        )
        for index, stage in enumerate(curriculum)
    ]


def check_gate(
    gate: GateConfig, wanted: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int], trainer: TrainerConfig
) -> None:
    """Check that the gate can be passed, and has a metric to decide by.

    Args:
        gate: the run's.
        wanted: task to its budget, as planned.
        sizes: tensor name to its number of weights.
        trainer: the run's.
    Raises:
        ValueError: naming the setting.
    """
    for task, counts in wanted.items():
        sparsity = 1.0 - sum(counts.values()) / sum(sizes.values())
        if gate.maximum <= sparsity:
            bound = f"> {sparsity:.4g}, the sparsity of task {task!r} by its budget, from which the gate continues"
            raise invalid("pruning.gate.maximum", bound, gate.maximum)
    if trainer.check_val_every_n_epoch != 1:
        raise invalid("trainer.check_val_every_n_epoch", "1 with pruning.gate.step", trainer.check_val_every_n_epoch)


def fits_of(stage: Stage, stages: int, pruning: PruningConfig) -> list[Fit]:
    """List the fits of a stage: one that narrows the masks or regrows, then one that trains the remaining weights.

    Args:
        stage: the run's.
        stages: number of the run's stages.
        pruning: the run's.
    Raises:
        ValueError: `pruning.rewind` is an epoch after the first cut, or a gate has no dense epoch to compare with.
    """
    dense = pruning.begin * stage.max_epochs
    if pruning.is_gated and dense < 1:
        raise invalid(
            "pruning.begin",
            f">= {1 / stage.max_epochs:g} with pruning.gate.step, so that stage {stage.index + 1} trains at least one "
            f"of its {stage.max_epochs} epochs dense, to compare with",
            pruning.begin,
        )
    if pruning.rewind is not None and not 0 <= pruning.rewind <= dense:
        first = f"the epochs before the first cut of stage {stage.index + 1} (pruning.begin x max_epochs)"
        raise invalid("pruning.rewind", f"in [0, {dense:g}], {first}", pruning.rewind)
    pruned = _epochs_until(pruning.gate.until if pruning.is_gated else pruning.end, stage)
    to_budget = _epochs_until(pruning.end, stage)
    if pruning.is_gated and pruned <= to_budget:
        bound = f"> {to_budget / stage.max_epochs:.3g}, so that the gate has an epoch of stage {stage.index + 1}"
        raise invalid("pruning.gate.until", bound, pruning.gate.until)
    title = f"stage {stage.index + 1}/{stages} {'+'.join(stage.tasks)}"
    search = "prune"
    if pruning.regrow.share is not None:
        search, pruned = "regrow", _epochs_until(pruning.regrow.until, stage)
    parts = [(search, pruned), ("train", stage.max_epochs - pruned)]
    wanted = [(kind, epochs) for kind, epochs in parts if epochs > 0]
    return [
        Fit(
            f"{title}: {kind}",
            f"stage-{stage.index:03d}-{kind}",
            epochs,
            kind == "prune",
            kind == wanted[-1][0],
            stage.uneven,
            regrows=kind == "regrow",
        )
        for kind, epochs in wanted
    ]


def _epochs_until(share: float, stage: Stage) -> int:
    """Round a share of a stage's epochs up."""
    return min(stage.max_epochs, math.ceil(share * stage.max_epochs - 1e-9))
