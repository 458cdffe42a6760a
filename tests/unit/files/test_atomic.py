"""Test that files are written completely or not at all."""

import errno
import os
import socket
import stat
import threading

import pytest

from messages import says
from msh.files import atomic
from msh.files.atomic import check_output, write_bytes, write_text


def test_the_written_content_is_read_back(tmp_path):
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "mü\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "mü\n".encode()


def test_missing_folders_are_created(tmp_path):
    write_text(tmp_path / "x" / "y" / "a", "1")
    assert (tmp_path / "x" / "y" / "a").read_text() == "1"


def test_old_content_is_replaced_and_no_other_file_remains(tmp_path):
    for content in ("a long first content", "second"):
        write_text(tmp_path / "a", content)
    assert (tmp_path / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("killed"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("existed", [True, False])
def test_a_failed_write_leaves_the_old_file(failure, existed, tmp_path, monkeypatch):
    if existed:
        write_text(tmp_path / "a", "old")

    def fail(_):
        raise failure

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(type(failure)):
        write_text(tmp_path / "a", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"a": "old"} if existed else {})


def test_the_old_content_stays_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    seen, flush = [], os.fsync

    def look(descriptor):
        flush(descriptor)
        seen.append((tmp_path / "a").read_text())

    monkeypatch.setattr(atomic.os, "fsync", look)
    write_text(tmp_path / "a", "new")
    assert seen == ["old"]
    assert (tmp_path / "a").read_text() == "new"


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "a").write_text("1")
    with pytest.raises(OSError, match="a"):
        write_text(tmp_path / "a" / "b", "2")
    assert (tmp_path / "a").read_text() == "1"


# ---- what is there already


@pytest.mark.parametrize("exists", [True, False])
def test_links_stay_and_what_they_name_is_replaced(exists, tmp_path):
    (tmp_path / "folder").mkdir()
    if exists:
        (tmp_path / "folder" / "a").write_text("old")
    (tmp_path / "link").symlink_to("folder/a")
    (tmp_path / "links").symlink_to(tmp_path / "link")
    write_text(tmp_path / "links", "new")
    assert (tmp_path / "links").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "a").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "link", "links"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_the_mode_of_a_file_stays(mode, tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    write_text(tmp_path / "a", "new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    check_output("-o", tmp_path / "pipe")
    write_text(tmp_path / "pipe", "content")
    reader.join(10)
    assert found == ["content"]
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(ValueError, match=says("-o", "a file", f"{tmp_path / 'pipe'}, a pipe")):
        check_output("-o", tmp_path / "pipe", needs_file=True)


def test_a_device_is_written_to(tmp_path):
    master, slave = os.openpty()
    try:
        path = tmp_path / "stdout"
        path.symlink_to(os.ttyname(slave))
        write_text(path, "content")
        assert os.read(master, 100) == b"content"
        assert path.is_char_device()
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("kind", ["a folder", "a socket"])
def test_what_takes_no_bytes_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    there = socket.socket(socket.AF_UNIX) if kind == "a socket" else None
    if there is None:
        (tmp_path / "a").mkdir()
    else:
        there.bind("a")
    with pytest.raises(ValueError, match=says("-o", "a file or a pipe", f"{tmp_path / 'a'}, {kind}")):
        check_output("-o", tmp_path / "a")
    with pytest.raises(ValueError, match=f"a, {kind}"):
        write_text(tmp_path / "a", "new")
    if there is not None:
        there.close()


def test_a_file_that_is_not_there_yet_is_no_problem(tmp_path):
    check_output("-o", tmp_path / "new" / "a")
    check_output("-o", tmp_path / "new" / "a", needs_file=True)


@pytest.mark.parametrize("length", [201, 255])
def test_names_may_be_as_long_as_the_file_system_allows(length, tmp_path):
    write_text(tmp_path / ("x" * length), "content")
    assert (tmp_path / ("x" * length)).read_text() == "content"


def test_the_error_of_a_name_that_is_too_long_is_the_systems(tmp_path):
    with pytest.raises(OSError, match="name too long") as caught:
        write_text(tmp_path / ("x" * 256), "content")
    assert caught.value.__context__ is None
    assert not list(tmp_path.iterdir())
