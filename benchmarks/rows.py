"""The rows of docs/results.md: what benchmarks/reproduce.yaml says of each experiment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.configs import typed
from benchmarks.runs import Step
from msh.errors import one_of
from msh.training.config import BASELINES, RunConfig
from msh.training.plan import stages_of
from msh.training.settings import differences

FILE = Path(__file__).with_name("reproduce.yaml")
GROUPS = ("core", "all")
NOT_OF_DENSE = (
    *("name", "tasks", "curriculum", "uneven", "pruning", "prune_scheduler", "reuse", "baseline", "ensembles", "paper"),
    *("files", "guarantee", "checkpoint.min_seconds", "logger", "paths", "resume", "threads", "trainer.max_epochs"),
)
"""Settings that a task's dense network does not depend on; its task and epochs are compared by themselves."""
NOT_OF_PART = ("name", "tasks", "curriculum", "trainer.max_epochs", "baseline", "ensembles", "paper")
"""Settings in which a row and the one that it is a part of may differ; tasks and stages are compared by themselves."""


Entry = TypeVar("Entry")


@dataclass
class Goal:
    """What is known of a task, and what it must reach."""

    authors: float | None = None
    """The score that the authors (of the row's `source`) report."""
    target: float | None = None
    """The mean over the seeds must be at least this; at most, where lower is better."""
    worse_than_dense: float | None = None
    """By so much the mean may be worse than the dense network's; the row's when null."""
    dense_as: str | None = None
    """Name of the task in the row that `dense_of` names; the same when null."""
    above_members: bool = False
    """Of an ensemble: it must be better than its best member."""


@dataclass
class Row:
    """An experiment."""

    id: str = MISSING
    title: str = MISSING
    experiment: str = MISSING
    """As in +experiment=NAME."""
    overrides: list[str] = field(default_factory=list)
    """Further overrides."""
    group: str = "core"
    """"core": `make reproduce` runs it; "all": only `make reproduce-all` does."""
    seeds: list[int] = field(default_factory=lambda: [0])
    baselines: dict[str, list[int]] = field(default_factory=dict)
    """Baseline to the seeds that it is trained with."""
    dense_of: str | None = None
    """Id of the row whose dense networks are this row's too: of the same tasks, with the same settings."""
    part_of: str | None = None
    """Id of the row whose runs begin with this row's curriculum: seeds that train no baselines are not run again."""
    source: str = ""
    """Where the authors' figures come from."""
    note: str = ""
    """What is to be said of the row beside its figures, such as why a goal is missed and where attempts are."""
    worse_than_dense: float | None = None
    """By so much the mean of each task may be worse than its dense network's; null: there is no such bound."""
    within_of_first: float | None = None
    """By so much a task's mean may be worse than the first task's."""
    tasks: dict[str, Goal] = field(default_factory=dict)
    """Goals of tasks and ensembles; those that are not here have none of their own."""
    mean: Goal | None = None
    """Goal of the mean over the tasks; null: no mean is shown."""

    def goal(self, task: str) -> Goal:
        """A task's goal."""
        return self.tasks.get(task, Goal())

    def steps(self, seed: int, root: Path) -> list[Step]:
        """The run of a seed, and its baselines; nothing if the run is the beginning of another row's.

        Args:
            seed: one of the row's.
            root: folder of all rows' runs.
        """
        overrides = (f"experiment={self.experiment}", *self.overrides, f"seed={seed}")
        baselines = tuple(name for name, seeds in self.baselines.items() if seed in seeds)
        if self.part_of is not None and not baselines:
            return []
        name, folder = f"row {self.id}, seed {seed}", root / self.id / f"seed-{seed}"
        steps = [Step(name, folder, overrides)]
        return steps + ([Step(f"{name}, {', '.join(baselines)}", folder, overrides, baselines)] if baselines else [])


def read_rows(path: Path = FILE) -> dict[str, Row]:
    """The rows by id, in order, checked.

    Raises:
        ValueError: a row has a key, a name or a value that is not allowed, or an id twice.
    """
    rows = read_entries(path, Row)
    for row in rows.values():
        where = f"{path}, row {row.id}"
        _check(row, where)
        for key in ("dense_of", "part_of"):
            if (other := getattr(row, key)) is not None:
                one_of(f"{where}: {key}", other, rows)
    return rows


