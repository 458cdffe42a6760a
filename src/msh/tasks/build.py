"""Build a task from raw data: check, split, scale."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, at_least, invalid, one_of
from msh.recipes import Recipe
from msh.tasks.augmentation import read_augmentation
from msh.tasks.checks import check_fraction, check_image_shape, check_names
from msh.tasks.lazy import Inputs, LazyInputs, is_stored
from msh.tasks.options import TOKEN_KINDS, Kind, Normalize
from msh.tasks.outputs import IGNORED
from msh.tasks.statistics import lowest_and_highest, mean_and_std
from msh.tasks.steps import Dtype, Quantiles, ReadArrays, ReadNamed, Scale, Step, Steps, Tokenize, fit_quantiles
from msh.tasks.task import DEFAULT_METRIC, METRICS, RawInputs, Split, SplitName, Task
from msh.tasks.tokens import Texts, TokenCounts, WindowCounts, count_tokens, unknown_of
from msh.tasks.windows import NextTokens, TaggedWords, Windowed, Windows

log = logging.getLogger(__name__)

TEST_FRACTION = 0.2
"""Share of the examples in the test split, unless the data has a test split or the config a share."""

EPOCH_BATCHES = 40
"""Fewest batches of an epoch whose passes through the examples are counted by `build_task`."""


@dataclass(frozen=True)
class RawData:
    """The data set that a source returns.

    Attributes:
        kind: the task's kind.
        train: all examples to learn from; validation examples are held out from them.
        test: the test split; if the data has none, the source makes one that is the same for every seed.
        outputs: number of classes, labels or regression outputs.
        texts: if the inputs are texts, the texts; the splits' inputs are then their indices, int64 (examples,). A
            language model's targets and outputs follow from them.
        classes: names of the classes, labels or values, in the order of their numbers; () if they have none.
        steps: from raw inputs to the splits' inputs; () if these are the raw inputs.
        val: the validation split; None: `build_task` holds it out from `train`.
    """

    kind: Kind
    train: Split
    test: Split
    outputs: int
    texts: Texts | None = None
    classes: tuple[str, ...] = ()
    steps: Steps = ()
    val: Split | None = None

    @property
    def splits(self) -> dict[SplitName, Split]:
        """The splits that the source made: "train", "test" and perhaps "val"."""
        splits: dict[SplitName, Split] = {"train": self.train, "test": self.test}
        return splits if self.val is None else splits | {"val": self.val}

    def map_splits(self, change: Callable[[Split], Split]) -> RawData:
        """Change every split in the same way."""
        changed = {name: change(split) for name, split in self.splits.items()}
        return replace(self, train=changed["train"], test=changed["test"], val=changed.get("val"))

    def then(self, step: Step) -> RawData:
        """Append a step to the preprocessing, and compute it whenever inputs are read."""
        return replace(self.map_splits(lambda split: split.then(step)), steps=(*self.raw_steps, step))

    @property
    def raw_steps(self) -> Steps:
        """The steps; if the splits' inputs are the raw inputs, they are read as arrays."""
        inputs = self.train.inputs
        dtype: Dtype = (
            "int64" if inputs.dtype == torch.int64 else "float64" if inputs.dtype == torch.float64 else "float32"
        )
        return self.steps if self.steps else (ReadArrays(tuple(inputs.shape[1:]), dtype),)


def check_data(name: str, data: RawData) -> None:
    """Raise if a task cannot be learned from its data; all problems are reported together.

    Raises:
        ValueError: empty or uneven splits, NaN or infinite values (with their count), a class beyond the head's, a
            single class to learn, no classes or values, inputs without numbers, names that are not one for each class.
    """
    with Problems() as problems:
        for split_name, split in data.splits.items():
            shape, train = (tuple(s.inputs.shape[1:]) for s in (split, data.train))
            if shape != train:
                problems.add(
                    f"task {name!r}, {split_name} split: inputs have shape {shape}, in the train split {train}"
                )
            for problem in _problems_of(split, data):
                problems.add(f"task {name!r}, {split_name} split: {problem}")
        if 0 in (shape := tuple(data.train.inputs.shape[1:])):
            problems.add(invalid(f"task {name!r}: the shape of an input", "of at least one number", shape))
        if data.outputs < 1:
            problems.add(invalid(f"task {name!r}: the number of its classes, labels or values", ">= 1", data.outputs))
        if data.classes:
            problems.check(check_names, f"task {name!r}: the list of its classes, labels or values", data.classes)
            if len(data.classes) != data.outputs and data.kind != "lm":
                problems.add(f"task {name!r}: {len(data.classes)} names for {data.outputs} classes, labels or values")


