"""Who owns what: numbers worked out by hand, and the same as the network itself says."""

import pytest
import torch

from helpers import learn, make_network
from msh.deploy.files import save_network
from msh.reports.ownership import Owner, Ownership, read_ownership, spaced


def owned_by(*owners, reading=None, **layers):
    found = (Owner(task, place, "frozen", reads) for place, (task, reads) in enumerate(owners, start=1))
    return Ownership(tuple(found), {name: torch.tensor(ids) for name, ids in layers.items()}, reading or {})


THREE = [("a", ()), ("b", ("a",)), ("c", ("a", "b"))]
FIRST, SECOND = [[1, 1, 0], [2, 0, 3]], [[1, 2], [2, 0]]


def test_capacity_counts_each_layers_owners():
    layers = owned_by(*THREE, first=FIRST, second=SECOND).capacity
    assert [(layer.name, layer.shape, layer.owned, layer.free) for layer in layers] == [
        ("first", (2, 3), {"a": 2, "b": 1, "c": 1}, 2),
        ("second", (2, 2), {"a": 1, "b": 2, "c": 0}, 1),
    ]
    total = owned_by(*THREE, first=FIRST, second=SECOND).total
    assert (total.owned, total.free, total.size) == ({"a": 3, "b": 3, "c": 1}, 3, 10)


def test_a_task_uses_its_own_weights_and_all_of_those_that_it_reads():
    used = owned_by(*THREE, first=FIRST, second=SECOND).used
    assert used == {"a": {"a": 3}, "b": {"b": 3, "a": 3}, "c": {"c": 1, "a": 3, "b": 3}}


def test_tasks_overlap_in_what_both_use():
    assert owned_by(*THREE, first=FIRST, second=SECOND).overlap == [[3, 3, 3], [3, 6, 6], [3, 6, 7]]


def test_without_reuse_no_two_tasks_overlap():
    apart = owned_by(("a", ()), ("b", ()), first=FIRST)
    assert apart.overlap == [[2, 0], [0, 1]]


def test_tasks_that_chose_what_they_read_are_compared_weight_by_weight():
    reading = {
        "b": {"first": torch.tensor([[True, False, False], [False, False, False]])},
        "c": {"first": torch.tensor([[False, True, False], [True, False, False]])},
    }
    found = owned_by(*THREE, first=FIRST, second=SECOND, reading=reading)
    assert found.used == {"a": {"a": 3}, "b": {"b": 3, "a": 1}, "c": {"c": 1, "a": 1, "b": 1}}
    assert found.overlap == [[3, 1, 1], [1, 4, 1], [1, 1, 3]]  # b and c read different weights of a


def test_a_network_without_tasks_is_free():
    empty = owned_by(first=[[0, 0]])
    assert (empty.overlap, empty.used, empty.total.free) == ([], {}, 2)


@pytest.mark.parametrize(("size", "most", "places"), [(3, 5, [0, 1, 2]), (10, 3, [3, 6, 9]), (4, 4, [0, 1, 2, 3])])
def test_places_are_spaced_evenly_up_to_the_last(size, most, places):
    assert spaced(size, most).tolist() == places


def test_a_small_layers_picture_is_the_layer():
    picture = owned_by(*THREE, first=FIRST).picture("first")
    assert picture.ids.tolist() == FIRST
    assert picture.whole


@pytest.mark.parametrize("shape", [(1000, 64), (64, 1000), (500, 500), (3, 9000), (8, 5, 5, 5)])
def test_a_large_layers_picture_is_bounded_and_shows_weights_of_it(shape):
    torch.manual_seed(0)
    ids = torch.randint(0, 3, shape)
    picture = owned_by(*THREE, layer=ids.tolist()).picture("layer", cells=900)
    assert 450 < picture.ids.numel() <= 900
    assert not picture.whole
    assert (picture.rows, picture.columns) == (shape[0], ids[0].numel())
    rows, columns = (spaced(n, kept) for n, kept in zip(ids.flatten(1).shape, picture.ids.shape, strict=True))
    assert torch.equal(picture.ids, ids.flatten(1)[rows][:, columns])


@pytest.mark.parametrize("free_weights", [True, False])
@pytest.mark.parametrize("reuse", ["none", "all", "learned"])
def test_a_file_says_what_the_network_says(reuse, free_weights, tmp_path):
    network = make_network()
    for seed, task in enumerate("abc"):
        learn(network, task, form="scored" if reuse == "learned" else "compact", reuse=reuse, seed=seed)
    save_network(tmp_path / "network.safetensors", network, free_weights=free_weights)
    found = read_ownership(tmp_path / "network.safetensors")
    capacity = network.capacity()
    assert found.tasks == ["a", "b", "c"]
    assert found.total.owned == {task: capacity.owned_by(task) for task in "abc"}
    assert (found.total.free, found.total.size) == (capacity.free, capacity.prunable)
    for owner in found.owners:
        reads = {task: count for task, count in found.used[owner.task].items() if task != owner.task and count}
        assert reads == {task: count for task, count in network.read_counts(owner.task).items() if count}
        private = network.subnetwork(owner.task).private_tensors().values()
        assert owner.private == sum(tensor.numel() for tensor in private if tensor.is_floating_point())
    masks = {t: torch.cat([_used(network, t, n).view(-1) for n in network.names.prunable]) for t in "abc"}
    assert found.overlap == [[int((masks[i] & masks[j]).sum()) for j in "abc"] for i in "abc"]


def _used(network, task, name):
    """The weights of a layer that a task computes with, by the network's own account."""
    sub = network.subnetwork(task)
    owners = network.owners[name]
    read = torch.isin(owners, torch.tensor(sub.reads, dtype=owners.dtype))
    if dict(sub.reading.named_buffers()):
        from msh.subnetworks.tensors import unpack_bits

        read = unpack_bits(sub.reading[name], owners.shape)
    return (owners == sub.owner) | read


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "network.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"network\.safetensors is not a safetensors file, or is damaged"):
        read_ownership(tmp_path / "network.safetensors")
