"""Load arrays and sequences: NumPy files, data sets of torch, and data modules of Lightning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from msh.draws import drawing_apart
from msh.errors import Problems, invalid, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.checks import check_names, existing
from msh.tasks.options import ExampleKind
from msh.tasks.steps import EXACT, ReadNamed, Steps, unmasked
from msh.tasks.task import Split

log = logging.getLogger(__name__)

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Methods of a data module that change batches."""


def arrays(
    path: str,
    targets_path: str | None = None,
    inputs: str = "inputs",
    targets: str = "targets",
    test_path: str | None = None,
    test_targets_path: str | None = None,
    test_fraction: float | None = None,
    kind: ExampleKind = "classification",
    classes: Sequence[str] = (),
) -> RawData:
    """Load arrays from NumPy files: an .npz file with inputs and targets, or an .npy file for each.

    Args:
        path: .npz file; or .npy file of inputs, numbers (examples, ...).
        targets_path: .npy file of targets, beside an .npy file of inputs. A classification's are class numbers from 0,
            (examples,); a multilabel task's 0 or 1, (examples, labels); a regression's (examples,) or (examples,
            outputs).
        inputs, targets: the arrays' names in .npz files.
        test_path, test_targets_path: the test split's files, of the same forms.
        test_fraction: without them, the test split's share of the examples, .2 if None; the same for every seed.
        kind: classification, multilabel or regression.
        classes: names of the classes, labels or values, in the order of their numbers.
    Raises:
        ValueError: naming all problems of the files and the settings; files with pickled objects are refused.
        FileNotFoundError: there is no such file.
    """
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, get_args(ExampleKind))
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        problems.check(check_names, "source.classes", classes)
        if test_path is None and test_targets_path is not None:
            problems.add("source.test_targets_path needs source.test_path")
        _check_pair(problems, "", path, targets_path)
        if test_path is not None:
            _check_pair(problems, "test_", test_path, test_targets_path)
    with Problems() as problems:
        train = problems.check(_read_pair, path, targets_path, inputs, targets)
        test = problems.check(_read_pair, test_path, test_targets_path, inputs, targets) if test_path else None
    assert train is not None
    return _raw(train, test, (path, test_path or path), test_fraction, kind, classes)


def dataset(
    train: Any,
    test: Any = None,
    test_fraction: float | None = None,
    kind: ExampleKind = "classification",
    classes: Sequence[str] = (),
) -> RawData:
    """Load data sets of torch: their items are read once, and stacked.

    Args:
        train: a map-style `torch.utils.data.Dataset` with items (input, target): arrays or tensors of one shape. An
            input may also be several: a mapping, whose names the backbone takes as keywords, or a tuple of arrays,
            which it takes in order. An item may be one mapping with the target as "labels" (or label, targets, target).
        test: the test split, likewise.
        test_fraction: without it, the test split's share of the items, .2 if None; the same for every seed.
        kind, classes: as in `arrays`.
    Raises:
        ValueError: a data set is iterable only, an item is no pair, or items have several shapes.
    """
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, get_args(ExampleKind))
        problems.check(check_test_fraction, test_fraction)
        problems.check(check_names, "source.classes", classes)
        if test is not None and test_fraction is not None:
            problems.add(f"source.test_fraction = {test_fraction} cannot be set beside source.test: remove one")
        with drawing_apart(0):
            items = problems.check(_stacked, "source.train", train)
            test_items = None if test is None else problems.check(_stacked, "source.test", test)
    assert items is not None
    return _raw(items, test_items, ("source.train", "source.test"), test_fraction, kind, classes)


