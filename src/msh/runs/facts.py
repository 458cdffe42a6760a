"""Read a run folder once, for the report and the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from msh.errors import without_secrets
from msh.files.header import holdings_in
from msh.files.yaml_files import read_config
from msh.runs.examples import Example, read_examples
from msh.runs.metrics import read_rows
from msh.runs.results import FILE_NAME, LaterVersionError, Results, TaskResult
from msh.runs.words import counted
from msh.subnetworks.description import Holdings, TaskState

if TYPE_CHECKING:
    from msh.subnetworks import NetworkState

COLUMN = re.compile(r"([^/]+)/(?:(train|val|test)/)?([^/]+)")
"""A task's column in metrics.csv: <task>/<split>/<quantity>, or <task>/sparsity."""
UNKNOWN = "unknown"
"""Status of a run whose results.json cannot be read."""
CONFIG = Path(".hydra") / "config.yaml"


@dataclass(frozen=True)
class Curve:
    """A task's quantity over optimizer steps.

    Attributes:
        task: its name.
        split: "train", "val" or "test"; "" for its sparsity.
        quantity: "loss", a metric, or "sparsity".
        steps: since the run's start, one per value.
        values: in the quantity's unit.
    """

    task: str
    split: str
    quantity: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class RunFacts:
    """A run folder's content.

    Attributes:
        folder: the run folder.
        results: from results.json; without tasks if it cannot be read.
        curves: from metrics.csv.
        ownership: from network.safetensors, or None.
        config: the composed config, or None.
        notes: a sentence for each missing, damaged or unfinished part.
        files: path in the folder to bytes: the network and the subnetworks.
        examples: of the test splits, by task, with the network's answers.
        header: what tasks own, where only the header of network.safetensors was read.
    """

    folder: Path
    results: Results
    curves: list[Curve]
    ownership: NetworkState | None
    config: DictConfig | None
    notes: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    header: Holdings | None = None

    @cached_property
    def holdings(self) -> Holdings | None:
        """How many weights tasks own and read, from network.safetensors; None without one."""
        return self.header if self.ownership is None else self.ownership.holdings()

    @cached_property
    def tasks(self) -> list[str]:
        """All tasks that any file names, in training order."""
        named = [*self.results.tasks, *(self.holdings.tasks if self.holdings else [])]
        return list(dict.fromkeys([*named, *(curve.task for curve in self.curves)]))

    @property
    def stages(self) -> list[str]:
        """Stage names; see `Results.stages`."""
        return self.results.stages

    def subnetwork_size(self, task: str) -> int | None:
        """Return the subnetwork file's bytes; None if there is none."""
        return self.files.get(str(Path("subnetworks") / f"{task}.safetensors"))

    def curves_of(self, split: str, quantity: str | None = None) -> list[Curve]:
        """Return a split's curves, ordered as the tasks.

        Args:
            split: "train", "val", "test", or "" for sparsity.
            quantity: its name; None for all but "loss".
        """
        curves = [c for c in self.curves if c.split == split]
        curves = [c for c in curves if (c.quantity == quantity if quantity else c.quantity != "loss")]
        return sorted(curves, key=lambda curve: self.tasks.index(curve.task))

    @property
    def config_text(self) -> str:
        """The composed config as YAML, with its interpolations, without passwords."""
        return without_secrets(OmegaConf.to_yaml(self.config)) if self.config is not None else ""


def read_run(folder: Path, tensors: bool = True) -> RunFacts:
    """Read a run folder, finished or not; leave out missing and damaged parts, with a note for each.

    Args:
        folder: the run folder.
        tensors: read the network too; its header alone needs no torch.
    Raises:
        FileNotFoundError: the folder has neither results.json nor a composed config.
        LaterVersionError: results.json has a later schema version.
    """
    if not (folder / FILE_NAME).is_file() and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it has neither {FILE_NAME} nor {CONFIG}")
    notes: list[str] = []
    config = _read_config(folder, notes)
    results = _read_results(folder, config, notes)
    header, ownership = _read_network(folder, results, tensors, notes)
    paths = [folder / "network.safetensors", *sorted((folder / "subnetworks").glob("*.safetensors"))]
    files = {str(path.relative_to(folder)): path.stat().st_size for path in paths if path.is_file()}
    curves, examples = _read_curves(folder, notes), _read_examples(folder, notes)
    return RunFacts(folder, results, curves, ownership, config, notes, files, examples, header)


def _read_examples(folder: Path, notes: list[str]) -> dict[str, list[Example]]:
    try:
        return read_examples(folder)
    except ValueError as error:
        notes.append(f"Example predictions are left out: {_line(error)}.")
        return {}


