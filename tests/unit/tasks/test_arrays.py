"""Arrays in NumPy files, and data sets of torch."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from messages import says
from msh.tasks import build_task
from msh.tasks.arrays import arrays, dataset
from msh.tasks.preprocessing import prepare

INPUTS = np.random.default_rng(0).normal(size=(30, 5, 3)).astype(np.float32)
CLASSES = np.arange(30) % 3


@pytest.fixture
def save(tmp_path):
    """Write arrays to a file; return its path."""

    def to_file(name, array=None, **named):
        path = tmp_path / name
        np.savez(path, **named) if named else np.save(path, array)
        return str(path)

    return to_file


def test_an_npz_file_gives_sequences_that_its_steps_prepare_bitwise(save):
    data = arrays(save("a.npz", inputs=INPUTS, targets=CLASSES), classes=["a", "b", "c"])
    assert (len(data.train), len(data.test), data.outputs, data.classes) == (24, 6, 3, ("a", "b", "c"))
    task = build_task("a", data)
    assert task.input_shape == (5, 3)
    assert torch.equal(prepare(task.steps, data.test.inputs.numpy()), task.splits["test"].inputs)


def test_npy_files_with_a_test_split_keep_their_order(save):
    x, y = save("x.npy", INPUTS), save("y.npy", CLASSES * 1.5)
    data = arrays(x, y, test_path=x, test_targets_path=y, kind="regression")
    assert torch.equal(data.train.inputs, torch.from_numpy(INPUTS))
    assert torch.equal(data.test.targets[:, 0], torch.from_numpy(CLASSES * 1.5).float())


def test_pickled_objects_are_refused_and_not_called(save, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "called").touch, ()

    hostile = np.array([Evil()], dtype=object)
    for path, targets in ((save("x.npy", hostile), save("y.npy", CLASSES)), (save("a.npz", inputs=hostile), None)):
        with pytest.raises(ValueError, match="pickled objects"):
            arrays(path, targets)
    assert not (tmp_path / "called").exists()


def test_damaged_files_are_refused(tmp_path):
    for name in ("a.npz", "a.npy"):
        (tmp_path / name).write_bytes(b"\x93NUMPY nothing")
        with pytest.raises(ValueError, match="cannot be read"):
            arrays(str(tmp_path / name), str(tmp_path / name) if name == "a.npy" else None)


def test_problems_of_settings_and_arrays_are_named_together(save):
    with pytest.raises(ValueError, match="2 problems") as caught:
        arrays(save("x.npy", INPUTS), kind="classes")
    assert "source.targets_path" in str(caught.value)
    path = save("b.npz", inputs=INPUTS[:, 0, 0], targets=CLASSES[:-1])
    with pytest.raises(ValueError, match="2 problems"):
        arrays(path)
    with pytest.raises(ValueError, match=says(f"source.inputs of {path}", value="input", meant="inputs")):
        arrays(path, inputs="input")


@pytest.mark.parametrize(("targets", "key"), [(CLASSES - 1, "a class"), (CLASSES + 0.5, "a class")])
def test_wrong_classes_are_refused(save, targets, key):
    with pytest.raises(ValueError, match=says(key)):
        arrays(save("a.npz", inputs=INPUTS, targets=targets))


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def test_items_of_a_data_set_are_stacked():
    data = dataset(TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(CLASSES)), test_fraction=0.5)
    assert data.train.inputs.shape == (15, 5, 3)
    assert sorted([*data.train.targets.tolist(), *data.test.targets.tolist()]) == sorted(CLASSES.tolist())


def test_uneven_items_items_without_a_target_and_iterable_data_sets_are_refused():
    with pytest.raises(ValueError, match=says("source.train: the shape of the input of item 1")):
        dataset(Items([(np.zeros(3), 0), (np.zeros(4), 1)]))
    with pytest.raises(ValueError, match=says("source.train: item 0", "(input, target)", "ndarray")):
        dataset(Items([np.zeros(3)]))
    with pytest.raises(ValueError, match=says("source.train: the number of items", ">= 1", 0)):
        dataset(Items([]))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

        def __len__(self):
            return 2

    with pytest.raises(ValueError, match=says("source.train", value="Stream")):
        dataset(Stream())