def _problems_of(split: Split, data: RawData) -> Iterator[str]:
    if len(split) == 0 or len(split) != len(split.targets):
        yield f"{len(split)} inputs and {len(split.targets)} targets; needs equally many, at least 1"
        return
    inputs = split.inputs.base if isinstance(split.inputs, LazyInputs) else split.inputs
    for part, tensor in (("inputs", inputs), ("targets", split.targets)):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and (count := _count_not_finite(tensor)):
            yield f"{count} {part} are NaN or infinite"
    if data.kind == "lm":  # its targets are tokens, which come later
        return
    targets = split.targets
    if data.kind == "token_classification":
        targets = targets[targets != IGNORED]
        if not len(targets):
            yield "no word has a class"
            return
    elif data.kind != "classification":
        if split.targets.shape[1:] != (data.outputs,):
            yield f"targets have shape {tuple(split.targets.shape)}, not (examples, {data.outputs})"
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= data.outputs:
        beyond = high if high >= data.outputs else low
        yield f"targets hold the class {beyond}, but the head has {data.outputs} classes: 0 to {data.outputs - 1}"
    if split is data.train and low == high:
        yield f"all {len(targets)} targets are of the class {low}; needs at least 2 classes"


def _count_not_finite(values: Tensor) -> int:
    """Count NaN and infinite values; a finite sum, which is far cheaper, rules them out."""
    return 0 if bool(values.sum().isfinite()) else int((~values.isfinite()).sum())


def build_task(
    name: str,
    data: RawData,
    batch_size: int = 32,
    val_fraction: float = 0.2,
    normalize: Normalize | None = None,
    metric: str | None = None,
    loss_weight: float = 1.0,
    repeat: int | None = 1,
    normalize_target: Literal["minmax"] | None = None,
    stem: Recipe | None = None,
    augment: Sequence[Mapping[str, Any]] | None = None,
) -> Task:
    """Check the data, hold out validation examples, and scale inputs by the training split's statistics.

    Args:
        name: the task's name.
        data: from a source.
        batch_size: examples per optimizer step, over all devices; at most the training split.
        val_fraction: share of the training examples to validate on, unless the data have a val split; in (0, 1).
        normalize: as in `Normalize`; None: "feature", "channel" for images on disk, or "none" for texts.
        metric: a name in METRICS; None: the kind's.
        loss_weight: loss factor where several tasks train together, > 0.
        repeat: passes through the training examples per epoch; None: as many as give EPOCH_BATCHES batches.
        normalize_target: "minmax": scale a regression's target to [0, 1] and evaluate it so; None: keep its unit.
        stem: as in `Task`.
        augment: random changes to the training images, for `read_augmentation`.
    Raises:
        ValueError: naming every problem of the data and the settings.
    """
    normalize, metric = normalize or _usual(data), metric or DEFAULT_METRIC[data.kind]
    with Problems() as problems:
        problems.check(check_data, name, data)
        _check_numbers(problems, f"tasks.{name}", batch_size, val_fraction, loss_weight, repeat)
        _check_names(problems, f"tasks.{name}", data, normalize, metric, normalize_target)
        augmentation = problems.check(read_augmentation, name, augment, data.train.inputs.shape[1:])
    splits, target_range = _with_scaled_targets(_all_splits(data, val_fraction), normalize_target == "minmax")
    splits, steps, counts = _prepared(name, splits, data, normalize)
    outputs = _words_of(steps[0]) if data.kind == "lm" else data.outputs
    mean, std = _target_scale(splits["train"].targets, data.kind, outputs)
    batch_size = min(batch_size, len(splits["train"]))
    return Task(
        name=name,
        kind=data.kind,
        splits=splits,
        outputs=outputs,
        metric=metric,
        batch_size=batch_size,
        target_mean=mean,
        target_std=std,
        loss_weight=loss_weight,
        repeat=math.ceil(EPOCH_BATCHES * batch_size / len(splits["train"])) if repeat is None else repeat,
        vocabulary=data.texts.ids if data.texts else None,
        stem=stem,
        augmentation=augmentation,
        names=data.classes,
        target_range=target_range,
        steps=steps,
        tokens=counts,
    )


