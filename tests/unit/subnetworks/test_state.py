"""Test a network as plain data, with numbers computed by hand; and allocations planned before training."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from helpers import copy_state, differences, make_mlp, make_state
from messages import says
from msh.subnetworks import Allocation, CapacityError, MultiSubnetwork, NetworkState, TaskState
from msh.subnetworks.description import read_description
from msh.subnetworks.state import read_tasks
from msh.subnetworks.tensors import pack_bits

NAME = "0.weight"


def make_square():
    """Make a network with four weights, 1 to 4, and no biases."""
    network = MultiSubnetwork(make_mlp(2, 2, bias=False))
    network.backbone[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    network.initial_norms.set(NAME, torch.tensor(30.0).sqrt())
    return network


def allocation(*places, norm):
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(places)] = True
    return Allocation({NAME: mask.view(2, 2)}, {NAME: norm})


def make_alone(task, *places, norm):
    """Make a state with one frozen task, which owns these flat indices."""
    network = make_square()
    network.add_task(task)
    network.begin(task, allocation(*places, norm=norm))
    network.freeze(task)
    return network.view(task).only(task)


def make_planned():
    """Make the square with the first two weights planned for "a", the last for "b"."""
    network = make_square()
    for task, places, norm in (("a", (0, 1), 5.0), ("b", (3,), 8.0)):
        network.add_task(task)
        network.begin(task, allocation(*places, norm=norm))
        network.freeze(task)
    return network.state.planned()


def make_pair():
    """Make eight weights and two tasks: b reads one weight of a, and has head 7."""
    read = {"first": pack_bits(torch.tensor([[True, False], [False, False]]))}
    read["second"] = pack_bits(torch.zeros(2, 2, dtype=torch.bool))
    return NetworkState(
        weights={
            "first": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            "second": torch.tensor([[5.0, 6.0], [7.0, 8.0]]),
        },
        owners={
            "first": torch.tensor([[1, 1], [0, 2]], dtype=torch.uint8),
            "second": torch.tensor([[2, 0], [0, 0]], dtype=torch.uint8),
        },
        norms={"first": torch.tensor(5.0), "second": torch.tensor(6.0)},
        defaults={"bias": torch.tensor([0.5])},
        tasks={
            "a": TaskState("a", 1, private={"private.bias": torch.tensor([9.0])}),
            "b": TaskState("b", 2, reads=("a",), reading=read, private={"head.weight": torch.tensor([7.0])}),
        },
        active="b",
        buffers=("bias",),
    )


def rows(state):
    return [(entry.name, entry.owner, entry.phase) for entry in state.tasks.values()]


def snapshot(state):
    """Copy a whole state."""
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in state.state_dict().items()}


# ---- who owns what


def test_owners_partition_the_weights():
    state = make_pair()
    assert {n: m.int().tolist() for n, m in state.owned("a").items()} == {
        "first": [[1, 1], [0, 0]],
        "second": [[0, 0], [0, 0]],
    }
    assert state.owned("b")["second"].tolist() == [[True, False], [False, False]]
    assert {n: m.int().tolist() for n, m in state.free().items()} == {
        "first": [[0, 0], [1, 0]],
        "second": [[0, 1], [1, 1]],
    }
    assert state.sizes() == {"first": 4, "second": 4}


def test_capacity_is_counted_by_layer_and_together():
    state = make_pair()
    assert [(c.name, c.shape, c.owned, c.free, c.taken, c.size) for c in state.capacity()] == [
        ("first", (2, 2), {"a": 2, "b": 1}, 1, 3, 4),
        ("second", (2, 2), {"a": 0, "b": 1}, 3, 1, 4),
    ]
    total = state.total()
    assert (total.owned, total.free, total.taken, total.size, total.shape) == ({"a": 2, "b": 2}, 4, 4, 8, (8,))


def test_a_padding_row_is_neither_owned_nor_free():
    state = make_state({"table": [[0, 0], [1, 0], [0, 0]]}, [TaskState("a", 1)])
    state.padding = {"table": 0}
    assert state.free()["table"].tolist() == [[False, False], [False, True], [True, True]]
    assert state.sizes() == {"table": 4}
    assert (state.total().owned, state.total().free) == ({"a": 1}, 3)


def test_readers_and_their_reads_are_counted():
    state = make_pair()
    assert (state.readers("a"), state.readers("b")) == (["b"], [])
    assert state.read_counts("b") == {"a": 1}
    assert state.read("b")["first"].int().tolist() == [[1, 0], [0, 0]]
    assert state.held("b")["first"].int().tolist() == [[1, 0], [0, 1]]
    state.tasks["b"].reading = {}
    assert state.read_counts("b") == {"a": 2}
    assert state.read("b")["first"].int().tolist() == [[1, 1], [0, 0]]
    assert state.held("b")["first"].int().tolist() == [[0, 0], [0, 1]]


def test_a_task_computes_with_owned_and_read_weights():
    state = make_pair()
    assert state.weight("a", "first").tolist() == [[1, 2], [0, 0]]
    assert state.weight("b", "first").tolist() == [[1, 0], [0, 4]]
    assert state.weight("b", "second").tolist() == [[5, 0], [0, 0]]


def test_a_masked_and_a_compact_task_compute_with_their_values():
    state = make_pair()
    masks = {"first": torch.tensor([[False, False], [True, True]]), "second": torch.zeros(2, 2, dtype=torch.bool)}
    values = {"first": torch.tensor([[0.0, 0.0], [30.0, 40.0]]), "second": torch.zeros(2, 2)}
    state.tasks["b"] = replace(state.tasks["b"], phase="masked", masks=masks, values=values)
    assert state.weight("b", "first").tolist() == [[1, 0], [30, 40]]
    assert state.owned("b")["first"].tolist() == masks["first"].tolist()
    values = {"first": torch.tensor([-4.0]), "second": torch.tensor([-5.0])}
    state.tasks["b"] = replace(state.tasks["b"], phase="compact", masks={}, values=values)
    assert state.weight("b", "first").tolist() == [[1, 0], [0, -4]]


def test_private_tensors_include_unchanged_buffers():
    state = make_pair()
    assert {name: tensor.tolist() for name, tensor in state.private("a").items()} == {"private.bias": [9.0]}
    assert {name: tensor.tolist() for name, tensor in state.private("b").items()} == {
        "private.bias": [0.5],
        "head.weight": [7.0],
    }


def test_the_digest_covers_weights_indices_reading_and_private_tensors():
    sha = hashlib.sha256()
    state = make_pair()
    first = [torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[False, False], [False, True]])]
    second = [torch.tensor([[5.0, 0.0], [0.0, 0.0]]), torch.tensor([[True, False], [False, False]])]
    for name, tensors in (("first", first), ("second", second)):
        for tensor in (name, *tensors, state.tasks["b"].reading[name]):
            sha.update(tensor.encode() if isinstance(tensor, str) else tensor.numpy().tobytes())
    for name, value in (("private.bias", 0.5), ("head.weight", 7.0)):
        sha.update(name.encode() + torch.tensor([value]).numpy().tobytes())
    assert state.digest("b") == sha.hexdigest()


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (lambda state: state.weights["first"][1, 0].add_(1), ""),  # free
        (lambda state: state.weights["first"][0, 1].add_(1), "a"),
        (lambda state: state.weights["first"][0, 0].add_(1), "ab"),  # b reads it
        (lambda state: state.weights["second"][0, 0].add_(1), "b"),
        (lambda state: state.tasks["b"].private["head.weight"].add_(1), "b"),
        (lambda state: state.defaults["bias"].add_(1), "b"),  # a has its own
        (lambda state: state.tasks["b"].reading.clear(), "b"),
    ],
)
def test_a_digest_changes_only_with_tensors_that_decide_the_outputs(change, changes):
    state = make_pair()
    before = {task: state.digest(task) for task in "ab"}
    change(state)
    assert [task for task in "ab" if state.digest(task) != before[task]] == list(changes)


def test_an_unknown_task_is_named_with_the_nearest():
    state = make_state({"x": [[1, 2]]}, [TaskState("wine", 1), TaskState("iris", 2)])
    for ask in (state.task, state.owned, state.release, state.only, state.read_counts):
        with pytest.raises(ValueError, match=says("task", "one of wine, iris", "wnie", "wine")):
            ask("wnie")


def test_a_view_has_the_named_tasks_and_those_they_read():
    network = make_square()
    for place, (task, reuse) in enumerate([("a", "none"), ("b", "none"), ("c", "all")]):
        network.add_task(task, reuse=reuse)
        network.begin(task, allocation(place, norm=1.0))
        network.freeze(task)
    assert list(network.view("a").tasks) == ["a"]
    assert list(network.view("c").tasks) == ["c", "a", "b"]
    assert list(network.state.tasks) == ["a", "b", "c"]
    assert network.view("c").digest("c") == network.state.digest("c") == network.digest("c")


# ---- allocations


def test_a_task_begins_with_its_allocation_at_the_planned_norm():
    network = make_square()
    network.add_task("a")
    network.begin("a", allocation(2, 3, norm=10.0))
    assert torch.equal(network.masks("a")[NAME], torch.tensor([[False, False], [True, True]]))
    assert torch.allclose(network.subnetwork("a").values[NAME], torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    network.compact("a")
    assert [parameter.numel() for parameter in network.parameters()] == [2]


def test_other_tasks_do_not_change_a_planned_tasks_start():
    alone, second = make_square(), make_square()
    second.add_task("other")
    second.begin("other", allocation(0, 1, norm=7.0))
    second.freeze("other")
    for network in (alone, second):
        network.add_task("a")
        network.begin("a", allocation(3, norm=5.0))
    assert torch.equal(alone.subnetwork("a").values[NAME], second.subnetwork("a").values[NAME])


def test_an_allocation_that_another_task_owns_is_refused_before_anything_changes():
    network = make_square()
    network.add_task("a")
    network.begin("a", allocation(0, 1, norm=1.0))
    network.freeze("a")
    network.add_task("b")
    before = copy_state(network)
    with pytest.raises(CapacityError, match=r"task 'b': other tasks own 1 .* layer '0\.w"):
        network.begin("b", allocation(1, 2, norm=1.0))
    with pytest.raises(CapacityError, match="task 'b' has nothing to train"):
        network.begin("b", allocation(norm=1.0))
    assert differences(network.state_dict(), before) == []


def test_a_planned_state_has_owners_and_norms_and_no_values():
    planned = make_planned()
    assert rows(planned) == [("a", 1, "planned"), ("b", 2, "planned")]
    assert planned.owners[NAME].tolist() == [[1, 1], [0, 2]]
    assert planned.weights[NAME].tolist() == [[0, 0], [0, 0]]
    assert planned.tasks["a"].norms == pytest.approx({NAME: 5.0})
    assert planned.tasks["b"].norms == {NAME: 8.0}
    assert (planned.total().owned, planned.total().free) == ({"a": 2, "b": 1}, 1)
    assert planned.active is None
    planned.check()


# ---- tasks in and out


def test_a_single_task_has_id_1_its_weights_and_the_names_it_reads():
    state = make_pair()
    alone = state.only("b")
    assert rows(alone) == [("b", 1, "frozen")]
    assert {n: o.tolist() for n, o in alone.owners.items()} == {"first": [[0, 0], [0, 1]], "second": [[1, 0], [0, 0]]}
    assert {n: w.tolist() for n, w in alone.weights.items()} == {"first": [[0, 0], [0, 4]], "second": [[5, 0], [0, 0]]}
    entry = alone.tasks["b"]
    assert (entry.reads, entry.digest) == (("a",), state.digest("b"))
    assert {n: t.tolist() for n, t in entry.private.items()} == {"private.bias": [0.5], "head.weight": [7.0]}
    assert alone.read("b")["first"].tolist() == [[True, False], [False, False]]
    alone.weights["first"].zero_()
    alone.owners["first"].zero_()
    assert state.weights["first"].tolist() == [[1, 2], [3, 4]]
    assert state.owners["first"].tolist() == [[1, 1], [0, 2]]


@pytest.mark.parametrize("phase", ["planned", "new", "masked", "compact"])
def test_only_a_frozen_task_is_copied_out(phase):
    state = make_state({"x": [[1]]}, [TaskState("a", 1, phase)])
    with pytest.raises(ValueError, match=f"task 'a' is {phase}: only a frozen task has a file"):
        state.only("a")


def test_taken_tasks_lie_side_by_side():
    network = make_square()
    state = network.state
    before = snapshot(state)
    parts = [("file b", make_alone("b", 3, norm=8.0)), ("file a", make_alone("a", 0, 1, norm=5.0**0.5 * 2))]
    state.take(parts, {"a": 1, "b": 2})
    assert torch.allclose(state.weights[NAME], torch.tensor([[2.0, 4.0], [3.0, 8.0]]))
    assert state.owners[NAME].tolist() == [[1, 1], [0, 2]]
    assert rows(state) == [("a", 1, "frozen"), ("b", 2, "frozen")]
    assert state.active == "b"
    assert [entry.digest for entry in state.tasks.values()] == [None, None]  # it is what it is now
    assert differences(snapshot(network.state), before) == []  # whose tensors it had


def test_ids_beyond_a_byte_widen_the_owner_map():
    part = make_alone("b", 3, norm=8.0)
    state = make_square().state
    state.take([("file", part)], {"b": 300})
    assert state.owners[NAME].dtype == torch.int16
    assert state.owners[NAME].tolist() == [[0, 0], [0, 300]]
    network = make_square()
    network.add_task("b")
    network.load_state_dict(state.state_dict())
    assert network.digest("b") == part.tasks["b"].digest
    state = make_square().state
    state.take([("f", part)], {"b": 254})
    assert state.owners[NAME].element_size() == 1


def test_unused_ids_are_assigned_in_name_order():
    state = make_square().state
    state.take([("file", make_alone("x", 3, norm=8.0))], {"x": 2})
    assert state.next_ids(["c", "a", "b"]) == {"a": 1, "b": 3, "c": 4}
    assert state.next_ids(["c", "x"]) == {"c": 1, "x": 2}
    state.take([("file", make_alone("a", 0, norm=8.0))])
    assert rows(state) == [("x", 2, "frozen"), ("a", 1, "frozen")]


def test_a_planned_task_gets_its_values_and_a_missing_one_is_released():
    state = make_planned()
    state.take([("file", make_alone("b", 3, norm=8.0))])
    assert rows(state) == [("a", 1, "planned"), ("b", 2, "frozen")]
    assert state.weights[NAME].tolist() == [[0, 0], [0, 8]]
    assert state.owners[NAME].tolist() == [[1, 1], [0, 2]]
    state.release("a")
    assert rows(state) == [("b", 2, "frozen")]
    assert state.owners[NAME].tolist() == [[0, 0], [0, 2]]
    assert state.weights[NAME].tolist() == [[0, 0], [0, 8]]  # a planned task has no values to overwrite
    state.check()


def other_backbone():
    return MultiSubnetwork(make_mlp(3, 2, bias=False))


def wider():
    network = other_backbone()
    network.add_task("c")
    network.begin("c")
    network.freeze("c")
    return network.view("c").only("c")


def rounded():
    part = make_alone("c", 2, norm=1.0 / 3)
    return replace(part, weights={name: weight.half().float() for name, weight in part.weights.items()})


def of_half():
    part = make_alone("c", 2, norm=1.0)
    return replace(part, weights={name: weight.half() for name, weight in part.weights.items()})


def reader_of_nobody():
    part = make_alone("c", 2, norm=1.0)
    return replace(part, tasks={"c": replace(part.tasks["c"], reads=("nobody",))})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_alone("b", 2, norm=1.0), "file: task 'b' owns other weights of layer '0.weight' than planned"),
        (
            lambda: make_alone("c", 1, 2, norm=1.0),
            r"the plan \(task 'a'\) and file \(task 'c'\) own the same weights, 1 o",
        ),
        (
            lambda: make_alone("x", 3, norm=1.0),
            r"the plan \(task 'b'\) and file \(task 'x'\) own the same weights, 1 o",
        ),
        (wider, r"file: task 'c' was trained with another backbone: its '0.weight' has shape \(2, 3\), .* \(2, 2\)"),
        (rounded, "file: task 'c' differs from its digest: .*rounded"),
        (of_half, "file: task 'c' has weights of torch.float16, and the network of torch.float32"),
        (reader_of_nobody, "file: task 'c' reads task 'nobody'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(make, message):
    state = make_planned()
    before, parts = snapshot(state), [("first", make_alone("a", 0, 1, norm=5.0)), ("file", make())]
    if "task 'a'" in message:
        parts.pop(0)
    with pytest.raises(ValueError, match=message):
        state.take(parts)
    assert differences(snapshot(state), before) == []


def test_a_duplicate_task_is_refused_with_both_labels():
    state = make_square().state
    part = make_alone("a", 0, norm=1.0)
    with pytest.raises(ValueError, match="one and two both hold task 'a'"):
        state.take([("one", part), ("two", part)])
    assert rows(state) == []
    state.take([("one", part)])
    with pytest.raises(ValueError, match="the network and two both hold task 'a'"):
        state.take([("two", part)])
    assert rows(state) == [("a", 1, "frozen")]


def test_a_reading_task_is_taken_with_the_read_one_in_any_order():
    network = make_square()
    for task, place, reuse in (("a", 0, "none"), ("b", 3, "all")):
        network.add_task(task, reuse=reuse)
        network.begin(task, allocation(place, norm=2.0))
        network.freeze(task)
    parts = [(task, network.view(task).only(task)) for task in "ab"]
    for order in (parts, parts[::-1]):
        state = make_square().state
        state.take(order)
        assert [state.digest(task) for task in "ab"] == [network.digest(task) for task in "ab"]
        assert (state.readers("a"), state.weight("b", NAME).tolist()) == (["b"], [[2, 0], [0, 2]])
    state = make_square().state
    state.take([("other", make_alone("a", 0, norm=3.0))])
    with pytest.raises(ValueError, match="b: task 'b' differs from its digest"):
        state.take(parts[1:])
    assert rows(state) == [("a", 1, "frozen")]


def test_released_weights_are_free_and_overwritten():
    parts = [("a", make_alone("a", 0, 1, norm=1.0)), ("b", make_alone("b", 3, norm=8.0))]
    state = make_square().state
    state.take(parts, {"a": 1, "b": 2})
    network = make_square()
    for task in ("a", "b"):
        network.add_task(task)
    network.load_state_dict(state.state_dict())
    before = state.weights[NAME].clone()
    state.release("b")
    assert rows(state) == [("a", 1, "frozen")]
    assert state.active is None
    assert state.owners[NAME].tolist() == [[1, 1], [0, 0]]
    assert state.weights[NAME][1, 1] != 8.0
    assert torch.equal(state.weights[NAME].flatten()[:3], before.flatten()[:3])
    network.release("b")
    assert differences(network.state_dict(), state.state_dict()) == []


def test_a_task_that_others_read_is_not_released():
    state = make_pair()
    before = snapshot(state)
    with pytest.raises(ValueError, match="task 'a' cannot be released: 'b' read its weights"):
        state.release("a")
    assert differences(snapshot(state), before) == []
    state.release("b")
    state.release("a")
    assert (state.total().free, rows(state)) == (8, [])


# ---- as a state dict, and checked


def test_tasks_come_back_from_a_state_dict():
    state = make_pair()
    tasks, active = read_tasks(state.state_dict())
    loaded = replace(state, tasks=tasks, active=active)
    assert differences(loaded.state_dict(), state.state_dict()) == []
    assert (list(tasks), active) == (["a", "b"], "b")
    assert {task: loaded.read_counts(task) for task in "ab"} == {"a": {}, "b": {"a": 1}}
    assert loaded.digest("b") == state.digest("b")
    prefixed = {f"net.{key}": value for key, value in state.state_dict().items()}
    tasks, active = read_tasks(prefixed, "net.")
    assert differences(replace(state, tasks=tasks, active=active).state_dict(), state.state_dict()) == []


def test_a_tensor_of_unknown_kind_is_refused():
    state = make_pair().state_dict()
    with pytest.raises(ValueError, match=r"task 'a' .*'momentum\.first'"):
        read_tasks(state | {"subnetworks.a.momentum.first": torch.zeros(1)})


def test_a_network_and_its_state_have_the_same_state_dict_in_every_phase():
    network = make_square()
    for task, place in (("frozen", 0), ("compact", 1), ("masked", 2)):
        network.add_task(task, head=torch.nn.Linear(2, 1))
        network.begin(task, allocation(place, norm=2.0))
        if task != "masked":
            network.compact(task)
        if task == "frozen":
            network.freeze(task)
    network.add_task("new", reuse="learned")
    tasks, _ = read_tasks(network.state_dict())
    state = replace(network.state, tasks=tasks)
    assert rows(state) == [
        ("frozen", 1, "frozen"),
        ("compact", 2, "compact"),
        ("masked", 3, "masked"),
        ("new", 4, "new"),
    ]
    assert differences(state.state_dict(), network.state_dict()) == []
    assert differences(network.state.state_dict(), network.state_dict()) == []
    for task in ("frozen", "compact", "masked"):
        assert state.digest(task) == network.digest(task)
    state.check()


def test_descriptions_of_version_2_name_read_tasks_by_id():
    text = {"version": 2, "active": None, "tasks": []}
    for owner, (task, reads) in enumerate([("a", []), ("b", [1]), ("c", [1, 2])], start=1):
        text["tasks"].append({"task": task, "owner": owner, "reads": reads, "phase": "frozen", "kept": {}})
    tasks, active = read_description(json.dumps(text))
    assert {name: entry.reads for name, entry in tasks.items()} == {"a": (), "b": ("a",), "c": ("a", "b")}
    assert active is None
    text["tasks"][1]["reads"] = [9]
    with pytest.raises(ValueError, match="task 'b' reads 9"):
        read_description(json.dumps(text))


@pytest.mark.parametrize("owner", [0, 2**20])
def test_an_id_that_would_take_much_memory_is_refused(owner):
    row = {"task": "a", "owner": owner, "reads": [], "phase": "frozen", "kept": {}}
    with pytest.raises(ValueError, match="owner"):
        read_description(json.dumps({"version": 3, "active": None, "tasks": [row]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.weights.pop("first"), "layer 'first' has owners of shape"),
        (lambda s: s.weights.update(first=torch.zeros(3)), "layer 'first' has owners of shape"),
        (lambda s: s.weights.update(first=torch.zeros(2, 2, dtype=torch.int64)), "weights of torch.int64"),
        (lambda s: s.owners.update(first=s.owners["first"].long()), "owners of torch.int64"),
        (lambda s: s.owners["first"].fill_(3), "layer 'first' has owners that are no task's"),
        (lambda s: s.norms.update(first=torch.tensor(float("nan"))), "layer 'first' .*initial norm"),
        (lambda s: s.norms.update(first=torch.ones(1)), "layer 'first' .*initial norm"),
        (lambda s: s.padding.update(first=2), "layer 'first' has no row 2"),
        (lambda s: s.padding.update(third=0), "'third' .*padding.*missing"),
        (lambda s: s.tied.update(again="third"), "'third' .*tied.*missing"),
        (lambda s: setattr(s, "buffers", ("mean",)), "'mean' .*buffer.*missing"),
        (lambda s: setattr(s, "shared", ("mean",)), "'mean' .*shared.*missing"),
        (lambda s: s.tasks["b"].reading.pop("second"), "task 'b' .*lacks reading"),
        (lambda s: s.tasks["b"].reading.update(first=torch.zeros(1)), "task 'b'.*no mask.*'first'"),
        (lambda s: s.tasks["b"].reading.update(third=torch.zeros(1)), "task 'b'.*no mask.*'third'"),
        (lambda s: setattr(s.tasks["b"], "phase", "masked"), "task 'b' is masked, and lacks values"),
        (lambda s: setattr(s.tasks["b"], "phase", "compact"), "task 'b' is compact, and lacks values"),
        (lambda s: setattr(s.tasks["b"], "phase", "planned"), "task 'b' is planned, and lacks norms"),
        (lambda s: s.tasks["b"].private.update({"momentum.x": torch.zeros(1)}), r"task 'b' .*'momentum\.x'"),
        (
            lambda s: s.tasks["b"].blocks.update(third=(1, 1)),
            r"task 'b' has blocks of .* in 'third', of shape \(\)",
        ),
        (lambda s: s.tasks["b"].blocks.update(first=(1, 10**6)), r"task 'b' has blocks of \(1, 1000000\) in 'first'"),
        (lambda s: setattr(s.tasks["b"], "name", "../b"), says("task name", value="../b")),
    ],
)
def test_a_state_whose_parts_do_not_fit_is_refused(change, message):
    state = make_pair()
    state.check()
    change(state)
    with pytest.raises(ValueError, match=message):
        state.check()


@pytest.mark.parametrize("size", [[0, 1], [1], [1, 1, 1], [1.5, 1], "1"])
def test_a_description_with_impossible_blocks_is_refused(size):
    described = json.loads(make_pair().describe())
    described["tasks"][0]["blocks"] = {"first": size}
    with pytest.raises(ValueError, match="blocks"):
        read_description(json.dumps(described))


def test_blocks_are_described():
    state = make_pair()
    state.tasks["b"].blocks["first"] = (2, 1)
    tasks, _ = read_description(state.describe())
    assert tasks["b"].blocks == {"first": (2, 1)}
    assert tasks["a"].blocks == {}


def test_a_network_with_another_layout_in_memory_is_merged():
    def made(task, odd):
        torch.manual_seed(0)
        backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten())
        network = MultiSubnetwork(backbone).to(memory_format=torch.channels_last)
        network.add_task(task)
        mask = (torch.arange(216) % 2 == odd).view(8, 3, 3, 3)
        network.begin(task, Allocation({NAME: mask}, {NAME: 1.0}))
        network.freeze(task)
        return network

    state, other = made("a", 0).state, made("b", 1)
    state.take([("b", other.state)])
    assert torch.equal(state.weight("b", NAME), other.state.weight("b", NAME))


@pytest.mark.parametrize("mask", [torch.ones(1, 2, dtype=torch.bool), None])
def test_an_allocation_that_does_not_fit_is_refused(mask):
    network = make_square()
    network.add_task("a")
    what = "has another shape" if mask is not None else "no mask is allocated"
    with pytest.raises(ValueError, match=what):
        network.begin("a", Allocation({} if mask is None else {NAME: mask}, {NAME: 1.0}))
    assert network.subnetwork("a").phase == "new"
