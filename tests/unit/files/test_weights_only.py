"""State is converted to what torch reads without running code, or refused by name."""

import datetime
import enum
import io
import re
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from msh.files.weights_only import UnreadableStateError, readable


class Level(enum.IntEnum):
    LOW = 3


class Word(enum.StrEnum):
    A = "a"


class Own:
    pass


Pair = namedtuple("Pair", "left right")


def read_back(value):
    buffer = io.BytesIO()
    torch.save(readable(value, "state"), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, value) for value in (None, True, 3, 0.5, 1j, "x", b"y", float("inf"))),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(2**40), 2**40),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (Path("a/b"), "a/b"),
        (PurePosixPath("/x"), "/x"),
        (Level.LOW, 3),
        (Word.A, "a"),
        (Pair(1, np.int8(2)), (1, 2)),
        (deque([1, np.float64(2)], maxlen=2), [1, 2.0]),
        (frozenset({1}), {1}),
        (defaultdict(list, a=[np.int64(1)]), {"a": [1]}),
        (OrderedDict(b=1, a=2), OrderedDict(b=1, a=2)),
        (Counter("aab"), Counter("aab")),
        ({np.int64(4): {"k": (Path("p"), [np.float16(1)])}}, {4: {"k": ("p", [1.0])}}),
        (torch.float32, torch.float32),
        (torch.device("cpu"), torch.device("cpu")),
        (torch.Size([2, 3]), torch.Size([2, 3])),
    ],
)
def test_a_value_is_read_back_with_equal_content(value, expected):
    found = read_back(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_an_array_becomes_a_tensor_of_its_own(kind, shape):
    array = np.ones(shape, kind)
    found = readable({"a": array}, "state")["a"]
    assert torch.equal(found, torch.from_numpy(array.copy()))
    assert found.numpy().dtype == array.dtype
    array[...] = 0
    assert bool((found == 1).all())


def test_tensors_are_shared_and_read_back():
    state = {"t": torch.arange(4.0), "p": torch.nn.Parameter(torch.ones(2))}
    found = readable(state, "state")
    assert found["t"] is state["t"]
    assert found["p"] is state["p"]
    assert torch.equal(read_back(state)["t"], state["t"])


@pytest.mark.parametrize(
    ("state", "where", "kind"),
    [
        ({"best": Own()}, "state['best']", "Own"),
        ({"a": [0, {"b": Own()}]}, "state['a'][1]['b']", "Own"),
        ({"f": lambda: 0}, "state['f']", "function"),
        ({Own(): 1}, "a key of state", "Own"),
        ({"t": datetime.datetime(2020, 1, 1)}, "state['t']", "datetime.datetime"),
        ({"o": np.array([Own()], dtype=object)}, "state['o']", "numpy.ndarray"),
        ({"when": np.datetime64("2020-01-01T00:00:00")}, "state['when']", "datetime"),
        ({"rng": np.random.default_rng(0)}, "state['rng']", "Generator"),
        ({"m": torch.nn.Linear(1, 1)}, "state['m']", "Linear"),
    ],
)
def test_any_other_value_is_refused_by_its_place_and_type(state, where, kind):
    with pytest.raises(UnreadableStateError, match=re.escape(where) + f" is a .*{kind}"):
        readable(state, "state")
