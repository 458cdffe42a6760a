"""Test that coded masks and owner maps are restored, and damage is refused."""

import contextlib
import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msh.files.codec import decode_mask, decode_owners, encode_mask, encode_owners


@given(st.lists(st.booleans(), max_size=400), st.integers(0, 1200), st.integers(0, 1200))
@settings(deadline=None)
def test_a_mask_is_restored(places, before, after):
    mask = torch.tensor([False] * before + places + [False] * after, dtype=torch.bool)
    assert torch.equal(decode_mask(encode_mask(mask), mask.shape), mask)


@pytest.mark.parametrize("gap", [253, 254, 255, 256, 509, 510, 511])
def test_long_gaps_are_restored(gap):
    mask = torch.zeros(3, 600, dtype=torch.bool)
    mask.view(-1)[[gap, 2 * gap + 1, 1799]] = True
    assert torch.equal(decode_mask(encode_mask(mask), (3, 600)), mask)


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.3, 0.5])
def test_a_random_mask_takes_little_more_than_its_entropy(density):
    mask = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) < density
    p = mask.float().mean().item()
    entropy = 0.0 if p == 1 else -1e6 / 8 * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert encode_mask(mask).numel() < 1.02 * entropy + 0.001 * 1_000_000 / 8 + 200


@given(st.lists(st.integers(0, 70_000), max_size=50), st.sampled_from([torch.uint8, torch.int16, torch.int32]))
@settings(deadline=None)
def test_owners_are_restored(ids, dtype):
    owners = torch.tensor(ids).clamp(max=torch.iinfo(dtype).max).to(dtype)
    assert torch.equal(decode_owners(encode_owners(owners), owners.shape, dtype), owners)


@pytest.mark.parametrize("tasks", [254, 1000, 30_000])
def test_owner_maps_of_many_tasks_take_little_more_than_their_entropy(tasks):
    owners = torch.randint(1, tasks + 1, (200_000,), generator=torch.Generator().manual_seed(0))
    coded = encode_owners(owners.to(torch.uint8 if tasks < 255 else torch.int16))
    assert 8 * coded.numel() < 1.04 * 200_000 * math.log2(tasks)


@given(st.binary(max_size=80), st.integers(0, 40))
@settings(deadline=None)
def test_any_bytes_are_decoded_or_refused(content, size):
    for data in (content, zlib.compress(content)):
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
        with contextlib.suppress(ValueError):
            assert decode_mask(tensor, (size,)).shape == (size,)
        with contextlib.suppress(ValueError):
            assert decode_owners(tensor, (size,), torch.uint8).shape == (size,)


def test_bytes_that_unpack_beyond_the_mask_are_refused():
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10_000_000))), dtype=torch.uint8)
    with pytest.raises(ValueError, match="cut short, or hold more than 100"):
        decode_mask(bomb, (10, 10))


def test_an_index_beyond_the_mask_is_refused():
    mask = torch.zeros(50, dtype=torch.bool)
    mask[40] = True
    with pytest.raises(ValueError, match="a mask of 30 weights has index 40"):
        decode_mask(encode_mask(mask), (30,))
