"""The typed schema of the composed config: a misspelt key or a wrong type fails before any data is read."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from msh.errors import suggestion


@dataclass
class TaskConfig:
    """One task."""

    source: dict[str, Any] = MISSING
    """`_target_` and arguments of a callable that returns `msh.tasks.RawData`."""
    batch_size: int = 32
    """Examples per optimizer step, over all devices together."""
    val_fraction: float = 0.2
    """Share of the training examples held out for validation; the same for every seed."""
    transforms: list[Any] = field(default_factory=list)
    """Changes of the data, each {name: argument}: split_classes: [0, 1] (or names of classes), permute_pixels: SEED,
    rotate: DEGREES or repeat_channels: NUMBER."""
    augment: Any = None
    """Random changes of the training images, each {name: argument}: flip: horizontal or shift: PIXELS."""
    variants: Any = None
    """{name of a transform: list of arguments}: a task for each, <task>_0, <task>_1, ...; N stands for 0 to N-1.
    A number alone: so many tasks, all on the same data."""
    normalize: str | None = None
    """"feature", "all", "minmax" or "none"; "feature" when null, "none" for texts."""
    normalize_target: str | None = None
    """"minmax": bring the target of a regression to [0, 1], and measure it so; null: the data's unit."""
    stem: Any = None
    """`_target_` and arguments of the stem; when null, a linear one where shapes differ."""
    repeat: int = 1
    """Times an epoch goes through the training examples: more than once for small data sets."""
    metric: str | None = None
    """Name of the metric; the kind's usual one when null."""
    loss_weight: float = 1.0
    """Factor of the loss where several tasks train together, more than 0."""


@dataclass
class GateConfig:
    """Pruning below the budget, for as long as a task's validation metric allows."""

    step: float | None = None
    """Sparsity added at a time, in (0, 1); null: no gate, a task keeps its budget."""
    maximum: float = 0.98
    """Sparsity at which it ends, at the latest, in (0, 1)."""
    patience: int = 2
    """Epochs in which the metric may recover from a step, at least 1."""
    tolerance: float = 0.01
    """Share of the dense network's validation metric that may be lost, at least 0."""
    until: float = 0.75
    """Share of the stage's steps after which it ends, at the latest."""


@dataclass
class PruningConfig:
    """How a task finds its subnetwork."""

    density: Any = 0.1
    """Kept share of the prunable weights per task: a number in (0, 1], or a mapping from task to number."""
    weights: Any = None
    """Instead of density: kept number of weights, or a mapping from task to number."""
    share: str | None = None
    """Instead of density: "equal", an equal part of what is free among the tasks still to come."""
    scope: str = "tensor"
    """"tensor": every prunable tensor keeps the same share; "erk" (Erdos-Renyi-Kernel) and "epl" (equal per layer):
    small tensors a larger share than large ones; "network": scores are compared over all tensors."""
    granularity: str = "weight"
    """What is kept: "weight"; "neuron", whole units of linear layers; "channel", those of convolutions and linear
    layers. Whole units make a subnetwork a smaller dense network; a budget is then met from below."""
    start: str = "fresh"
    """What a task's weights are before training: "fresh", drawn for each task anew, as large as the backbone's own;
    "backbone", these themselves, as a pretrained backbone needs it."""
    criterion: Any = MISSING
    """Name of the score per weight."""
    scores: str = "magnitude"
    """What learned scores start from: "magnitude" or "random"."""
    schedule: Any = MISSING
    """Name of the path from all candidates down to the budget."""
    begin: float = 0.0
    """Share of the stage's steps that go by before the first cut, and before learned scores choose."""
    end: float = 0.0
    """Share of the stage's steps at which the last cut is made; 0 prunes at initialisation."""
    rounds: int = 1
    """Number of cuts, evenly spaced from begin to end."""
    rewind: int | None = None
    """After each cut, set survivors back to their values after this many epochs (0: initialisation); null: don't."""
    rescale: bool = True
    """Multiply survivors so that each tensor keeps the norm it had before the cut."""
    sample: int = 1000
    """Training examples on which gradient criteria are computed."""
    allow_empty_layers: bool = False
    """Let a small budget leave a task no weight of some layers, of which only biases pass on; else it is an error."""
    gate: GateConfig = field(default_factory=GateConfig)
    """With a step, the budget is the most a task keeps: from `end` on, its validation metric decides."""


@dataclass
class PaperConfig:
    """What `procedure=paper` needs to know of an experiment."""

    criterion: str = "gradient"
    """Name of the criterion of the authors' one cut."""
    warm_up: float = 0.0
    """Share of the stage's steps, of 100 epochs, that they train before it; 0 prunes at initialisation."""


@dataclass
class TrainerConfig:
    """Arguments of Lightning's Trainer; one Trainer is made for each fit."""

    max_epochs: int = 12
    """Epochs per stage, unless a stage says otherwise."""
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: Any = "auto"
    precision: Any = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    log_every_n_steps: int = 50
    check_val_every_n_epoch: int = 1
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    overfit_batches: Any = 0.0
    fast_dev_run: Any = False
    num_sanity_val_steps: int = 0
    detect_anomaly: bool = False
    deterministic: Any = None
    benchmark: bool | None = None
    profiler: Any = None
    enable_progress_bar: bool = True
    sync_batchnorm: bool = False


@dataclass
class StageConfig:
    """A stage of the curriculum, where a list of task names does not say enough."""

    tasks: list[str] = MISSING
    """Names of the tasks that train together."""
    max_epochs: int | None = None
    """trainer.max_epochs when null."""
    uneven: str | None = None
    """The run's `uneven` when null."""
    loss_weights: dict[str, float] | None = None
    """Task name to the factor of its loss, instead of its own loss_weight."""


