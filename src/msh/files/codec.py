"""Owner maps and masks in few bytes: near the entropy of their places."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

LONG = 255
"""A byte that stands for this many weights passed over and none kept."""


def encode_mask(mask: Tensor) -> Tensor:
    """A mask as the gaps between its kept places, a byte each, Huffman-coded.

    Args:
        mask: bool, (*shape).
    Returns:
        uint8, (bytes,): about 1 % more than the entropy of a random mask, at any density.
    """
    places = np.flatnonzero(mask.detach().cpu().numpy().reshape(-1))
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // LONG + 1)
    coded = np.full(int(ends[-1]) if len(ends) else 0, LONG, dtype=np.uint8)
    coded[ends - 1] = gaps % LONG
    return _packed(coded)


def decode_mask(data: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `encode_mask`.

    Args:
        data: uint8, (bytes,).
        shape: of the mask.
    Returns:
        bool, (*shape).
    Raises:
        ValueError: the bytes are damaged, or are of a larger mask.
    """
    size = prod(shape)
    coded = _unpacked(data, size)
    kept = coded < LONG
    places = np.cumsum(coded, dtype=np.int64)[kept] + np.arange(int(kept.sum()))
    if len(places) and places[-1] >= size:
        raise ValueError(f"a mask of {size} weights keeps place {places[-1]}")
    mask = np.zeros(size, dtype=bool)
    mask[places] = True
    return torch.from_numpy(mask).view(tuple(shape))


def encode_owners(owners: Tensor) -> Tensor:
    """Owner ids, Huffman-coded byte by byte, of wide ids all the low bytes first: uint8, (bytes,)."""
    coded = owners.detach().cpu().contiguous().numpy().reshape(-1, 1).view(np.uint8)
    return _packed(np.ascontiguousarray(coded.T).reshape(-1))


def decode_owners(data: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Undo `encode_owners`: ids of a type, (*shape).

    Raises:
        ValueError: the bytes are damaged, or are not of this shape and type.
    """
    size = prod(shape) * dtype.itemsize
    coded = _unpacked(data, size)
    if coded.size != size:
        raise ValueError(f"owner maps of shape {list(shape)} take {size} bytes; {coded.size} are there")
    planes = coded.reshape(dtype.itemsize, prod(shape))
    return torch.from_numpy(np.ascontiguousarray(planes.T).reshape(-1)).view(dtype).view(tuple(shape))


def _packed(coded: np.ndarray) -> Tensor:
    """The smaller of two codes: for places at random, and for whole runs of them."""
    packed = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):
        packer = zlib.compressobj(9, strategy=strategy)
        packed.append(packer.compress(coded.tobytes()) + packer.flush())
    return torch.frombuffer(bytearray(min(packed, key=len)), dtype=torch.uint8)


def _unpacked(data: Tensor, most: int) -> np.ndarray:
    unpacker = zlib.decompressobj()
    try:
        coded = unpacker.decompress(data.numpy().tobytes(), max(most, 1))
    except zlib.error as error:
        raise ValueError(f"packed bytes are damaged: {error}") from error
    if not unpacker.eof:
        rest = unpacker.decompress(unpacker.unconsumed_tail, 1) if unpacker.unconsumed_tail else b""
        if rest or not unpacker.eof:
            raise ValueError(f"packed bytes are cut short, or hold more than {most}")
    return np.frombuffer(bytearray(coded), dtype=np.uint8)
