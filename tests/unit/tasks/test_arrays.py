"""Arrays in NumPy files, and data sets of torch."""

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from messages import says
from msh.tasks import build_task
from msh.tasks.arrays import arrays, data_module, dataset
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


def test_suffixes_may_be_in_capitals(save, tmp_path):
    for name in ("x.npy", "y.npy", "a.npz"):
        save(name, **({"inputs": INPUTS, "targets": CLASSES} if name == "a.npz" else {"array": CLASSES}))
        (tmp_path / name).rename(tmp_path / name.upper())
    assert len(arrays(str(tmp_path / "A.NPZ")).train) == 24
    with pytest.raises(ValueError, match=r"X\.NPY has no targets: set source.targets_path"):
        arrays(str(tmp_path / "X.NPY"))


def test_npy_files_with_a_test_split_keep_their_order(save):
    x, y = save("x.npy", INPUTS), save("y.npy", CLASSES * 1.5)
    data = arrays(x, y, test_path=x, test_targets_path=y, kind="regression")
    assert torch.equal(data.train.inputs, torch.from_numpy(INPUTS))
    assert torch.equal(data.test.targets[:, 0], torch.from_numpy(CLASSES * 1.5))


EXACTLY = {
    "float64": 1e9 + np.arange(30) / 8,
    "int64": 2**53 - np.arange(30),
    "int32": 1_700_000_000 + np.arange(30, dtype=np.int32),
    "uint32": (2**32 - 1 - np.arange(30)).astype(np.uint32),
    "negative": -(2**24) - np.arange(30, dtype=np.int32),
    "large": 1e300 * np.arange(30),
}


@pytest.mark.parametrize("numbers", EXACTLY.values(), ids=EXACTLY)
def test_inputs_and_targets_that_float32_would_round_stay_exact(numbers, save):
    data = arrays(save("a.npz", inputs=numbers[:, None], targets=numbers), kind="regression")
    for part in (data.train.inputs, data.train.targets):
        assert part.dtype == torch.float64
        assert np.isin(part.numpy(), numbers.astype(np.float64)).all()
    small = numbers.astype(np.int16) if numbers.dtype.kind in "iu" else np.arange(30, dtype=np.float32)
    data = arrays(save("b.npz", inputs=small[:, None], targets=small), kind="regression")
    assert data.train.inputs.dtype == data.train.targets.dtype == torch.float32


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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": (3, 0, 1), "value": np.nan}, "a number of the inputs must be finite, got nan in example 3, .0, 1."),
        ({"targets": (4,), "value": -1}, "a class must be >= 0, got -1.* in example 4$"),
        ({"targets": (4,), "value": np.inf}, "a number of the targets must be finite, got inf in example 4$"),
    ],
)
def test_wrong_values_are_named_with_their_example(changed, message, save):
    value, [(name, place)] = changed.pop("value"), changed.items()
    values = {"inputs": INPUTS.astype(np.float64), "targets": CLASSES.astype(np.float64)}
    values[name][place] = value
    with pytest.raises(ValueError, match=message):
        arrays(save("a.npz", **values))


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


def test_masked_items_are_refused():
    masked = np.ma.masked_array(INPUTS[0], INPUTS[0] > 1)
    for item in ((masked, 1), ({"a": masked}, 1), (INPUTS[0], np.ma.masked_array([1.0, 2.0], [True, False]))):
        with pytest.raises(ValueError, match=r"source.train: item 2 must be without masked values"):
            dataset(Items([(INPUTS[0], 0), (INPUTS[0], 1), item]))


# ---- data modules


class Module(LightningDataModule):
    """Splits at random, without a generator, as many modules do; notes the calls."""

    def __init__(self, **loader):
        super().__init__()
        self.calls, self.loader = [], loader

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)
        whole = TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(CLASSES))
        parts = random_split(whole, [0.6, 0.2, 0.2])
        if stage == "fit":
            self.train, self.val, _ = parts
        else:
            self.test = parts[2]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, shuffle=True, drop_last=True, **self.loader)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=4)

    def test_dataloader(self):
        return [DataLoader(self.test)]

    def teardown(self, stage):
        self.calls.append(f"end of {stage}")


def test_a_data_module_is_set_up_as_in_a_trainer_and_read_whole():
    module = Module()
    data = data_module(module, classes=["a", "b", "c"])
    assert module.calls == ["prepare", "fit", "end of fit", "test", "end of test"]
    assert [len(split) for split in data.splits.values()] == [18, 6, 6]
    assert data.classes == ("a", "b", "c")
    assert torch.equal(data.train.inputs, torch.stack([x for x, _ in module.train]))
    task = build_task("a", data)
    assert torch.equal(prepare(task.steps, data.val.inputs.numpy()), task.splits["val"].inputs)


@pytest.mark.parametrize(
    ("per_node", "rank", "local", "prepares"),
    [(True, 0, 0, True), (True, 2, 0, True), (True, 1, 1, False), (False, 0, 0, True), (False, 2, 0, False)],
)
def test_one_process_of_each_machine_prepares_and_all_learn_of_its_error(per_node, rank, local, prepares, monkeypatch):
    def gather(errors, own):
        errors[:] = [own, OSError("the disk is full"), None, None]

    for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", 4)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    module = Module()
    module.prepare_data_per_node = per_node
    with pytest.raises(OSError, match="the disk is full"):
        data_module(module)
    assert module.calls == (["prepare"] if prepares else [])


def test_a_data_modules_draws_are_the_same_in_all_processes_and_not_the_programs():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = data_module(Module())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = data_module(Module())
    assert all(torch.equal(one.splits[part].inputs, other.splits[part].inputs) for part in one.splits)