def read_entries(path: Path, schema: type[Entry]) -> dict[str, Entry]:
    """The entries of a YAML list, by their `id`, in order.

    Args:
        path: of the file.
        schema: a dataclass with an attribute `id`.
    Raises:
        ValueError: an entry has a key or a value that is not allowed, or an id twice.
    """
    found: dict[str, Entry] = {}
    for given in cast(Any, OmegaConf.load(path)):
        id = str(given.get("id"))
        try:
            entry = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
        except OmegaConfBaseException as error:
            raise ValueError(f"{path}, {id}: {error}") from error
        if id in found:
            raise ValueError(f"{path} has more than one {id}")
        found[id] = cast(Entry, entry)
    return found


def _check(row: Row, where: str) -> None:
    one_of(f"{where}: group", row.group, GROUPS)
    if not row.seeds:
        raise ValueError(f"{where}: seeds is empty")
    for baseline, seeds in row.baselines.items():
        one_of(f"{where}: baselines", baseline, BASELINES)
        if not set(seeds) <= set(row.seeds):
            raise ValueError(f"{where}: baselines.{baseline} = {seeds} is not allowed: some of seeds = {row.seeds} are")


def check_dense(row: Row, other: Row) -> None:
    """Raise unless a row's tasks are trained by dense networks in the same way in another row.

    Raises:
        ValueError: naming what differs, or that the other row has no such networks.
    """
    where = f"row {row.id}: dense_of = {other.id} is not allowed: "
    if "dense" not in other.baselines or "dense" in row.baselines:
        raise ValueError(f"{where}row {other.id} must train dense networks, and row {row.id} none")
    mine, its = (composed(r) for r in (row, other))
    changed = differences(asdict(mine), asdict(its), NOT_OF_DENSE)
    epochs, its_epochs = epochs_of(mine), epochs_of(its)
    for task in epochs:
        name = row.goal(task).dense_as or task
        changed |= _task_differences(where, mine, task, its, name)
        if epochs[task] != its_epochs[name]:
            changed[f"epochs of {task}"] = (epochs[task], its_epochs[name])
    _refuse(where, row, other, changed)


def check_part(row: Row, other: Row) -> None:
    """Raise unless another row's runs begin as a row's own would.

    Raises:
        ValueError: naming what differs.
    """
    where = f"row {row.id}: part_of = {other.id} is not allowed: "
    mine, its = (composed(r) for r in (row, other))
    changed = differences(asdict(mine), asdict(its), NOT_OF_PART)
    stages, its_stages = stages_of(mine), stages_of(its)
    if stages != its_stages[: len(stages)]:
        changed["curriculum"] = (stages, its_stages[: len(stages)])
    else:
        for task in (task for stage in stages for task in stage.tasks):
            changed |= _task_differences(where, mine, task, its, task)
    if not set(row.seeds) <= set(other.seeds):
        changed["seeds"] = (row.seeds, other.seeds)
    _refuse(where, row, other, changed)


Differences = dict[str, tuple[Any, Any]]


def _task_differences(where: str, mine: RunConfig, task: str, its: RunConfig, name: str) -> Differences:
    if name not in its.tasks:
        raise ValueError(f"{where}it has no task {name}, only {', '.join(map(str, its.tasks))}")
    found = differences(asdict(mine.tasks[task]), asdict(its.tasks[name]), ("loss_weight",))
    return {f"tasks.{task}.{key}": values for key, values in found.items()}


def _refuse(where: str, row: Row, other: Row, changed: Differences) -> None:
    for key, (here, there) in changed.items():
        raise ValueError(f"{where}{key} is {here!r} in row {row.id} and {there!r} in row {other.id}")


def composed(row: Row) -> RunConfig:
    """A row's config, without variants."""
    return typed(f"experiment={row.experiment}", *row.overrides)


def epochs_of(config: RunConfig) -> dict[str, int]:
    """Task to epochs of its stage."""
    return {task: stage.max_epochs for stage in stages_of(config) for task in stage.tasks}
