"""Owners and overlaps: numbers worked out by hand, and those of the network."""

import pytest
import torch

from helpers import learn, make_network, make_state
from messages import says
from msh.files.header import holdings_in
from msh.files.state_file import read_state, save_network
from msh.runs.ownership import chosen_layers, mask_overlap, owner_matrix, spaced
from msh.subnetworks import TaskState
from msh.subnetworks.tensors import pack_bits, unpack_bits


def owned_by(*owners, reading=None, **layers):
    """A network; `reading` is task to {layer: bool (*shape)}, what it chose to read; nothing of other layers."""
    rows = []
    for i, (task, reads) in enumerate(owners, start=1):
        masks = {name: torch.zeros_like(torch.tensor(ids), dtype=torch.bool) for name, ids in layers.items()}
        chosen = masks | reading[task] if task in (reading or {}) else {}
        rows.append(TaskState(task, i, reads=reads, reading={name: pack_bits(mask) for name, mask in chosen.items()}))
    return make_state(layers, rows)


THREE = [("a", ()), ("b", ("a",)), ("c", ("a", "b"))]
FIRST, SECOND = [[1, 1, 0], [2, 0, 3]], [[1, 2], [2, 0]]


def test_capacity_counts_each_layers_owners():
    layers = owned_by(*THREE, first=FIRST, second=SECOND).capacity()
    assert [(layer.name, layer.shape, layer.owned, layer.free) for layer in layers] == [
        ("first", (2, 3), {"a": 2, "b": 1, "c": 1}, 2),
        ("second", (2, 2), {"a": 1, "b": 2, "c": 0}, 1),
    ]
    total = owned_by(*THREE, first=FIRST, second=SECOND).total()
    assert (total.owned, total.free, total.size) == ({"a": 3, "b": 3, "c": 1}, 3, 10)


def test_a_task_uses_its_own_weights_and_all_of_those_that_it_reads():
    used = owned_by(*THREE, first=FIRST, second=SECOND).holdings().used
    assert used == {"a": {"a": 3}, "b": {"b": 3, "a": 3}, "c": {"c": 1, "a": 3, "b": 3}}


def test_tasks_overlap_in_weights_that_both_use():
    assert mask_overlap(owned_by(*THREE, first=FIRST, second=SECOND)) == [[3, 3, 3], [3, 6, 6], [3, 6, 7]]


def test_without_reuse_no_two_tasks_overlap():
    apart = owned_by(("a", ()), ("b", ()), first=FIRST)
    assert mask_overlap(apart) == [[2, 0], [0, 1]]


def test_tasks_that_select_weights_to_read_are_compared_weight_by_weight():
    reading = {
        "b": {"first": torch.tensor([[True, False, False], [False, False, False]])},
        "c": {"first": torch.tensor([[False, True, False], [True, False, False]])},
    }
    found = owned_by(*THREE, first=FIRST, second=SECOND, reading=reading)
    assert found.holdings().used == {"a": {"a": 3}, "b": {"b": 3, "a": 1}, "c": {"c": 1, "a": 1, "b": 1}}
    assert mask_overlap(found) == [[3, 1, 1], [1, 4, 1], [1, 1, 3]]  # b and c read different weights of a


def test_a_network_without_tasks_is_free():
    empty = owned_by(first=[[0, 0]])
    assert (mask_overlap(empty), empty.holdings().used, empty.total().free) == ([], {}, 2)


@pytest.mark.parametrize(("size", "most", "places"), [(3, 5, [0, 1, 2]), (10, 3, [3, 6, 9]), (4, 4, [0, 1, 2, 3])])
def test_places_are_spaced_evenly_up_to_the_last(size, most, places):
    assert spaced(size, most) == places


def test_the_owner_matrix_of_a_small_layer_is_the_layer():
    assert owner_matrix(owned_by(*THREE, first=FIRST), "first").tolist() == FIRST


