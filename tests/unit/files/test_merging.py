"""Test plans, merging, releasing and splitting: files that do not fit are refused by name, and nothing is written."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from helpers import (
    PRUNABLE,
    differences,
    learn,
    load_network,
    make_backbone,
    make_batch,
    make_head,
    make_mlp,
    make_network,
)
from messages import says
from msh.files.merging import Merge, merge_files, release_task, split_task
from msh.files.plans import (
    allocation_in,
    explained_by_rounding,
    made_with,
    make_plan_file,
    notes_for_tasks,
    notes_of,
    read_plan,
    settings_of,
    start_of,
)
from msh.files.state_file import (
    open_safetensors,
    read_state,
    save_network,
    save_subnetwork,
)
from msh.subnetworks import Allocation, MultiSubnetwork
from msh.subnetworks.tensors import pack_bits

TASKS = ["a", "b", "c"]
FIELDS = ("tied", "padding", "buffers", "shared", "recipe", "active")


def make_plan(seed=0, tasks=TASKS, norm="batch", settings=None):
    """Make a plan that assigns weights in turn, every fourth to no task."""
    network = make_network(norm, seed)
    start = start_of(network)
    for i, task in enumerate(tasks):
        network.add_task(task, head=make_head())
        masks = {name: torch.arange(w.numel()).view(w.shape) % 4 == i for name, w in network.weights()}
        network.begin(task, Allocation(masks, dict.fromkeys(masks, 1.0)))
        network.freeze(task)
    return make_plan_file(network.state.planned(), settings or {"seed": seed}, (4,), start)


def make_file(path, plan, task, norm="batch", seed=0, dtype=None, said=None):
    network = make_network(norm, seed)
    network.add_task(task, head=make_head(seed))
    network.begin(task, allocation_in(plan, task))
    network.freeze(task)
    save_subnetwork(path, network, task, dtype, notes_for_tasks(plan) | ({"plan": said} if said else {}))
    return path


@pytest.fixture
def files(tmp_path):
    """(plan file, subnetwork file of each task)."""
    plan = make_plan()
    plan.write(tmp_path / "plan")
    return tmp_path / "plan", [make_file(tmp_path / task, plan, task) for task in TASKS]


@pytest.fixture
def refused(tmp_path):
    """Return a function that checks that a merge is refused with a message and writes nothing."""

    def run(base, paths, *parts, **options):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            merge_files(base, paths, tmp_path / "net", **options)
        assert all(re.search(part, str(caught.value)) for part in parts), caught.value
        assert sorted(tmp_path.iterdir()) == before

    return run


# ---- plans


def test_a_plan_is_restored(tmp_path):
    plan = make_plan(settings={"seed": 0, "pruning": {"density": 0.25, "share": None}})
    plan.write(tmp_path / "plan")
    again = read_plan(tmp_path / "plan")
    assert again.notes == plan.notes
    assert settings_of(again) == {"seed": 0, "pruning": {"density": 0.25, "share": None}}
    assert differences(again.state.state_dict(), plan.state.state_dict()) == []
    assert {field: getattr(again.state, field) for field in FIELDS} == {f: getattr(plan.state, f) for f in FIELDS}
    assert {task: entry.owner for task, entry in again.state.tasks.items()} == {"a": 1, "b": 2, "c": 3}
    assert torch.equal(again.state.owned("b")["2.weight"], torch.arange(12).view(4, 1, 3) % 4 == 1)
    assert allocation_in(again, "b").norms == allocation_in(plan, "b").norms
    again.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plan").read_bytes()


@pytest.mark.parametrize("other", [{"seed": 1}, {"tasks": ["a", "b"]}, {"settings": {"seed": 2}}, {"norm": "layer"}])
def test_different_plans_have_different_digests(other):
    assert make_plan(**other).notes["plan"] != make_plan().notes["plan"]


def test_a_plan_holds_the_config_it_was_made_with_outside_its_digest(tmp_path):
    plan = make_plan()
    config = {"config": {"seed": 0, "trainer": {"max_epochs": 3}}, "overrides": ["trainer.max_epochs=3"]}
    with_config = make_plan_file(plan.state, {"seed": 0}, (4,), plan.notes["start"], config)
    with_config.write(tmp_path / "plan")
    assert made_with(read_plan(tmp_path / "plan")) == config
    assert with_config.notes["plan"] == plan.notes["plan"]
    assert made_with(plan) is None
    tensors, metadata = open_safetensors(tmp_path / "plan")
    save_file(tensors, tmp_path / "bad", {**metadata, "made_with": json.dumps(config | {"overrides": [1]})})
    with pytest.raises(ValueError, match="bad is damaged: made_with: overrides"):
        read_plan(tmp_path / "bad")


def test_a_damaged_plan_is_refused(tmp_path, files):
    tensors, metadata = open_safetensors(files[0])
    name, described = f"owners.{PRUNABLE[0]}", json.loads(metadata["state"])
    other = open_safetensors(_saved(tmp_path, make_plan(tasks=["c", "d"])))[0]
    for changed, said in (
        ({**tensors, name: other[name]}, metadata),
        ({**tensors, name: tensors[name][1:].clone()}, metadata),
        ({**tensors, "defaults.6.bias": tensors["defaults.6.bias"] + 1}, metadata),
        (tensors, {**metadata, "state": json.dumps(described | {"tasks": described["tasks"][::-1]})}),
        (tensors, {**metadata, "state": metadata["state"].replace("norms", "forms")}),
        (tensors, {key: value for key, value in metadata.items() if key != "settings"}),
    ):
        save_file(changed, tmp_path / "bad", said)
        with pytest.raises(ValueError, match="bad is damaged"):
            read_plan(tmp_path / "bad")
    with pytest.raises(ValueError, match="a is not a plan file: a subnetwork file"):
        read_plan(files[1][0])


def _saved(folder, plan):
    plan.write(folder / "other plan")
    return folder / "other plan"


# ---- merging


def test_merged_tasks_compute_as_in_their_own_runs(tmp_path, files):
    assert merge_files(*files, tmp_path / "net") == TASKS
    network = make_network("batch", seed=5)
    for task in TASKS:
        network.add_task(task, head=make_head(9))
    notes = load_network(tmp_path / "net", network)
    assert notes == notes_for_tasks(read_plan(files[0]))
    for path in files[1]:
        (entry,) = read_state(path, "subnetwork").state.tasks.values()
        assert network.digest(entry.name) == entry.digest
    assert network.state.total().free == 3 + 10
    assert network(make_batch()[0], "a").shape == (6, 3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_tasks_merged_one_by_one_in_any_order_give_the_same_bytes(order, tmp_path, files):
    merge, done = Merge(files[0]), []
    for place in order:
        task = TASKS[place]
        merge.take([(files[1][place], task)])
        done.append(files[1][place])
        merge.write(tmp_path / "one by one")
        merge_files(files[0], done, tmp_path / "at once", allow_missing=True)
        assert (tmp_path / "one by one").read_bytes() == (tmp_path / "at once").read_bytes()
        assert merge.planned == [name for i, name in enumerate(TASKS) if i not in order[: len(done)]]


def test_a_task_that_cannot_be_merged_leaves_the_others(tmp_path, files):
    merge = Merge(files[0])
    merge.take([(files[1][0], "a")])
    make_file(files[1][1], make_plan(seed=1), "b", seed=1)
    with pytest.raises(ValueError, match="task 'b' was not trained on the plan"):
        merge.take([(files[1][1], "b")])
    with pytest.raises(ValueError, match="both hold task 'a'"):
        merge.take([(files[1][0], "a")])
    merge.take([(files[1][2], "c")])
    merge.write(tmp_path / "net")
    merge_files(files[0], [files[1][0], files[1][2]], tmp_path / "expected", allow_missing=True)
    assert (tmp_path / "net").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_missing_task_is_named_unless_allowed(tmp_path, files, refused):
    refused(files[0], files[1][:1], "no file holds 'b', 'c' of the plan .*plan", "--allow-missing")
    assert merge_files(files[0], files[1][2:], tmp_path / "net", allow_missing=True) == ["c"]
    state = read_state(tmp_path / "net", "network").state
    assert {int(i) for i in state.owners["6.weight"].unique()} == {0, 3}


def test_files_that_hold_the_same_task_are_named(tmp_path, files, refused):
    twice = make_file(tmp_path / "again", read_plan(files[0]), "b")
    refused(files[0], [*files[1], twice], "/b and .*/again both hold task 'b'")
    refused(files[0], [*files[1], files[1][1]], "/b and .*/b both hold task 'b'")


def test_a_task_outside_the_plan_is_named_with_the_nearest(tmp_path, files, refused):
    other = make_plan(tasks=["a", "b", "cc"])
    path = make_file(tmp_path / "cc", other, "cc")
    refused(files[0], [*files[1][:2], path], "/cc: task 'cc' is not in the plan", "a, b, c; did you mean 'c'")


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ({"settings": {"seed": 7}}, ["c: task 'c' was not trained on the plan .*/plan"]),
        ({"seed": 1}, ["c: task 'c' was not trained on the plan .*/plan"]),
    ],
)
def test_a_file_of_another_plan_is_refused(other, parts, tmp_path, files, refused):
    path = make_file(tmp_path / "c", make_plan(**other), "c", seed=other.get("seed", 0))
    refused(files[0], [*files[1][:2], path], *parts)


def test_a_file_with_a_false_plan_note_is_refused(tmp_path, files, refused):
    name, start = read_plan(files[0]).notes["plan"], make_plan(seed=1)
    make_file(tmp_path / "c", start, "c", seed=1, said=name)
    refused(files[0], files[1], "c: task 'c' was trained from a different backbone or initialization than .*/plan")
    other = make_plan(tasks=["c"])
    make_file(tmp_path / "c", other, "c", said=name)
    refused(files[0], files[1], "c: task 'c' owns other weights of layer '2.weight' than planned")


def test_rounded_weights_are_refused(tmp_path, files, refused):
    make_file(tmp_path / "b", read_plan(files[0]), "b", dtype=torch.float16)
    refused(files[0], files[1], "b: task 'b' has weights of torch.float16", "files.dtype=float32")
    part = read_state(files[1][0], "subnetwork")
    changed = replace(part.state, weights={name: w + 1e-3 for name, w in part.state.weights.items()})
    replace(part, state=changed).write(files[1][0])
    make_file(tmp_path / "b", read_plan(files[0]), "b")
    refused(files[0], files[1], "a: task 'a' differs from its digest")


def test_another_backbone_is_refused_layer_by_layer(tmp_path, refused):
    notes = {"start": "same"}
    network = make_network("batch")
    learn(network, "old")
    save_network(tmp_path / "base", network, notes)
    for norm, message in (("none", "private.3.bias.* has shape None, the network's .4,"), ("layer", "private.3")):
        other = make_network(norm)
        learn(other, "new", seed=1)
        save_subnetwork(tmp_path / "new", other, "new", notes=notes)
        refused(tmp_path / "base", [tmp_path / "new"], "new: task 'new' was trained with another backbone: ", message)
    wider = MultiSubnetwork(make_mlp(4, 9, 5))
    wider.add_task("new")
    wider.begin("new")
    wider.freeze("new")
    save_subnetwork(tmp_path / "new", wider, "new", notes=notes)
    refused(tmp_path / "base", [tmp_path / "new"], "another backbone: its '0.weight' has shape .9, 4., .* None")


def test_a_network_file_takes_more_tasks_and_refuses_overlaps(tmp_path, files, refused):
    merge_files(files[0], files[1][:2], tmp_path / "two", allow_missing=True)
    refused(tmp_path / "two", files[1][1:], "the network and .*/b both hold task 'b'")
    plan = make_plan(tasks=["x", "y", "z"])
    paths = [make_file(tmp_path / task, plan, task) for task in ("z", "x")]
    refused(tmp_path / "two", paths, "the network .task 'a'. and .*/x .task 'x'. own the same weights, 3 of layer '2.w")
    refused(tmp_path / "two", [files[1][2], paths[0]], "/c .task 'c'. and .*/z .task 'z'. own the same weights, 3 of")
    assert merge_files(tmp_path / "two", files[1][2:], tmp_path / "three") == TASKS
    merge_files(*files, tmp_path / "at once")
    assert (tmp_path / "three").read_bytes() == (tmp_path / "at once").read_bytes()


@pytest.mark.parametrize("base", ["subnetwork", "other", "none"])
def test_only_plans_and_networks_take_tasks(base, tmp_path, files, refused):
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    if base == "none":
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
            merge_files(tmp_path / "nowhere", files[1], tmp_path / "net")
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
            merge_files(files[0], [tmp_path / "nowhere"], tmp_path / "net")
        return
    path = files[1][0] if base == "subnetwork" else tmp_path / "other"
    kind = "a subnetwork file" if base == "subnetwork" else "its format is None"
    refused(path, files[1], f"{path} is not a plan or network file: {kind}")
    refused(files[0], [files[0]], "plan is not a subnetwork file: a plan file")


# ---- tasks that read others


@pytest.fixture(params=["all", "learned"])
def reading(request, tmp_path):
    """Make a network whose task "new" reads all or some weights of "old", and its file."""
    network = make_network("batch")
    for seed, (task, reuse) in enumerate([("old", "none"), ("new", request.param), ("last", "none")]):
        learn(network, task, form="scored" if reuse == "learned" else "compact", reuse=reuse, seed=seed)
    save_network(tmp_path / "net", network, notes_of("start", (4,)), free_weights=False)
    return network, tmp_path / "net"


def test_a_task_that_others_read_is_not_released(tmp_path, reading):
    with pytest.raises(ValueError, match="task 'old' cannot be released: 'new' read its weights"):
        release_task(reading[1], "old", tmp_path / "less")
    assert not (tmp_path / "less").exists()
    release_task(reading[1], "new", tmp_path / "less")
    release_task(tmp_path / "less", "old", tmp_path / "less")
    assert list(read_state(tmp_path / "less", "network").state.tasks) == ["last"]


def test_a_reading_task_merges_only_where_the_read_weights_are_unchanged(tmp_path, reading, refused):
    network, path = reading
    split_task(path, "new", tmp_path / "new")
    assert read_state(tmp_path / "new", "subnetwork").state.tasks["new"].reads == ("old",)
    release_task(path, "new", tmp_path / "base")
    assert merge_files(tmp_path / "base", [tmp_path / "new"], tmp_path / "again") == ["old", "last", "new"]
    loaded = make_network("batch", 7)
    for task in ("old", "last", "new"):
        loaded.add_task(task, head=make_head(3))
    load_network(tmp_path / "again", loaded)
    assert differences(loaded.reading("new"), network.reading("new")) == []
    assert {task: loaded.digest(task) for task in network.tasks} == {t: network.digest(t) for t in network.tasks}
    (tmp_path / "again").unlink()
    release_task(tmp_path / "base", "old", tmp_path / "none")
    refused(tmp_path / "none", [tmp_path / "new"], "new: task 'new' reads task 'old'")
    network.release("new")
    for name, weight in network.weights():
        weight[network.masks("old")[name]] += 1
    save_network(tmp_path / "base", network, notes_of("start", (4,)), free_weights=False)
    refused(
        tmp_path / "base",
        [tmp_path / "new"],
        "/new: task 'new' differs from its digest",
        "have other values here",
    )


def test_a_task_that_claims_to_read_unowned_weights_is_refused(tmp_path, reading, refused):
    split_task(reading[1], "new", tmp_path / "new")
    release_task(reading[1], "new", tmp_path / "base")
    part = read_state(tmp_path / "new", "subnetwork")
    everything = {name: pack_bits(torch.ones_like(mask)) for name, mask in part.state.owned("new").items()}
    part.state.tasks["new"].reading = everything
    part.write(tmp_path / "new")
    refused(tmp_path / "base", [tmp_path / "new"], "task 'new' reads weights of layer '2.weight' of no task")


# ---- releasing and splitting


def test_an_unknown_task_is_named_with_the_nearest(tmp_path, reading):
    for do in (release_task, split_task):
        with pytest.raises(ValueError, match=says("task", "one of old, new, last", "lats", "last")):
            do(reading[1], "lats", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_releasing_may_overwrite_the_network_file(tmp_path, reading):
    size = reading[1].stat().st_size
    release_task(reading[1], "last", reading[1])
    assert list(read_state(reading[1], "network").state.tasks) == ["old", "new"]
    assert reading[1].stat().st_size < size


def test_a_task_in_training_is_not_split(tmp_path):
    network = make_network()
    network.add_task("a", head=make_head())
    network.begin("a")
    save_network(tmp_path / "net", network)
    with pytest.raises(ValueError, match="task 'a' is masked: only a frozen task has a file"):
        split_task(tmp_path / "net", "a", tmp_path / "out")


def test_tied_tensors_keep_no_released_values(tmp_path):
    backbone = torch.nn.Sequential(*(torch.nn.Linear(5, 5, bias=False) for _ in range(2)))
    backbone[1].weight = backbone[0].weight
    network = MultiSubnetwork(backbone)
    network.add_task("a")
    network.begin("a")
    network.freeze("a")
    old = dict(network.weights())["0.weight"].clone()
    save_network(tmp_path / "net", network)
    release_task(tmp_path / "net", "a", tmp_path / "less")
    state = read_state(tmp_path / "less", "network").state.state_dict()
    assert torch.equal(state["backbone.0.weight"], state["backbone.1.weight"])
    assert not (state["backbone.1.weight"] == old).any()


def changed(by):
    """Change a backbone's initial values by a share of themselves, in turn up and down."""
    backbone = make_backbone("batch", 0)
    with torch.no_grad():
        for tensor in backbone.parameters():
            tensor.mul_(1 + by * (1 - 2 * (torch.arange(tensor.numel()) % 2).view(tensor.shape)))
    return MultiSubnetwork(backbone)


