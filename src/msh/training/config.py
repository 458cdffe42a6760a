"""The typed config of a run: every setting, its bounds, and which settings go together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Discriminator, Strict, Tag
from pydantic.dataclasses import dataclass

from msh.errors import invalid, refuse_password, requirement, suggestion
from msh.runs.objectives import read_objectives
from msh.subnetworks.criteria import CRITERIA
from msh.subnetworks.options import GranularityName, Reuse, Scope, ScoreStart
from msh.subnetworks.schedules import SCHEDULES
from msh.tasks.options import Normalize, Uneven
from msh.training.settings import compared, lacking
from msh.training.typed import ConfigError, bounded, convert, hydra_schema, named
from msh.training.variants import check_number, expand_variants

if TYPE_CHECKING:
    from msh.subnetworks.allocation import Budget

BASELINES = ("dense", "finetune", "joint")
GROUPS = ("experiment", "procedure", "debug", "hparams_search")
"""Config groups whose options set other keys, and none of the group's name."""
NAMED: dict[str, Iterable[str]] = {"pruning/criterion": CRITERIA, "pruning/schedule": SCHEDULES}
"""Config groups whose options are names alone."""


def _form(value: Any) -> str:
    return "<each>" if isinstance(value, Mapping | list) else "<one>"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Flag = Annotated[bool, Strict()]
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Count = Annotated[Integer, bounded(">= 1", lambda n: n >= 1)]
Share = Annotated[Number, bounded("in [0, 1]", lambda x: 0.0 <= x <= 1.0)]
Proportion = Annotated[Number, bounded("in (0, 1)", lambda x: 0.0 < x < 1.0)]
Fraction = Annotated[Number, bounded("in (0, 1]", lambda x: 0.0 < x <= 1.0)]
Positive = Annotated[Number, bounded("> 0", lambda x: 0.0 < x < math.inf)]
NotNegative = Annotated[Number, bounded(">= 0", lambda x: 0.0 <= x < math.inf)]
Density = Annotated[
    Annotated[Fraction, Tag("<one>")] | Annotated[dict[str, Fraction], Tag("<each>")], Discriminator(_form)
]
Weights = Annotated[Annotated[Count, Tag("<one>")] | Annotated[dict[str, Count], Tag("<each>")], Discriminator(_form)]
Layers = Annotated[Annotated[Integer, Tag("<one>")] | Annotated[list[str], Tag("<each>")], Discriminator(_form)]
Sides = Annotated[
    Annotated[Count, Tag("<one>")]
    | Annotated[list[Count], bounded("[rows, columns]", lambda sides: len(sides) == 2), Tag("<each>")],
    Discriminator(_form),
]
"""Rows and columns of a block, or a number for both."""
Pair = Annotated[list[Count], bounded("[N, M] with N < M", lambda pair: len(pair) == 2 and pair[0] < pair[1])]
Names = Annotated[list[str], BeforeValidator(_listed)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value > 1 and value.is_integer() else value


def _is_limit(value: float) -> bool:
    return value >= 1 if isinstance(value, int) else 0.0 < value <= 1.0


Limit = Annotated[
    Integer | Number, BeforeValidator(_whole), bounded("a whole number >= 1 or a share in (0, 1]", _is_limit)
]
"""A number of batches, or a share of them."""
Block = dict[str, Any]
"""`_target_` and arguments, as Hydra instantiates them."""
Built = Annotated[
    Block, bounded("a block with _target_, a class or function", lambda block: not block or "_target_" in block)
]
"""The same, refused without `_target_`."""


def _name(value: Any) -> Any:
    return value["name"] if isinstance(value, Mapping) and set(value) == {"name"} else value


@dataclass
class TaskConfig:
    """One task."""

    source: Block
    """`_target_` and arguments of a callable that returns `msh.tasks.RawData`."""
    batch_size: Count = 32
    """Examples per optimizer step, over all devices together."""
    val_fraction: Proportion = 0.2
    """Share of the training examples held out for validation; the same for every seed."""
    transforms: list[Any] = field(default_factory=list)
    """Changes of the data, each {name: argument}: split_classes: [0, 1] (or names of classes), permute_pixels: SEED,
    rotate: DEGREES or repeat_channels: NUMBER."""
    augment: Any = None
    """Random changes of the training images, each {name: argument}: flip: horizontal or shift: PIXELS."""
    variants: Any = None
    """{name of a transform: list of arguments}: a task for each, <task>_0, <task>_1, ...; N stands for 0 to N-1.
    A number alone: so many tasks, all on the same data. {path: "data/*"}: a task <task>_<name> for each file or folder,
    which is its source.path; a * in other settings of the source stands for its name."""
    normalize: Normalize | None = None
    """"feature", "channel", "all", "minmax" or "none"; "feature" when null, "channel" for images on disk, "none" for
    texts."""
    normalize_target: Literal["minmax"] | None = None
    """"minmax": scale the target of a regression to [0, 1], and measure errors so; null: keep the data's unit."""
    stem: Built | None = None
    """`_target_` and arguments of the stem; when null, a linear one where shapes differ."""
    repeat: Count | None = 1
    """Passes through the training examples per epoch: more than one for small data sets; as many as give 40 batches
    when null."""
    metric: str | Block | None = None
    """Name of the metric, or `_target_` and arguments of a torchmetrics class; the kind's usual one when null."""
    loss: Block | None = None
    """`_target_` and arguments of a loss: a module's class, or a function of (outputs, targets); null: the kind's."""
    loss_weight: Positive = 1.0
    """Factor of the loss where several tasks train together."""


@dataclass
class GateConfig:
    """Pruning below the budget, for as long as a task's validation metric allows."""

    step: Proportion | None = None
    """Sparsity added at a time; null: no gate, a task keeps its budget."""
    maximum: Proportion = 0.98
    """Sparsity at which pruning ends, at the latest."""
    patience: Count = 2
    """Epochs in which the metric may recover from a step."""
    tolerance: NotNegative = 0.01
    """Share of the dense network's validation metric that may be lost."""
    until: Fraction = 0.75
    """Share of the stage's steps after which pruning ends, at the latest."""


@dataclass
class RegrowConfig:
    """Replacing weights in training, at constant density."""

    share: Proportion | None = None
    """Share of a task's weights that the first replacement takes; it decays to 0 by a cosine. null: no regrowth."""
    rounds: Count = 20
    """Number of replacements, evenly spaced."""
    until: Fraction = 0.75
    """Share of the stage's steps after which nothing is replaced."""
    sample: Count = 500
    """Training examples on which the gradients are computed."""
    by: Literal["gradient", "random"] = "gradient"
    """"gradient": take the free weights with the largest gradients, as in RigL; "random": any, as in SET. Whole units
    need "random": no gradient reaches a unit without weights."""


@dataclass
class PruningConfig:
    """Settings by which a task finds its subnetwork."""

    density: Density | None = 0.1
    """Share of the prunable weights that a task keeps: a number in (0, 1], or a mapping from task to number."""
    weights: Weights | None = None
    """Instead of density: number of weights that a task keeps, or a mapping from task to number."""
    share: Literal["equal"] | None = None
    """Instead of density: "equal", an equal part of the free weights among the tasks still to come."""
    scope: Scope = "tensor"
    """"tensor": every prunable tensor keeps the same share; "erk" (Erdos-Renyi-Kernel) and "epl" (equal per layer):
    small tensors a larger share than large ones; "network": scores are compared over all tensors."""
    granularity: GranularityName | None = "weight"
    """"weight": single weights; "block": blocks of neighbouring rows and columns, which large linear layers compute at
    their own cost; "nm": N of each M neighbouring weights; "unit": whole units of linear layers and channels of
    convolutions. Whole units make a subnetwork a smaller dense network, which trains and predicts at its own cost; see
    `overlap`. "neuron" (linear layers alone) and "channel" are those of earlier releases, computed at the whole
    network's cost. null: "unit" with overlap if every layer of the backbone has units of its own and tasks keep enough
    of them, and the other settings allow it, else "weight"; the run's first lines say which."""
    block_size: Sides | None = None
    """With granularity "block", rows and columns of a block, [rows, columns] or one number for both; null: chosen for
    each layer by its size."""
    nm: Pair | None = None
    """With granularity "nm", [N, M]: a task keeps N of each M weights at neighbouring inputs of a unit, or of a kernel
    position; [2, 4] when null."""
    overlap: Flag | None = None
    """With granularity "unit", may tasks own different weights of one unit? false: a unit belongs to one task, a budget
    is met from below, and units run out before weights do. true: a task owns exactly its budget among the free weights
    of few units. null: false if the tasks to train fit so, else true."""
    start: Literal["fresh", "backbone"] = "fresh"
    """A task's weights before training: "fresh", drawn for each task, as large as the backbone's own; "backbone", those
    of the backbone, as a pretrained one needs it."""
    criterion: Annotated[str, named(CRITERIA), BeforeValidator(_name)] = "magnitude"
    """Name of the score per weight."""
    scores: ScoreStart = "magnitude"
    """What learned scores start from: "magnitude" or "random"."""
    schedule: Annotated[str, named(SCHEDULES), BeforeValidator(_name)] = "cubic"
    """Name of the path from all candidates down to the budget."""
    begin: Share = 0.0
    """Share of the stage's steps before the first cut, and before learned scores choose."""
    end: Share = 0.0
    """Share of the stage's steps at which the last cut is made; 0 prunes at initialisation."""
    rounds: Count = 1
    """Number of cuts, evenly spaced from begin to end."""
    rewind: Integer | None = None
    """After each cut, set survivors back to their values after this many epochs (0: initialisation); null: don't."""
    rescale: Flag = True
    """Multiply survivors so that each tensor keeps the norm it had before the cut."""
    sample: Count = 1000
    """Training examples on which gradient criteria are computed."""
    allow_empty_layers: Flag = False
    """Let a small budget leave a task no weight of some layers, of which only biases pass on; else it is an error."""
    gate: GateConfig = field(default_factory=GateConfig)
    """With a step, the budget is the most a task keeps: from `end` on, its validation metric decides."""
    regrow: RegrowConfig = field(default_factory=RegrowConfig)
    """With a share, a task that is pruned at initialisation replaces its weakest weights by free ones in training."""

    @property
    def sides(self) -> tuple[int, int] | None:
        """Rows and columns of a block, if they are set."""
        size = self.block_size
        return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])

    @property
    def n_of_m(self) -> tuple[int, int]:
        """Numbers of weights that a task keeps of a group, and of weights of a group."""
        n, m = self.nm or (2, 4)
        return n, m

    @property
    def is_gated(self) -> bool:
        """True where tasks are pruned below their budgets."""
        return self.gate.step is not None

    def __post_init__(self) -> None:
        """Check settings against each other."""
        if problems := list(self._problems()):
            raise ConfigError(problems)

    def _problems(self) -> Iterator[str]:
        sizes = [key for key in ("density", "weights", "share") if getattr(self, key) is not None]
        if self.granularity == "nm":
            yield from self._group_problems()
        elif len(sizes) > 1 and "density" in sizes:
            yield "pruning.weights and pruning.share replace pruning.density: pass pruning.density=null"
        elif len(sizes) != 1:
            yield f"pruning needs exactly one of density, weights, share; got {', '.join(sizes) or 'none'}"
        if self.begin > self.end:
            yield str(invalid("pruning.begin", f"<= pruning.end = {self.end:g}", self.begin))
        if self.granularity not in ("weight", None) and self.scope != "tensor":
            whole = f"'tensor' with pruning.granularity = {self.granularity!r}"
            yield str(invalid("pruning.scope", whole, self.scope))
        if self.granularity != "block" and self.block_size is not None:
            yield str(invalid("pruning.block_size", "null unless pruning.granularity is 'block'", self.block_size))
        if self.granularity != "nm" and self.nm is not None:
            yield str(invalid("pruning.nm", "null unless pruning.granularity is 'nm'", self.nm))
        if self.granularity != "unit" and self.overlap is not None:
            yield str(invalid("pruning.overlap", "null unless pruning.granularity is 'unit'", self.overlap))
        yield from self._regrowth_problems()
        if self.share is not None and self.scope in ("erk", "epl"):
            yield str(invalid("pruning.scope", "'tensor' or 'network' with pruning.share", self.scope))
        for name, applies in (
            ("pruning.criterion = 'learned'", CRITERIA[self.criterion].learned),
            ("pruning.gate.step", self.is_gated),
        ):
            if applies and self.granularity not in ("weight", "block", None):
                yield str(invalid("pruning.granularity", f"'weight' or 'block' with {name}", self.granularity))
            if applies and self.rewind is not None:
                yield str(invalid("pruning.rewind", f"null with {name}", self.rewind))
        if CRITERIA[self.criterion].learned and self.begin == self.end:
            yield (
                f"pruning.begin must be < pruning.end with pruning.criterion = 'learned', got {self.begin:g} and "
                f"{self.end:g}: scores learn from begin to end; pruning=learned has such settings"
            )
        if self.is_gated and self.gate.until <= self.end:
            yield str(invalid("pruning.gate.until", f"> pruning.end = {self.end:g}", self.gate.until))

    def _group_problems(self) -> Iterator[str]:
        n, m = self.n_of_m
        if self.density is not None and self.density != n / m:
            yield str(invalid("pruning.density", f"null, or {n / m:g} with {n} of {m} weights", self.density))
        for key in ("weights", "share"):
            if (value := getattr(self, key)) is not None:
                yield str(invalid(f"pruning.{key}", "null with pruning.granularity = 'nm'", value))

    def _regrowth_problems(self) -> Iterator[str]:
        if self.regrow.share is None:
            return
        if self.end > 0 or self.is_gated:
            yield str(
                invalid("pruning.end", "0 with pruning.regrow.share (pruning=regrow has such settings)", self.end)
            )
        if self.rewind is not None:
            yield str(invalid("pruning.rewind", "null with pruning.regrow.share", self.rewind))
        if self.granularity in ("unit", "neuron", "channel") and not self.overlap and self.regrow.by == "gradient":
            why = f"'random' with pruning.granularity = {self.granularity!r}"
            yield str(invalid("pruning.regrow.by", why, self.regrow.by))


