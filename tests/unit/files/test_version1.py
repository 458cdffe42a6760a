"""Test that files in the formats before schema 2 match the results of their runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from messages import says
from msh.files.header import task_names
from msh.files.plans import allocation_in, input_shape_in, notes_for_tasks, read_plan, settings_of
from msh.files.state_file import open_safetensors, read_state

FILES = Path(__file__).parents[2] / "golden" / "files"
NETWORK = "network.safetensors"
NETWORKS = [
    ("two", NETWORK, False),
    ("two", "network-free-weights.safetensors", True),
    ("two", "network-state-1.safetensors", False),
    ("reads-all", NETWORK, False),
    ("reads-some", NETWORK, False),
]
SUBNETWORKS = [
    ("two", "iris-2.safetensors"),
    ("two", "iris-3.safetensors"),
    ("reads-all", "iris-2.safetensors"),
    ("reads-all", "iris-3.safetensors"),
    ("reads-some", "iris-3.safetensors"),
]


def results(folder):
    return json.loads((FILES / folder / "results.json").read_text())


@pytest.mark.parametrize(("folder", "name", "free_weights"), NETWORKS)
def test_a_network_file_matches_its_run(folder, name, free_weights):
    file, said = read_state(FILES / folder / name, "network"), results(folder)
    state = file.state
    assert (file.kind, file.version, file.free_weights) == ("network", 1, free_weights)
    assert file.notes.keys() == {"start", "input_shape"}
    assert [(e.name, e.owner, e.phase) for e in state.tasks.values()] == [("wine", 1, "frozen"), ("iris", 2, "frozen")]
    assert state.active == "iris"
    assert state.total().owned == {task: row["weights"] for task, row in said["tasks"].items()}
    assert (state.total().size, state.total().free) == (said["capacity"]["prunable"], said["capacity"]["free"])
    for task, row in said["tasks"].items():
        assert state.read_counts(task) == row["weights_read"]
    assert state.readers("wine") == (["iris"] if folder.startswith("reads") else [])
    assert bool(state.tasks["iris"].reading) == (folder == "reads-some")
    free = {name: state.weights[name][mask] for name, mask in state.free().items()}
    assert all(bool((values != 0).all()) == free_weights for values in free.values())
    assert list(state.owners) == ["layers.1.weight", "layers.4.weight"]
    assert {"head.weight", "private.layers.2.running_mean"} <= state.tasks["iris"].private.keys()
    assert task_names(FILES / folder / name) == ["wine", "iris"]


@pytest.mark.parametrize(("folder", "name"), SUBNETWORKS)
def test_a_subnetwork_file_matches_its_network(folder, name):
    file = read_state(FILES / folder / name, "subnetwork")
    network = read_state(FILES / folder / NETWORK, "network").state
    assert (file.kind, file.version, list(file.state.tasks)) == ("subnetwork", 1, ["iris"])
    entry, alone = file.state.tasks["iris"], network.only("iris")
    assert (entry.owner, entry.phase) == (1, "frozen")
    assert entry.reads == (("wine",) if folder.startswith("reads") else ())
    assert entry.digest == network.digest("iris")
    for part in ("weights", "owners"):
        left, right = getattr(file.state, part), getattr(alone, part)
        assert list(left) == list(right)
        assert all(torch.equal(left[name], right[name]) for name in left)
    for left, right in ((entry.private, network.private("iris")), (entry.reading, network.tasks["iris"].reading)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert task_names(FILES / folder / name) == ["iris"]


@pytest.mark.parametrize(
    ("folder", "tasks", "dtype", "inputs"),
    [
        ("planned", ["wine", "iris"], torch.uint8, 13),
        ("planned-300", [f"iris_{i}" for i in range(300)], torch.int16, 4),
    ],
)
def test_a_plan_has_its_tasks_weights(folder, tasks, dtype, inputs):
    plan = read_plan(FILES / folder / "plan")
    assert (plan.kind, plan.version, list(plan.state.tasks)) == ("plan", 1, tasks)
    assert [entry.owner for entry in plan.state.tasks.values()] == list(range(1, len(tasks) + 1))
    assert {entry.phase for entry in plan.state.tasks.values()} == {"planned"}
    assert {owners.dtype for owners in plan.state.owners.values()} == {dtype}
    assert not any(weight.any() for weight in plan.state.weights.values())
    assert settings_of(plan)["seed"] == 0
    assert input_shape_in(plan.notes, FILES) == (inputs,)
    trained = [path for path in (FILES / folder).glob("*.safetensors") if path.name != NETWORK]
    assert trained
    for path in trained:
        file = read_state(path, "subnetwork")
        assert {**file.notes, "seed": "0"} == notes_for_tasks(plan)  # files had no seed
        (task,) = file.state.tasks
        masks = allocation_in(plan, task).masks
        assert all(torch.equal(mask, masks[name]) for name, mask in file.state.owned(task).items())
        norms = plan.state.tasks[task].norms
        assert all((norms[name] > 0) == bool(mask.any()) for name, mask in masks.items())


def test_a_stopped_runs_files_have_a_compact_then_a_frozen_task():
    folder = FILES / "stopped"
    files = [read_state(path, "network") for path in sorted((folder / "checkpoints").glob("after-*.safetensors"))]
    assert [[entry.phase for entry in file.state.tasks.values()] for file in files] == [["compact"], ["frozen"]]
    assert all(file.free_weights and "counted" in file.notes for file in files)
    first, second = (file.state for file in files)
    assert first.tasks["wine"].values.keys() == first.owners.keys()
    assert second.tasks["wine"].values == {}
    for name, mask in first.owned("wine").items():
        assert torch.equal(second.owned("wine")[name], mask)
        for state in (first, second):
            assert torch.equal(state.weight("wine", name) != 0, mask)
        assert not torch.equal(first.weight("wine", name), second.weight("wine", name))
    assert read_state(folder / NETWORK, "network").state.digest("wine") == second.digest("wine")


@pytest.mark.parametrize(
    ("folder", "name"), [("two", NETWORK), ("reads-some", "iris-3.safetensors"), ("planned", "plan")]
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(folder, name, share, tmp_path):
    content = (FILES / folder / name).read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut is not a safetensors file, or is damaged"):
        read_state(tmp_path / "cut")


@pytest.mark.parametrize(
    ("folder", "name", "key", "value", "message"),
    [
        ("two", NETWORK, "shapes", None, "bad is damaged: 'shapes'"),
        ("two", NETWORK, "shapes", '{"layers.1.weight": [4096, 4096]}', "bad is damaged: owner maps of shape"),
        ("two", NETWORK, "shapes", '{"layers.1.weight": [65536, 65536]}', "its header claims 4294967296 weights"),
        ("two", NETWORK, "free_weights", "true", "bad is damaged"),
        ("two", NETWORK, "state", "{}", "bad is damaged: _extra_state"),
        ("two", NETWORK, "format", "msh-network-9", "bad is not a state file: its format is 'msh-network-9'"),
        ("reads-some", "iris-3.safetensors", "task", "../x", says("task name", value="../x")),
        ("reads-some", "iris-3.safetensors", "reads", "{}", "bad is damaged: reads"),
        ("reads-some", "iris-3.safetensors", "digest", None, "bad is damaged: 'digest'"),
        ("planned", "plan", "digest", "0" * 64, "bad is damaged: .*digest"),
        ("planned", "plan", "tasks", '["iris", "wine"]', "bad is damaged: .*digest"),
    ],
)
def test_a_damaged_header_is_named(folder, name, key, value, message, tmp_path):
    tensors, metadata = open_safetensors(FILES / folder / name)
    metadata = {k: v for k, v in metadata.items() if k != key} | ({} if value is None else {key: value})
    save_file(tensors, tmp_path / "bad", metadata)
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "bad")


@pytest.mark.parametrize(
    ("folder", "name", "key"),
    [
        ("two", NETWORK, "owned.layers.1.weight"),
        ("two", NETWORK, "owners.layers/1/weight"),
        ("two", NETWORK, "initial_norms.layers/1/weight"),
        ("reads-some", NETWORK, "subnetworks.iris.reading.layers/1/weight"),
        ("two", "iris-3.safetensors", "mask.layers.1.weight"),
        ("two", "iris-3.safetensors", "values.layers.4.weight"),
        ("reads-some", "iris-3.safetensors", "read.layers.4.weight"),
        ("planned", "plan", "owners.layers.1.weight"),
    ],
)
@pytest.mark.parametrize("change", ["missing", "shorter"])
def test_a_missing_or_shorter_tensor_is_named(folder, name, key, change, tmp_path):
    tensors, metadata = open_safetensors(FILES / folder / name)
    tensor = tensors.pop(key)
    if change == "shorter":
        tensors[key] = tensor.reshape(-1)[1:].clone()
    save_file(tensors, tmp_path / "bad", metadata)
    with pytest.raises(ValueError, match="bad is damaged: "):
        read_state(tmp_path / "bad")
