"""Encode owner maps and masks in few bytes, near their entropy."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

LONG = 255
"""Byte for this many weights without a True one at the end."""


def encode_mask(mask: Tensor) -> Tensor:
    """Encode a mask as the gaps between its True indices, a byte each, Huffman-coded.

    Args:
        mask: bool, (*shape).
    Returns:
        uint8, (bytes,): about 1 % above a random mask's entropy, at any density.
    """
    index = np.flatnonzero(mask.detach().cpu().numpy().reshape(-1))  # (k,)
    gaps = np.diff(index, prepend=-1) - 1  # (k,)
    ends = np.cumsum(gaps // LONG + 1)
    coded = np.full(int(ends[-1]) if len(ends) else 0, LONG, dtype=np.uint8)
    coded[ends - 1] = gaps % LONG
    return _packed(coded)


def decode_mask(data: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `encode_mask`.

    Args:
        data: uint8, (bytes,).
        shape: the mask's.
    Returns:
        bool, (*shape).
    Raises:
        ValueError: the bytes are damaged, or encode a larger mask.
    """
    size = prod(shape)
    coded = _unpacked(data, size)
    ends = coded < LONG  # the bytes that end a gap
    index = np.cumsum(coded, dtype=np.int64)[ends] + np.arange(int(ends.sum()))  # (k,)
    if len(index) and index[-1] >= size:
        raise ValueError(f"a mask of {size} weights has index {index[-1]}")
    mask = np.zeros(size, dtype=bool)
    mask[index] = True
    return torch.from_numpy(mask).view(tuple(shape))


def encode_owners(owners: Tensor) -> Tensor:
    """Encode owner ids byte by byte with Huffman codes, all ids' low bytes first: uint8, (bytes,)."""
    coded = owners.detach().cpu().contiguous().numpy().reshape(-1, 1).view(np.uint8)
    return _packed(np.ascontiguousarray(coded.T).reshape(-1))


def decode_owners(data: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Undo `encode_owners`: ids (*shape) with a dtype.

    Raises:
        ValueError: the bytes are damaged, or encode another shape or type.
    """
    size = prod(shape) * dtype.itemsize
    coded = _unpacked(data, size)
    if coded.size != size:
        raise ValueError(f"owner maps of shape {list(shape)} take {size} bytes, got {coded.size}")
    planes = coded.reshape(dtype.itemsize, prod(shape))
    return torch.from_numpy(np.ascontiguousarray(planes.T).reshape(-1)).view(dtype).view(tuple(shape))


def _packed(coded: np.ndarray) -> Tensor:
    """Compress with the better of two codes: for random values, and for long runs."""
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
