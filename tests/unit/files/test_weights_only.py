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

from msh.files.weights_only import Packing, UnreadableStateError, readable, unpacked
from msh.subnetworks.tensors import same_bits


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


# ---- tensors in few bytes


def sparse(kind, share):
    torch.manual_seed(0)
    return torch.where(torch.rand(40, 50) < share, torch.randn(40, 50), 0.0).to(kind)


def special():
    values = torch.zeros(2000)
    values[:4] = torch.tensor([-0.0, float("nan"), float("-inf"), 1e-45])
    return values


TENSORS = {
    **{f"{kind}, {share}": sparse(kind, share) for kind in (torch.float64, torch.float16) for share in (0.0, 0.1, 0.9)},
    "bfloat16": sparse(torch.bfloat16, 0.5),
    "special": special(),
    **{f"mask, {share}": torch.rand(2000, generator=torch.Generator().manual_seed(1)) < share for share in (0, 0.1, 1)},
    "bytes": (torch.rand(2000, generator=torch.Generator().manual_seed(1)) < 0.1).to(torch.uint8) * 7,
    "whole numbers": torch.arange(2000) // 1000,
    "few": torch.zeros(10),
    "columns": torch.zeros(50, 40).T,
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_packed_tensor_is_bitwise_the_same_again(name):
    tensor, buffer = TENSORS[name], io.BytesIO()
    torch.save(Packing().packed({"a": [tensor, (tensor, 3)]}), buffer)
    buffer.seek(0)
    found = unpacked(torch.load(buffer, weights_only=True), len(buffer.getvalue()))
    for again in (found["a"][0], found["a"][1][0]):
        assert same_bits(again, tensor)
        assert again.shape == tensor.shape
    assert found["a"][1][1] == 3


def saved_bytes(state):
    buffer = io.BytesIO()
    torch.save(Packing().packed(state), buffer)
    return len(buffer.getvalue())


def test_packed_tensors_take_the_bytes_of_what_is_in_them():
    torch.manual_seed(0)
    mask = torch.rand(1000, 1000) < 0.1
    values = torch.where(mask, torch.randn(1000, 1000), 0.0)
    entropy = 1e6 * 0.469 / 8  # bytes of a random mask of a tenth
    assert saved_bytes(mask) < 1.03 * entropy + 2000
    assert saved_bytes(values) < 4 * int(mask.sum()) + 1.03 * entropy + 3000
    assert saved_bytes([values, 2 * values]) < 8 * int(mask.sum()) + 1.03 * entropy + 4000  # one mask
    assert saved_bytes([values, values.detach()]) < 4 * int(mask.sum()) + 1.03 * entropy + 4000  # the same memory
    assert saved_bytes(~torch.zeros(1000, 1000, dtype=torch.bool)) < 4000


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**6, 10**6]},
        {"shape": [-1, -2000]},
        {"shape": [3]},
        {"shape": ["x"]},
        {"shape": [float("inf")]},
        {"bytes": torch.zeros(4, dtype=torch.uint8)},
        {"bytes": None},
        {"msh.packed": "sparse"},
        {"msh.packed": "sparse", "mask": {"msh.packed": "bytes"}},
    ],
    ids=str,
)
def test_a_damaged_packed_tensor_is_refused(change):
    packed = Packing().packed(torch.arange(2000) % 3 == 0)
    with pytest.raises(ValueError, match=r"."):
        unpacked({"a": packed | change}, 1000)
