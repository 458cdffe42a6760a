"""Batch tensors that fit in memory: by index, in an order that (seed, stage, epoch) alone determine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from msh.errors import invalid
from msh.tasks.augmentation import Augmentation
from msh.tasks.lazy import rows_at
from msh.tasks.options import Uneven
from msh.tasks.seeds import derive_seed
from msh.tasks.task import Split

Batch = tuple[Tensor, Tensor]
LENGTHS: dict[str, Callable[[Iterable[int]], int]] = {"cycle": max, "shortest": min}
"""Batches per epoch, from each task's own number, where tasks train together."""


class TensorBatches(Dataset[Batch]):
    """A split indexed by a whole batch at a time."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> Batch:
        """Return (inputs (batch, ...), targets (batch, ...)) for an index, int64 (batch,)."""
        return rows_at(self.split.inputs, index), rows_at(self.split.targets, index)

    def __len__(self) -> int:
        return len(self.split)


class AugmentedBatches(TensorBatches):
    """A split of images, each changed by the draws that come with its index.

    It holds no random state, so batches do not depend on the process that makes them, or on when it does.

    Args:
        split: images.
        augmentation: the changes.
    """

    def __init__(self, split: Split, augmentation: Augmentation) -> None:
        super().__init__(split)
        self.augmentation = augmentation

    def __getitem__(self, index: tuple[Tensor, Tensor]) -> Batch:  # type: ignore[override]
        """Return a batch as `TensorBatches` does; the index is (rows (batch,), draws (batch, draws))."""
        rows, draws = index
        inputs, targets = super().__getitem__(rows)
        return self.augmentation(inputs, draws), targets


def count_batches(examples: int, batch_size: int, repeat: int = 1) -> int:
    """Count an epoch's training batches; a smaller last batch is dropped."""
    return examples * repeat // batch_size


@dataclass(eq=False)
class ShuffledBatches(Sampler[Any]):
    """Indices of full training batches, in a new order each epoch, shared among ranks.

    An index is int64 (batch,); with augmentation, a pair: the index, and draws (batch, draws).

    Attributes:
        examples: number of examples.
        batch_size: examples per batch over all ranks, at most `examples`, a multiple of `world_size`.
        seed: determines orders and draws, with the epoch.
        rank: this process.
        world_size: number of processes; each gets an equal part of every batch.
        repeat: passes through the examples per epoch, each in a new order.
        augmentation: if given, draws accompany the indices.
        epoch: the next order's epoch.
        resumed: (epoch, batches finished before the fit was stopped, which are skipped), or None.
        batches: full batches in an epoch of the examples.
        length: batches per epoch; if more, it restarts with the examples in a new order; if fewer, it drops the rest.
    Raises:
        ValueError: ranks cannot share the batch evenly.
    """

    examples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    repeat: int = 1
    augmentation: Augmentation | None = None
    epoch: int = field(default=0, init=False)
    resumed: tuple[int, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise invalid("batch_size", f"a multiple of {self.world_size}, the number of processes", self.batch_size)
        self.batches = self.length = count_batches(self.examples, self.batch_size, self.repeat)

    def set_epoch(self, epoch: int) -> None:
        """Choose the next order's epoch; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        epoch, skipped = self.epoch, self.skipped
        share = slice(self.rank, None, self.world_size)
        for number, rows in enumerate(islice(self._shuffled(epoch), self.length), 1):
            if number <= skipped:
                continue
            if self.augmentation is None:
                yield rows[share]
            else:
                seed = derive_seed(self.seed, "augment", epoch, number)
                yield rows[share], self.augmentation.draw(self.batch_size, seed)[share]

    def _shuffled(self, epoch: int) -> Iterator[Tensor]:
        """Yield full batches over all ranks, int64 (batch_size,), without end."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        while True:
            order = torch.cat([torch.randperm(self.examples, generator=generator) for _ in range(self.repeat)])
            yield from order.split(self.batch_size)[: self.batches]

    @property
    def skipped(self) -> int:
        """Batches of this epoch that were finished before the fit was stopped."""
        return self.resumed[1] if self.resumed and self.resumed[0] == self.epoch else 0

    def __len__(self) -> int:
        return self.length


class TrainLoader(DataLoader[Batch]):
    """A loader of `ShuffledBatches` whose position Lightning's checkpoints store.

    It counts the batches that it returned: with worker processes, the sampler is ahead of them.
    """

    sampler: ShuffledBatches
    returned = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Resuming, Lightning calls this before it sets the epoch; worker processes start at once, so must wait for it
        return self._counted(None if self.num_workers else super().__iter__())

    def _counted(self, batches: Iterator[Batch] | None) -> Iterator[Batch]:
        self.returned = self.sampler.skipped
        for batch in super().__iter__() if batches is None else batches:
            self.returned += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position: epoch, and batches returned."""
        return {"epoch": self.sampler.epoch, "given": self.returned}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume at a position."""
        self.sampler.resumed = state_dict["epoch"], state_dict["given"]


class OrderedBatches(SequentialSampler):
    """Indices of evaluation batches: every example once over all ranks, in order; the last batch may be smaller.

    Ranks get equally many examples, give or take one. As a `SequentialSampler`, it survives Lightning's
    `overfit_batches`.
    """

    def __init__(self, split: TensorBatches, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(split)
        self.batches = torch.arange(len(split)).tensor_split(world_size)[rank].split(batch_size)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


MEASURING_BATCH = 500
"""Default examples per evaluation batch: the batch size of earlier releases' runs."""


def train_loader(
    split: Split,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    repeat: int = 1,
    augmentation: Augmentation | None = None,
) -> TrainLoader:
    """Load training batches; see `ShuffledBatches` and `AugmentedBatches`."""
    sampler = ShuffledBatches(len(split), batch_size, seed, rank, world_size, repeat, augmentation)
    batches = TensorBatches(split) if augmentation is None else AugmentedBatches(split, augmentation)
    return TrainLoader(batches, sampler=sampler, batch_size=None)


def even_out(loaders: Iterable[DataLoader[Batch]], uneven: Uneven, batches: int | None = None) -> None:
    """Give training loaders of tasks that train together epochs of equal length.

    Args:
        loaders: from `train_loader`, one per task; others stay unchanged.
        uneven: "cycle": as long as the longest, the others restart; "shortest": as short as the shortest.
        batches: the length, regardless of theirs.
    """
    samplers = [loader.sampler for loader in loaders if isinstance(loader.sampler, ShuffledBatches)]
    for sampler in samplers:
        sampler.length = LENGTHS[uneven](sampler.batches for sampler in samplers) if batches is None else batches


def measuring_loader(
    split: Split, rank: int = 0, world_size: int = 1, batch_size: int = MEASURING_BATCH
) -> DataLoader[Batch]:
    """Load evaluation batches in order; see `OrderedBatches`."""
    batches = TensorBatches(split)
    return DataLoader(batches, sampler=OrderedBatches(batches, batch_size, rank, world_size), batch_size=None)
