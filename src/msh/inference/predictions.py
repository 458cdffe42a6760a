"""Predictions: labels, probabilities and values with their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor

from msh.errors import at_least
from msh.tasks.outputs import Outputs

THRESHOLD = 0.5
"""Probability from which a label of a multilabel task counts as present."""


def with_facts(facts: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """Put facts about an input before its answers; an answer's column of a fact's name becomes "NAME (predicted)"."""
    if not facts.keys() & answers.keys():
        return facts | answers
    row = dict(facts)
    for name, answer in answers.items():
        column = name
        while column in facts or (column != name and column in answers):
            column += " (predicted)"
        row[column] = answer
    return row


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        label: classification: the most probable class; multilabel: the labels whose probability is at least .5;
            regression and lm: None; token classification: the most probable class of each word.
        probabilities: class or label to its probability; {} where there are values.
        values: a regression's values by name, in the target's unit; a language model's "perplexity" of the text; else
            {}.
        task: the task that answered.
        words: token classification: the text's words, whose classes `label` has; else ().
    """

    label: str | tuple[str, ...] | None
    probabilities: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    task: str = ""
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to several inputs, in their order.

    Attributes:
        task: the task's name.
        outputs: names and unit of the task's outputs.
        raw: what the head returned: logits or scaled values, float (inputs, outputs); a language model's mean
            cross-entropy of each text, (inputs, 1).
        numbers: probabilities of the classes or labels, or values in the target's unit, float (inputs, outputs).
        indices: position of each answered input among those that were passed in.
        errors: position of each skipped input to the reason.
        words: token classification: the words of each answered input; `raw` and `numbers` are then (words, outputs),
            input after input.
    """

    task: str
    outputs: Outputs
    raw: Tensor
    numbers: Tensor
    indices: tuple[int, ...]
    errors: dict[int, str] = field(default_factory=dict)
    words: tuple[tuple[str, ...], ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task that answered each input: always the same one."""
        return (self.task,) * len(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, labels or values, in the order of the columns of `numbers`."""
        return tuple(map(self.outputs.label, range(self.outputs.answers)))

    @property
    def probabilities(self) -> Tensor:
        """Probabilities of the classes or labels, float (inputs, outputs); token classification: (words, outputs).

        Raises:
            ValueError: the task is a regression or a language model.
        """
        if self.outputs.has_values:
            raise ValueError(f"task {self.task!r} is a {self.outputs.called}: it has values, not probabilities")
        return self.numbers

    @property
    def values(self) -> Tensor:
        """A regression's values in the target's unit, or each text's perplexity, float (inputs, outputs).

        Raises:
            ValueError: the task has classes or labels.
        """
        if not self.outputs.has_values:
            raise ValueError(f"task {self.task!r} is a {self.outputs.kind}: it has probabilities, not values")
        return self.numbers

    @property
    def labels(self) -> list[Any]:
        """Each input's class, or tuple of labels; see `Prediction.label`."""
        return [prediction.label for prediction in self]

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """Return each input's k most probable classes or labels with their probabilities, in falling order.

        Token classification: each word's.

        Raises:
            ValueError: k < 1, or the task has values.
        """
        at_least("top", 1, k)
        best, numbers = self.probabilities.topk(min(k, self.outputs.number))
        rows = zip(numbers.tolist(), best.tolist(), strict=True)
        return [[(self.outputs.label(n), p) for n, p in zip(row, values, strict=True)] for row, values in rows]

    def to_rows(self, top: int = 1) -> list[dict[str, Any]]:
        """Return a flat dictionary per input: "label" and "probability" ("label_2", ... up to `top`), or values.

        Multilabel tasks have a column per label, with its probability. Token classification has "text" and "label", the
        words and their classes, parted by white space. The input's position is "index"; an answer of this name is
        "index (predicted)".
        """
        if self.outputs.kind == "token_classification":
            rows: list[dict[str, Any]] = [
                {"text": " ".join(one.words), "label": " ".join(one.label or ())} for one in self
            ]
        elif self.outputs.kind != "classification":
            columns = [(name, self.numbers[:, i].tolist()) for i, name in enumerate(self.names)]
            rows = [{name: values[i] for name, values in columns} for i in range(len(self))]
        else:
            rows = [
                {
                    f"{key}{'' if i == 0 else f'_{i + 1}'}": value
                    for i, (label, probability) in enumerate(best)
                    for key, value in (("label", label), ("probability", probability))
                }
                for best in self.top(top)
            ]
        return [with_facts({"index": index}, row) for index, row in zip(self.indices, rows, strict=True)]

    def to_pandas(self, top: int = 1) -> Any:
        """Return a pandas DataFrame of `to_rows`, indexed by the inputs' positions."""
        import pandas as pd  # slow to import

        return pd.DataFrame(self.to_rows(top)).set_index("index") if len(self) else pd.DataFrame()

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | list[Prediction]:
        """Return the answer to an input, or to several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))] if self.words else self._some(index)
        if self.words:
            start = sum(map(len, self.words[: range(len(self))[index]]))
            best = self.numbers[start : start + len(self.words[index])].argmax(1).tolist()
            return Prediction(tuple(map(self.outputs.label, best)), task=self.task, words=self.words[index])
        return next(self._answers(self.numbers[index][None]))

    def _some(self, index: slice) -> list[Prediction]:
        return [*self._answers(self.numbers[[*range(*index.indices(len(self)))]])]

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self))) if self.words else self._answers(self.numbers)

    def _answers(self, numbers: Tensor) -> Iterator[Prediction]:
        """Build the answers with these numbers, (answers, outputs)."""
        names, kind = self.names, self.outputs.kind
        best = numbers.argmax(1).tolist() if kind == "classification" else [None] * len(numbers)
        for row, place in zip(numbers.tolist(), best, strict=True):
            named = dict(zip(names, row, strict=True))
            if self.outputs.has_values:
                yield Prediction(None, values=named, task=self.task)
            elif kind == "multilabel":
                yield Prediction(tuple(name for name, p in named.items() if p >= THRESHOLD), named, task=self.task)
            else:
                yield Prediction(names[place], named, task=self.task)


@dataclass(frozen=True, eq=False)
class RoutedPredictions:
    """The answers to several inputs, each by the task that the router chose.

    Attributes:
        parts: task to its predictions for all inputs that it can read; the rows of inputs that it was chosen for are
            the answers.
        tasks: the task that answered each input.
        indices: position of each answered input among those that were passed in.
        errors: position of each skipped input to the reason.
        validated: False if the router chose between tasks of which some were added without the others' data, so that
            nothing tells how often it is right.
    """

    parts: dict[str, Predictions]
    tasks: tuple[str, ...]
    indices: tuple[int, ...]
    errors: dict[int, str] = field(default_factory=dict)
    validated: bool = True

    @property
    def labels(self) -> list[Any]:
        """Each input's class, or tuple of labels; see `Prediction.label`."""
        return [prediction.label for prediction in self]

    def to_rows(self, top: int = 1) -> list[dict[str, Any]]:
        """Return a flat dictionary per input: "index", "task", and what its task's `Predictions.to_rows` has.

        An answer called "task" is "task (predicted)".
        """
        rows = {
            task: {row["index"]: row for row in part.to_rows(top)}
            for task, part in self.parts.items()
            if task in self.tasks
        }
        found = zip(self.indices, self.tasks, strict=True)
        return [
            with_facts({"index": index, "task": task}, {k: v for k, v in rows[task][index].items() if k != "index"})
            for index, task in found
        ]

    def to_pandas(self, top: int = 1) -> Any:
        """Return a pandas DataFrame of `to_rows`, indexed by the inputs' positions."""
        import pandas as pd  # slow to import

        return pd.DataFrame(self.to_rows(top)).set_index("index") if len(self) else pd.DataFrame()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Prediction:
        """Return the answer to an input."""
        part = self.parts[self.tasks[index]]
        return part[part.indices.index(self.indices[index])]

    def __iter__(self) -> Iterator[Prediction]:
        places = {task: {row: place for place, row in enumerate(part.indices)} for task, part in self.parts.items()}
        for index, task in zip(self.indices, self.tasks, strict=True):
            yield self.parts[task][places[task][index]]


AnyPredictions = Predictions | RoutedPredictions
"""Of one task, or of those that the router chose."""