@pytest.mark.parametrize("shape", [(1000, 64), (64, 1000), (500, 500), (3, 9000), (8, 5, 5, 5)])
def test_the_owner_matrix_of_a_large_layer_is_a_bounded_sample(shape):
    torch.manual_seed(0)
    ids = torch.randint(0, 3, shape)
    matrix = owner_matrix(owned_by(*THREE, layer=ids.tolist()), "layer", cells=900)
    assert 450 < matrix.numel() <= 900
    rows, columns = (spaced(n, most) for n, most in zip(ids.flatten(1).shape, matrix.shape, strict=True))
    assert torch.equal(matrix, ids.flatten(1)[rows][:, columns])


@pytest.mark.parametrize("free_weights", [True, False])
@pytest.mark.parametrize("reuse", ["none", "all", "learned"])
def test_a_file_has_the_numbers_of_the_network(reuse, free_weights, tmp_path):
    network = make_network()
    for seed, task in enumerate("abc"):
        learn(network, task, form="scored" if reuse == "learned" else "compact", reuse=reuse, seed=seed)
    save_network(tmp_path / "network.safetensors", network, free_weights=free_weights)
    found = read_state(tmp_path / "network.safetensors", "network").state
    assert list(found.tasks) == ["a", "b", "c"]
    kind, header = holdings_in(tmp_path / "network.safetensors")
    assert kind == "network"
    assert same_holdings(header, found.holdings())
    assert found.capacity() == network.state.capacity()
    owned = {task: sum(int(mask.sum()) for mask in network.masks(task).values()) for task in "abc"}
    assert found.total().owned == owned
    assert (found.total().free, found.total().size) == (52 - sum(owned.values()), 52)
    used = found.holdings().used
    for task, entry in found.tasks.items():
        reads = {other: count for other, count in used[task].items() if other != task and count}
        assert reads == {other: count for other, count in network.view(task).read_counts(task).items() if count}
        private = network.subnetwork(task).private_tensors().values()
        assert entry.private_count == sum(tensor.numel() for tensor in private if tensor.is_floating_point())
    masks = {t: torch.cat([_used(network, t, n).view(-1) for n in network.names.prunable]) for t in "abc"}
    assert mask_overlap(found) == [[int((masks[i] & masks[j]).sum()) for j in "abc"] for i in "abc"]


def same_holdings(one, other):
    """Compare all counts, and the tasks without their tensors."""
    fields = ("layers", "selected", "read", "private", "used", "total")
    rows = [[(t.name, t.owner, t.phase, t.reads) for t in found.tasks.values()] for found in (one, other)]
    return rows[0] == rows[1] and all(getattr(one, name) == getattr(other, name) for name in fields)


def _used(network, task, name):
    """The weights of a layer that a task computes with, by the network's own account."""
    sub = network.subnetwork(task)
    owners = network.owners[name]
    read = torch.isin(owners, torch.tensor([network.subnetwork(other).owner for other in sub.reads]).to(owners.dtype))
    if dict(sub.reading.named_buffers()):
        read = unpack_bits(sub.reading[name], owners.shape)
    return (owners == sub.owner) | read


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "network.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"network\.safetensors is not a safetensors file, or is damaged"):
        read_state(tmp_path / "network.safetensors", "network")


# ---- layers to draw


def test_layers_are_chosen_by_number_evenly_or_by_name():
    names = [f"{i}.weight" for i in range(10)]
    assert chosen_layers(names, 4) == ["0.weight", "3.weight", "6.weight", "9.weight"]
    assert chosen_layers(names, 1) == ["0.weight"]
    assert chosen_layers(names, 0) == []
    assert chosen_layers(names[:2], 4) == names[:2]
    assert chosen_layers(names, ["2.weight", "0.weight"]) == ["2.weight", "0.weight"]
    assert chosen_layers(names, "2.weight") == ["2.weight"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [(["12.weight"], says("owner_maps", value="12.weight", meant="2.weight")), (-1, says("owner_maps", value=-1))],
)
def test_unknown_layers_and_negative_numbers_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        chosen_layers([f"{i}.weight" for i in range(3)], wanted)