def _usual(data: RawData) -> Normalize:
    if data.texts is not None or _is_named(data):
        return "none"
    return "channel" if is_stored(data.train.inputs) else "feature"


def _is_named(data: RawData) -> bool:
    """Tell whether examples have several inputs by name, which stay as they are: some may be numbers of tokens."""
    return isinstance(data.raw_steps[0], ReadNamed)


def _all_splits(data: RawData, val_fraction: float) -> dict[SplitName, Split]:
    """Return the splits; hold out the validation split if the data have none."""
    train, val = hold_out(data.train, val_fraction, data.kind) if data.val is None else (data.train, data.val)
    return {"train": train, "val": val, "test": data.test}


def _check_numbers(
    problems: Problems, key: str, batch_size: int, val_fraction: float, loss_weight: float, repeat: int | None
) -> None:
    problems.check(at_least, f"{key}.batch_size", 1, batch_size)
    problems.check(at_least, f"{key}.repeat", 1, 1 if repeat is None else repeat)
    problems.check(check_fraction, f"{key}.val_fraction", val_fraction)
    if not 0.0 < loss_weight < math.inf:
        problems.add(invalid(f"{key}.loss_weight", "> 0", loss_weight))


def _check_names(
    problems: Problems, key: str, data: RawData, normalize: str, metric: str, normalize_target: str | None
) -> None:
    problems.check(
        one_of,
        f"{key}.normalize",
        normalize,
        ("none",) if data.texts is not None or _is_named(data) else get_args(Normalize),
    )
    if is_stored(data.train.inputs) and normalize in ("robust", "quantile"):
        bound = "feature, channel, all, minmax or none for images on disk (source.cache=memory allows others)"
        problems.add(invalid(f"{key}.normalize", bound, normalize))
    if normalize == "channel":
        problems.check(check_image_shape, f"{key}.normalize=channel", data.train.inputs.shape[1:])
    problems.check(one_of, f"{key}.metric", metric, [n for n, spec in METRICS.items() if data.kind in spec.kinds])
    if normalize_target is not None:
        problems.check(one_of, f"{key}.normalize_target", normalize_target, ("minmax",))
        if data.kind != "regression":
            problems.add(f"{key}.normalize_target = {normalize_target} needs a regression; this is a {data.kind}")


def check_test_fraction(fraction: float | None, has_tests: bool = False) -> None:
    """Raise unless a test split's share is None, or in (0, 1) and not beside a test split."""
    if fraction is not None:
        check_fraction("source.test_fraction", fraction)
        if has_tests:
            raise ValueError(f"source.test_fraction = {fraction} cannot be set beside source.test_path: remove one")


def hold_out(split: Split, fraction: float | None, kind: Kind) -> tuple[Split, Split]:
    """Split in two, always in the same way; classes stay in proportion if there are enough examples.

    Args:
        split: all examples.
        fraction: the second part's share; None: TEST_FRACTION.
        kind: the task's kind.
    Raises:
        ValueError: a part would be empty.
    """
    from sklearn.model_selection import train_test_split  # slow to import

    fraction = TEST_FRACTION if fraction is None else fraction
    if not 0 < math.ceil(fraction * len(split)) < len(split):
        raise empty_part(fraction, len(split))
    order = torch.arange(len(split)).numpy()
    strata = split.targets.numpy() if kind == "classification" and _can_stratify(split.targets, fraction) else None
    first, second = train_test_split(order, test_size=fraction, random_state=0, stratify=strata)
    a, b = (split.take(torch.from_numpy(part).sort().values) for part in (first, second))
    return a, b


