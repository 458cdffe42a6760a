"""Test that training a subnetwork is cheap: few parameters, one copy of the weights, no waiting for the device."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from msh.backbones import MLP
from msh.subnetworks import Budget, MultiSubnetwork, prune

WIDTH, INPUTS, CLASSES = 512, 784, 3
DENSITY = 0.1
WEIGHTS = INPUTS * WIDTH + WIDTH * WIDTH
PRIVATE = 2 * WIDTH + (WIDTH + 1) * CLASSES
"""A task's private values: two biases, and its head."""
LOOKS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select"}
"""Operations whose result the host must wait for."""


class Counting(TorchDispatchMode):
    """Record the names of all operations, and the largest tensor that one of them made."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        is_view = any(returned.alias_info for returned in func._schema.returns)
        if isinstance(made, torch.Tensor) and not is_view and made.is_floating_point():
            self.largest = max(self.largest, made.numel() if made.layout == torch.strided else made._nnz())
        return made


def make_network(tasks=0):
    """Make a network with this many frozen tasks."""
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((INPUTS,), width=WIDTH, depth=2))
    for task in map(str, range(tasks)):
        begin(network, task, "compact")
        network.freeze(task)
    return network


def begin(network, task, phase):
    network.add_task(task, nn.Linear(WIDTH, CLASSES))
    network.begin(task)
    if phase != "whole":
        prune(network, task, Budget(density=DENSITY).counts(network.sizes(), {}))
    if phase == "compact":
        network.compact(task)
    return network


def held_bytes(network):
    """Count the bytes in all tensors, saved or not."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def step(network, optimizer, inputs, targets):
    optimizer.zero_grad()
    F.cross_entropy(network(inputs), targets).backward()
    optimizer.step()


def counted_step(phase, earlier=0):
    network = begin(make_network(earlier), "task", phase)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    act = partial(step, network, optimizer, torch.randn(4, INPUTS), torch.tensor([0, 1, 2, 0]))
    act()  # what is made once is made
    with Counting() as counting:
        act()
    return counting


def test_a_compact_tasks_parameters_are_its_weights_and_private_tensors():
    network = begin(make_network(tasks=2), "task", "compact")
    kept = sum(Budget(density=DENSITY).counts(network.sizes(), {}).values())
    assert sum(parameter.numel() for parameter in network.parameters()) == kept + PRIVATE
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    step(network, optimizer, torch.randn(4, INPUTS), torch.tensor([0, 1, 2, 0]))
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert sum(moment.numel() for moment in moments) == 2 * (kept + PRIVATE)


def test_a_frozen_task_adds_only_its_private_tensors():
    sizes = [held_bytes(make_network(tasks)) for tasks in (0, 1, 2, 9)]
    assert [later - sizes[0] for later in sizes] == [4 * PRIVATE * tasks for tasks in (0, 1, 2, 9)]
    assert sizes[0] - 4 * (2 * WIDTH + 2) == 5 * WEIGHTS, "a weight in fp32, its owner in a byte; 2 norms, 2 biases"


def test_a_compact_step_allocates_no_layer_sized_tensor():
    assert counted_step("compact").largest < INPUTS * WIDTH / 4


@pytest.mark.parametrize("phase", ["whole", "masked", "compact"])
def test_a_step_never_waits_for_the_device(phase):
    counting = counted_step(phase)
    assert {"add", "_fused_adam_"} & set(counting.names)
    assert not LOOKS & set(counting.names)


@pytest.mark.parametrize("phase", ["masked", "compact"])
def test_a_step_costs_the_same_for_any_number_of_tasks(phase):
    alone, among = counted_step(phase), counted_step(phase, earlier=5)
    assert among.names == alone.names
    assert among.largest == alone.largest
