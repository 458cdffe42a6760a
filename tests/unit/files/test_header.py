"""The header of a state file: counts that need no tensors, and tensors where these are missing or of another file."""

import json
from dataclasses import replace

import pytest

from helpers import learn, make_network
from msh.files import state_file
from msh.files.header import holdings_in
from msh.files.merging import release_task
from msh.files.state_file import open_safetensors, read_state, save_network, save_subnetwork, write_safetensors
from msh.subnetworks.state import NetworkState


@pytest.fixture
def path(tmp_path):
    network = make_network()
    for seed, task in enumerate("ab"):
        learn(network, task, form="scored", reuse="learned", seed=seed)
    save_network(tmp_path / "net", network, free_weights=False)
    save_subnetwork(tmp_path / "b", network, "b")
    return tmp_path / "net"


@pytest.fixture
def unread(monkeypatch):
    """Fail where tensors are read."""

    def refuse(*_):
        raise AssertionError("tensors were read")

    monkeypatch.setattr(state_file, "open_safetensors", refuse)


def change(path, **entries):
    tensors, metadata = open_safetensors(path)
    changed = {key: value for key, value in (metadata | entries).items() if value is not None}
    write_safetensors(path, tensors, changed)


def test_counts_come_from_the_header_alone(path, unread):
    kind, found = holdings_in(path)
    assert kind == "network"
    assert list(found.tasks) == ["a", "b"]
    assert found.total.owned == {"a": 13, "b": 10}


def test_a_subnetwork_file_counts_the_weights_that_its_task_reads(path):
    kind, found = holdings_in(path.with_name("b"))
    state = read_state(path.with_name("b")).state
    assert kind == "subnetwork"
    assert found.read == {"b": {name: int(state.read_mask("b", name).sum()) for name in state.owners}}
    assert sum(found.read["b"].values()) > 0
    assert found.private == {"b": state.tasks["b"].private_count}


def test_a_released_task_is_in_no_count(path, unread, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(state_file, "open_safetensors", open_safetensors)
        release_task(path, "b", path)
    assert holdings_in(path)[1].total.owned == {"a": 13}


@pytest.mark.parametrize("counts", [None, "", "[]", "{}", '{"owned": [], "selected": {}, "read": {}}', "more", "moved"])
def test_tensors_decide_where_a_header_has_no_counts_or_others(counts, path):
    held = json.loads(open_safetensors(path)[1]["counts"])
    if counts == "more":
        counts = json.dumps(held | {"owned": [[10**6, 0] for _ in held["owned"]]})
    if counts == "moved":
        rows = [list(row) for row in held["owned"]]
        rows[0][0] += 1
        counts = json.dumps(held | {"owned": rows})
    change(path, counts=counts)
    assert holdings_in(path)[1].total.owned == {"a": 13, "b": 10}


def test_counts_are_not_carried_into_a_file_of_other_tasks(path):
    file = read_state(path)
    assert "counts" not in file.notes
    replace(file, state=file.state.only("a"), kind="subnetwork").write(path.with_name("a"))
    assert holdings_in(path.with_name("a"))[1].total.owned == {"a": 13}


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        holdings_in(path)


def test_another_kind_is_refused(path):
    with pytest.raises(ValueError, match=r"net is not a subnetwork file: a network file"):
        holdings_in(path, "subnetwork")


def test_an_empty_network_has_no_counts_to_read(tmp_path):
    assert NetworkState({}, {}).holdings().used == {}
