"""After any sequence of operations, owners partition the weights and frozen tasks are unchanged."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import (
    PRUNABLE,
    copy_state,
    differences,
    load_network,
    make_batch,
    make_head,
    make_network,
    make_optimizer,
    train,
)
from msh.files.state_file import read_state, save_network
from msh.subnetworks import Allocation, CapacityError
from msh.subnetworks.network import dense_values
from msh.subnetworks.regrowth import choose_regrown, move

MOST = 8
"""Most tasks in a network."""


class Machine:
    """A network and the facts that must stay true.

    Args:
        norm: of the backbone.
        seed: of the backbone and of all that is drawn.
    """

    def __init__(self, norm, seed):
        self.norm, self.seed = norm, seed
        self.network = make_network(norm, seed).train()
        self.added = 0
        self.frozen = {}
        """Task to its outputs, digest and masks when it was frozen."""

    def in_phase(self, *phases):
        return [task for task in self.network.tasks if self.network.subnetwork(task).phase in phases]

    def pick(self, choice, *phases):
        """Pick a task in these phases, or None."""
        found = self.in_phase(*phases)
        return found[choice % len(found)] if found else None

    def outputs(self, task, network=None):
        with torch.no_grad():
            return (network or self.network)(make_batch(99, 9)[0], task)

    def remember(self, task):
        self.frozen[task] = (self.outputs(task), self.network.digest(task), self.network.masks(task))

    def new_name(self):
        self.added += 1
        return f"t{self.added}"

    # ---- what can be done

    def add(self, choice):
        if len(self.network.tasks) < MOST:
            reuse = ("none", "all", "learned")[choice % 3]
            self.network.add_task(self.new_name(), head=make_head(self.seed + self.added), reuse=reuse)

    def begin(self, choice):
        if (task := self.pick(choice, "new")) is None:
            return
        generator = torch.Generator().manual_seed(self.seed + choice) if choice % 2 else None
        try:
            self.network.begin(task, generator=generator)
        except CapacityError:
            assert self.network.state.total().free == 0
            assert self.network.subnetwork(task).phase == "new"

    def learn(self, choice):
        if (task := self.pick(choice, "masked", "compact")) is None:
            return
        self.network.activate(task)
        train(self.network, make_optimizer(torch.optim.Adam, self.network), steps=1, seed=self.seed + choice)

    def restrict(self, choice):
        if (task := self.pick(choice, "masked")) is None:
            return
        generator = torch.Generator().manual_seed(choice)
        held = self.network.held(task)
        kept = {n: mask & (torch.rand(mask.shape, generator=generator) < 0.4) for n, mask in held.items()}
        self.network.restrict(task, kept)
        assert differences(self.network.held(task), kept) == []

    def compact(self, choice):
        if (task := self.pick(choice, "masked")) is None:
            return
        masks, before = self.network.masks(task), copy_state(self.network)
        try:
            self.network.compact(task)
        except CapacityError:  # a task that trained beside it was quicker
            free = self.network.free()
            assert any(bool((mask & ~free[name]).any()) for name, mask in masks.items())
            assert differences(self.network.state_dict(), before) == []
            return
        assert differences(self.network.masks(task), masks) == []

    def regrow(self, choice):
        """Replace weights; another task that is masked may lose candidates to it."""
        if (task := self.pick(choice, "compact")) is None:
            return
        before, values = self.network.masks(task), self.dense(task)
        draw = torch.Generator().manual_seed(choice)
        origins = move(self.network, task, choose_regrown(self.network, task, 0.5, generator=draw))
        after, now = self.network.masks(task), self.dense(task)
        for name, mask in after.items():
            assert int(mask.sum()) == int(before[name].sum()) == len(origins[name])
            assert torch.equal(now[name][mask & before[name]], values[name][mask & before[name]])
            assert not now[name][mask & ~before[name]].any()

    def dense(self, task):
        """Read a compact task's weights, (*shape), at its mask."""
        read = self.network.view(task).read(task)
        return {n: weight.masked_fill(read[n], 0.0) for n, weight in dense_values(self.network, task).items()}

    def freeze(self, choice):
        if (task := self.pick(choice, "compact")) is None:
            return
        self.network.eval()
        trained, digest = self.outputs(task), self.network.digest(task)
        self.network.train()
        self.network.freeze(task)
        self.remember(task)
        assert torch.equal(self.frozen[task][0], trained)
        assert self.frozen[task][1] == digest

    def release(self, choice):
        if (task := self.pick(choice, "new", "masked", "compact", "frozen")) is None:
            return
        readers, state = self.network.state.readers(task), copy_state(self.network)
        if readers:
            with pytest.raises(ValueError, match=f"task '{task}' cannot be released: '{readers[0]}'"):
                self.network.release(task)
            assert differences(self.network.state_dict(), state) == []
            return
        owned = {n: ids == self.network.subnetwork(task).owner for n, ids in self.network.owners.items()}
        free = self.network.free()
        self.network.release(task)
        self.frozen.pop(task, None)
        for name, weight in self.network.weights():
            mask, old = owned[name], state[f"backbone.{name}"]
            assert torch.equal(self.network.free()[name], free[name] | mask)
            assert torch.equal(weight[~mask], old[~mask])
            if state_phase(state, task) == "frozen":
                assert not (weight == old)[mask].any()

    def take(self, choice):
        """Train a task in another network with the same start, on weights that are free here."""
        if len(self.network.tasks) >= MOST or self.in_phase("masked"):  # whose candidates would be taken
            return
        task, generator = self.new_name(), torch.Generator().manual_seed(choice)
        free = self.network.free()
        masks = {n: mask & (torch.rand(mask.shape, generator=generator) < 0.3) for n, mask in free.items()}
        if not any(bool(mask.any()) for mask in masks.values()):
            return
        other = make_network(self.norm, self.seed)
        other.add_task(task, head=make_head(self.added))
        other.begin(task, Allocation(masks, dict.fromkeys(PRUNABLE, 1.0)))
        other.compact(task)
        train(other, make_optimizer(torch.optim.Adam, other), seed=choice)
        other.freeze(task)
        state = self.network.state
        state.take([("the other", other.view(task).only(task))])
        state.check()
        before = copy_state(self.network)
        with pytest.raises(ValueError, match="both hold task"):
            state.take([("again", other.view(task).only(task))])
        assert differences(self.network.state_dict(), before) == []
        self.network = self.rebuilt(list(state.tasks))
        self.network.load_state_dict(state.state_dict())
        self.remember(task)
        assert torch.equal(self.frozen[task][0], self.outputs(task, other))
        assert self.frozen[task][1] == other.digest(task)

    def only(self, choice):
        if (task := self.pick(choice, "frozen")) is None:
            return
        alone = self.network.view(task).only(task)
        alone.check()
        assert alone.tasks[task].digest == self.network.digest(task)
        assert differences(alone.owned(task), self.frozen[task][2]) == []
        for name, weight in self.network.weights():
            assert torch.equal(alone.weights[name], weight * self.frozen[task][2][name])

    def save_and_load(self, choice):
        with TemporaryDirectory() as name:
            path = Path(name) / "net"
            save_network(path, self.network, {"note": str(choice)})
            loaded = self.rebuilt(self.network.tasks)
            assert load_network(path, loaded) == {"note": str(choice)}
            found = read_state(path).state
        assert differences(loaded.state_dict(), self.network.state_dict()) == []
        assert found.capacity() == self.network.state.capacity()
        self.network = loaded

    def rebuilt(self, tasks):
        """Make another network with these tasks, untrained."""
        network = make_network(self.norm, 12345).train()
        for task in tasks:
            network.add_task(task, head=make_head(9))
        return network

    # ---- what must be true

    def check(self):
        network, state = self.network, self.network.state
        owners = [task for task in network.tasks if network.subnetwork(task).phase in ("compact", "frozen")]
        masks = {task: network.masks(task) for task in owners}
        free = network.free()
        for layer in state.capacity():
            holders = torch.stack([masks[task][layer.name] for task in owners] + [free[layer.name]])
            assert torch.equal(holders.sum(0), torch.ones(layer.shape, dtype=torch.int64))
            owned = {task: int(masks[task][layer.name].sum()) if task in masks else 0 for task in network.tasks}
            assert (layer.owned, layer.free) == (owned, int(free[layer.name].sum()))
        assert (state.total().size, state.total().taken + state.total().free) == (52, 52)
        assert self.in_phase("frozen") == [task for task in network.tasks if task in self.frozen]
        for task, (outputs, digest, owned) in self.frozen.items():
            assert torch.equal(self.outputs(task), outputs), task
            assert network.digest(task) == digest, task
            assert differences(masks[task], owned) == []


def state_phase(state, task):
    from msh.subnetworks.description import read_description

    return read_description(state["_extra_state"])[0][task].phase


SINGLE = ("add", "begin", "learn", "restrict", "compact", "regrow", "freeze")
WITH_FROZEN = ("release", "take", "only", "save_and_load")
LIFE = ("add", "begin", "learn", "restrict", "compact", "learn", "regrow", "learn", "freeze")
STEP = st.tuples(st.sampled_from(SINGLE), st.integers(0, 11)).map(lambda step: [step])
LATER = st.tuples(st.sampled_from(WITH_FROZEN), st.integers(0, 11)).map(lambda step: [step])
WHOLE = st.integers(0, 11).map(lambda choice: [(name, choice) for name in LIFE])


@settings(max_examples=24)
@given(
    st.sampled_from(["none", "batch"]),
    st.integers(0, 100),
    st.lists(st.one_of(STEP, LATER, LATER, WHOLE), min_size=8, max_size=16),
)
def test_any_sequence_of_operations_keeps_frozen_tasks(norm, seed, steps):
    machine = Machine(norm, seed)
    for name, choice in [step for part in steps for step in part]:
        getattr(machine, name)(choice)
        machine.check()
