"""Test that network and subnetwork files are restored, and refused where they do not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers import PRUNABLE, differences, learn, live, load_network, make_batch, make_head, make_mlp, make_network
from msh.files import state_file
from msh.files.header import task_names
from msh.files.state_file import open_safetensors, read_state, save_network, save_subnetwork
from msh.subnetworks import Budget, MultiSubnetwork, prune


def make_learned(norm="batch", reuse="none"):
    """Make a network with two frozen tasks."""
    network = make_network(norm)
    learn(network, "old")
    learn(network, "new", form="scored" if reuse == "learned" else "compact", reuse=reuse, seed=1)
    return network


def make_empty(norm="batch", tasks=("old", "new"), seed=9):
    """Make another network with the same tasks, untrained."""
    network = make_network(norm, seed)
    for task in tasks:
        network.add_task(task, head=make_head(seed))
    return network


# ---- networks


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("until", ["begun", "pruned", "compacted", "trained", "frozen"])
def test_a_network_in_any_phase_is_restored_bitwise(until, norm, tmp_path):
    network = make_network(norm)
    learn(network, "old")
    steps = live(network, "new", torch.optim.SGD, "compact", "all", 1)
    while next(steps) != until:
        pass
    save_network(tmp_path / "net", network)
    loaded = make_empty(norm)
    load_network(tmp_path / "net", loaded)
    assert differences(loaded.state_dict(), network.state_dict()) == []
    for task in ("old", "new"):
        with torch.no_grad():
            assert torch.equal(loaded.eval()(make_batch()[0], task), network.eval()(make_batch()[0], task))


def test_notes_and_task_names_are_restored(tmp_path):
    save_network(tmp_path / "net", make_learned(), {"run_step": "17"})
    file = read_state(tmp_path / "net", "network")
    assert file.notes == {"run_step": "17"}
    assert list(file.state.tasks) == ["old", "new"]
    assert task_names(tmp_path / "net") == ["old", "new"]


def test_saving_does_not_change_the_network(tmp_path):
    network = make_learned()
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in network.state_dict().items()}
    save_network(tmp_path / "net", network)
    assert differences(network.state_dict(), before) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*net"):
        load_network(tmp_path / "net", make_empty())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_damaged_file_is_named(share, tmp_path):
    save_network(tmp_path / "net", make_learned())
    content = (tmp_path / "net").read_bytes()
    (tmp_path / "net").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="net is not a safetensors file, or is damaged"):
        read_state(tmp_path / "net")


def test_a_file_of_another_format_is_refused(tmp_path):
    network = make_learned()
    save_subnetwork(tmp_path / "sub", network, "old")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="sub is not a network file: a subnetwork file"):
        load_network(tmp_path / "sub", make_empty())
    with pytest.raises(ValueError, match="plain is not a network file: its format is None"):
        load_network(tmp_path / "plain", make_empty())


@pytest.mark.parametrize("other", ["wider", "no norm", "other layers"])
def test_a_network_of_another_backbone_is_refused(other, tmp_path):
    save_network(tmp_path / "net", make_learned("batch"))
    if other == "no norm":
        network = make_empty("none")
    else:
        network = MultiSubnetwork(make_mlp(4, 9, 5) if other == "wider" else make_mlp(4, 2, 2, 2, 5))
        for task in ("old", "new"):
            network.add_task(task, head=make_head())
    with pytest.raises(ValueError, match="net does not fit this network"):
        load_network(tmp_path / "net", network)


def test_a_network_of_other_tasks_is_refused(tmp_path):
    save_network(tmp_path / "net", make_learned())
    with pytest.raises(ValueError, match=r"\['old', 'new'\].*\['old', 'other'\]"):
        load_network(tmp_path / "net", make_empty(tasks=("old", "other")))


@pytest.mark.parametrize("tasks", [3, 300])
def test_without_free_weights_a_network_keeps_its_own(tasks, tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        network = MultiSubnetwork(make_mlp(40, 40, 8))
        for task in range(tasks):
            network.add_task(str(task))
        return network

    network, other = make(0), make(1)
    for task in network.tasks:
        network.begin(task)
        prune(network, task, Budget(weights=3).counts(network.sizes(), {}), allow_empty=True)
        network.freeze(task)
    before = dict(other.weights())
    before = {name: weight.clone() for name, weight in before.items()}
    save_network(tmp_path / "net", network, free_weights=False)
    save_network(tmp_path / "all", network)
    load_network(tmp_path / "net", other)
    for (name, weight), (_, loaded) in zip(network.weights(), other.weights(), strict=True):
        free = network.free()[name]
        assert torch.equal(loaded, torch.where(free, before[name], weight))
        assert torch.equal(other.owners[name], network.owners[name])
    assert [other.digest(task) for task in other.tasks] == [network.digest(task) for task in network.tasks]
    if tasks == 3:
        assert (tmp_path / "net").stat().st_size < (tmp_path / "all").stat().st_size / 2


@pytest.mark.parametrize("earlier", [True, False])
def test_without_free_weights_a_compact_tasks_values_are_stored_once(earlier, tmp_path, monkeypatch):
    network, loaded = make_network("batch"), make_empty()
    learn(network, "old")
    steps = live(network, "new", torch.optim.SGD, "compact", "all", 1)
    while next(steps) != "trained":
        pass
    if earlier:  # they wrote what the dense tensor has there too
        has_value = state_file._has_value
        monkeypatch.setattr(state_file, "_has_value", lambda owners, tasks: has_value(owners, tasks, ("planned",)))
    save_network(tmp_path / "net", network, free_weights=False)
    monkeypatch.undo()
    values = open_safetensors(tmp_path / "net")[0][f"values.{PRUNABLE[1]}"]
    tasks = ("old", "new") if earlier else ("old",)
    assert len(values) == sum(int(network.masks(task)[PRUNABLE[1]].sum()) for task in tasks)
    before = {name: weight.clone() for name, weight in loaded.weights()}
    load_network(tmp_path / "net", loaded)
    assert [loaded.digest(task) for task in loaded.tasks] == [network.digest(task) for task in network.tasks]
    for name, weight in loaded.weights():
        old = network.masks("old")[name]
        assert torch.equal(weight[~old], before[name][~old])
        assert torch.equal(weight[old], dict(network.weights())[name][old])


def test_an_inconsistent_packed_network_is_refused(tmp_path):
    network = make_learned()
    save_network(tmp_path / "net", network, free_weights=False)
    tensors, metadata = open_safetensors(tmp_path / "net")
    name = PRUNABLE[0]
    for key in (f"values.{name}", f"owners.{name}"):
        save_file({**tensors, key: tensors[key][1:].clone()}, tmp_path / "bad", metadata)
        with pytest.raises(ValueError, match="bad is damaged"):
            read_state(tmp_path / "bad")


@pytest.mark.parametrize("free_weights", [True, False])
def test_selected_reading_survives_a_file(free_weights, tmp_path):
    network, loaded = make_learned(reuse="learned"), make_empty()
    reading = network.reading("new")
    assert 0 < network.view("new").read_counts("new")["old"] < 13
    save_network(tmp_path / "net", network, free_weights=free_weights)
    load_network(tmp_path / "net", loaded)
    assert differences(loaded.reading("new"), reading) == []
    assert [loaded.digest(task) for task in loaded.tasks] == [network.digest(task) for task in network.tasks]
    with torch.no_grad():
        assert torch.equal(loaded(make_batch()[0], "new"), network(make_batch()[0], "new"))


def test_a_packed_reading_mask_takes_no_more_than_its_bits(tmp_path):
    torch.manual_seed(0)
    network = MultiSubnetwork(make_mlp(100, 100, bias=False))
    for task, kept in (("old", 5000), ("new", 1000)):
        network.add_task(task, reuse="learned")
        network.begin(task)
        prune(network, task, {"": kept})
        network.freeze(task)
    save_network(tmp_path / "net", network, free_weights=False)
    coded = open_safetensors(tmp_path / "net")[0]["tasks.new.reading.0.weight"]
    assert network.view("new").read_counts("new")["old"] > 300
    assert coded.numel() < 10_000 / 8 / 2  # of 5 % of the weights: .29 bits each


# ---- subnetworks


def decode(path):
    """Read {tensor: (*shape) with the task's own weights, 0 elsewhere} and the task's entry."""
    (entry,) = read_state(path, "subnetwork").state.tasks.values()
    return read_state(path, "subnetwork").state.weights, entry


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", ["old", "new"])
def test_a_subnetwork_file_has_exactly_the_tasks_weights(task, dtype, tmp_path):
    network = make_learned(reuse="all")
    save_subnetwork(tmp_path / "sub", network, task, dtype)
    weights, _ = decode(tmp_path / "sub")
    assert list(weights) == PRUNABLE
    for name, weight in network.weights():
        mask = network.masks(task)[name]
        assert torch.equal(weights[name], torch.where(mask, weight, torch.zeros(())).to(dtype or torch.float32))
        assert int((weights[name] != 0).sum()) == int(mask.sum()) > 0


def test_an_unsupported_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be one of float32, float16, bfloat16, got torch.int8"):
        save_subnetwork(tmp_path / "sub", make_learned(), "old", torch.int8)


def test_private_tensors_and_notes_are_in_the_file(tmp_path):
    network = make_learned(reuse="all")
    save_subnetwork(tmp_path / "sub", network, "new")
    _, entry = decode(tmp_path / "sub")
    expected = network.subnetwork("new").private_tensors()
    assert entry.private.keys() == expected.keys() >= {"head.weight", "private.3.running_mean", "private.6.bias"}
    assert all(torch.equal(entry.private[name], tensor) for name, tensor in expected.items())
    assert (entry.name, entry.reads) == ("new", ("old",))
    assert entry.digest == network.digest("new")


def test_a_tasks_reading_is_in_its_file(tmp_path):
    network = make_learned(reuse="learned")
    for task in ("old", "new"):
        save_subnetwork(tmp_path / task, network, task)
    assert decode(tmp_path / "old")[1].reading == {}
    entry = decode(tmp_path / "new")[1]
    assert entry.reads == ("old",)
    state = read_state(tmp_path / "new", "subnetwork").state
    assert differences(state.read("new"), network.reading("new")) == []
    assert entry.private.keys() == network.subnetwork("new").private_tensors().keys()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_subnetwork_file_is_named(share, tmp_path):
    save_subnetwork(tmp_path / "sub", make_learned(), "old")
    content = (tmp_path / "sub").read_bytes()
    (tmp_path / "sub").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="sub is not a safetensors file, or is damaged"):
        read_state(tmp_path / "sub", "subnetwork")


def test_a_network_file_is_not_a_subnetwork_file(tmp_path):
    save_network(tmp_path / "net", make_learned())
    with pytest.raises(ValueError, match="net is not a subnetwork file: a network file"):
        read_state(tmp_path / "net", "subnetwork")


@pytest.mark.parametrize("change", ["a value less", "other places", "no shapes", "a shape too small"])
def test_an_inconsistent_subnetwork_file_is_refused(change, tmp_path):
    save_subnetwork(tmp_path / "sub", make_learned(), "old")
    tensors, metadata = open_safetensors(tmp_path / "sub")
    name, layout = PRUNABLE[0], json.loads(metadata["layout"])
    if change == "a value less":
        tensors[f"values.{name}"] = tensors[f"values.{name}"][1:].clone()
    elif change == "other places":
        tensors[f"mask.{name}"] = tensors[f"mask.{name}"].flip(0)
    elif change == "no shapes":
        metadata["layout"] = json.dumps({key: part for key, part in layout.items() if key != "shapes"})
    else:
        metadata["layout"] = json.dumps(layout | {"shapes": layout["shapes"] | {name: [1, 2]}})
    save_file(tensors, tmp_path / "sub", metadata)
    with pytest.raises(ValueError, match="sub is damaged"):
        read_state(tmp_path / "sub", "subnetwork")


def test_a_task_in_training_has_no_file(tmp_path):
    network = make_network()
    for phase in ("begun", "compacted"):
        steps = live(network, phase, torch.optim.SGD, "compact", "none", 0)
        while next(steps) != phase:
            pass
        with pytest.raises(ValueError, match=f"task '{phase}' is .*: only a frozen task has a file"):
            save_subnetwork(tmp_path / "sub", network, phase)
        network.freeze(phase) if phase == "compacted" else network.release(phase)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_small_where_the_subnetwork_is(tmp_path):
    network = MultiSubnetwork(make_mlp(100, 100, bias=False))
    network.add_task("a")
    network.begin("a")
    network.restrict("a", {"0.weight": torch.arange(10_000).view(100, 100) % 100 == 0})
    network.freeze("a")
    save_subnetwork(tmp_path / "sub", network, "a")
    assert (tmp_path / "sub").stat().st_size < 10_000 / 8 + 100 * 4 + 500
