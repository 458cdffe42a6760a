"""Test that files are written completely or not at all."""

import errno
import os

import pytest

from msh.files import atomic
from msh.files.atomic import write_bytes, write_text


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