def data_module(
    module: Any, test_fraction: float | None = None, kind: ExampleKind = "classification", classes: Sequence[str] = ()
) -> RawData:
    """Load a data module of Lightning: the data sets of its loaders are read once, and stacked.

    As in a Trainer, `prepare_data` is called by one process of each machine (of all, without
    `prepare_data_per_node`), then `setup` by every process; their draws are the same for every seed, so that all
    processes, and a resumed run, have the same splits. The task's settings decide on batch size and order.

    Args:
        module: a LightningDataModule with a `train_dataloader`, and perhaps a `val_dataloader` and `test_dataloader`,
            each of one loader whose batches are (inputs, targets), or mappings, as in `dataset`.
        test_fraction: without a `test_dataloader`, the test split's share of the examples, .2 if None.
        kind, classes: as in `arrays`.
    Raises:
        ValueError: it is no such module, or does something that msh would not: samples by weights, changes batches on
            their way to the device, has several loaders, or pads each batch to another shape.
    """
    from pytorch_lightning import LightningDataModule  # slow to import

    if not isinstance(module, LightningDataModule):
        raise invalid("source.module", "a LightningDataModule", type(module).__name__)
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, get_args(ExampleKind))
        for hook in HOOKS:
            if getattr(type(module), hook) is not getattr(LightningDataModule, hook):
                name = f"{type(module).__name__}.{hook}"
                problems.add(f"source.module: {name} would not be called; change items in the data set, or set augment")
        problems.check(check_test_fraction, test_fraction)
        problems.check(check_names, "source.classes", classes)
    with drawing_apart(0):
        _prepare(module)
    with drawing_apart(0), Problems() as problems:
        pairs = _of_stage(problems, module, "fit", ("train", "val"))
        pairs |= _of_stage(problems, module, "test", ("test",))
        if "test" in pairs and test_fraction is not None:
            problems.add(f"source.test_fraction = {test_fraction} cannot be set beside a test_dataloader")
        if not problems.problems and "train" not in pairs:
            problems.add("source.module has no train_dataloader")
    origins = {part: f"source.module: {part}_dataloader" for part in pairs}
    return _raw_of_parts(pairs, origins, test_fraction, kind, classes)


def _prepare(module: Any) -> None:
    """Call `prepare_data` in one process of each machine, or of all; the others wait, and learn of its error."""
    import torch.distributed as dist

    is_connected = dist.is_available() and dist.is_initialized()
    rank = dist.get_rank() if is_connected else 0
    if module.prepare_data_per_node and is_connected:
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", rank)))
    error: Exception | None = None
    if rank == 0:
        try:
            module.prepare_data()
        except Exception as raised:
            error = raised
    errors = [error]
    if is_connected:
        errors = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
    for problem in errors:
        if problem is not None:
            raise problem


def _of_stage(problems: Problems, module: Any, stage: str, parts: Sequence[str]) -> dict[str, Pair]:
    """Set a data module up, and read the loaders of some parts that it has."""
    module.setup(stage=stage)
    pairs: dict[str, Pair] = {}
    for part in parts:
        loader = _loader(module, f"{part}_dataloader")
        if loader is not None:
            pair = problems.check(_of_loader, f"source.module: {part}_dataloader", loader)
            pairs |= {} if pair is None else {part: pair}
    module.teardown(stage=stage)
    return pairs


def _loader(module: Any, method: str) -> Any:
    from pytorch_lightning import LightningDataModule

    own = method in vars(module) or getattr(type(module), method) is not getattr(LightningDataModule, method)
    loader = getattr(module, method)() if own else None
    return loader[0] if isinstance(loader, list | tuple) and len(loader) == 1 else loader


def _of_loader(key: str, loader: Any) -> Pair:
    """Read all examples of a loader in the data set's order."""
    if not isinstance(loader, DataLoader):
        found = f"{len(loader)} loaders" if isinstance(loader, list | tuple | Mapping) else type(loader).__name__
        raise invalid(key, "one DataLoader", found)
    plain = (RandomSampler, SequentialSampler, DistributedSampler)
    if isinstance(loader.dataset, IterableDataset):
        raise invalid(f"{key}: the data set", "a map-style torch.utils.data.Dataset", type(loader.dataset).__name__)
    if loader.batch_size is None:
        raise ValueError(f"{key}: its loader has no batch size: the task batches examples, by tasks.NAME.batch_size")
    sampler: Any = loader.sampler
    draws_all = type(sampler) in plain and not getattr(sampler, "replacement", False)
    if not draws_all or (isinstance(sampler, RandomSampler) and sampler.num_samples != len(sampler.data_source)):
        bound = "one that takes each example once; torch.utils.data.Subset selects examples"
        raise invalid(f"{key}: the sampler", bound, type(sampler).__name__)
    if loader.collate_fn is default_collate:
        return _stacked(key, loader.dataset)
    return _collated(key, loader)


