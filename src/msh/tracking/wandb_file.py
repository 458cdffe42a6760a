"""Read W&B's offline files, so that a resumed run skips the values they hold."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

MAGIC = b":W&B"
HEADER = 7
"""Bytes of the file's header, and of a chunk's header: checksum, length, kind."""
BLOCK = 1 << 15
FULL, LAST = 1, 4
"""Kinds of chunk: a whole record, the last part of one; 2 and 3 are its first and middle parts."""
STEP = "trainer/global_step"
"""Key of the step axis, as in Lightning's logger."""


@dataclass
class Logged:
    """Values and artifacts that a run's earlier sessions have logged.

    Attributes:
        points: (the run's step, key) per value.
        artifacts: (name, alias) per artifact.
        last: W&B's step, the last row's number; -1: none.
        before: all values at smaller steps are logged.
        latest: key to the latest value; at step `before`, exactly these are logged.
    """

    points: set[tuple[int, str]] = field(default_factory=set)
    artifacts: set[tuple[str, str]] = field(default_factory=set)
    last: int = -1
    before: int = 0
    latest: Mapping[str, Any] = field(default_factory=dict)

    def has(self, step: int, key: str, value: object) -> bool:
        """Return True for a value that is logged."""
        at_last = step == self.before and key in self.latest and bool(self.latest[key] == value)
        return step < self.before or at_last or (step, key) in self.points


NUMBER = re.compile("[0-9]{1,15}")


def read_offline(folder: Path) -> Logged | None:
    """Read the offline sessions in a run folder's `wandb/`; None if there is none.

    W&B writes an offline file in blocks: a killed session lacks its last one. A session without even its first block
    would stop `wandb sync`, so its folder is renamed to `lost-...`.
    """
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    if not files:
        return None
    logged = Logged()
    for path in files:
        if not _add(logged, path):
            path.parent.rename(path.parent.with_name(f"lost-{path.parent.name}"))
    return logged


def set_aside_unsent(folder: Path) -> None:
    """Rename offline sessions that were not uploaded to `replaced-...`: an online session logs their values."""
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        if not path.with_name(f"{path.name}.synced").exists():
            path.parent.rename(path.parent.with_name(f"replaced-{path.parent.name}"))


def _add(logged: Logged, path: Path) -> bool:
    """Add a file's values and artifacts; return False if the file does not name its run."""
    is_run = False
    for record in records(path):
        is_run |= bool(record.HasField("run"))
        for alias in record.artifact.aliases:
            logged.artifacts.add((record.artifact.name, alias))
        values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        keys = {item.nested_key[0] if item.nested_key else item.key for item in record.history.item}
        logged.last = max(logged.last, record.history.step.num) if values else logged.last
        if NUMBER.fullmatch(values.get(STEP, "")):
            logged.points |= {(int(values[STEP]), key) for key in keys}
    return is_run


def records(path: Path) -> Iterator[Any]:
    """Yield a .wandb file's complete records (`wandb_internal_pb2.Record`), in order.

    Source: LevelDB's log format, in 32 KiB blocks.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    position, parts = HEADER if content.startswith(MAGIC) else len(content), b""
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # no room for a chunk: the rest of the block is padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        parts += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST) and position <= len(content):
            record = cast(Any, wandb_internal_pb2).Record()
            try:
                record.ParseFromString(parts)
            except DecodeError:
                return
            yield record
            parts = b""