def test_a_module_without_val_and_test_loaders_is_split_by_the_task():
    class Plain(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(CLASSES)))

    data = data_module(Plain(), test_fraction=0.5)
    assert (len(data.train), len(data.test), data.val) == (15, 15, None)
    made = LightningDataModule.from_datasets(TensorDataset(torch.rand(20, 3), torch.arange(20) % 2), batch_size=5)
    assert len(data_module(made).train) == 16


def test_a_collate_function_makes_the_examples():
    def doubled(items):
        return torch.stack([2 * x for x, _ in items]), torch.tensor([y for _, y in items])

    module = Module(collate_fn=doubled)
    data = data_module(module)
    assert torch.equal(data.train.inputs, 2 * torch.stack([x for x, _ in module.train]))
    assert data.train.targets.tolist() == [int(y) for _, y in module.train]


def uneven(items):
    uneven.calls += 1
    return torch.stack([x[: 1 + uneven.calls] for x, _ in items]), torch.tensor([y for _, y in items])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"collate_fn": lambda items: {"x": items}}, says("a batch of its collate_fn")),
        ({"collate_fn": lambda items: (torch.zeros(3), torch.zeros(3))}, "the shapes of a batch of 4 items"),
        ({"collate_fn": uneven}, "the shape of the inputs in a batch of its collate_fn must be .*pad all to one"),
    ],
)
def test_batches_that_cannot_be_stacked_are_refused_with_the_reason(settings, message):
    uneven.calls = 0
    with pytest.raises(ValueError, match=f"source.module: train_dataloader.*{message}"):
        data_module(Module(**settings))


def with_loader(make, base=Module):
    class Other(base):
        def train_dataloader(self):
            return make(self.train)

    return Other()


def test_loaders_that_choose_examples_themselves_are_refused():
    weights = torch.ones(18)
    for sampler in (WeightedRandomSampler(weights, 18), SubsetRandomSampler([0, 1])):
        with pytest.raises(ValueError, match=says("source.module: train_dataloader: the sampler")):
            data_module(with_loader(lambda items, sampler=sampler: DataLoader(items, sampler=sampler)))
    with pytest.raises(ValueError, match=says("source.module: train_dataloader: the sampler")):
        data_module(with_loader(lambda items: DataLoader(items, sampler=RandomSampler(items, True))))
    with pytest.raises(ValueError, match="has no batch size"):
        data_module(with_loader(lambda items: DataLoader(items, batch_size=None)))
    with pytest.raises(ValueError, match=says("source.module: train_dataloader", "one DataLoader", "2 loaders")):
        data_module(with_loader(lambda items: {"a": DataLoader(items), "b": DataLoader(items)}))


def test_hooks_that_would_not_be_called_are_refused_with_other_problems():
    class Mixing(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    with pytest.raises(ValueError, match="2 problems") as caught:
        data_module(Mixing(), kind="classes")
    assert "Mixing.on_after_batch_transfer would not be called" in str(caught.value)
    with pytest.raises(ValueError, match=says("source.module", "a LightningDataModule", "dict")):
        data_module({})


def test_random_items_are_warned_of(caplog):
    class Noisy(Items):
        def __getitem__(self, number):
            return torch.rand(3), number % 2

    dataset(Noisy(range(20)))
    assert "source.train: examples change at random" in caplog.text


# ---- names


@pytest.mark.parametrize(
    ("kind", "targets", "classes", "twice"),
    [
        ("classification", CLASSES, ["cat", "dog", "cat"], "'cat'"),
        ("classification", CLASSES, [1, 2, "1"], "'1'"),
        ("multilabel", np.eye(3)[CLASSES], ["a", "a", "b"], "'a'"),
        ("regression", np.eye(3)[CLASSES], ["a", "b", "a"], "'a'"),
    ],
)
def test_a_name_stands_for_one_class_label_or_value(kind, targets, classes, twice, save):
    path = save("a.npz", inputs=INPUTS, targets=targets)
    with pytest.raises(ValueError, match=f"source.classes names {twice} more than once"):
        arrays(path, kind=kind, classes=classes)
    pairs = list(zip(torch.tensor(INPUTS), torch.tensor(targets), strict=True))
    with pytest.raises(ValueError, match=f"source.classes names {twice} more than once"):
        dataset(Items(pairs), kind=kind, classes=classes)


def test_names_are_a_list(save):
    with pytest.raises(ValueError, match=says("source.classes", "a list of names", value="abc")):
        arrays(save("a.npz", inputs=INPUTS, targets=CLASSES), classes="abc")


def test_an_input_has_one_name():
    items = Items([({1: torch.ones(2), "1": torch.zeros(2)}, number % 2) for number in range(10)])
    with pytest.raises(ValueError, match=r"item 0: a mapping of inputs names '1' more than once"):
        dataset(items)


# ---- nothing to learn from


@pytest.mark.parametrize("shape", [(30, 0), (30, 0, 3), (30, 3, 0, 2)])
def test_arrays_without_numbers_are_refused(shape, save):
    with pytest.raises(ValueError, match=r"a\.npz: " + says("the shape of the inputs", value=shape)):
        arrays(save("a.npz", inputs=np.zeros(shape), targets=CLASSES))
    for kind in ("multilabel", "regression"):
        with pytest.raises(ValueError, match=r"a\.npz: " + says("the shape of the targets", value=(30, 0))):
            arrays(save("a.npz", inputs=INPUTS, targets=np.zeros((30, 0))), kind=kind)
    items = Items([({"a": torch.ones(2), "b": torch.zeros(shape[1:])}, number % 2) for number in range(30)])
    with pytest.raises(ValueError, match=r"source\.train: " + says("the shape of the input 'b'", value=shape)):
        dataset(items)
