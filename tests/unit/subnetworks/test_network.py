"""Test a network's public side: tasks, phases, errors and capacity."""

import copy
import json

import pytest
import torch
from torch import nn

from helpers import FEATURES, counts_by_layer, differences, make_batch, make_head, make_mlp, make_network, quarter
from messages import says
from msh.subnetworks import CapacityError, MultiSubnetwork, prune


def make_in_phase(phase):
    network = make_network()
    network.add_task("a", head=make_head())
    if phase != "new":
        network.begin("a")
        prune(network, "a", quarter(network))
    if phase in ("compact", "frozen"):
        network.compact("a")
    if phase == "frozen":
        network.freeze("a")
    return network


def test_a_backbone_without_weights_is_refused():
    with pytest.raises(ValueError, match="Sequential has no prunable tensor"):
        MultiSubnetwork(nn.Sequential(nn.ReLU(), nn.LayerNorm([2, 2])))


def test_wrapping_leaves_the_weights_and_no_parameter():
    backbone = make_mlp(3, 2)
    weight = backbone[0].weight.detach().clone()
    network = MultiSubnetwork(backbone)
    assert list(network.parameters()) == []
    assert torch.equal(dict(network.weights())["0.weight"], weight)
    assert network.tasks == []


@pytest.mark.parametrize("phase", ["new", "masked", "compact", "frozen"])
def test_the_phases_and_their_parameters(phase):
    network = make_in_phase(phase)
    sub = network.subnetwork("a")
    assert sub.phase == phase
    shapes = {
        "new": [],
        "masked": [(4, 1, 3), (5, 8)],
        "compact": [(3,), (10,)],
        "frozen": [],
    }
    assert [tuple(values.shape) for values in sub.values.parameters()] == shapes[phase]
    rest = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in sub.values.parameters())
    assert rest == (0 if phase == "frozen" else 4 + 5 + 18)  # two biases and the head


@pytest.mark.parametrize(
    ("phase", "refused"),
    [
        ("new", ["compact", "freeze"]),
        ("masked", ["begin"]),
        ("compact", ["begin", "compact"]),
        ("frozen", ["begin", "compact", "freeze"]),
    ],
)
def test_a_step_in_the_wrong_phase_is_an_error(phase, refused):
    network = make_in_phase(phase)
    for step in refused:
        with pytest.raises(ValueError, match=f"'a' is {phase}"):
            getattr(network, step)("a")
    if phase != "masked":
        with pytest.raises(ValueError, match=f"'a' is {phase}; this needs a task that is masked"):
            network.restrict("a", network.masks("a"))


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "ä", "a\n"])
def test_a_name_that_could_not_be_a_file_is_refused(name):
    with pytest.raises(ValueError, match=says("task name", value=name)):
        make_network().add_task(name)


def test_a_name_that_is_too_long_for_a_file_is_refused():
    with pytest.raises(ValueError, match=r"task name must be at most 230 characters long, got 'x+\.\.\. \(231 char"):
        make_network().add_task("x" * 231)


@pytest.mark.parametrize("name", ["train", "values", "keys", "digits-2_B", "0", "x" * 230])
def test_any_word_can_name_a_task(name):
    network = make_network()
    network.add_task(name)
    network.begin(name)
    assert network.tasks == [name]
    assert network(make_batch()[0]).shape == (6, FEATURES)


def test_adding_invalid_tasks_is_refused():
    network = make_network()
    network.add_task("a")
    with pytest.raises(ValueError, match="already a task 'a'"):
        network.add_task("a")
    with pytest.raises(ValueError, match=r"reuse must be one of none, all, learned.*, got 'some'"):
        network.add_task("b", reuse="some")
    with pytest.raises(KeyError, match=r"no task 'c'.*'a'"):
        network.subnetwork("c")
    assert network.tasks == ["a"]


@pytest.mark.parametrize("part", ["stem", "head"])
def test_a_module_of_another_task_is_refused(part):
    """Training it for the later task would change the earlier one."""
    network, shared = make_network(), nn.BatchNorm1d(4 if part == "stem" else FEATURES)
    network.add_task("a", **{part: shared})
    with pytest.raises(ValueError, match=part):
        network.add_task("b", **{part: shared})