@dataclass
class PaperConfig:
    """Facts about an experiment that `procedure=paper` needs."""

    criterion: Annotated[str, named(CRITERIA)] = "gradient"
    """Name of the criterion of the authors' one cut."""
    warm_up: Share = 0.0
    """Share of the stage's steps, of 100 epochs, that they train before it; 0 prunes at initialisation."""


@dataclass
class TrainerConfig:
    """Arguments of Lightning's Trainer; one Trainer is made for each fit."""

    max_epochs: Count = 12
    """Epochs per stage, unless a stage says otherwise."""
    accelerator: str = "auto"
    devices: Integer | str | list[int] = 1
    num_nodes: Count = 1
    strategy: str = "auto"
    precision: Integer | str | None = None
    accumulate_grad_batches: Count = 1
    gradient_clip_val: NotNegative | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    log_every_n_steps: Annotated[Integer, bounded(">= 0", lambda n: n >= 0)] = 50
    check_val_every_n_epoch: Count = 1
    limit_train_batches: Limit | None = None
    limit_val_batches: Limit | None = None
    limit_test_batches: Limit | None = None
    overfit_batches: Annotated[
        Integer | Number,
        BeforeValidator(_whole),
        bounded("0, a whole number >= 1 or a share in (0, 1]", lambda x: x == 0 or _is_limit(x)),
    ] = 0.0
    fast_dev_run: Flag | Annotated[Integer, bounded(">= 0", lambda n: n >= 0)] = False
    num_sanity_val_steps: Annotated[Integer, bounded(">= -1", lambda n: n >= -1)] = 0
    detect_anomaly: Flag = False
    deterministic: Flag | Literal["warn"] | None = None
    benchmark: Flag | None = None
    profiler: str | Block | None = None
    enable_progress_bar: Flag = True
    sync_batchnorm: Flag = False

    def __post_init__(self) -> None:
        """Refuse settings that others switch off."""
        problems = []
        if self.gradient_clip_algorithm is not None and self.gradient_clip_val is None:
            problems.append(
                requirement("trainer.gradient_clip_val", "a number with trainer.gradient_clip_algorithm", None)
            )
        for key in ("limit_train_batches", "limit_val_batches"):
            if self.overfit_batches and getattr(self, key) is not None:
                bound = f"null with trainer.overfit_batches = {self.overfit_batches:g}, which sets it"
                problems.append(requirement(f"trainer.{key}", bound, getattr(self, key)))
        if problems:
            raise ConfigError(problems)


