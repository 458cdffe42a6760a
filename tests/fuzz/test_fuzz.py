"""Test a sample of `make fuzz`, and that forbidden actions are detected."""

import json
import os
import pickle
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from fuzz import harness
from fuzz.formats import Spell
from fuzz.harness import Kind, fuzz, problem_of
from fuzz.kinds import make_kinds

INPUTS = 20
"""Inputs per kind."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return make_kinds(tmp_path_factory.mktemp("kinds"))


def test_hostile_files_are_read_or_refused_by_name(kinds, tmp_path):
    refused = 0
    for place, kind in enumerate(kinds.values()):
        folder = tmp_path / str(place)
        folder.mkdir()
        outcome = fuzz(kind, range(INPUTS), 0, folder)
        assert outcome.failures == {}, kind.name
        assert outcome.read + outcome.refused == INPUTS
        refused += outcome.refused
    assert refused > INPUTS * len(kinds) / 3  # damage is done


def test_inputs_are_reproducible(kinds):
    kind = kinds["subnetwork"]
    inputs = [kind.mutated(3, number) for number in range(INPUTS)]
    assert inputs == [kind.mutated(3, number) for number in range(INPUTS)]
    assert len(set(inputs)) > INPUTS / 2
    assert inputs != [kind.mutated(4, number) for number in range(INPUTS)]


def unpickles(folder):
    return pickle.loads(pickle.dumps(Spell("true")))


def writes_elsewhere(folder):
    (folder.parent / "elsewhere").write_text("x")


def removes_elsewhere(folder):
    os.remove(folder.parent / "kept")


def connects(folder):
    socket.getaddrinfo("localhost", 1)


def takes_what_the_header_promises(folder):
    try:
        np.ones(json.loads((folder / "file").read_text())["size"])
    except MemoryError as error:
        raise ValueError("file is damaged") from error


def hangs(folder):
    while True:
        pass


def crashes(folder):
    return json.loads((folder / "file").read_text())["missing"]


def does_not_say_which(folder):
    raise ValueError("it is damaged")


READERS = {
    unpickles: "pickle.find_class",
    writes_elsewhere: "writes",
    removes_elsewhere: "os.remove",
    connects: "socket.getaddrinfo",
    takes_what_the_header_promises: "allocates more than 600 MiB",
    hangs: "TimeoutError",
    crashes: "KeyError",
    does_not_say_which: "the error does not name the file",
}


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_misbehaving_reader_is_detected(read, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 0.2)
    (tmp_path / "kept").touch()
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "file").write_text('{"size": 1000000000000}')
    kind = Kind("planted", {"file": b""}, "file", (), read)
    assert READERS[read] in problem_of(kind, folder)[0]


def test_an_earlier_thread_is_not_blamed_on_the_reader(tmp_path):
    asked, done = threading.Event(), threading.Event()

    def background():
        asked.wait(10)
        connects(tmp_path)
        done.set()

    def read(folder):
        asked.set()
        assert done.wait(10)

    thread = threading.Thread(target=background)
    thread.start()
    try:
        assert problem_of(Kind("planted", {"file": b""}, "file", (), read), tmp_path) == ("", "")
    finally:
        thread.join()


def test_a_thread_of_the_reader_is_watched(tmp_path):
    def read(folder):
        thread = threading.Thread(target=connects, args=(folder,))
        thread.start()
        thread.join()

    assert "socket.getaddrinfo" in problem_of(Kind("planted", {"file": b""}, "file", (), read), tmp_path)[0]


def test_failing_inputs_are_kept(tmp_path):
    outcome = fuzz(Kind("planted", {"file": b"whole"}, "file", (), refuses_other_than_whole), range(5), 0, tmp_path)
    assert outcome.failures
    number = next(iter(outcome.failures))
    assert "KeyError" in outcome.failures[number]
    kept = (tmp_path / "failed" / f"{number}-file").read_bytes()
    assert kept == Kind("planted", {"file": b"whole"}, "file", (), print).mutated(0, number)


def refuses_other_than_whole(folder: Path):
    if (folder / "file").read_bytes() != b"whole":
        raise KeyError("whole")