def empty_part(fraction: float, examples: int) -> ValueError:
    """Build the error for a share that leaves no example on one side of a split."""
    return ValueError(f"a share of {fraction} of {examples} examples leaves one part empty")


def _can_stratify(targets: Tensor, fraction: float) -> bool:
    """Tell whether each class has an example for both parts, and both parts have room for every class."""
    counts, second = targets.bincount(), math.ceil(fraction * len(targets))
    return int(counts.min()) > 1 and min(second, len(targets) - second) >= len(counts)


def _tokenized(
    name: str, splits: dict[SplitName, Split], texts: Texts
) -> tuple[dict[SplitName, Split], Tokenize, TokenCounts]:
    """Tokenize texts with the training split's tokenizer; log how many are cut, and how much is unknown."""
    rows = {part: cast(Tensor, split.inputs) for part, split in splits.items()}
    tokenize = Tokenize(texts.tokenizer(rows["train"]).to_str(), texts.files)
    counts = count_tokens(tokenize.tokenizer, texts.take(torch.cat(list(rows.values()))))
    _report_counts(name, counts)
    tokenized = {
        part: Split(tokenize(texts.take(rows[part])), split.targets, RawInputs(texts.take, rows[part]))
        for part, split in splits.items()
    }
    return tokenized, tokenize, counts


def _in_windows(
    name: str, splits: dict[SplitName, Split], texts: Texts, kind: Kind
) -> tuple[dict[SplitName, Split], Steps, WindowCounts]:
    """Cut texts into windows with the training split's tokenizer; log how many there are, and how much is unknown."""
    rows = {part: cast(Tensor, split.inputs) for part, split in splits.items()}
    made = NextTokens if kind == "lm" else TaggedWords
    step = made(texts.tokenizer(rows["train"], kind).to_str(), texts.length, texts.padding)
    cut, unknown = {}, unknown_of(step.tokenizer)
    with Problems(f"task {name!r}: ") as problems:
        for part, own in rows.items():
            cut[part] = cast(Windows, problems.check(step.windows, texts.take(own), strict=False))
            if cut[part] is not None and not len(cut[part].tokens):
                problems.add(f"{part} split: no text has {step.least}")
    if short := sum(len(own) - len(cut[part].texts.unique()) for part, own in rows.items()):
        log.warning("task %r: left out %d texts that are shorter than %s", name, short, step.least)
    tokens = torch.cat([windows.tokens for windows in cut.values()])
    number, strange = int((tokens != step.padding).sum()), 0 if unknown is None else int((tokens == unknown).sum())
    counts = WindowCounts(sum(map(len, rows.values())), len(tokens), step.length, number, strange)
    _report_counts(name, counts)
    found = {}
    for part, windows in cut.items():
        targets = windows.targets
        if kind == "token_classification":  # from the numbers of words to their classes
            classes = splits[part].targets[windows.texts].gather(1, targets.clamp(min=0))
            targets = torch.where(targets == IGNORED, IGNORED, classes)
        split = Split(windows.tokens, targets, RawInputs(texts.take, rows[part][windows.texts]))
        found[part] = split.take((targets != IGNORED).any(1).nonzero().flatten())
    return found, (step,), counts


def _words_of(step: Step) -> int:
    """Count the token ids of a step that makes windows, with its padding."""
    assert isinstance(step, Windowed)
    return int(max(*step.built.get_vocab().values(), step.padding)) + 1


def _report_counts(name: str, counts: TokenCounts | WindowCounts) -> None:
    """Log counts of tokens; warn if most are unknown."""
    log.info("task %r: %s", name, "; ".join(f"{fact}: {value}" for fact, value in counts.facts))
    if 2 * counts.unknown > counts.tokens:
        text = (
            "task %r: most tokens are unknown: raise source.vocabulary, or set source.tokenizer to a tokenizer for the "
            "texts' language; without one, words are parted by white space and punctuation"
        )
        log.warning(text, name)