def _collated(key: str, loader: DataLoader[Any]) -> Pair:
    """Read a loader's batches, as its collate_fn makes them, in the data set's order."""
    size = int(loader.batch_size or 1)
    batches: list[Pair] = []
    for start in range(0, len(loader.dataset), size):  # type: ignore[arg-type]
        items = [loader.dataset[row] for row in range(start, min(start + size, len(loader.dataset)))]  # type: ignore[arg-type]
        batches.append(_pair_of(f"{key}: a batch of its collate_fn", "(inputs, targets)", loader.collate_fn(items)))
        named = [_by_name(part) for part in batches[-1]]
        if any(array.shape[:1] != (len(items),) for arrays in named for array in arrays.values()):
            shapes = " and ".join(str(_shape(part)) for part in batches[-1])
            raise invalid(f"{key}: the shapes of a batch of {len(items)} items", "(items, ...), one row each", shapes)
        if start == 0:
            _warn_of_draws(key, batches[0], _pair_of(key, "(inputs, targets)", loader.collate_fn(items)))
        for what, first, arrays in zip(("inputs", "targets"), batches[0], batches[-1], strict=True):
            if _shape(arrays, 1) != _shape(first, 1):
                bound = f"{_shape(first, 1)}, as in the first batch: pad all to one length"
                raise invalid(f"{key}: the shape of the {what} in a batch of its collate_fn", bound, _shape(arrays, 1))
    if not batches:
        raise invalid(f"{key}: the number of items", ">= 1", 0)
    return _joined(np.concatenate, batches)


def _warn_of_draws(key: str, first: Pair, again: Pair) -> None:
    """Warn if examples are others when they are read again: they stay as they were read first."""
    pairs = [(one, other) for a, b in zip(first, again, strict=True) for one, other in _paired(a, b)]
    if not all(np.array_equal(one, other) for one, other in pairs):
        log.warning("%s: examples change at random; they are read once, and augment changes images in each batch", key)


Arrays = np.ndarray | dict[str, np.ndarray]
"""Inputs (examples, ...), or several by name or position."""
Pair = tuple[Arrays, np.ndarray]
"""Inputs, and targets (examples, ...)."""
TARGETS = ("labels", "label", "targets", "target")
"""Names of the target in items and batches that are mappings."""


def _pair_of(where: str, bound: str, item: Any) -> Pair:
    """Split an item or a batch into its inputs and its target."""
    if isinstance(item, Mapping):
        named = [name for name in TARGETS if name in item]
        if len(named) != 1 or len(item) == 1:
            raise invalid(
                where, f"{bound}, or a mapping of inputs with one of {', '.join(TARGETS)}", sorted(map(str, item))
            )
        item = {name: value for name, value in item.items() if name != named[0]}, item[named[0]]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise invalid(where, bound, type(item).__name__)
    inputs, target = item
    if isinstance(inputs, tuple) and inputs and all(isinstance(part, Tensor | np.ndarray) for part in inputs):
        inputs = {str(place): part for place, part in enumerate(inputs)}
    if isinstance(inputs, Mapping):
        check_names(f"{where}: a mapping of inputs", list(inputs))
        return {str(name): unmasked(where, part) for name, part in inputs.items()}, unmasked(where, target)
    return unmasked(where, inputs), unmasked(where, target)


def _by_name(arrays: Arrays) -> dict[str, np.ndarray]:
    return arrays if isinstance(arrays, dict) else {"": arrays}


