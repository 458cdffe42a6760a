"""Ends every process that these tests leave behind: engines start daemons, which outlive their parents."""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))  # `running` and `disturbing`

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@pytest.fixture(scope="session", autouse=True)
def _no_process_stays():
    """Adopt orphaned descendants, and end those that are there after the last test."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = children()
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    for signum, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + seconds
        while (left := children() - before) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)
            time.sleep(0.2)
    assert not left, f"these processes do not end: {left}"


def children():
    """Pids of this process's children, without those that have ended; orphans of its descendants are among them."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in pids if not _reap(int(pid))}


def _reap(pid):
    """Collect a child's exit code, so that it leaves the table of processes; returns whether it has ended."""
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if status != "Z":
        return False
    os.waitpid(pid, os.WNOHANG)
    return True
