"""What W&B's offline files hold: a resumed run must know what it need not log again."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

MAGIC = b":W&B"
HEADER = 7
"""Bytes of the file's header, and of a chunk's: checksum, length, kind."""
BLOCK = 1 << 15
FULL, LAST = 1, 4
"""Kinds of chunk: a whole record; 2, 3 and 4 are the first, middle and last part of one."""
STEP = "trainer/global_step"
"""The key of the step axis, as Lightning's logger calls it."""


@dataclass
class Logged:
    """What earlier sessions of a run have logged.

    Attributes:
        points: (step of the run, key) of all values.
        artifacts: (name, alias) of all artifacts.
        last: number of the last row, W&B's own step; -1: none.
        before: all values of steps below this one are there too.
        latest: key to the latest value; those of step `before` are there too.
    """

    points: set[tuple[int, str]] = field(default_factory=set)
    artifacts: set[tuple[str, str]] = field(default_factory=set)
    last: int = -1
    before: int = 0
    latest: Mapping[str, Any] = field(default_factory=dict)

    def has(self, step: int, key: str, value: object) -> bool:
        """Whether a value is there."""
        at_last = step == self.before and key in self.latest and bool(self.latest[key] == value)
        return step < self.before or at_last or (step, key) in self.points


NUMBER = re.compile("[0-9]{1,15}")


def read_offline(folder: Path) -> Logged | None:
    """What the offline sessions in a run folder's `wandb/` hold; None if there is none.

    W&B writes an offline file in blocks: a session that was killed lacks its last one. One that has not even its
    beginning would make `wandb sync` stop, so its folder is renamed to `lost-...`.
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
    """Rename offline sessions that were not uploaded to `replaced-...`: an online one is about to log all of it."""
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        if not path.with_name(f"{path.name}.synced").exists():
            path.parent.rename(path.parent.with_name(f"replaced-{path.parent.name}"))


def _add(logged: Logged, path: Path) -> bool:
    """Take up what a file holds; whether it says which run it is of."""
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
    """The records (`wandb_internal_pb2.Record`) of a .wandb file, in order, as far as they are whole.

    Source of the format: LevelDB's log, in blocks of 32 KiB.
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