def test_computing_needs_a_task_that_has_begun():
    network, (inputs, _) = make_network(), make_batch()
    with pytest.raises(ValueError, match=r"no task is active"):
        network(inputs)
    network.add_task("a")
    with pytest.raises(ValueError, match="'a' has no weights yet"):
        network(inputs, "a")
    with pytest.raises(KeyError, match="'b'"):
        network.activate("b")


def test_the_active_task_is_the_one_computed():
    network, (inputs, _) = make_in_phase("frozen"), make_batch()
    network.add_task("b", head=make_head(1))
    network.begin("b")
    assert torch.equal(network(inputs), network(inputs, "b"))
    network.activate("a")
    assert torch.equal(network(inputs), network(inputs, "a"))
    network.release("a")
    assert network.active is None


def test_masks_must_be_complete_and_of_the_right_shape():
    network = make_in_phase("masked")
    masks = network.masks("a")
    with pytest.raises(ValueError, match=r"'2\.weight' is missing or has another shape"):
        network.restrict("a", {"6.weight": masks["6.weight"]})
    with pytest.raises(ValueError, match=r"'6\.weight' is missing or has another shape"):
        network.restrict("a", masks | {"6.weight": masks["6.weight"].flatten()})


def test_masks_passed_in_or_out_are_copies():
    network = make_in_phase("masked")
    masks = network.masks("a")
    network.restrict("a", masks)
    for mask in masks.values():
        mask.fill_(False)
    assert {name: int(mask.sum()) for name, mask in network.masks("a").items()} == quarter(network)


def test_capacity_counts_every_owner():
    network = make_in_phase("frozen")
    network.add_task("b")
    network.begin("b")
    prune(network, "b", {"2.weight": 1, "6.weight": 0}, allow_empty=True)
    network.freeze("b")
    total = network.state.total()
    assert (total.size, total.taken, total.free) == (52, 14, 38)
    assert counts_by_layer(network) == {"2.weight": {"": 8, "a": 3, "b": 1}, "6.weight": {"": 30, "a": 10, "b": 0}}


def test_capacity_of_a_full_network_and_of_an_empty_one():
    network = make_network()
    assert (network.state.total().taken, network.state.total().free) == (0, 52)
    network.add_task("a")
    network.begin("a")
    assert network.state.total().free == 52
    network.freeze("a")
    assert counts_by_layer(network)["6.weight"] == {"": 0, "a": 40}
    with pytest.raises(CapacityError, match="'b' has nothing to train"):
        network.begin(network.add_task("b").task)


def test_more_tasks_than_a_byte_counts():
    network, inputs = MultiSubnetwork(make_mlp(20, 15, bias=False)), torch.randn(2, 20)
    outputs = {}
    for place in range(300):
        task = f"t{place}"
        network.add_task(task)
        network.begin(task)
        mask = torch.zeros(300, dtype=torch.bool)
        mask[place] = True
        network.restrict(task, {"0.weight": mask.view(15, 20)})
        network.freeze(task)
        outputs[task] = network(inputs, task)
        assert network.owners["0.weight"].dtype == (torch.uint8 if place < 254 else torch.int16)
    assert network.owners["0.weight"].flatten().tolist() == list(range(1, 301))
    assert all(torch.equal(network(inputs, task), outputs[task]) for task in outputs)
    copied = MultiSubnetwork(make_mlp(20, 15, bias=False))
    for task in outputs:
        copied.add_task(task)
    copied.load_state_dict(network.state_dict())
    assert torch.equal(copied(inputs, "t299"), outputs["t299"])


def test_a_freed_id_is_reused():
    network = make_in_phase("frozen")
    network.add_task("b")
    network.release("a")
    assert network.add_task("c").owner == 1
    assert network.subnetwork("b").owner == 2


