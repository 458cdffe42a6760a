"""Damage any bytes, and JSON, YAML and CSV texts."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]
"""(random draws, a valid file) to a hostile file."""

NAMES = ("", ".", "..", "../../x", "/tmp/x", "a/b", "a\0b", "é" * 3, "x" * 10_000, "a\nb", "\x1b[31m", "__class__")
"""Hostile names."""
NUMBERS = (-1, 0, 1, 2**15, 2**31, 2**40, 2**63, 2**64, 10**400, -(2**63), 0.5, 1e308, float("nan"), float("inf"))
"""Hostile numbers."""
VALUES = (*NAMES, *NUMBERS, None, True, False, [], {}, [[]], [0], {"a": 1}, "1", "float32", "null")


def damaged(draw: Random, content: bytes) -> bytes:
    """Flip, cut, repeat, move or insert bytes, a few at once."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((1, 1, 2, 4, 8, 64)))
        part = content[start:end]
        content = draw.choice(
            (
                content[:start] + bytes(byte ^ (1 << draw.randrange(8)) for byte in part) + content[end:],
                content[:start],
                content[:start] + content[end:],
                content[:start] + draw.randbytes(len(part)) + content[end:],
                content[:start] + part * draw.choice((2, 3, 1000)) + content[end:],
                content[:start] + draw.choice((b"\xff", b"\0")) * len(part) + content[end:],
                content[start:] + content[:start],
            )
        )
    return content


def hostile_value(draw: Random, value: Any) -> Any:
    """Change one part of a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        kind = draw.random()
        rest = {name: child for name, child in value.items() if name != key}
        if kind < 0.1:
            return rest
        if kind < 0.2:
            return value | {draw.choice(NAMES): draw.choice(VALUES)}
        if kind < 0.3:
            return {draw.choice(NAMES) if name == key else name: child for name, child in value.items()}
        return value | {key: hostile_value(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.75:
        place, kind = draw.randrange(len(value)), draw.random()
        if kind < 0.2:
            return value[:place] + value[place + 1 :]
        if kind < 0.4:
            return [*value, draw.choice([*value, *VALUES])]
        return [*value[:place], hostile_value(draw, value[place]), *value[place + 1 :]]
    return draw.choice((*VALUES, *NUMBERS, [value], {"a": value}, str(value)))


def hostile_json(draw: Random, content: bytes) -> bytes:
    """Change a JSON text's values, depth, length or version."""
    if draw.random() < 0.1:
        deep = draw.choice((100, 1_000, 100_000))
        whole = ("[" * deep, "[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "9" * 10_000, "")
        return draw.choice(whole).encode()
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = hostile_value(draw, value)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    return text.encode(draw.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig")), "surrogatepass")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
YAML = (
    "_target_: os.system",
    'x: !!python/object/apply:os.system ["touch fuzzed"]',
    "x: !!python/object/new:subprocess.Popen [[touch, fuzzed]]",
    "x: !!python/name:os.system",
    "x: !!python/object/apply:pathlib.PosixPath [/tmp/x]",
    "x: !!binary aGFsbG8=",
    "x: !!timestamp 2001-01-01",
    "x: " + "[" * 3_000,
    "x: " + "[" * 400 + "]" * 400,
    "- " * 3_000 + "x",
    LAUGHS,
    "x: *nothing",
    "x: &x [*x]",
    "x: ${x}",
    "x: ${oc.env:HOME}",
    "x: ${oc.create:'{_target_: os.system}'}",
    "x: ${oc.decode:${oc.env:HOME}}",
    "x: ${nothing:1}",
    "x: ${",
    "x: ???",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "1: 2",
    "null: 2",
    "1.5: 2",
    "name: [1]",
    "seed: many",
    "tasks: 3",
    "<<: 3",
    "x: 0x" + "f" * 5_000,
    "x: " + "9" * 5_000,
    "x: 1:1:1:1:1",
    "\tx: 1",
    "x: \0",
    "--- \n--- ",
    "%YAML 9.9\n---\nx: 1",
)
"""Hostile YAML lines."""


def hostile_yaml(draw: Random, content: bytes) -> bytes:
    """Insert YAML lines that would run code, expand, or are no YAML."""
    lines = content.decode().splitlines()
    place = draw.randrange(len(lines) + 1)
    kind = draw.random()
    line = draw.choice(YAML)
    if kind < 0.3:
        lines.insert(place, line)
    elif kind < 0.5 and lines:
        lines[place % len(lines)] = line
    elif kind < 0.6:
        lines = [line]
    elif kind < 0.9 and lines:
        start = lines[place % len(lines)].partition(":")[0]
        value = draw.choice((line.partition(": ")[2] or "x", json.dumps(draw.choice(VALUES))))
        lines[place % len(lines)] = f"{start}: {value}"
    else:
        lines.append(" " * draw.randrange(6) + line)
    return "\n".join(lines).encode(draw.choice(("utf-8", "utf-8", "utf-8", "latin-1", "utf-16")), "replace")


CELLS = (
    *('"', '""', '"a', 'a"b', "\0", "", " ", "nan", "inf", "-inf", "1e999", "0x1", "1_0", "-0", "²", "٣", "é", "\r"),
    *("9" * 400, "9" * 5_000, "x" * 140_000, "=1+1", "\ufeff", "\n\n", ",", ",,,,", "\x1b[2J", "../../x", "None"),
)


def hostile_csv(draw: Random, content: bytes) -> bytes:
    """Change a CSV file's cells, row lengths, field sizes or encoding."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(draw.choice((1, 1, 2, 5))):
        row = draw.choice(rows)
        kind = draw.random()
        if kind < 0.6:
            row[draw.randrange(len(row))] = draw.choice(CELLS)
        elif kind < 0.7:
            row.insert(draw.randrange(len(row) + 1), draw.choice(CELLS))
        elif kind < 0.8 and len(row) > 1:
            row.pop()
        elif kind < 0.85:
            rows.append([draw.choice(CELLS)])
        elif kind < 0.88:
            rows[0] = [f"c{i}" for i in range(20_000)]
        elif kind < 0.92:
            rows[0] = row[:]
        else:
            rows = rows[: draw.randrange(len(rows)) + 1]
    text = draw.choice(("\n", "\n", "\r\n", "\r")).join(",".join(row) for row in rows) + draw.choice(("\n", ""))
    return text.encode(draw.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "cp1252", "utf-7")), "replace")