@dataclass
class CheckpointConfig:
    """What a killed run goes on from."""

    min_seconds: float = 10.0
    """A checkpoint is written at the end of an epoch, once this many seconds have passed since the last one."""
    restore_best: bool = True
    """End each stage with the weights of its best epoch on the validation split, the latest among equals: by the
    metric, or by what `callbacks=early_stopping` monitors."""


@dataclass
class GuaranteeConfig:
    """The check that frozen tasks do not change."""

    examples: int = 256
    """Validation examples of each task whose outputs are compared."""
    on_violation: str = "error"
    """"error" ends the run; "warn" counts it and goes on."""


@dataclass
class EvaluationConfig:
    """How networks are evaluated."""

    batch_size: int | None = None
    """Most examples per process that a network evaluates at once, for scores, gradient criteria, the guarantee and
    ensembles; the task's own batch_size when null (500 for gradient criteria)."""


@dataclass
class FilesConfig:
    """What the run folder's network and subnetwork files hold."""

    dtype: str = "float32"
    """Of the weights in subnetwork files: "float32" (exact), "float16" or "bfloat16"."""
    free_weights: bool = False
    """Write the weights that no task owns into network.safetensors too; a run's seed gives them again without."""


@dataclass
class PathsConfig:
    """Folders."""

    data_dir: str = "data"
    """Where data sets are kept, or downloaded to."""
    output_dir: str = "outputs"
    """Where run folders are made."""


@dataclass
class Config:
    """All of a run."""

    name: str = "train"
    """Of the experiment; the run folder is <output_dir>/<name>/<date_time>."""
    seed: int = 0
    threads: int | None = None
    """CPU threads of torch; its own choice when null. The same weights need the same number."""
    flush_denormal: bool = True
    """Compute 0 where a result is subnormal (below 2**-126), so that training is not slowed on Intel processors."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Task name to task, in the order they are learned."""
    curriculum: Any = None
    """List of stages: each a list of task names, or a StageConfig. One task a stage when null."""
    uneven: str = "cycle"
    """Where tasks of one stage have different numbers of batches: "cycle" goes on until the longest has had its epoch,
    and starts the others again; "shortest" ends the epoch with the shortest."""
    val_fraction: float | None = None
    """Instead of each task's own."""
    backbone: dict[str, Any] = MISSING
    """`_target_` and arguments of the backbone; its `input_shape` is the first task's when null."""
    master_weights: bool = True
    """Train a backbone that comes in bfloat16 or float16 in float32, and round in each forward pass; false: in its own
    type."""
    pruning: PruningConfig = field(default_factory=PruningConfig)
    reuse: str = "none"
    """Which earlier tasks' weights a task reads: "none"; "all"; or "learned": pruning chooses among its own and theirs,
    and what it reads counts towards its budget."""
    baseline: Any = None
    """What to compare with, a name or a list: "dense" trains a dense network of its own for each task; "finetune" one
    dense network, task after task; "joint" one dense network on all tasks at once."""
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    """Name to tasks of the same data whose outputs are averaged, and measured so on the test split at the end."""
    paper: PaperConfig = field(default_factory=PaperConfig)
    optimizer: dict[str, Any] = MISSING
    """`_target_` and arguments of an optimizer, as a partial."""
    scheduler: Any = None
    """`_target_` and arguments of a learning-rate scheduler stepped with each batch, as a partial; or null."""
    prune_scheduler: Any = None
    """The same while the task is being pruned."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Name to `_target_` and arguments of further Lightning callbacks."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Name to `_target_` and arguments of Lightning loggers."""
    owner_maps: Any = 4
    """Layers of whose owner maps trackers get a picture: their names, or how many, from the first to the last."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guarantee: GuaranteeConfig = field(default_factory=GuaranteeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    report: bool = True
    """Write report.html into the run folder at the end; `msh report RUN_DIR` makes it at any time."""
    plan: str | None = None
    """Plan file (`msh plan`) whose allocation tasks keep; with it, nothing is pruned."""
    task: str | None = None
    """With a plan: train this task alone. Its weights end as they do when all tasks train."""
    network: str | None = None
    """Network file to start from: tasks that it has are learned already, and those that it lacks take what is free."""
    resume: str | None = None
    """Run folder to go on with, or "auto" for the newest unfinished one of this experiment."""
    objective: Any = None
    """What a run is judged by, a name or a list; train.py returns it: "mean_score" (over the tasks, on validation
    data), "density", "seconds", TASK.val or TASK.test. A search must have one, and may not have TASK.test."""
    skip_finished: bool = False
    """In a multirun: go on with the sweep in hydra.sweep.dir. Jobs that are finished there are left as they are,
    stopped ones go on, and others get folders of their own."""


GROUPS = ("experiment", "procedure", "debug", "hparams_search")
"""Config groups whose choices set other keys, and none of their own name."""


def check_keys(config: DictConfig) -> None:
    """Raise when the composed config has a key that the schema does not: Hydra lets `+key=value` add any.

    Raises:
        ValueError: naming the key and the nearest valid one.
    """
    _check_keys(OmegaConf.to_container(config, resolve=False), Config, "")


def _check_keys(values: Any, schema: Any, prefix: str) -> None:
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(
                f"there is no setting {prefix}{key}; {prefix[:-1] or 'the config'} has {', '.join(hints)}"
                f"{suggestion(str(key), [*hints, *([] if prefix else GROUPS)])}"
            )
        if is_dataclass(hints[key]):
            _check_keys(value, hints[key], f"{prefix}{key}.")
        if key == "tasks" and not prefix:
            for name, task in value.items():
                _check_keys(task, TaskConfig, f"tasks.{name}.")


def register() -> None:
    """Make the schema known to Hydra, as the config `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)