def test_the_digest_follows_only_tensors_that_decide_the_outputs():
    network = make_in_phase("frozen")
    digest, owned = network.digest("a"), network.masks("a")["6.weight"]
    weight = dict(network.weights())["6.weight"]
    weight[~owned] += 1.0
    assert network.digest("a") == digest
    first = owned.nonzero()[0]
    weight[first[0], first[1]] += 1e-3
    changed = network.digest("a")
    assert changed != digest
    network.subnetwork("a").private["6.bias"][0] += 1e-3
    assert network.digest("a") not in (digest, changed)


def test_the_digest_covers_stem_head_and_statistics():
    network = make_network("batch")
    network.add_task("a", head=make_head(), stem=nn.BatchNorm1d(4))
    network.begin("a")
    network(make_batch()[0])  # in training mode: statistics that no task has changed are the backbone's
    network.freeze("a")
    sub, digests = network.subnetwork("a"), {network.digest("a")}
    for tensor in (sub.head.weight, sub.head.bias, sub.stem.running_mean, sub.private["3.running_var"]):
        tensor[0] += 0.5
        digests.add(network.digest("a"))
    assert len(digests) == 5


def test_a_deep_copy_is_independent():
    network = make_in_phase("masked")
    copied = copy.deepcopy(network)
    before = network.digest("a")
    copied.load_state_dict(network.state_dict())
    for parameter in copied.parameters():
        parameter.data.add_(1.0)
    assert network.digest("a") == before != copied.digest("a")


def test_a_state_of_version_1_is_loaded():
    network, loaded = make_in_phase("compact"), make_network()
    loaded.add_task("a", head=make_head(1))
    state = network.state_dict()
    described = json.loads(state["_extra_state"])
    for row in described["tasks"]:
        del row["kept"]
    state["_extra_state"] = json.dumps(described | {"version": 1})
    loaded.load_state_dict(state)
    assert differences(loaded.state_dict(), network.state_dict()) == []


def test_a_state_of_other_tasks_or_of_a_later_version_is_refused():
    network, other = make_in_phase("frozen"), make_network()
    with pytest.raises(ValueError, match=r"holds the tasks \['a'\], the network \[\]"):
        other.load_state_dict(network.state_dict())
    state = network.state_dict()
    state["_extra_state"] = state["_extra_state"].replace('"version": 3', '"version": 99')
    with pytest.raises(ValueError, match="version 99"):
        network.load_state_dict(state)


def take(network, task, masks):
    """Let a task own the masks' weights, untrained."""
    network.add_task(task, head=make_head())
    network.begin(task)
    network.restrict(task, masks)
    network.compact(task)
    network.freeze(task)


def test_redrawn_values_are_not_biased_by_earlier_tasks():
    network = MultiSubnetwork(nn.Linear(60, 50))
    weight = dict(network.weights())["weight"].clone()
    taken = weight > 0.01
    take(network, "a", {"weight": taken})
    for task, generator in (("left", None), ("drawn", torch.Generator().manual_seed(3))):
        network.add_task(task, head=make_head())
        network.begin(task, generator=generator)
    left, drawn = (network.subnetwork(task).values["weight"].detach() for task in ("left", "drawn"))
    for values in (left, drawn):
        assert torch.equal(values != 0, ~taken)
        assert values.norm() == pytest.approx(float(weight.norm()), rel=1e-5)
    assert left[~taken].mean() < -0.5 * left[~taken].std()
    assert drawn[~taken].mean().abs() < 0.1 * drawn[~taken].std()


def test_the_same_generator_draws_the_same_values_beside_any_owners():
    starts = []
    for owned in (False, True):
        torch.manual_seed(0)
        network = MultiSubnetwork(nn.Linear(6, 5))
        mask = torch.zeros(5, 6, dtype=torch.bool)
        mask[0] = owned
        take(network, "a", {"weight": mask})
        network.add_task("b", head=make_head())
        network.begin("b", generator=torch.Generator().manual_seed(3))
        starts.append(network.subnetwork("b").values["weight"].detach()[1:])
    assert torch.allclose(starts[0] / starts[0].norm(), starts[1] / starts[1].norm(), atol=1e-6)
