"""Load arrays and sequences: NumPy files, and data sets of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from msh.errors import Problems, invalid, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.checks import existing
from msh.tasks.outputs import Kind
from msh.tasks.task import Split


def arrays(
    path: str,
    targets_path: str | None = None,
    inputs: str = "inputs",
    targets: str = "targets",
    test_path: str | None = None,
    test_targets_path: str | None = None,
    test_fraction: float | None = None,
    kind: Kind = "classification",
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
        problems.check(one_of, "source.kind", kind, get_args(Kind))
        problems.check(check_test_fraction, test_fraction, test_path is not None)
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
    kind: Kind = "classification",
    classes: Sequence[str] = (),
) -> RawData:
    """Load data sets of torch: their items are read once, and stacked.

    Args:
        train: a map-style `torch.utils.data.Dataset` with items (input, target): arrays or tensors of one shape.
        test: the test split, likewise.
        test_fraction: without it, the test split's share of the items, .2 if None; the same for every seed.
        kind, classes: as in `arrays`.
    Raises:
        ValueError: a data set is iterable only, an item is no pair, or items have several shapes.
    """
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, get_args(Kind))
        problems.check(check_test_fraction, test_fraction)
        if test is not None and test_fraction is not None:
            problems.add(f"source.test_fraction = {test_fraction} cannot be set beside source.test: remove one")
        items = problems.check(_stacked, "source.train", train)
        test_items = None if test is None else problems.check(_stacked, "source.test", test)
    assert items is not None
    return _raw(items, test_items, ("source.train", "source.test"), test_fraction, kind, classes)


Pair = tuple[np.ndarray, np.ndarray]
"""Inputs (examples, ...) and targets (examples, ...)."""


def _check_pair(problems: Problems, prefix: str, path: str, targets_path: str | None) -> None:
    suffix = Path(path).suffix
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
        item = items[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise invalid(f"{key}: item {number}", "(input, target)", type(item).__name__)
        pairs.append(tuple(np.asarray(part) for part in item))
    if not pairs:
        raise invalid(f"{key}: the number of items", ">= 1", 0)
    for part, what in enumerate(("input", "target")):
        shape = pairs[0][part].shape
        uneven = [number for number, pair in enumerate(pairs) if pair[part].shape != shape]
        if uneven:
            found = pairs[uneven[0]][part].shape
            raise invalid(f"{key}: the shape of the {what} of item {uneven[0]}", f"{shape}, as of item 0", found)
    return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


def _raw(
    train: Pair,
    test: Pair | None,
    origins: tuple[str, str],
    test_fraction: float | None,
    kind: Kind,
    classes: Sequence[str],
) -> RawData:
    with Problems() as problems:
        first = problems.check(_split, origins[0], train, kind)
        second = None if test is None else problems.check(_split, origins[1], test, kind)
    assert first is not None
    if kind == "classification":
        outputs = len(classes) or int(first.targets.max()) + 1
    else:
        outputs = first.targets.shape[1]
        if classes and len(classes) != outputs:
            raise invalid("source.classes", f"{outputs} names, one for each target", list(classes))
    if second is None:
        first, second = hold_out(first, test_fraction, kind)
    return RawData(kind, first, second, outputs, classes=tuple(map(str, classes)))


def _split(origin: str, pair: Pair, kind: Kind) -> Split:
    """Check arrays, and convert them to tensors: inputs to float32, or float64 where they have 64 bits."""
    inputs, targets = pair
    with Problems(f"{origin}: ") as problems:
        for what, array in (("inputs", inputs), ("targets", targets)):
            if array.dtype.kind not in "buif":
                problems.add(invalid(f"the type of the {what}", "numbers", str(array.dtype)))
            elif array.ndim == 0 or len(array) == 0:
                problems.add(invalid(f"the number of {what}", ">= 1", 0))
        if inputs.ndim == 1:
            problems.add(invalid("the shape of the inputs", "(examples, ...), two axes or more", inputs.shape))
        if inputs.ndim and targets.ndim and len(inputs) != len(targets):
            problems.add(f"{len(inputs)} inputs and {len(targets)} targets; needs equally many")
        axes = (1,) if kind == "classification" else (2,) if kind == "multilabel" else (1, 2)
        if targets.ndim not in axes:
            bound = "(examples,)" if axes == (1,) else "(examples, labels)" if axes == (2,) else "(examples, outputs)"
            problems.add(invalid("the shape of the targets", bound, targets.shape))
    with Problems(f"{origin}: ") as problems:
        if kind == "classification" and (wrong := targets[targets != np.floor(targets)]).size:
            problems.add(invalid("a class", "a whole number", float(wrong.flat[0])))
        if kind == "classification" and not np.isfinite(targets).all():
            problems.add("targets are NaN or infinite")
        elif kind == "classification" and targets.min() < 0:
            problems.add(invalid("a class", ">= 0", int(targets.min())))
        if kind == "multilabel" and (wrong := targets[(targets != 0) & (targets != 1)]).size:
            problems.add(invalid("a label", "0 or 1", float(wrong.flat[0])))
    return Split(_numbers(inputs), _target_numbers(targets, kind))


def _numbers(inputs: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(inputs, dtype="float64" if inputs.dtype.itemsize > 4 else "float32"))


def _target_numbers(targets: np.ndarray, kind: Kind) -> Tensor:
    if kind == "classification":
        return torch.from_numpy(targets.astype(np.int64))
    return torch.from_numpy(targets.reshape(len(targets), -1).astype(np.float32))