def _paired(one: Arrays, other: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    first, second = _by_name(one), _by_name(other)
    return [(array, second[name]) for name, array in first.items()] if first.keys() == second.keys() else []


def _shape(arrays: Arrays, start: int = 0) -> Any:
    """Return the axes of an array from `start` on; of several, by name."""
    shapes = {name: array.shape[start:] for name, array in _by_name(arrays).items()}
    return shapes if isinstance(arrays, dict) else shapes[""]


def _joined(join: Callable[[list[np.ndarray]], np.ndarray], pairs: Sequence[Pair]) -> Pair:
    """Join the arrays of several pairs, which have the same names."""
    inputs = {name: join([_by_name(pair[0])[name] for pair in pairs]) for name in _by_name(pairs[0][0])}
    return inputs if isinstance(pairs[0][0], dict) else inputs[""], join([pair[1] for pair in pairs])


def _check_pair(problems: Problems, prefix: str, path: str, targets_path: str | None) -> None:
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".npy"):
        problems.add(invalid(f"source.{prefix}path", "a file .npz or .npy", path))
    elif suffix == ".npy" and targets_path is None:
        problems.add(f"source.{prefix}path = {path} has no targets: set source.{prefix}targets_path, another .npy file")
    elif suffix == ".npz" and targets_path is not None:
        problems.add(f"source.{prefix}targets_path = {targets_path} cannot be set beside an .npz file: remove it")


def _read_pair(path: str, targets_path: str | None, inputs: str, targets: str) -> Pair:
    if targets_path is not None:
        return _read(path), _read(targets_path)
    with Problems() as problems:
        first = problems.check(_read, path, "source.inputs", inputs)
        second = problems.check(_read, path, "source.targets", targets)
    assert first is not None
    assert second is not None
    return first, second


def _read(path: str, key: str = "", name: str = "") -> np.ndarray:
    """Read an .npy file, or an array in an .npz file, without unpickling anything."""
    file = existing(path, "file")
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                if name in loaded.files:
                    return np.asarray(loaded[name])
                names = loaded.files
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(
            f"{file} cannot be read: cut short or damaged, no NumPy file, or with pickled objects ({error})"
        ) from error
    if isinstance(loaded, np.ndarray):
        if name:
            raise ValueError(f"{file} is not an .npz file: it has a single array")
        return loaded
    if not name:
        raise ValueError(f"{file} is not an .npy file: it has several arrays")
    one_of(f"{key} of {file}", name, names)
    raise AssertionError(name)


def _stacked(key: str, items: Any) -> Pair:
    """Read and stack all items of a data set."""
    if not isinstance(items, Dataset) or isinstance(items, IterableDataset) or not hasattr(items, "__len__"):
        bound = "a map-style torch.utils.data.Dataset, with __len__ and __getitem__"
        raise invalid(key, bound, type(items).__name__)
    pairs = []
    for number in range(len(items)):
        pairs.append(_pair_of(f"{key}: item {number}", "(input, target)", items[number]))
    if not pairs:
        raise invalid(f"{key}: the number of items", ">= 1", 0)
    _warn_of_draws(key, pairs[0], _pair_of(f"{key}: item 0", "(input, target)", items[0]))
    for part, what in enumerate(("input", "target")):
        shape = _shape(pairs[0][part])
        uneven = [number for number, pair in enumerate(pairs) if _shape(pair[part]) != shape]
        if uneven:
            found = _shape(pairs[uneven[0]][part])
            raise invalid(f"{key}: the shape of the {what} of item {uneven[0]}", f"{shape}, as of item 0", found)
    return _joined(np.stack, pairs)


def _raw(
    train: Pair,
    test: Pair | None,
    origins: tuple[str, str],
    test_fraction: float | None,
    kind: ExampleKind,
    classes: Sequence[str],
) -> RawData:
    pairs = {"train": train} | ({} if test is None else {"test": test})
    return _raw_of_parts(pairs, dict(zip(("train", "test"), origins, strict=True)), test_fraction, kind, classes)


def _raw_of_parts(
    pairs: Mapping[str, Pair],
    origins: Mapping[str, str],
    test_fraction: float | None,
    kind: ExampleKind,
    classes: Sequence[str],
) -> RawData:
    """Build the data from the arrays of "train", and perhaps "val" and "test"; `origins` names them in errors."""
    steps, pairs = _packed(pairs, origins)
    with Problems() as problems:
        splits = {part: problems.check(_split, origins[part], pair, kind) for part, pair in pairs.items()}
    train, test = splits["train"], splits.get("test")
    assert train is not None
    if kind == "classification":
        outputs = len(classes) or int(train.targets.max()) + 1
    else:
        outputs = train.targets.shape[1]
        if classes:
            check_names("source.classes", classes, outputs)
    if test is None:
        train, test = hold_out(train, test_fraction, kind)
    return RawData(kind, train, test, outputs, classes=tuple(map(str, classes)), steps=steps, val=splits.get("val"))