def _as_stage(entry: Any) -> Any:
    """Write a stage of the curriculum in full: a task's name, or a list of names, is `{tasks: [...]}`."""
    if isinstance(entry, StageConfig):
        return entry
    stage = dict(entry) if isinstance(entry, Mapping) else {"tasks": entry}
    return stage | {"tasks": _listed(stage.get("tasks") or [])}


@dataclass
class StageConfig:
    """A stage in the curriculum, with settings of its own."""

    tasks: list[str]
    """Names of the tasks that train together."""
    max_epochs: Count | None = None
    """trainer.max_epochs when null."""
    uneven: Uneven | None = None
    """The run's `uneven` when null."""
    loss_weights: dict[str, Positive] | None = None
    """Task name to the factor of its loss, instead of its own loss_weight."""


@dataclass
class CheckpointConfig:
    """Checkpoints, from which a killed run resumes."""

    min_seconds: NotNegative = 10.0
    """A checkpoint is written at the end of an epoch, once this many seconds have passed since the last one."""
    restore_best: Flag = True
    """End each stage with the weights of its best epoch on the validation split, the latest among equals: by the
    metric, or by what `callbacks=early_stopping` monitors."""


@dataclass
class GuaranteeConfig:
    """The check that frozen tasks do not change."""

    examples: Count = 256
    """Validation examples of each task whose outputs are compared."""
    on_violation: Literal["error", "warn"] = "error"
    """"error" ends the run; "warn" counts it and continues."""


