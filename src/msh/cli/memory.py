"""Keep the memory of commands small that do the same for task after task."""

from __future__ import annotations

import ctypes
import sys

MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` of glibc's malloc.h."""
LARGE = 2**20
"""Bytes."""


def give_large_blocks_back() -> None:
    """Let glibc take blocks of 1 MiB and more from the system, and give each back as soon as it is freed.

    It would take them from its heap instead, where small blocks that stay settle in the gaps that large ones leave: the
    next large one does not fit, and the heap grows with every task. Where there is no glibc nothing is done.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGE)