def _packed(pairs: Mapping[str, Pair], origins: Mapping[str, str]) -> tuple[Steps, dict[str, Pair]]:
    """Pack inputs by name into rows of numbers; return the step that does so. Others stay as they are."""
    train = pairs["train"][0]
    if not isinstance(train, dict):
        return (), dict(pairs)
    for name, array in train.items():
        if not array.size:
            bound = "(examples, ...) with axes >= 1"
            raise invalid(f"{origins['train']}: the shape of the input {name!r}", bound, array.shape)
    packed: dict[str, Pair] = {}
    step = ReadNamed.of(train)
    with Problems() as problems:
        for part, (inputs, targets) in pairs.items():
            try:
                packed[part] = step(inputs).numpy(), targets
            except ValueError as error:
                problems.add(f"{origins[part]}: {error}")
    return (step,), packed


def _split(origin: str, pair: Pair, kind: ExampleKind) -> Split:
    """Check arrays, and convert their numbers to float32, or to float64 where that would not be exact."""
    inputs, targets = pair
    assert isinstance(inputs, np.ndarray)
    with Problems(f"{origin}: ") as problems:
        for what, array in (("inputs", inputs), ("targets", targets)):
            if array.dtype.kind not in "buif":
                problems.add(invalid(f"the type of the {what}", "numbers", str(array.dtype)))
            elif array.ndim == 0 or len(array) == 0:
                problems.add(invalid(f"the number of {what}", ">= 1", 0))
            elif not array.size:
                problems.add(invalid(f"the shape of the {what}", "(examples, ...) with axes >= 1", array.shape))
        if inputs.ndim == 1:
            problems.add(invalid("the shape of the inputs", "(examples, ...), two axes or more", inputs.shape))
        if inputs.ndim and targets.ndim and len(inputs) != len(targets):
            problems.add(f"{len(inputs)} inputs and {len(targets)} targets; needs equally many")
        axes = (1,) if kind == "classification" else (2,) if kind == "multilabel" else (1, 2)
        if targets.ndim not in axes:
            bound = "(examples,)" if axes == (1,) else "(examples, labels)" if axes == (2,) else "(examples, outputs)"
            problems.add(invalid("the shape of the targets", bound, targets.shape))
    with Problems(f"{origin}: ") as problems:
        for what, array in (("inputs", inputs), ("targets", targets)):
            _check_values(problems, f"a number of the {what}", "finite", array, np.isfinite(array))
        if not problems.problems and kind == "classification":
            _check_values(problems, "a class", "a whole number", targets, targets == np.floor(targets))
            _check_values(problems, "a class", ">= 0", targets, targets >= 0)
        elif not problems.problems and kind == "multilabel":
            _check_values(problems, "a label", "0 or 1", targets, (targets == 0) | (targets == 1))
    return Split(_numbers(inputs), _target_numbers(targets, kind))


def _check_values(problems: Problems, what: str, bound: str, array: np.ndarray, fits: np.ndarray) -> None:
    """Add the first value that does not fit, its place, and the number of such values."""
    if (count := int(fits.size - fits.sum())) > 0:
        place = np.unravel_index(int(fits.argmin()), fits.shape)
        where = f"example {place[0]}" + (f", {list(map(int, place[1:]))}" if len(place) > 1 else "")
        more = f", and {count - 1} more" if count > 1 else ""
        problems.add(f"{invalid(what, bound, array[place].item())} in {where}{more}")


def _numbers(inputs: np.ndarray) -> Tensor:
    large = inputs.dtype.kind in "iu" and inputs.size and max(int(inputs.max()), -int(inputs.min())) > EXACT
    exact = inputs.dtype.itemsize <= 4 and not large
    return torch.from_numpy(np.ascontiguousarray(inputs, dtype="float32" if exact else "float64"))


def _target_numbers(targets: np.ndarray, kind: ExampleKind) -> Tensor:
    if kind == "classification":
        return torch.from_numpy(targets.astype(np.int64))
    rows = targets.reshape(len(targets), -1)
    return torch.from_numpy(rows.astype(np.float32)) if kind == "multilabel" else _numbers(rows)