@dataclass
class EvaluationConfig:
    """Evaluation of networks."""

    batch_size: Count | None = None
    """Most examples per process that a network evaluates at once, for scores, gradient criteria, the guarantee and
    ensembles; the task's own batch_size when null (500 for gradient criteria)."""


@dataclass
class FilesConfig:
    """Content of the run folder's network and subnetwork files."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the weights in subnetwork files: "float32" is exact."""
    free_weights: Flag = False
    """Write the weights that no task owns into network.safetensors too; a run's seed gives them again without."""


@dataclass
class PathsConfig:
    """Folders."""

    data_dir: str = "data"
    """Where data sets are kept, or downloaded to."""
    output_dir: str = "outputs"
    """Where run folders are made."""


@dataclass(kw_only=True)
class RunConfig:
    """All settings of a run. Tasks with `variants` are replaced by their variants."""

    name: str = "train"
    """Name of the experiment; the run folder is <output_dir>/<name>/<date_time>."""
    seed: Integer = 0
    threads: Count | None = None
    """CPU threads of torch in each process. When null, torch chooses, and several processes share the cores. The same
    weights need the same number."""
    flush_denormal: Flag = True
    """Compute 0 where a result is subnormal (below 2**-126), so that training is not slowed on Intel processors."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Task name to task, in the order they are learned."""
    curriculum: list[Annotated[StageConfig, BeforeValidator(_as_stage)]] | None = None
    """List of stages: each a list of task names, or a StageConfig. One task a stage when null. The name of a block with
    `variants` stands for all of these."""
    uneven: Uneven = "cycle"
    """Where tasks of one stage have different numbers of batches: "cycle" repeats the shorter ones until the longest
    has had its epoch; "shortest" ends the epoch with the shortest."""
    val_fraction: Proportion | None = None
    """Instead of each task's own."""
    backbone: Block
    """`_target_` and arguments of the backbone; its `input_shape` is the first task's when null."""
    master_weights: Flag = True
    """Train a backbone that comes in bfloat16 or float16 in float32, and round in each forward pass; false: in its own
    type."""
    pruning: PruningConfig = field(default_factory=PruningConfig)
    reuse: Literal["none", "all", "learned", "backbone"] = "none"
    """Which earlier tasks' weights a task reads: "none"; "all"; or "learned": pruning chooses among its own and theirs,
    and the weights it reads count towards its budget. "backbone": those of no task, but all weights of the pretrained
    backbone, which stay; a task owns a sparse change of them."""
    baseline: Annotated[list[Literal["dense", "finetune", "joint"]] | None, BeforeValidator(_listed)] = None
    """Networks to compare with, a name or a list: "dense" trains a dense network for each task; "finetune" one dense
    network, task after task; "joint" one dense network on all tasks at once."""
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    """Name to tasks of the same data whose outputs are averaged, and evaluated so on the test split at the end."""
    paper: PaperConfig = field(default_factory=PaperConfig)
    optimizer: Block
    """`_target_` and arguments of an optimizer, as a partial."""
    scheduler: Block | None = None
    """`_target_` and arguments of a learning-rate scheduler stepped with each batch, as a partial; or null."""
    prune_scheduler: Block | None = None
    """The same while the task is being pruned."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: dict[str, Built | None] = field(default_factory=dict)
    """Name to `_target_` and arguments of additional Lightning callbacks."""
    logger: dict[str, Block | None] = field(default_factory=dict)
    """Name to `_target_` and arguments of Lightning loggers."""
    owner_maps: Annotated[Layers, BeforeValidator(_listed)] = 4
    """Layers whose owner maps trackers get as a picture: their names, or how many, from the first to the last."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guarantee: GuaranteeConfig = field(default_factory=GuaranteeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    report: Flag = True
    """Write report.html into the run folder at the end; `msh report RUN_DIR` makes it at any time."""
    plan: str | None = None
    """Plan file (`msh plan`) whose allocation tasks keep; with it, nothing is pruned."""
    task: str | None = None
    """With a plan: train this task alone. Its weights end as they do when all tasks train."""
    network: str | None = None
    """Network file or run folder to start from: its tasks are learned already, and need no data; new tasks take free
    weights. The backbone, its precision and the seed are the file's."""
    retrain: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    """Tasks of `network` to train again, a name or a list: their weights are released first. The folder of their run
    has their data's settings; else choose them with `tasks`."""
    resume: str | None = None
    """Run folder to resume, or "auto" for the newest unfinished one of this experiment."""
    objective: Names | None = None
    """What a run is judged by, a name or a list; train.py returns it: "mean_score" (over the tasks, on validation
    data), "density", "seconds", TASK.val or TASK.test. A search must have one, and may not have TASK.test."""
    skip_finished: Flag = False
    """In a multirun: continue the sweep in hydra.sweep.dir. Its finished jobs are left as they are, stopped ones are
    resumed, and others get folders of their own."""

    def __post_init__(self) -> None:
        """Expand variants, and check settings that name tasks.

        Raises:
            ConfigError: naming every problem.
        """
        blocks = expand_variants(self.tasks)
        self.tasks = {name: task for block in blocks.values() for name, task in block.items()}
        for stage in self.curriculum or []:
            stage.tasks = [task for name in stage.tasks for task in blocks.get(name, [name])]
        if not self.tasks:
            raise ConfigError(["tasks is empty: name at least one, such as tasks=bundled or tasks=[digits,wine]"])
        check_number(len(self.tasks))
        problems = [*self._curriculum_problems(), *self._task_problems()]
        try:
            read_objectives(self.objective, list(self.tasks))
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError(problems)

    @property
    def baselines(self) -> list[str]:
        """List the baselines to train, in the order of training."""
        return [name for name in BASELINES if name in (self.baseline or [])]

    @property
    def reuse_of_tasks(self) -> Reuse:
        """Say how tasks reuse each other's weights: not at all where they only share a backbone."""
        return "none" if self.reuse == "backbone" else self.reuse

    def with_input_shape(self, shape: Sequence[int]) -> RunConfig:
        """Copy the config; where it gives the backbone no `input_shape`, fill it in."""
        if self.backbone.get("input_shape") is not None:
            return self
        return replace(self, backbone=self.backbone | {"input_shape": list(shape)})

    def with_granularity(self, granularity: str) -> RunConfig:
        """Copy the config; where it leaves the granularity open, fill it in. Tasks may share units then."""
        if self.pruning.granularity is not None:
            return self
        overlap = True if granularity == "unit" else None
        chosen = replace(self.pruning, granularity=cast(GranularityName, granularity), overlap=overlap)
        return replace(self, pruning=chosen)

    def budget(self, task: str) -> Budget:
        """Return the number of weights that a task may keep, as a budget."""
        from msh.subnetworks.allocation import Budget

        pruning = self.pruning
        if pruning.granularity == "nm":
            n, m = pruning.n_of_m
            return Budget(n / m)
        density, weights = (_of_task(number, task) for number in (pruning.density, pruning.weights))
        return Budget(density, weights, pruning.share, pruning.scope)

    def _curriculum_problems(self) -> Iterator[str]:
        stages = self.curriculum or []
        for i, stage in enumerate(stages):
            key = f"curriculum[{i}]"
            if not stage.tasks:
                yield f"{key} has no task"
            yield from _unknown_names(key, stage.tasks, list(self.tasks), "not in tasks")
            weights = stage.loss_weights or {}
            yield from _unknown_names(f"{key}.loss_weights", weights, stage.tasks, "not a task of the stage")
        times = Counter(task for stage in stages for task in stage.tasks)
        for task in self.tasks if self.curriculum is not None else ():
            if times[task] != 1:
                yield f"curriculum names task {task!r} {times[task]} times: every task belongs to one stage"

    def _task_problems(self) -> Iterator[str]:
        for key in ("density", "weights"):
            numbers = getattr(self.pruning, key)
            if isinstance(numbers, dict):
                yield from _unknown_names(f"pruning.{key}", numbers, list(self.tasks), "not a task")
                for task in self.tasks.keys() - numbers.keys():
                    yield f"pruning.{key} has no number for task {task!r}"
        if self.pruning.regrow.share is not None and self.trainer.strategy == "fsdp":
            bound = "null with trainer.strategy=fsdp, which shards the weights that move"
            yield str(invalid("pruning.regrow.share", bound, self.pruning.regrow.share))
        if self.retrain and self.network is None:
            yield str(invalid("retrain", "null without network=RUN, which has the tasks", self.retrain))
        for name, members in self.ensembles.items():
            if name in self.tasks:
                yield f"ensembles.{name}: there is a task of this name; choose another"
            yield from _unknown_names(f"ensembles.{name}", members, list(self.tasks), "not in tasks")
            if len(members) < 2 or len(set(members)) < len(members):
                yield str(invalid(f"ensembles.{name}", "two or more different tasks", members))


