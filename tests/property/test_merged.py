"""Tasks trained apart on planned weights merge exactly; released values are gone."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import PRUNABLE, differences, learn, make_batch, make_head, make_network, make_optimizer, train
from msh.files.merging import merge_files, release_task, split_task
from msh.files.plans import allocation_in, make_plan_file, notes_for_tasks, start_of
from msh.files.state_file import open_safetensors, read_state, save_network, save_subnetwork
from msh.subnetworks import Allocation

TASKS = ["a", "b", "c"]


def shared_out(network, seed, tasks=TASKS):
    """Assign each weight to a random task or none: task to its allocation."""
    generator = torch.Generator().manual_seed(seed)
    draws = {name: torch.randint(0, len(tasks) + 1, w.shape, generator=generator) for name, w in network.weights()}
    return {
        task: Allocation({name: draw == i for name, draw in draws.items()}, dict.fromkeys(PRUNABLE, 1.0 + i))
        for i, task in enumerate(tasks, start=1)
    }


def learn_alone(network, task, allocation, seed, optimizer=torch.optim.Adam):
    """Train a task on its allocation, in any network that starts from the same weights."""
    network.add_task(task, head=make_head(seed))
    network.begin(task, allocation)
    network.compact(task)
    train(network, make_optimizer(optimizer, network), seed=seed)
    network.freeze(task)
    return network


def numbers_in(tensors):
    return set(torch.cat([tensor.flatten().float() for tensor in tensors]).tolist())


def numbers_of(state, task):
    """Collect a task's tensors."""
    values = [state.weights[name][mask] for name, mask in state.owned(task).items()]
    return numbers_in([*values, *state.private(task).values()])


def outputs(network, task):
    with torch.no_grad():
        return network.eval()(make_batch(7)[0], task)


@settings(max_examples=6)
@given(st.sampled_from(["none", "batch", "group"]), st.integers(0, 1000), st.permutations(TASKS))
def test_tasks_trained_apart_merge_exactly_and_in_any_order(norm, seed, order):
    start = make_network(norm, seed)
    plan = shared_out(start, seed)
    alone = {task: learn_alone(make_network(norm, seed), task, plan[task], seed + i) for i, task in enumerate(TASKS)}
    merged = start.state
    merged.take([(task, alone[task].view(task).only(task)) for task in order], merged.next_ids(TASKS))
    together = make_network(norm, seed)
    for i, task in enumerate(TASKS):
        learn_alone(together, task, plan[task], seed + i)
    together.activate(TASKS[-1])
    assert differences(merged.state_dict(), together.state_dict()) == []
    loaded = make_network(norm, seed)
    for task in TASKS:
        loaded.add_task(task, head=make_head())
    loaded.load_state_dict(merged.state_dict())
    for task, network in alone.items():
        assert torch.equal(outputs(loaded, task), outputs(network, task))
        assert loaded.digest(task) == network.digest(task)


@settings(max_examples=6)
@given(st.sampled_from(["none", "batch"]), st.integers(0, 1000), st.permutations(TASKS), st.sampled_from(TASKS))
def test_files_split_from_a_merged_network_are_those_that_were_merged(norm, seed, order, gone):
    network = make_network(norm, seed)
    start, plan = start_of(network), shared_out(network, seed)
    for task in TASKS:
        network.add_task(task, head=make_head())
        network.begin(task, plan[task])
        network.freeze(task)
    planned = make_plan_file(network.state.planned(), {"seed": seed}, (4,), start)
    with TemporaryDirectory() as name:
        folder = Path(name)
        planned.write(folder / "plan")
        for i, task in enumerate(TASKS):
            alone = learn_alone(make_network(norm, seed), task, allocation_in(planned, task), seed + i)
            save_subnetwork(folder / task, alone, task, notes=notes_for_tasks(planned))
        assert merge_files(folder / "plan", [folder / task for task in order], folder / "net") == TASKS
        merge_files(folder / "plan", [folder / task for task in reversed(order)], folder / "again")
        assert (folder / "again").read_bytes() == (folder / "net").read_bytes()
        for task in TASKS:
            split_task(folder / "net", task, folder / "split")
            assert (folder / "split").read_bytes() == (folder / task).read_bytes()
        release_task(folder / "net", gone, folder / "less")
        merge_files(folder / "plan", [folder / t for t in TASKS if t != gone], folder / "fewer", allow_missing=True)
        left, fewer = open_safetensors(folder / "less")[0], open_safetensors(folder / "fewer")[0]
        assert differences(left, fewer) == []


@settings(max_examples=6)
@given(st.sampled_from(TASKS), st.sampled_from(["none", "batch"]), st.integers(0, 1000), st.booleans())
def test_a_release_leaves_no_trace_in_the_file_and_changes_nothing_else(gone, norm, seed, free_weights):
    network = make_network(norm, seed)
    initial = numbers_in(network.backbone.buffers())
    for i, task in enumerate(TASKS):
        learn(network, task, torch.optim.Adam, seed=seed + i)
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_network(folder / "net", network, {"from": "here"}, free_weights)
        save_subnetwork(folder / "part", network, gone)
        release_task(folder / "net", gone, folder / "less")
        part, content = read_state(folder / "part", "subnetwork").state, (folder / "less").read_bytes()
        file = read_state(folder / "less", "network")
    others = [task for task in TASKS if task != gone]
    known = initial.union(*(numbers_of(network.state, task) for task in others))  # units that never fire: same biases
    numbers = numbers_of(part, gone) - known
    everywhere = {content[i : i + 4] for i in range(len(content) - 3)}
    assert len(numbers) > 20
    assert not any(torch.tensor(number).numpy().tobytes() in everywhere for number in numbers)
    assert file.notes == {"from": "here"}
    assert list(file.state.tasks) == others
    for task in others:
        before, after = (state.only(task) for state in (network.state, file.state))
        assert before.tasks[task].digest == after.tasks[task].digest
        assert differences(before.owned(task), after.owned(task)) == []
        assert differences(before.private(task), after.private(task)) == []
        assert differences(before.weights, after.weights) == []
