"""Answer raw inputs with the tasks of a trained network: load its file, prepare, predict."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from msh.errors import ProblemsError, at_least, invalid, one_of
from msh.files.merging import merged
from msh.files.state_file import read_state
from msh.inference.computing import Computing, computing_from_data, usual_defaults
from msh.inference.examples import as_examples, read_once
from msh.inference.export import is_sliceable, sliced
from msh.inference.hub import source_file
from msh.inference.language import Sampling, continued, token_answers
from msh.inference.predictions import AnyPredictions, Predictions, RoutedPredictions
from msh.inference.rebuilding import network_of
from msh.inference.router import Route, form_of, may_read, route_from_data
from msh.recipes import Constructors
from msh.subnetworks import MultiSubnetwork, TaskNetwork
from msh.subnetworks.small import computes_small
from msh.subnetworks.views import FrozenTasks
from msh.tasks.options import TOKEN_KINDS, Kind
from msh.tasks.outputs import Outputs, outputs_from_data
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data
from msh.tasks.steps import Steps
from msh.tasks.windows import NextTokens, TaggedWords, Windowed

log = logging.getLogger(__name__)

SHOWN_BATCHES = 50
"""Batches from which a progress bar is shown."""
LISTED = 5
"""Bad inputs that an error names."""
OWN_NUMBER = re.compile(r"^(?:row 0(?:, |: )|image 0 (?=cannot be read|is damaged))")
"""Number of an input that a first step reads alone, at the beginning of a problem."""
SETTINGS = re.compile(r"(?:;|, unless) source\.\w+=[^;\n]*")
"""Advice to set how a source is read, which is fixed once a task is trained."""


@dataclass(frozen=True, eq=False)
class TaskInfo:
    """Facts about a task that can be asked.

    Attributes:
        name: the task's name.
        kind: "classification", "multilabel", "regression", "lm" or "token_classification".
        names: of the classes, labels or values, in order; () if they have none.
        unit: a regression's.
        steps: from raw inputs to the network's; the first one reads raw inputs.
        outputs: how answers are computed from the head's numbers.
        computing: how the run evaluated the task.
        route: how confident it is of inputs that come without a task; None where the file does not say.
    """

    name: str
    kind: Kind
    names: tuple[str, ...]
    unit: str
    steps: Steps = field(repr=False)
    outputs: Outputs = field(repr=False)
    computing: Computing = field(repr=False)
    route: Route | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Answers:
    """A task's answers to those of several inputs that it can read.

    Attributes:
        info: the task.
        raw: what the head returned, float (inputs, outputs).
        numbers: as in `Predictions`.
        confidence: by the task's route, float64 (inputs,), where it was asked for.
        indices: position of each answered input among all.
        errors: position of each other input to the reason.
        number: of all inputs.
        words: as in `Predictions`.
    """

    info: TaskInfo
    raw: Tensor
    numbers: Tensor
    confidence: Tensor | None
    indices: tuple[int, ...]
    errors: dict[int, str]
    number: int
    words: tuple[tuple[str, ...], ...] = ()

    def predictions(self) -> Predictions:
        """Convert to the task's predictions."""
        info, raw, numbers = self.info, self.raw.clone(), self.numbers.clone()
        return Predictions(info.name, info.outputs, raw, numbers, self.indices, dict(self.errors), self.words)


@dataclass(frozen=True, eq=False)
class ReadInputs:
    """A request's inputs after the first step, (examples, *its shape)."""

    examples: Tensor

    def __len__(self) -> int:
        return len(self.examples)


