"""Rows of docs/results.md, read from benchmarks/reproduce.yaml and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.configs import typed
from benchmarks.runs import Step
from msh.errors import invalid, one_of
from msh.training.config import BASELINES, RunConfig
from msh.training.plan import stages_of
from msh.training.settings import differences

FILE = Path(__file__).with_name("reproduce.yaml")
GROUPS = ("core", "all")
NOT_OF_DENSE = (
    *("name", "tasks", "curriculum", "uneven", "pruning", "prune_scheduler", "reuse", "baseline", "ensembles", "paper"),
    *("files", "guarantee", "checkpoint.min_seconds", "logger", "paths", "resume", "threads", "trainer.max_epochs"),
)
"""Settings without effect on a task's dense network; tasks and epochs are compared separately."""
NOT_OF_BASELINES = tuple(
    key for key in NOT_OF_DENSE if key not in ("tasks", "curriculum", "uneven", "trainer.max_epochs")
)
"""Settings without effect on any baseline."""
NOT_OF_PART = ("name", "tasks", "curriculum", "trainer.max_epochs", "baseline", "ensembles", "paper")
"""Settings in which a row and its `part_of` row may differ; tasks and stages are compared separately."""


@dataclass
class Entry:
    """An experiment to run with several seeds."""

    id: str = MISSING
    title: str = MISSING
    experiment: str = MISSING
    """As in +experiment=NAME."""
    overrides: list[str] = field(default_factory=list)
    """Additional overrides."""
    seeds: list[int] = field(default_factory=lambda: [0])


AnEntry = TypeVar("AnEntry", bound=Entry)


@dataclass
class Goal:
    """A task's published score and targets."""

    authors: float | None = None
    """Score reported by the authors (see the row's `source`)."""
    target: float | None = None
    """Bound for the mean over the seeds: a minimum; a maximum where lower is better."""
    worse_than_dense: float | None = None
    """Allowed difference between the mean and the dense network's; the row's when null."""
    dense_as: str | None = None
    """Name of the task in the `dense_of` row; the same when null."""
    above_members: bool = False
    """For an ensemble: it must be better than its best member."""


@dataclass
class Row(Entry):
    """An experiment with its baselines and targets."""

    group: str = "core"
    """"core": `make reproduce` runs it; "all": only `make reproduce-all` does."""
    baselines: dict[str, list[int]] = field(default_factory=dict)
    """Baseline to its seeds."""
    dense_of: str | None = None
    """Id of a row with the same tasks and settings, whose dense networks this row uses."""
    baselines_of: str | None = None
    """Id of a row that differs only in how it prunes, whose baselines this row uses."""
    part_of: str | None = None
    """Id of a row whose runs begin with this row's curriculum; only seeds with baselines are run here."""
    source: str = ""
    """Source of the authors' numbers."""
    note: str = ""
    """Text for the row's caption, such as why a target is missed and where attempts are."""
    worse_than_dense: float | None = None
    """Allowed difference between each task's mean and its dense network's; null: no bound."""
    within_of_first: float | None = None
    """Allowed difference between a task's mean and the first task's."""
    tasks: dict[str, Goal] = field(default_factory=dict)
    """Task or ensemble to its goal."""
    mean: Goal | None = None
    """Goal for the mean over the tasks; null: the table has no mean."""

    def goal(self, task: str) -> Goal:
        """Return a task's goal."""
        return self.tasks.get(task, Goal())

    def step(self, seed: int, root: Path) -> Step | None:
        """Return a seed's run with its baselines; None if another row's run contains it.

        Args:
            seed: one of the row's seeds.
            root: folder of all rows' runs.
        """
        overrides = (f"experiment={self.experiment}", *self.overrides, f"seed={seed}")
        baselines = tuple(name for name, seeds in self.baselines.items() if seed in seeds)
        if self.part_of is not None and not baselines:
            return None
        return Step(f"row {self.id}, seed {seed}", root / self.id / f"seed-{seed}", overrides, baselines)


def read_rows(path: Path = FILE) -> dict[str, Row]:
    """Read the rows by id, in order, and check them.

    Raises:
        ValueError: a row has a key, a name or a value that is not allowed, or an id twice.
    """
    rows = read_entries(path, Row)
    for row in rows.values():
        where = f"{path}, row {row.id}"
        _check(row, where)
        for key in ("dense_of", "baselines_of", "part_of"):
            if (other := getattr(row, key)) is not None:
                one_of(f"{where}: {key}", other, rows)
    return rows


def read_entries(path: Path, schema: type[AnEntry]) -> dict[str, AnEntry]:
    """Read the entries of a YAML list by their `id`, in order.

    Raises:
        ValueError: an entry has a key or a value that is not allowed, or an id twice.
    """
    found: dict[str, AnEntry] = {}
    for given in cast(Any, OmegaConf.load(path)):
        id = str(given.get("id"))
        try:
            entry = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
        except OmegaConfBaseException as error:
            raise ValueError(f"{path}, {id}: {error}") from error
        if id in found:
            raise ValueError(f"{path} has more than one {id}")
        found[id] = cast(AnEntry, entry)
    return found


def _check(row: Row, where: str) -> None:
    one_of(f"{where}: group", row.group, GROUPS)
    if not row.seeds:
        raise ValueError(f"{where}: seeds is empty")
    if row.dense_of is not None and row.baselines_of is not None:
        raise invalid(f"{where}: dense_of", "null, as baselines_of has dense networks too", row.dense_of)
    for baseline, seeds in row.baselines.items():
        one_of(f"{where}: baselines", baseline, BASELINES)
        if not set(seeds) <= set(row.seeds):
            raise invalid(f"{where}: baselines.{baseline}", f"some of seeds = {row.seeds}", list(seeds))


def check_dense(row: Row, other: Row) -> None:
    """Check that another row trains the same dense networks.

    Raises:
        ValueError: naming what differs, or that the other row has no such networks.
    """
    where = f"row {row.id}: dense_of = {other.id}: "
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


def check_baselines(row: Row, other: Row) -> None:
    """Check that another row trains the same baselines.

    Raises:
        ValueError: naming what differs, or that the other row has no baselines.
    """
    where = f"row {row.id}: baselines_of = {other.id}: "
    if not other.baselines or row.baselines:
        raise ValueError(f"{where}row {other.id} must have baselines, and row {row.id} none")
    mine, its = (asdict(composed(r)) for r in (row, other))
    _refuse(where, row, other, differences(mine, its, NOT_OF_BASELINES))


def check_part(row: Row, other: Row) -> None:
    """Check that another row's runs begin with this row's stages.

    Raises:
        ValueError: naming what differs.
    """
    where = f"row {row.id}: part_of = {other.id}: "
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
    """Compose a row's config, variants expanded."""
    return typed(f"experiment={row.experiment}", *row.overrides)


def epochs_of(config: RunConfig) -> dict[str, int]:
    """Map each task to its stage's epochs."""
    return {task: stage.max_epochs for stage in stages_of(config) for task in stage.tasks}
