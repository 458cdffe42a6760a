"""Reading back a W&B offline run: a LevelDB log (a header of 7 bytes, blocks of 32 KiB) of protobuf records."""

import csv
import json
import struct
from collections import Counter

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
FULL, LAST = 1, 4
"""Types of a chunk: 1 is a whole record; 2, 3 and 4 are the first, middle and last part of one."""


def records(path):
    """The records of a .wandb file, in order."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, []
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # no room for a chunk's header: the rest of the block is padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            yield record
            parts = []


def logged_keys(path):
    """Names of everything that was logged over time."""
    return {item.key or "/".join(item.nested_key) for record in records(path) for item in record.history.item}


def run_ids(path):
    """Ids of the runs in the file."""
    return {record.run.run_id for record in records(path) if record.HasField("run")}


def rows(path):
    """[{key: JSON value}] of what was logged over time; a table or picture is a dict under its key."""
    found = []
    for record in records(path):
        row = {}
        for item in record.history.item:
            *above, last = item.nested_key or [item.key]
            place = row
            for key in above:
                place = place.setdefault(key, {})
            place[last] = json.loads(item.value_json)
        found += [row] if row else []
    return found


def summary(path):
    """{key: value} of what the run has come to; keys of keys are joined by dots."""
    updates = [item for record in records(path) for item in (*record.summary.update, *record.run.summary.update)]
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}


def artifacts(path):
    """{name: artifact record with all its aliases}, tables left out."""
    found = {}
    for record in records(path):
        if record.HasField("artifact") and record.artifact.type != "run_table":
            found.setdefault(record.artifact.name, []).append(record.artifact)
    return found


def curves(folder):
    """[(step, key, value)] in a run folder's metrics.csv."""
    with (folder / "metrics.csv").open() as file:
        return [
            (int(row["step"]), key, float(cell))
            for row in csv.DictReader(file)
            for key, cell in row.items()
            if cell and key != "step"
        ]


def assert_same_values(logged, in_csv):
    """A tracker has all values, none more often than metrics.csv, which has some twice: of an epoch's end."""
    assert set(logged) == set(in_csv)
    assert not Counter(logged) - Counter(in_csv)


def assert_wandb_has_the_csv(folder):
    """What `wandb sync` uploads, file after file, are the curves of metrics.csv: no value lost, none twice."""
    parts = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    logged = [row for part in parts for row in rows(part)]
    in_csv = curves(folder)
    keys = {key for _, key, _ in in_csv}
    logged_curves = [(row["trainer/global_step"], k, v) for row in logged for k, v in row.items() if k in keys]
    assert_same_values(logged_curves, in_csv)
    own = [row["_step"] for row in logged]
    assert own == sorted(set(own)), "W&B drops rows whose own step does not go up"