def _of_task(numbers: Any, task: str) -> Any:
    return numbers[task] if isinstance(numbers, dict) else numbers


def _unknown_names(key: str, names: Any, known: Sequence[str], why: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{key} names {name!r}, which is {why}: {', '.join(known)}{suggestion(str(name), known)}"


def run_config(config: DictConfig) -> RunConfig:
    """Convert a composed config to the typed one, and report all problems at once.

    Interpolations are resolved, except in `logger`: these name the run folder, and are resolved when loggers are made.

    Raises:
        ConfigError: a key is unknown or must be set, or a value is invalid.
        ValueError: a URL has a password, which a new run would store.
        omegaconf.errors.OmegaConfBaseException: an interpolation cannot be resolved.
    """
    if config.get("resume") is None:
        for key, value in compared(config, ()).items():
            for text in value if isinstance(value, list) else [value]:
                refuse_password(key, str(text))
    return convert(RunConfig, plain_values(config), GROUPS)


def stored_config(values: dict[str, Any]) -> RunConfig:
    """Convert a run folder's config from plain values; settings that its release lacked reproduce that release.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """
    values = deepcopy(values)
    for key, value in lacking(values).items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[name] = value
    return convert(RunConfig, values)


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Resolve a config into plain values, except in `logger`: see `run_config`.

    Raises:
        ConfigError: settings that must be set are not.
    """
    others = OmegaConf.masked_copy(config, [str(key) for key in config if key != "logger"])
    if missing := sorted(OmegaConf.missing_keys(others)):
        raise ConfigError([f"{key} must be set: {key}=..." for key in missing])
    values = cast(dict[str, Any], OmegaConf.to_container(others, resolve=True, throw_on_missing=True))
    if "logger" in config:
        values["logger"] = OmegaConf.to_container(config.logger, resolve=False)
    return values


OmegaConf.register_new_resolver(
    "start_of", lambda weights: "fresh" if weights is None else "backbone", replace=True
)  # of `pruning`, in conf/backbone
SCHEMA = hydra_schema(RunConfig)
"""Of `RunConfig`, for Hydra."""


def register() -> None:
    """Make the schema known to Hydra, as the config `schema`, and a group for criteria and for schedules."""
    store = ConfigStore.instance()
    store.store(name="schema", node=SCHEMA)
    for group, names in NAMED.items():
        for name in names:
            store.store(group=group, name=name, node={"name": name})
