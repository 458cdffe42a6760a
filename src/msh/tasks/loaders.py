"""Batches of tensors that fit in memory: taken by index, in an order that (seed, stage, epoch) alone decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from msh.tasks.augmentation import Augmentation
from msh.tasks.seeds import derive_seed
from msh.tasks.task import Split

Batch = tuple[Tensor, Tensor]
Uneven = Literal["cycle", "shortest"]
LENGTHS: dict[str, Callable[[Iterable[int]], int]] = {"cycle": max, "shortest": min}
"""Batches of an epoch from those of each task, where they train together."""


class TensorBatches(Dataset[Batch]):
    """A split that is indexed by a whole batch at a time."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> Batch:
        """(inputs (batch, ...), targets (batch, ...)) of the examples at the index, int64 (batch,)."""
        return self.split.inputs[index], self.split.targets[index]

    def __len__(self) -> int:
        return len(self.split)


class AugmentedBatches(TensorBatches):
    """The same, each example changed at random, whichever rank takes it.

    Args:
        split: of images.
        augmentation: the changes.
        sampler: that the indices come from.
    """

    def __init__(self, split: Split, augmentation: Augmentation, sampler: ShuffledBatches) -> None:
        super().__init__(split)
        self.augmentation, self.sampler = augmentation, sampler

    def __getitem__(self, index: Tensor) -> Batch:
        """As in `TensorBatches`; the index is the one that the sampler has just given."""
        inputs, targets = super().__getitem__(index)
        sampler = self.sampler
        seed = derive_seed(sampler.seed, "augment", sampler.epoch, sampler.given)
        draws = self.augmentation.draw(sampler.batch_size, seed)[sampler.rank :: sampler.world_size]
        return self.augmentation(inputs, draws), targets


def count_batches(examples: int, batch_size: int, repeat: int = 1) -> int:
    """Training batches of an epoch: one that would be smaller is left out."""
    return examples * repeat // batch_size


class ShuffledBatches(Sampler[Tensor]):
    """Training batches: a new order each epoch, a batch that would be smaller left out, shared out over ranks.

    Args:
        examples: number of examples.
        batch_size: examples per batch over all ranks, at most `examples`, a multiple of `world_size`.
        seed: decides the orders, with the epoch.
        repeat: times an epoch goes through the examples, each time in a new order.
        rank: this process.
        world_size: number of processes; each gets an equal part of every batch.

    Attributes:
        epoch: whose order comes next.
        batches: that an epoch of the examples gives.
        length: batches that an epoch is to have: with more than that, it starts again with the examples, in a new
            order; with fewer, it leaves out the rest.
        given: batches of the present epoch that were given so far.
        resumed: (epoch, batches of it that were given before the fit was stopped, and are not given again), or None.
    Raises:
        ValueError: the batch cannot be shared out evenly.
    """

    def __init__(
        self, examples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, repeat: int = 1
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size = {batch_size} cannot be shared out over {world_size} processes evenly")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.rank, self.world_size, self.repeat = rank, world_size, repeat
        self.epoch = 0
        self.batches = self.length = count_batches(examples, batch_size, repeat)
        self.given = 0
        self.resumed: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        left, done = self.length, self.resumed[1] if self.resumed and self.resumed[0] == self.epoch else 0
        self.given = done
        while left > 0:
            order = torch.cat([torch.randperm(self.examples, generator=generator) for _ in range(self.repeat)])
            batches = order.split(self.batch_size)[: min(left, len(order) // self.batch_size)]
            left -= len(batches)
            for batch in batches[done:]:
                self.given += 1
                yield batch[self.rank :: self.world_size]
            done = max(0, done - len(batches))

    def __len__(self) -> int:
        return self.length


class TrainLoader(DataLoader[Batch]):
    """A loader of `ShuffledBatches` that Lightning's checkpoints know the place of."""

    sampler: ShuffledBatches

    def state_dict(self) -> dict[str, int]:
        """How far it has come."""
        return {"epoch": self.sampler.epoch, "given": self.sampler.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.sampler.resumed = state_dict["epoch"], state_dict["given"]


class OrderedBatches(SequentialSampler):
    """Batches for measuring: every example exactly once over all ranks, in order; the last batch may be smaller.

    Ranks get as many examples each, give or take one.

    It is a `SequentialSampler`, so that Lightning's `overfit_batches` leaves it as it is.
    """

    def __init__(self, split: TensorBatches, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(split)
        self.batches = torch.arange(len(split)).tensor_split(world_size)[rank].split(batch_size)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


MEASURING_BATCH = 500
"""Examples per batch when measuring, unless the caller says so: the batch size of runs of earlier releases."""


def train_loader(
    split: Split,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    repeat: int = 1,
    augmentation: Augmentation | None = None,
) -> TrainLoader:
    """Batches to train on; see `ShuffledBatches` and `AugmentedBatches`."""
    sampler = ShuffledBatches(len(split), batch_size, seed, rank, world_size, repeat)
    batches = TensorBatches(split) if augmentation is None else AugmentedBatches(split, augmentation, sampler)
    return TrainLoader(batches, sampler=sampler, batch_size=None)


def even_out(loaders: Iterable[DataLoader[Batch]], uneven: Uneven, batches: int | None = None) -> None:
    """Give the training loaders of tasks that train together epochs of one length.

    Args:
        loaders: from `train_loader`, one for each task; others are left as they are.
        uneven: "cycle": as long as the longest, the others start again; "shortest": as short as the shortest.
        batches: the length, whatever theirs are.
    """
    samplers = [loader.sampler for loader in loaders if isinstance(loader.sampler, ShuffledBatches)]
    for sampler in samplers:
        sampler.length = LENGTHS[uneven](sampler.batches for sampler in samplers) if batches is None else batches


def measuring_loader(
    split: Split, rank: int = 0, world_size: int = 1, batch_size: int = MEASURING_BATCH
) -> DataLoader[Batch]:
    """Batches in order; see `OrderedBatches`."""
    batches = TensorBatches(split)
    return DataLoader(batches, sampler=OrderedBatches(batches, batch_size, rank, world_size), batch_size=None)