@pytest.mark.parametrize(("by", "same"), [(0.0, True), (3e-7, True), (3e-4, False)])
def test_initial_weights_are_the_same_to_within_rounding(by, same):
    state = make_network("batch", 0).state
    assert explained_by_rounding(state, changed(by).state) is same


def test_initial_weights_of_another_seed_or_without_norms_are_not_the_same():
    state = make_network("batch", 0).state
    assert not explained_by_rounding(state, make_network("batch", 1).state)
    assert not explained_by_rounding(replace(state, norms={}), replace(state, norms={}))
    counts = replace(state, defaults={name: t + (not t.is_floating_point()) for name, t in state.defaults.items()})
    assert not explained_by_rounding(state, counts)


def test_a_task_from_another_processor_is_merged_into_a_network(tmp_path):
    plan = make_plan()
    network = make_network("batch", 0)
    save_network(tmp_path / "base", network, notes_of(start_of(network), (4,)), free_weights=False)
    path = make_file(tmp_path / "a", plan, "a")
    file = read_state(path, "subnetwork")
    norms = {name: norm * (1 + 1e-6) for name, norm in file.state.norms.items()}
    replace(file, state=replace(file.state, norms=norms), notes=file.notes | {"start": "elsewhere"}).write(path)
    assert merge_files(tmp_path / "base", [path], tmp_path / "out") == ["a"]
    norms = {name: norm * 1.01 for name, norm in file.state.norms.items()}
    replace(file, state=replace(file.state, norms=norms), notes=file.notes | {"start": "other"}).write(path)
    with pytest.raises(ValueError, match="different backbone or initialization"):
        merge_files(tmp_path / "base", [path], tmp_path / "out")
