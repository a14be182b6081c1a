"""64-bit ids without a vocabulary: their hash, and the vector that an id begins with.

The same arithmetic as `cuda_ext/csrc/tables/layout.h`, by tensors: what scores without compiled kernels, and
which rank owns an id, agree with what trained to the bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_TABLE = 0xD1B54A32D192ED03
_SEED = 0x9FB21C651E98DF25
_OWNER_SHIFT = 52  # bits that neither choose a segment nor a place in it


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """`x` as an unsigned integer, shifted right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """Mixes the bits of int64 of any shape: `model.data.encoder.mix64`, one to one."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_FACTORS[0])
    x = (x ^ _shifted(x, 27)) * _signed(_FACTORS[1])
    return x ^ _shifted(x, 31)


def hash_of(ids: Tensor, table: int) -> Tensor:
    """Hash of ids of a table: equal ids of other tables have other hashes."""
    return mix64(ids ^ _signed((table + 1) * _TABLE))


def owner_of(ids: Tensor, table: int, num_ranks: int) -> Tensor:
    """The rank that keeps each id of a table, int64."""
    return _shifted(hash_of(ids, table), _OWNER_SHIFT) % num_ranks


def initial_vectors(ids: Tensor, table: int, width: int, seed: int, dtype: torch.dtype) -> Tensor:
    """The vector that each id begins with: `[ids, width]`, uniform, of variance 1 / width.

    A function of id, table and seed alone: training begins a new id with it, and scoring gives it to an id
    that was never trained on, so that both know an id for the first time in the same way.
    """
    base = mix64(hash_of(ids, table) + _signed(seed * _SEED))
    bits = mix64(base.unsqueeze(1) + torch.arange(width, device=ids.device))
    unit = _shifted(bits, 40).to(torch.float32) * 2.0**-23 - 1.0
    scale = torch.tensor(math.sqrt(3.0 / width), dtype=torch.float32, device=ids.device)
    return (unit * scale).to(dtype)