class Predictor:
    """Tasks of a trained network, frozen, which answer raw inputs. Several threads may use one predictor.

    Args:
        network: holds the tasks, frozen; or their modules alone.
        tasks: by name.
        candidates: tasks that answer where none is named; (): all.

    Attributes:
        tasks: by name.
        candidates: tasks that answer where none is named: of a subnetwork file with a base, the file's own.
    """

    def __init__(
        self,
        network: MultiSubnetwork | FrozenTasks,
        tasks: Mapping[str, TaskInfo],
        candidates: Sequence[str] = (),
    ) -> None:
        self._modules = network
        self.tasks = dict(tasks)
        self.candidates = tuple(candidates or self.tasks)
        # Tasks with equal steps prepare raw inputs in the same way; with equal first steps, they read them so.
        self._steps = {name: json.dumps(steps_to_data(info.steps)) for name, info in self.tasks.items()}
        self._readers = {name: json.dumps(steps_to_data(info.steps[:1])) for name, info in self.tasks.items()}
        self._small: dict[str, TaskNetwork] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which neither copies nor pickles, for `copy.deepcopy` and other processes."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    @property
    def network(self) -> MultiSubnetwork:
        """The network that holds the tasks.

        Raises:
            ValueError: it was loaded with `lean=True`.
        """
        if isinstance(self._modules, FrozenTasks):
            raise ValueError("the predictor has no network, but its tasks' modules alone: load it without lean=True")
        return self._modules

    @usual_defaults()
    def module(self, task: str | None = None) -> nn.Module:
        """Return a task's module: prepared tensors (batch, *input shape) to the head's outputs (batch, outputs).

        Raises:
            ValueError: there is no such task.
        """
        return self._modules.module(self.task(task).name)

    @usual_defaults()
    def prepare(self, task: str, inputs: Any) -> Tensor:
        """Prepare raw inputs as in training: (examples, *input shape).

        Raises:
            ValueError: there is no such task, or inputs cannot be read: names the first of them, and why.
        """
        info = self.task(task)
        with info.computing.applied(self._device):
            prepared = prepare(info.steps[1:], _read_alone(info, inputs))
        return prepared.clone()

    @usual_defaults()
    def read(self, task: str, inputs: Any) -> Any:
        """Do that part of preparing raw inputs which is as costly for several requests together: decode images.

        Returns:
            What `answer` takes.
        Raises:
            ValueError: as `prepare`.
        """
        info = self.task(task)
        if info.steps[0].step != "images":
            return inputs
        with info.computing.applied(self._device):
            return ReadInputs(_read_alone(info, inputs))

    @usual_defaults()
    def answer(self, task: str, requests: Sequence[Any]) -> list[Predictions | Exception]:
        """Answer the inputs of several requests together, in batches of the run's size.

        Args:
            task: the task's name.
            requests: inputs of each, one or more, raw or from `read`.
        Returns:
            For each request its predictions, or why its inputs are refused, as if it were alone.
        Raises:
            ValueError: there is no such task.
        """
        info = self.task(task)
        module = self._modules.module(info.name)
        with info.computing.applied(self._device):
            read = _read_together(info, requests)
            good = [part for part in read if isinstance(part, Tensor)]
            if not good:
                return [part for part in read if isinstance(part, Exception)]
            prepared = prepare(info.steps[1:], torch.cat(good))
            batches = prepared.split(info.computing.batch_size)
            raw = torch.cat([module(batch.to(self._device)).cpu() for batch in batches])
            numbers = info.outputs.values(raw)
        sizes = [len(part) for part in good]
        parts = zip(raw.clone().split(sizes), numbers.clone().split(sizes), strict=True)
        answers = (Predictions(info.name, info.outputs, *part, tuple(range(len(part[0])))) for part in parts)
        return [part if isinstance(part, Exception) else next(answers) for part in read]

    @property
    def _device(self) -> torch.device:
        if isinstance(self._modules, FrozenTasks):
            return self._modules.device
        return next(iter(self._modules.weights()))[1].device

    @overload
    def predict(
        self,
        task: str,
        inputs: Any,
        *,
        batch_size: int | None = None,
        skip_bad: bool = False,
        names: Sequence[str] | None = None,
    ) -> Predictions: ...
    @overload
    def predict(
        self,
        task: Any,
        inputs: None = None,
        *,
        batch_size: int | None = None,
        skip_bad: bool = False,
        names: Sequence[str] | None = None,
        among: Sequence[str] | None = None,
    ) -> AnyPredictions: ...
    @usual_defaults()
    def predict(
        self,
        task: Any,
        inputs: Any = None,
        *,
        batch_size: int | None = None,
        skip_bad: bool = False,
        names: Sequence[str] | None = None,
        among: Sequence[str] | None = None,
    ) -> AnyPredictions:
        """Answer raw inputs, in batches.

        Args:
            task: the task's name. Without it, inputs take its place, and the router chooses a task for each of them:
                the most confident of those that can read it. Answers are bitwise those of that task.
            inputs: one or several, as the task's first step reads them: paths or images, rows of a table as a
                DataFrame or dictionaries, texts, arrays.
            batch_size: inputs per batch; None: as in the run's evaluation, so that outputs are bitwise the run's.
            names: of the inputs, for messages; None: their positions.
            skip_bad: leave out inputs that cannot be read, and keep the reasons in `Predictions.errors`.
            among: without a task, the tasks to choose between; None: `candidates`.
        Returns:
            `Predictions` of the task, or `RoutedPredictions` if the router chose between several.
        Raises:
            ValueError: there is no such task, or inputs cannot be read: names the first of them, and why. Or the file
                does not say how to choose between the tasks that read the inputs.
        """
        if inputs is None:
            if isinstance(task, str) and task in self.tasks:
                raise ValueError(f"inputs must not be None: the text {task!r} is the name of a task; pass it in a list")
            task, inputs = None, task
        if batch_size is not None:
            at_least("batch_size", 1, batch_size)
        if task is None and (len(self.candidates) > 1 or (among is not None and len(self.tasks) > 1)):
            return self._routed(inputs, batch_size, skip_bad, names, among)
        info = self.task(task)
        examples = as_examples(info.steps, inputs)
        [found] = self._computed([info], examples, batch_size, None if skip_bad else names or ())
        return found.predictions()

    @usual_defaults()
    def predict_all(
        self, inputs: Any, *, batch_size: int | None = None, skip_bad: bool = False, names: Sequence[str] | None = None
    ) -> dict[str, Predictions]:
        """Answer raw inputs with every task that can read them.

        Tasks of whole units compute as small dense networks: their answers equal those of `predict` up to rounding,
        the others' bitwise.

        Args:
            inputs, batch_size, skip_bad, names: as in `predict`; without `skip_bad`, each task that can read some of
                the inputs must read all.
        Returns:
            Task to its predictions.
        Raises:
            ValueError: no task can read the inputs, or one cannot read all of them.
        """
        found = self._fitting(inputs, batch_size, names, [*self.tasks], small=True)
        for answers in found if not skip_bad else ():
            if answers.errors:
                raise _refused(answers.info.name, answers.errors, names)
        return {answers.info.name: answers.predictions() for answers in found}

    def _routed(
        self,
        inputs: Any,
        batch_size: int | None,
        skip_bad: bool,
        names: Sequence[str] | None,
        among: Sequence[str] | None,
    ) -> RoutedPredictions:
        """Let the most confident task answer each input."""
        found = self._fitting(inputs, batch_size, names, among, routed=True)
        number = found[0].number
        confidence = torch.full((len(found), number), -math.inf, dtype=torch.float64)
        fits = torch.zeros(len(found), number, dtype=torch.bool)
        for place, answers in enumerate(found):
            indices = torch.tensor(answers.indices)
            fits[place, indices] = True
            if answers.confidence is not None:
                confidence[place, indices] = answers.confidence
        errors = {
            row: "; ".join(f"task {answers.info.name!r}: {answers.errors[row]}" for answers in found)
            for row in (~fits.any(0)).nonzero().flatten().tolist()
        }
        if errors and not skip_bad:
            raise _refused(None, errors, names)
        validated = self._check_routes({tuple(column.nonzero().flatten().tolist()) for column in fits.T}, found)
        # A confidence of NaN, from huge inputs, counts as the lowest; where there is one task, it is chosen anyway.
        confidence = confidence.nan_to_num(nan=-math.inf, neginf=-math.inf)
        chosen = torch.where(fits, confidence.clamp_min(-torch.finfo(torch.float64).max), -math.inf).argmax(0)
        rows = tuple(row for row in range(number) if row not in errors)
        parts = {answers.info.name: answers.predictions() for answers in found}
        tasks = tuple(found[int(chosen[row])].info.name for row in rows)
        return RoutedPredictions(parts, tasks, rows, errors, validated)

    def _check_routes(self, sets: set[tuple[int, ...]], found: Sequence[Answers]) -> bool:
        """Raise unless the tasks that the router must choose between share a rule; return True if it was validated."""
        validated = True
        for places in sets:
            infos = [found[place].info for place in places]
            if len(infos) < 2:
                continue
            listed = ", ".join(info.name for info in infos)
            if len({form_of(info.steps) for info in infos}) > 1:
                raise ValueError(f"name the task: the inputs fit tasks that were trained on different inputs: {listed}")
            routes = [info.route for info in infos]
            if any(route is None for route in routes) or len({route.tasks for route in routes if route}) > 1:
                raise ValueError(
                    f"name the task: the inputs fit {listed}, and the file has no router for these tasks together"
                )
            validated = validated and all(route.validated for route in routes if route)
        return validated

    def _fitting(
        self,
        inputs: Any,
        batch_size: int | None,
        names: Sequence[str] | None,
        among: Sequence[str] | None = None,
        small: bool = False,
        routed: bool = False,
    ) -> list[Answers]:
        """Answer inputs with all tasks that can read some of them.

        Raises:
            ValueError: no task can, or tasks count the inputs differently.
        """
        inputs = read_once(inputs)
        if isinstance(inputs, Sequence) and not inputs:
            raise invalid("inputs", "at least one input", 0)
        infos = [self.task(name) for name in (self.candidates if among is None else among)]
        passes: dict[tuple[str, Computing], list[TaskInfo]] = {}
        for info in infos:
            if may_read(info.steps[0], inputs):
                passes.setdefault((self._readers[info.name], info.computing), []).append(info)
        if not passes:
            forms = ", ".join(f"{info.name} ({info.steps[0].step})" for info in infos)
            raise invalid("inputs", f"such as a task reads: {forms}", type(inputs).__name__)
        found: list[Answers] = []
        for group in passes.values():
            examples = as_examples(group[0].steps, inputs)
            found += self._computed(group, examples, batch_size, None, small, routed)
        fitting = [answers for answers in found if answers.indices]
        if not fitting:
            if not any(answers.number for answers in found):
                raise invalid("inputs", "at least one input", 0)
            reasons = {row: f"task {a.info.name!r}: {reason}" for a in found for row, reason in a.errors.items()}
            raise _refused(None, reasons, names)
        if len({answers.number for answers in fitting}) > 1:
            listed = ", ".join(answers.info.name for answers in fitting)
            raise ValueError(f"name the task: {listed} read different numbers of inputs in these")
        return fitting

    def _computed(
        self,
        infos: Sequence[TaskInfo],
        examples: Any,
        batch_size: int | None,
        strict: Sequence[str] | None,
        small: bool = False,
        routed: bool = False,
    ) -> list[Answers]:
        """Compute the answers of tasks that read inputs in the same way, in batches; each batch is read once.

        Args:
            infos: tasks with the same first step, that compute with the same settings.
            examples: several.
            batch_size: as in `predict`.
            strict: names of the examples, to raise where one cannot be read; () for positions; None: never raise.
            small: compute tasks of whole units as small dense networks.
            routed: compute confidences too, for tasks with a route.
        """
        if isinstance(infos[0].steps[0], Windowed):
            return [self._read(info, examples, batch_size, strict) for info in infos]
        settings, device = infos[0].computing, self._device
        size = settings.batch_size if batch_size is None else batch_size
        raw: dict[str, list[Tensor]] = {info.name: [] for info in infos}
        confidences: dict[str, list[Tensor]] = {info.name: [] for info in infos}
        errors: dict[int, str] = {}
        with settings.applied(device):
            for start in _shown(range(0, len(examples), size)):
                read, bad = _prepared(infos[0].steps[:1], _part(examples, slice(start, start + size)))
                errors |= {start + row: reason for row, reason in bad.items()}
                if errors and strict is not None:
                    raise _refused(infos[0].name, errors, strict or None)
                batches: dict[str, Tensor] = {}  # tasks with equal steps share theirs
                for info in infos if read is not None else ():
                    module = self._small_module(info) if small else self._modules.module(info.name)
                    if (steps := self._steps[info.name]) not in batches:
                        batches[steps] = prepare(info.steps[1:], read).to(device)
                    outputs, confidence = _answered(module, batches[steps], info if routed else None)
                    raw[info.name].append(outputs.cpu())
                    confidences[info.name] += [] if confidence is None else [confidence.cpu()]
            indices = tuple(row for row in range(len(examples)) if row not in errors)
            found = []
            for info in infos:
                joined = torch.cat(raw[info.name]) if indices else torch.empty(0, info.outputs.number)
                confident = torch.cat(confidences[info.name]) if confidences[info.name] else None
                numbers = info.outputs.values(joined)
                found.append(Answers(info, joined, numbers, confident, indices, errors, len(examples)))
        return found

    def _read(self, info: TaskInfo, examples: Any, batch_size: int | None, strict: Sequence[str] | None) -> Answers:
        """Compute a task's answers to texts, as many windows as they need together; see `_computed`."""
        step = cast(Windowed, info.steps[0])
        good: list[Any] = []
        indices: list[int] = []
        errors: dict[int, str] = {}
        for row, text in enumerate(examples):
            try:
                step.windows([text])
            except ValueError as error:
                errors[row] = str(error)
            else:
                good.append(text)
                indices.append(row)
        if errors and strict is not None:
            raise _refused(info.name, errors, strict or None)
        raw = numbers = torch.empty(0, info.outputs.answers)
        with info.computing.applied(self._device):
            if good:
                size = batch_size or info.computing.batch_size
                module = self._modules.module(info.name)
                raw, numbers = token_answers(module, info.outputs, step, good, size, self._device)
        words = tuple(map(step.words, good)) if isinstance(step, TaggedWords) else ()
        return Answers(info, raw, numbers, None, tuple(indices), errors, len(examples), words)

    @usual_defaults()
    def generate(
        self,
        task: str | None,
        prompt: str | Sequence[str] = "",
        *,
        max_new_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Any:
        """Continue texts with a language model.

        Args:
            task: the task's name; None: the only one.
            prompt: a text, or several; "" begins a text, if the task's tokenizer marks where texts begin.
            max_new_tokens: most tokens after each prompt.
            temperature: below 1, probable tokens become more probable; 0: the most probable one is always chosen.
            top_k: choose among the k most probable tokens; None: among all.
            seed: of the draws: the same seed, prompts and settings give the same texts.
        Returns:
            The prompt and its continuation, as the task's tokenizer writes them; a list for several prompts.
        Raises:
            ValueError: there is no such task, it is no language model, or a setting is invalid.
        """
        info = self.task(task)
        if not isinstance(step := info.steps[0], NextTokens):
            raise invalid("task", "of kind lm, which writes texts", f"{info.name} of kind {info.kind}")
        sampling = Sampling(max_new_tokens, temperature, top_k, seed)
        prompts = as_examples(info.steps, prompt)
        with info.computing.applied(self._device):
            texts = continued(self._modules.module(info.name), step, prompts, sampling, self._device)
        return texts[0] if isinstance(prompt, str) else texts

    def _small_module(self, info: TaskInfo) -> nn.Module:
        """Return a task of whole units as a small dense network, which is kept; another task's module as it is."""
        network = self._modules
        if isinstance(network, FrozenTasks) or computes_small(network.subnetwork(info.name)):
            return network.module(info.name)
        with self._lock:
            if info.name not in self._small:
                if not is_sliceable(network, info.name):
                    return network.module(info.name)
                self._small[info.name] = sliced(network, info.name)
            return self._small[info.name]

    def task(self, name: str | None = None) -> TaskInfo:
        """Return the facts about a task; None: the only one.

        Raises:
            ValueError: there is no such task, or there are several.
        """
        if name is None:
            if len(self.candidates) > 1:
                raise ValueError(f"name the task, as there are {len(self.candidates)}: {', '.join(self.candidates)}")
            return self.tasks[self.candidates[0]]
        one_of("task", name, self.tasks)
        return self.tasks[name]


@usual_defaults()
def load(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    classes: Constructors | None = None,
    lean: bool = False,
) -> Predictor:
    """Load a trained network from its file alone: no config, data set or user code is needed.

    Args:
        source: run folder, network file, a task's subnetwork file, or a repository on the Hugging Face hub,
            "hf://user/name" or "hf://user/name@revision".
        base: network file, run folder or repository with the tasks that a subnetwork file's task reads; they answer
            only inputs that come with their names.
        device: where to compute.
        classes: constructors of modules outside msh, torch, torchvision, timm and transformers that the file names.
        lean: for servers: build all tasks' modules now, and keep only the weights that they compute with, if these
            take at most 256 MB; such a predictor exports nothing.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, names code that was not passed in, lacks a task that another one reads, or was
            written by an earlier release, which stored no preprocessing; or it cannot be downloaded.
    """
    path = source_file(source)
    file = read_state(path, "network", "subnetwork")
    own = list(file.state.tasks)
    if base is not None:
        file = merged(source_file(base), [path])
    network = network_of(path, file, classes)
    tasks = {}
    for name, entry in file.state.tasks.items():
        if "preprocessing" not in entry.recipe or "outputs" not in entry.recipe:
            raise ValueError(
                f"{path}: task {name!r} has no preprocessing, as it was not written by `msh train` of this release: "
                "train the task again, or use msh.inference.rebuilding.rebuild_network with prepared tensors"
            )
        try:
            steps, outputs = steps_from_data(entry.recipe["preprocessing"]), outputs_from_data(entry.recipe["outputs"])
            computing = computing_from_data(entry.recipe.get("evaluation", {}))
            if (outputs.kind in TOKEN_KINDS) != isinstance(steps[0], Windowed):
                raise ValueError(f"its kind is {outputs.kind}, and its preprocessing begins with {steps[0].step!r}")
            route = _route(entry.recipe.get("router"), network.subnetwork(name).head)
        except ValueError as error:
            raise ValueError(f"{path}: task {name!r}: {error}") from error
        tasks[name] = TaskInfo(name, outputs.kind, outputs.names, outputs.unit, steps, outputs, computing, route)
    network = network.to(device)
    rest = network.without_rest() if lean else None
    if rest is not None:
        del network, file
        _return_memory()
        return Predictor(rest, tasks, own)
    return Predictor(network, tasks, own)


def _return_memory() -> None:
    """Let the system have what was freed, which glibc keeps; other libraries have no such call."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _route(data: Any, head: nn.Module) -> Route | None:
    """Read a task's route, and check that its means fit the head's inputs."""
    if data is None:
        return None
    route = route_from_data(data)
    features = getattr(head, "in_features", None)
    if route.means is not None and features is not None and route.means.centers.shape[1] != features:
        raise ValueError(f"the router's means have {route.means.centers.shape[1]} features, and the head {features}")
    return route


def _answered(module: nn.Module, batch: Tensor, routed: TaskInfo | None) -> tuple[Tensor, Tensor | None]:
    """Compute outputs (batch, outputs), and for a task with a route the confidence (batch,)."""
    if routed is None or routed.route is None:
        return module(batch), None
    assert isinstance(module, TaskNetwork)
    features = module.features(batch)
    outputs = module.answers(features)
    return outputs, routed.route.confidence(routed.kind, outputs, features.flatten(1))


def _part(examples: Any, part: slice) -> Any:
    return examples.iloc[part] if hasattr(examples, "iloc") else examples[part]


def _prepared(steps: Steps, examples: Any) -> tuple[Tensor | None, dict[int, str]]:
    """Prepare a batch: the good examples, None if there are none, and the others' positions and reasons."""
    try:
        read = prepare(steps, examples)
    except (ValueError, FileNotFoundError) as error:
        if len(examples) == 1:
            return None, {0: _reason(error)}
    else:
        if len(read) != len(examples) and not isinstance(steps[0], Windowed):  # a text has several windows
            raise invalid("inputs: the number of examples that were read from them", str(len(examples)), len(read))
        return read, {}
    good: list[Tensor] = []
    bad: dict[int, str] = {}
    for row in range(len(examples)):
        batch, reasons = _prepared(steps, _part(examples, slice(row, row + 1)))
        if batch is None:
            bad[row] = reasons[0]
        else:
            good.append(batch)
    return torch.cat(good) if good else None, bad


def _reason(error: Exception) -> str:
    """Say why an input that was read alone is refused: without its number, which is 0, and settings of training."""
    problems = error.problems if isinstance(error, ProblemsError) else [str(error)]
    problems = [SETTINGS.sub("", OWN_NUMBER.sub("", problem)) for problem in problems]
    return str(ProblemsError(problems))


def _read_alone(info: TaskInfo, inputs: Any) -> Tensor:
    """Take the first step with raw inputs, one or several: (examples, *its shape).

    Raises:
        ValueError: there are none, or some cannot be read: names the first of them, and why.
    """
    read, bad = _prepared(info.steps[:1], as_examples(info.steps, inputs))
    if bad:
        raise _refused(info.name, bad, None)
    if read is None:
        raise invalid("inputs", "at least one input", 0)
    return read


def _read_together(info: TaskInfo, requests: Sequence[Any]) -> list[Tensor | Exception]:
    """Take the first step with the inputs of several requests: what it returns for each, or why it refuses them.

    A table's rows are read together, which takes hardly longer than one of them. If one is bad, each request is read
    apart, so that the others do not suffer, and the reason is the same as if its request were alone.
    """
    if info.steps[0].step == "table" and len(requests) > 1 and all(isinstance(rows, list) for rows in requests):
        try:
            return [*info.steps[0]([row for rows in requests for row in rows]).split([*map(len, requests)])]
        except Exception:  # found again below
            log.debug("task %r: a row in a batch of %d requests is bad", info.name, len(requests))
    found: list[Tensor | Exception] = []
    for inputs in requests:
        try:
            found.append(inputs.examples if isinstance(inputs, ReadInputs) else _read_alone(info, inputs))
        except Exception as error:  # its own request reports it
            found.append(error)
    return found


def _refused(task: str | None, errors: Mapping[int, str], names: Sequence[str] | None) -> ValueError:
    """Build the error for inputs that cannot be read: a line per reason."""
    found: dict[str, list[str]] = {}
    for row, reason in errors.items():
        found.setdefault(reason, []).append(f"input {row}" if names is None else names[row])
    start = "" if task is None else f"task {task!r}, "
    lines = [f"{start}{_listed(inputs)}: {reason}" for reason, inputs in list(found.items())[:LISTED]]
    more = [f"and {len(found) - LISTED} more problems"] if len(found) > LISTED else []
    return ValueError("\n".join([*lines, *more]))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _shown(batches: range) -> Iterator[int]:
    """Iterate with a progress bar on a terminal, if there are many batches."""
    if len(batches) < SHOWN_BATCHES:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, "predicting", console=Console(stderr=True), transient=True)
