"""Tile sizes of the attention kernels: by shared memory, head dim and dtype, never by a search at run time.

A search would synchronise, break graph capture and make results depend on timing. The sizes for Hopper's
shared memory were measured on an H200 (docs/log.md); the smaller ones are sized to fit.
"""

import functools
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Queries and keys a tile, warps, and pipeline stages of one kernel launch."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the attention kernels; where those of k and v are equal, one launch computes both."""

    forward: Tile
    backward_k: Tile
    backward_v: Tile
    backward_q: Tile


def _joint(forward: Tile, backward_kv: Tile, backward_q: Tile) -> Tiles:
    return Tiles(forward, backward_kv, backward_kv, backward_q)


# By the largest head dim they serve; for 16-bit tensors.
_HOPPER = {
    64: _joint(Tile(128, 32, 4, 3), Tile(32, 64, 4, 3), Tile(64, 32, 4, 3)),
    128: _joint(Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(128, 64, 8, 3)),
    256: Tiles(Tile(128, 32, 8, 3), Tile(32, 128, 8, 2), Tile(32, 128, 8, 3), Tile(128, 32, 8, 2)),
}
_SMALL = {
    64: _joint(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    128: _joint(Tile(64, 32, 4, 2), Tile(32, 64, 4, 1), Tile(64, 32, 4, 1)),
    256: _joint(Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
}
# float32 is multiplied in three parts of 11 bits on the tensor cores: small tiles, for proofs and small runs.
_FLOAT32 = {256: _joint(Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1))}
_HOPPER_SHARED_MEMORY = 220 * 1024


@functools.cache
def _shared_memory(device_index: int) -> int:
    return int(getattr(torch.cuda.get_device_properties(device_index), "shared_memory_per_block_optin", 0))


def tiles_for(device: torch.device, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Returns the tiles for a device, head dim and dtype."""
    if dtype == torch.float32:
        table = _FLOAT32
    else:
        index = device.index if device.index is not None else torch.cuda.current_device()
        table = _HOPPER if _shared_memory(index) >= _HOPPER_SHARED_MEMORY else _SMALL
    return table[min(size for size in table if size >= head_dim)]


def precision(dtype: torch.dtype) -> str:
    """Returns how a dtype is multiplied: float32 as three products of TF32, which is as exact."""
    return "tf32x3" if dtype == torch.float32 else "ieee"
