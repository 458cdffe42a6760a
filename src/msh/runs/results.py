"""Read and write results.json: a run's scores and progress."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from msh.checked import first_problem
from msh.files.atomic import write_text
from msh.tasks.tokens import TokenCounts

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
UNFINISHED = "unfinished.txt"
"""Name of a file in the folder of a sweep's job, from its start until it succeeds."""
ENDED = "it is under way, or its process was ended: stopped, killed, or out of memory"
"""Content of that file until the job's outcome is known."""


class LaterVersionError(ValueError):
    """A results.json has a later schema version than this release reads."""


@dataclass
class TaskResult:
    """One task in results.json.

    Attributes:
        metric: its name.
        direction: "max" or "min".
        stage: index, from 0.
        test: score on the test split, evaluated after the last stage so far.
        test_when_learned: the same, after its own stage.
        val: score on the validation split, after its own stage.
        val_constant: for metrics where lower is better, the validation score of a constant answer, the mean of the
            training targets.
        density: own weights over all prunable weights, in (0, 1].
        weights: how many prunable weights it owns.
        weights_reused: how many earlier tasks' weights it reads.
        weights_read: the same, by the task that owns them; only tasks that it reads.
        weights_private: how many values its stem, head, biases and normalisation have.
        granularity: what it keeps as one, such as "weight" or "unit"; None in runs of earlier releases.
        flops: of its backbone's forward pass, as a share of the dense backbone's; None for tasks of single weights.
        dense: test score from a dense network for this task alone, or None.
        dense_seconds: wall seconds in the fit of that network.
        finetune: test score after the last task, from one dense network that learned task after task, or None.
        joint: test score from one dense network that learned all tasks at once, or None.
        train_seconds: its stage's wall seconds in fits; a parallel stage's tasks share them.
        evaluated: false for a task of the network that the run started from whose data the run does not have: it has
            no scores, and the guarantee compares its weights alone.
        tokens: of texts, over all splits: how many texts are longer than the task reads, and which tokens it loses;
            None for other inputs, and in runs by earlier releases.
    """

    metric: str
    direction: Literal["max", "min"]
    stage: int
    test: float | None = None
    test_when_learned: float | None = None
    val: float | None = None
    val_constant: float | None = None
    density: float | None = None
    weights: int | None = None
    weights_reused: int = 0
    weights_read: dict[str, int] = field(default_factory=dict)
    weights_private: int | None = None
    granularity: str | None = None
    flops: float | None = None
    dense: float | None = None
    finetune: float | None = None
    joint: float | None = None
    train_seconds: float = 0.0
    dense_seconds: float = 0.0
    evaluated: bool = True
    tokens: TokenCounts | None = None


Matrix = list[list[float | None]]


class Finetune(TypedDict):
    """A dense network that learned task after task; see `Results`."""

    matrix: Matrix
    forgetting: float | None
    bwt: float | None


class EnsembleResult(TypedDict):
    """Tasks that vote; see `Results`."""

    metric: str
    direction: Literal["max", "min"]
    tasks: list[str]
    test: float | None
    val: NotRequired[float | None]
    """Absent in runs of earlier releases."""


class Guarantee(TypedDict):
    """Comparisons made, and failed ones."""

    checked: int
    violations: int
    rounded: NotRequired[int]
    """Comparisons with a record of another machine, which rounds outputs otherwise: weights bitwise, outputs within a
    tolerance. Absent where there are none: all comparisons were bitwise."""
    largest_difference: NotRequired[float]
    """Of outputs in these, relative to the largest output."""


class RouterForm(TypedDict):
    """The router of the tasks whose inputs have the same form."""

    candidates: list[str]
    rule: str
    """The one with the best accuracy in `validation`."""
    validation: dict[str, float]
    """How often each rule found the right task in validation data; {} where the rule was taken over."""
    validated: NotRequired[bool]
    """False where tasks without data kept their rule, and the others took it over: nothing tells if it suits them."""


class RouterResult(TypedDict):
    """Scores of the router on the test splits of tasks that share a form of input."""

    accuracy: float
    """Mean over those of these tasks whose data the run has."""
    class_incremental: float | None
    """Share of examples with the right task and the right class, mean over the classifications; None without any."""
    tasks: dict[str, float]
    """Accuracy of each task."""
    forms: list[RouterForm]