def _prepared(
    name: str, splits: dict[SplitName, Split], data: RawData, normalize: Normalize
) -> tuple[dict[SplitName, Split], Steps, TokenCounts | WindowCounts | None]:
    """Run the last step, fitted on the training split.

    Returns:
        The splits, all steps from raw inputs, and the tokens' counts if inputs are texts.
    """
    if data.texts is not None and data.kind in TOKEN_KINDS:
        return _in_windows(name, splits, data.texts, data.kind)
    if data.texts is not None:
        splits, tokenize, counts = _tokenized(name, splits, data.texts)
        return splits, (tokenize,), counts
    inputs = splits["train"].inputs
    scale: Quantiles | Scale
    if is_stored(inputs):
        scale = Scale(*_stored_scaling(inputs, normalize))
    else:
        scale = fit_quantiles(inputs[:]) if normalize == "quantile" else Scale(*_scaling(inputs[:], normalize))
    scaled = {
        split: s.then(scale) if isinstance(s.inputs, LazyInputs) else replace(s, inputs=scale(s.inputs))
        for split, s in splits.items()
    }
    return scaled, (*data.raw_steps, scale), None


def _with_scaled_targets(
    splits: dict[SplitName, Split], minmax: bool
) -> tuple[dict[SplitName, Split], tuple[Tensor, Tensor] | None]:
    """Scale targets to [0, 1] if asked: return the splits, and the training targets' (lowest value, range)."""
    if not minmax:
        return splits, None
    low, extent = _extent(splits["train"].targets)
    return {part: replace(s, targets=(s.targets - low) / extent) for part, s in splits.items()}, (low, extent)


def _target_scale(targets: Tensor, kind: Kind, outputs: int) -> tuple[Tensor, Tensor]:
    if kind != "regression":
        return torch.zeros(outputs), torch.ones(outputs)
    largest = targets.abs().amax(0)
    std = targets.std(0, correction=0)
    if not bool((std.isfinite() & (std > 0)).all()):  # squares may leave the type's range
        unit = torch.where(largest > 0, largest, torch.ones_like(largest))
        std = torch.where(std.isfinite() & (std > 0), std, (targets / unit).std(0, correction=0) * unit)
    mean = targets.mean(0)
    if not bool(mean.isfinite().all()):
        mean = (targets / len(targets)).sum(0)
    return mean, _nonzero(std, largest)


def _scaling(inputs: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Return (shift, scale) of a training split's inputs, in their precision."""
    if normalize == "none":
        return torch.zeros((), dtype=inputs.dtype), torch.ones((), dtype=inputs.dtype)
    if normalize == "minmax":
        return _extent(inputs)
    if normalize == "robust":
        low, middle, high = torch.from_numpy(np.quantile(inputs.numpy(), [0.25, 0.5, 0.75], axis=0)).to(inputs.dtype)
        return middle, _nonzero(high - low, inputs.abs().amax(0))
    if normalize == "all":
        return inputs.mean(), _nonzero(inputs.std(correction=0), inputs.abs().amax())
    if normalize == "channel":
        dims = (0, 2, 3)
        mean, std = inputs.mean(dims, keepdim=True), inputs.std(dims, correction=0, keepdim=True)
        return mean[0], _nonzero(std[0], inputs.abs().amax(dims, keepdim=True)[0])
    return inputs.mean(0), _nonzero(inputs.std(0, correction=0), inputs.abs().amax(0))


def _stored_scaling(inputs: Inputs, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Return (shift, scale) as `_scaling` does, within rounding, of images in a file."""
    if normalize == "none":
        return _scaling(inputs[:0], normalize)
    if normalize == "minmax":
        return _extent(torch.stack(lowest_and_highest(inputs)))
    dims = {"all": (0, 1, 2, 3), "channel": (0, 2, 3), "feature": (0,)}[normalize]
    mean, std, largest = mean_and_std(inputs, dims)
    if normalize == "all":
        mean, std, largest = mean.squeeze(), std.squeeze(), largest.squeeze()
    return mean, _nonzero(std, largest)


def _extent(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (lowest value, range) of each column."""
    low, high = values.aminmax(dim=0)
    return low, _nonzero(high - low, values.abs().amax(0))


def _nonzero(scale: Tensor, largest: Tensor) -> Tensor:
    """Replace scales by 1 where they are rounding errors: values up to `largest` are constant there."""
    return torch.where(scale > 4 * torch.finfo(scale.dtype).eps * largest, scale, torch.ones_like(scale))
