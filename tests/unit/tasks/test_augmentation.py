"""Augmentation: changes to images, their draws, and evaluation without them."""

import pytest
import torch

from messages import says
from msh.tasks import RawData, Split, build_task
from msh.tasks.augmentation import read_augmentation
from msh.tasks.loaders import TrainLoader, measuring_loader, train_loader

SHAPE = (2, 5, 6)


def read(*changes, shape=SHAPE):
    return read_augmentation("a", list(changes), shape)


def make_images(count):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def moved(image, down, right):
    """Shift an image by indices that are clamped at its edge."""
    _, height, width = image.shape
    rows = [min(max(row + down, 0), height - 1) for row in range(height)]
    columns = [min(max(column + right, 0), width - 1) for column in range(width)]
    return image[:, rows][:, :, columns]


def test_draws_below_a_half_flip_images_left_to_right():
    images = make_images(4)
    changed = read({"flip": "horizontal"})(images, torch.tensor([[0.0], [0.49], [0.5], [0.99]]))
    assert torch.equal(changed[:2], torch.stack([image[:, :, [5, 4, 3, 2, 1, 0]] for image in images[:2]]))
    assert torch.equal(changed[2:], images[2:])


def test_shifted_images_are_filled_from_their_edge():
    images = make_images(4)
    draws = torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.5, 0.999], [0.999, 0.0]])
    changed = read({"shift": 2})(images, draws)
    for image, original, (down, right) in zip(changed, images, [(0, 0), (-2, 0), (0, 2), (2, -2)], strict=True):
        assert torch.equal(image, moved(original, down, right))


def test_every_shift_is_equally_likely():
    draws = read({"shift": 1}).draw(9000, seed=3)
    image = torch.arange(30.0).view(1, 1, 5, 6).expand(9000, -1, -1, -1)
    centres = read({"shift": 1})(image, draws)[:, 0, 2, 2]
    counts = torch.stack([(centres == 14 + 6 * down + right).sum() for down in (-1, 0, 1) for right in (-1, 0, 1)])
    assert counts.sum() == 9000
    assert ((counts > 850) & (counts < 1150)).all()


def test_changes_apply_in_order_with_separate_draws():
    images = make_images(3)
    both = read({"flip": "horizontal"}, {"shift": 1})
    draws = both.draw(3, seed=1)
    assert draws.shape == (3, 3)
    flipped = read({"flip": "horizontal"})(images, draws[:, :1])
    assert torch.equal(both(images, draws), read({"shift": 1})(flipped, draws[:, 1:]))


def make_batches(epoch=0, seed=0, rank=0, world_size=1, resumed=None):
    split = Split(make_images(8), torch.arange(8))
    loader = train_loader(split, 4, seed, rank, world_size, augmentation=read({"flip": "horizontal"}, {"shift": 2}))
    loader.sampler.set_epoch(epoch)
    if resumed:
        loader.load_state_dict(resumed)
    return list(loader)


def same(first, second):
    return all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(first, second, strict=True))


def by_example(batches):
    """Sort the images by example; the targets are the examples' numbers."""
    order = torch.cat([targets for _, targets in batches]).argsort()
    return torch.cat([inputs for inputs, _ in batches])[order]


def test_augmentation_repeats_for_an_epoch_and_differs_between_epochs():
    first = make_batches(epoch=1)
    assert same(first, make_batches(epoch=1))
    assert not torch.equal(by_example(first), by_example(make_batches(epoch=2)))
    assert not torch.equal(by_example(first), make_images(8))


def test_a_resumed_epoch_is_augmented_as_an_undisturbed_one():
    assert same(make_batches(epoch=3, resumed={"epoch": 3, "given": 1}), make_batches(epoch=3)[1:])