def finite(number: float) -> float | None:
    """Return a number that JSON can hold; None for infinity and NaN."""
    return number if math.isfinite(number) else None


def _all_finite(content: Any) -> Any:
    """Replace infinity and NaN by None in dicts and lists of JSON."""
    if isinstance(content, dict):
        return {key: _all_finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_all_finite(value) for value in content]
    return finite(content) if isinstance(content, float) else content


def comparison(guarantee: Guarantee) -> str:
    """Say how frozen tasks were compared: "bitwise", unless some were on another machine than their record's."""
    if not (rounded := guarantee.get("rounded", 0)):
        return "bitwise"
    rest = f"{guarantee['checked'] - rounded:,} bitwise, " if guarantee["checked"] > rounded else ""
    return (
        f"{rest}{rounded:,} on another machine than the record's: weights bitwise, outputs to within "
        f"{guarantee.get('largest_difference', 0.0):.1e}"
    )


def _no_finetune() -> Finetune:
    return {"matrix": [], "forgetting": None, "bwt": None}


@dataclass
class Results:
    """results.json, schema version 1.

    Attributes:
        matrix: (stages, tasks): test scores after each stage, None for tasks not learned yet.
        forgetting: best past minus final score, mean over the tasks (for "min" metrics: final minus best past).
        bwt: backward transfer: final score minus score when learned, mean over the tasks that were learned before the
            last stage (negated for "min" metrics).
        guarantee: comparisons between frozen tasks and their records, and failed ones.
        finetune: matrix, forgetting and bwt for one dense network that learned task after task (row i: after task i).
        ensemble: its name to metric, direction, tasks, test score, and validation score if the members share their
            validation data.
        router: how often inputs without a task find it; None before the end, or if no tasks have the same form of
            input.
        flush_denormal: subnormal numbers were computed as 0; None in runs by earlier releases.
        computed_on: the machines that worked on the run, in order; empty in runs by earlier releases.
        run_id: names the run in trackers, also after a resume.
        incomplete_trackers: trackers that lack values until the run is resumed, as named in the config's `logger`: they
            were switched off after an error, or the run was killed while it ended them.
    Source of forgetting and bwt: Lopez-Paz and Ranzato 2017; Chaudhry et al. 2018.
    """

    experiment: str
    seed: int
    curriculum: list[list[str]]
    tasks: dict[str, TaskResult]
    run_id: str
    status: str = "running"
    wall_seconds: float = 0.0
    matrix: Matrix = field(default_factory=list)
    forgetting: float | None = None
    bwt: float | None = None
    capacity: dict[str, int] = field(default_factory=dict)
    guarantee: Guarantee = field(default_factory=lambda: Guarantee(checked=0, violations=0))
    finetune: Finetune = field(default_factory=_no_finetune)
    ensemble: dict[str, EnsembleResult] = field(default_factory=dict)
    router: RouterResult | None = None
    flush_denormal: bool | None = None
    computed_on: list[str] = field(default_factory=list)
    incomplete_trackers: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def add_row(self, scores: Mapping[str, float | None]) -> None:
        """Add a stage's test scores for every task learned so far; update forgetting and bwt."""
        stage = len(self.matrix)
        self.matrix.append([scores.get(task) for task in self.tasks])
        for name, score in scores.items():
            result = self.tasks[name]
            result.test = score
            if result.stage == stage:
                result.test_when_learned = score
        self.forgetting, self.bwt = self._forgetting_and_bwt(self.matrix)

    def add_finetune_row(self, scores: Mapping[str, float | None]) -> None:
        """Add the fine-tuned network's test scores after one more task."""
        matrix = [*self.finetune["matrix"], [scores.get(task) for task in self.tasks]]
        forgetting, bwt = self._forgetting_and_bwt(matrix)
        self.finetune = {"matrix": matrix, "forgetting": forgetting, "bwt": bwt}
        for name, score in scores.items():
            self.tasks[name].finetune = score

    def forgetting_of(self, task: str, matrix: list[list[float | None]] | None = None) -> float | None:
        """Compute one task's best past minus final score, in the metric's unit; 0.0 right after its stage.

        Args:
            task: name.
            matrix: another network's, with the same tasks; the run's when None.
        Returns:
            None for a task not learned yet.
        """
        scores = self._oriented(self.matrix if matrix is None else matrix, task)
        if not scores:
            return None
        return max(scores[:-1]) - scores[-1] if len(scores) > 1 else 0.0

    @property
    def stages(self) -> list[str]:
        """Stage names: their tasks'."""
        return [", ".join(stage) for stage in self.curriculum]

    @property
    def learned(self) -> str:
        """Number of learned tasks: "2 of 3"."""
        learned = sum(
            task.test is not None or task.weights is not None or not task.evaluated for task in self.tasks.values()
        )
        return f"{learned} of {len(self.tasks)}"

    @property
    def not_evaluated(self) -> list[str]:
        """Names of the learned tasks whose data the run does not have."""
        return [name for name, task in self.tasks.items() if not task.evaluated]

    @property
    def owned(self) -> float | None:
        """Owned share of the prunable weights; None before the first stage ends."""
        return self.capacity["owned"] / self.capacity["prunable"] if self.capacity else None

    def missing(self, baselines: Iterable[str]) -> list[str]:
        """Select the baselines that lack the score of a task that the run has data of."""
        tasks = [task for task in self.tasks.values() if task.evaluated]
        return [name for name in baselines if any(getattr(task, name) is None for task in tasks)]

    def _oriented(self, matrix: list[list[float | None]], task: str) -> list[float]:
        """Return a task's column from its stage on, negated if lower is better."""
        column = list(self.tasks).index(task)
        sign = 1.0 if self.tasks[task].direction == "max" else -1.0
        return [sign * score for row in matrix if (score := row[column]) is not None]

    def _forgetting_and_bwt(self, matrix: list[list[float | None]]) -> tuple[float, float]:
        """Average over the tasks; 0.0 while no task is older than the last row."""
        columns = [c for task in self.tasks if len(c := self._oriented(matrix, task)) > 1]
        if not columns:
            return 0.0, 0.0
        forgetting, bwt = sum(max(c[:-1]) - c[-1] for c in columns), sum(c[-1] - c[0] for c in columns)
        return forgetting / len(columns), bwt / len(columns)

    def save(self, folder: Path) -> None:
        """Write results.json into a run folder, completely or not at all; numbers that are not finite become null."""
        content = _all_finite({"schema_version": self.schema_version} | asdict(self))
        write_text(folder / FILE_NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read a run folder's results.json.

        Raises:
            FileNotFoundError: the folder is not a run folder.
            LaterVersionError: the file has a later schema version.
            ValueError: the file is damaged.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not a run folder: it has no {FILE_NAME}")
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            version = content["schema_version"]
            if version > SCHEMA_VERSION:
                raise LaterVersionError(
                    f"{path} cannot be read: schema_version {version} is later than {SCHEMA_VERSION}, "
                    "which this release reads"
                )
            added: dict[str, Any] = {"finetune": _no_finetune(), "ensemble": {}, "flush_denormal": None}
            added |= {"router": None}
            content = added | {"incomplete_trackers": [], "computed_on": []} | content
            results = TypeAdapter(cls).validate_python({name: content[name] for name in cls.__dataclass_fields__})
            results._check()
        except LaterVersionError:
            raise
        except ValidationError as error:
            raise ValueError(f"{path} cannot be read: {first_problem(error)}") from error
        except (KeyError, TypeError, RecursionError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        return results

    def _check(self) -> None:
        """Raise a ValueError if a task without a result is named, or a matrix has more or fewer tasks."""
        named = [task for stage in self.curriculum for task in stage]
        named += [task for ensemble in self.ensemble.values() for task in ensemble["tasks"]]
        named += list(self.router["tasks"]) if self.router else []
        if unknown := [task for task in named if task not in self.tasks]:
            raise ValueError(f"task {unknown[0]!r} is named, and has no result")
        for matrix in (self.matrix, self.finetune["matrix"]):
            if any(len(row) != len(self.tasks) for row in matrix):
                raise ValueError(f"a matrix has rows without a score for each of {len(self.tasks)} tasks")