def _read_config(folder: Path, notes: list[str]) -> DictConfig | None:
    try:
        return read_config(folder / CONFIG)
    except FileNotFoundError:
        notes.append(f"{CONFIG} is missing: the run's settings are unknown.")
    except ValueError as error:
        notes.append(f"{_line(error)}.")
    return None


def _read_results(folder: Path, config: Mapping[Any, Any] | None, notes: list[str]) -> Results:
    try:
        results = Results.load(folder)
    except LaterVersionError:
        raise
    except (ValueError, FileNotFoundError) as error:
        reason = f"{FILE_NAME} is missing" if isinstance(error, FileNotFoundError) else _line(error)
        notes.append(f"Scores are unknown: {reason}.")
        known = config or {}
        return Results(str(known.get("name", folder.name)), int(known.get("seed", 0)), [], {}, "", UNKNOWN)
    learned = len(results.matrix)
    if others := results.not_evaluated:
        notes.append(
            f"Not evaluated, as this run does not have their data: {', '.join(others)}; their weights were compared by "
            "their digests."
        )
    if results.status != "finished":
        done = f"{learned} of {len(results.curriculum)} stages are learned and evaluated"
        waiting = [task for stage in results.curriculum[learned:] for task in stage]
        missing = f"; not yet: {', '.join(waiting)}" if waiting else ""
        endings = {
            "failed": "stopped with an error",
            "stopped": "was stopped",
            "running": "has not ended, or was killed",
        }
        notes.append(f"The run {endings.get(results.status, f'is {results.status}')}: {done}{missing}.")
    return results


def _read_network(
    folder: Path, results: Results, tensors: bool, notes: list[str]
) -> tuple[Holdings | None, NetworkState | None]:
    path, header, ownership = folder / "network.safetensors", None, None
    tasks: Mapping[str, TaskState]
    try:
        if tensors:
            from msh.files.state_file import read_state

            ownership = read_state(path, "network").state
            tasks = ownership.tasks
        else:
            _, header = holdings_in(path, "network")
            tasks = header.tasks
    except (ValueError, FileNotFoundError) as error:
        if results.matrix or results.status == UNKNOWN or path.is_file():
            notes.append(f"The owners of weights are unknown: {_line(error)}.")
        return None, None
    if ahead := [t for t in tasks if t in results.tasks and _lacks_score(results.tasks[t])]:
        notes.append(f"{path.name} holds {', '.join(ahead)}, without a test score in {FILE_NAME}.")
    if behind := [t for t, row in results.tasks.items() if row.test is not None and t not in tasks]:
        notes.append(f"{path.name} does not hold {', '.join(behind)}, which have a test score in {FILE_NAME}.")
    return header, ownership


def _lacks_score(task: TaskResult) -> bool:
    return task.evaluated and task.test is None


def _read_curves(folder: Path, notes: list[str]) -> list[Curve]:
    path = folder / "metrics.csv"
    if not path.is_file():
        notes.append(f"There are no learning curves: {path.name} is missing (logger=csv writes it).")
        return []
    try:
        names, rows = read_rows(path)
    except ValueError as error:
        notes.append(f"There are no learning curves: {_line(error)}.")
        return []
    if not path.read_bytes().endswith(b"\n"):
        notes.append(f"The last line of {path.name} is incomplete, and left out.")
    curves, unread = curves_in(names, rows)
    if unread:
        notes.append(f"{path.name}: {counted(unread, 'cell')} left out, without a number.")
    return curves


def curves_in(names: Iterable[str], rows: Iterable[Mapping[str, str]]) -> tuple[list[Curve], int]:
    """Collect the tasks' curves from a metrics.csv.

    Args:
        names: its columns.
        rows: column to cell, from `read_rows`.
    Returns:
        (curves with at least one value, ordered as the columns; how many cells are not numbers).
    """
    curves, unread, rows = [], 0, list(rows)
    for name in names:
        parts = COLUMN.fullmatch(name)
        if not parts or bool(parts[2]) == (parts[3] == "sparsity"):
            continue
        curve = Curve(parts[1], parts[2] or "", parts[3], [], [])
        for row in rows:
            if cell := row.get(name):
                try:
                    curve.values.append(float(cell))
                    curve.steps.append(int(row["step"]))
                except ValueError:
                    unread += 1
        if curve.values:
            curves.append(curve)
    return curves, unread


def _line(error: BaseException) -> str:
    """Return an error message's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