def test_ranks_augment_their_shares_as_a_single_process_does():
    parts = [make_batches(epoch=1, rank=rank, world_size=2) for rank in (0, 1)]
    for (inputs, targets), *halves in zip(make_batches(epoch=1), *parts, strict=True):
        for rank, (images, numbers) in enumerate(halves):
            assert torch.equal(images, inputs[rank::2])
            assert torch.equal(numbers, targets[rank::2])


def make_loaders(persistent=False):
    """Build two loaders with equal batches: without worker processes, and with two."""
    split = Split(make_images(8), torch.arange(8))
    loader = train_loader(split, 2, seed=0, augmentation=read({"flip": "horizontal"}, {"shift": 2}))
    workers = {"num_workers": 2, "persistent_workers": persistent}
    return loader, TrainLoader(loader.dataset, sampler=loader.sampler, batch_size=None, **workers)


@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_augment_as_a_single_process_does(persistent):
    alone, workers = make_loaders(persistent)
    epochs = []
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        epochs.append(list(workers))
        assert same(epochs[-1], list(alone))
    assert not torch.equal(by_example(epochs[0]), by_example(epochs[1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_epoch_resumes_after_its_last_batch(workers):
    loader = make_loaders()[bool(workers)]
    loader.sampler.set_epoch(3)
    whole = list(loader)
    batches = iter(loader)
    assert same([next(batches)], whole[:1])  # by now, worker processes have made the second batch too
    resumed = make_loaders()[bool(workers)]
    resumed.load_state_dict(loader.state_dict())
    batches = iter(resumed)
    resumed.sampler.set_epoch(3)  # Lightning does so after it has created the iterator
    assert same([next(batches)], whole[1:2])
    assert resumed.state_dict() == {"epoch": 3, "given": 2}
    assert same(list(batches), whole[2:])


def make_data(shape=SHAPE):
    inputs = torch.rand(20, *shape)
    return RawData("classification", Split(inputs, torch.arange(20) % 2), Split(inputs, torch.arange(20) % 2), 2)


def test_evaluation_images_are_not_augmented():
    task = build_task("a", make_data(), normalize="none", augment=[{"shift": 2}])
    assert task.augmentation.changes
    batches = [inputs for inputs, _ in measuring_loader(task.splits["test"])]
    assert torch.equal(torch.cat(batches), task.splits["test"].inputs[:])


def test_without_changes_there_is_no_augmentation():
    assert build_task("a", make_data(), augment=[]).augmentation is None
    assert build_task("a", make_data()).augmentation is None


@pytest.mark.parametrize(
    ("augment", "shape", "message"),
    [
        ([{"flp": "horizontal"}], SHAPE, says("a change of tasks.a.augment", "one of flip, shift", "flp", "flip")),
        ([{"flip": "up"}], SHAPE, says("tasks.a.augment.flip", "one of horizontal", "up")),
        ([{"shift": 0}], SHAPE, says("tasks.a.augment.shift", ">= 1", 0)),
        ([{"shift": True}], SHAPE, says("tasks.a.augment.shift", "a whole number", True)),
        ("flip", SHAPE, says("tasks.a.augment", value="flip")),
        ({"shift": 2}, SHAPE, says("tasks.a.augment", value={"shift": 2})),
        ([{"shift": 2, "flip": "horizontal"}], SHAPE, says("an entry of tasks.a.augment")),
        ([{"shift": 2}], (7,), says("tasks.a.augment: the input shape", value=(7,))),
    ],
)
def test_invalid_changes_are_rejected(augment, shape, message):
    with pytest.raises(ValueError, match=message):
        build_task("a", make_data(shape), augment=augment)


def test_all_invalid_changes_are_reported_together():
    with pytest.raises(ValueError, match=says("a change of tasks.a.augment")) as caught:
        read({"flp": "horizontal"}, {"shift": 0}, "flip", shape=(7,))
    assert [line.split(" must be ")[0] for line in caught.value.problems] == [
        "tasks.a.augment: the input shape",
        "a change of tasks.a.augment",
        "tasks.a.augment.shift",
        "an entry of tasks.a.augment",
    ]
