"""A block of MTGR for scoring in three kernels for Hopper: forward only, 16 bits, head dim 256.

One request is a dozen tiles of tokens, so what costs is the number of kernels and what they hand on through
memory. There are no norms between these: y = GLN(x) W^T + b with GLN(x) = (x - mean) rstd w_g + b_g is

    rstd ((x w_g) W^T - mean c_g) + d_g,    c_g = W w_g,    d_g = W b_g + b,

so whoever makes x also writes x w_g and the sums of x and of its square over the columns that it has, and the
product's end does the rest. The keys that a tile of queries sees are cut into parts, one for each CTA of a
cluster, which add up what they have through shared memory.

    normed = start(...)                                   # of the first block; see model.serving.fused
    uvqk = normed_product(normed, group, uvqk_weight)     # GLN and the first product
    gated = gated_attention(uvqk, queries, ...)           # attention times u, the norm behind it left open
    normed = add_product(gated, group, out_weight, x, scale)   # GLN, the second product, x += it
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hstu_ops import backends

HEAD_DIM = 256
TILES = (64, 128)  # queries
_FACTS = 12  # of a tile, as QueryTile in csrc/sm90/serve.h
_MOST_PARTS = 8  # CTAs of a cluster
_FAR = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A product with the norm before it.

    Attributes:
        weight: `[N, K]`, 16 bits.
        affine: float32 `[G, N, 2]`: `c_g` and `d_g`.
        eps: Of the norm.
    """

    weight: Tensor
    affine: Tensor
    eps: float


@dataclass(frozen=True, kw_only=True)
class Normed:
    """What is to be normed.

    Attributes:
        scaled: `[T, K]`, times the norm's weight.
        sums: float32 `[T, S, 2]`, of it and of its square, without the weight, over S ranges of columns.
    """

    scaled: Tensor
    sums: Tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Who attends to what.

    Attributes:
        tiles: int32 `[tiles, 12]`, of `query_tiles`.
        visible_end: int32 `[T]`, leading tokens of its row, cached ones among them, that a token sees.
        group: int32 `[T]`.
        pages: int32 `[B, P]`, where leading tokens are in the cache; None: nowhere.
        parts: CTAs that share the keys of a tile.
    """

    tiles: Tensor
    visible_end: Tensor
    group: Tensor
    pages: Tensor | None
    parts: int


def missing(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Says why these kernels cannot run such tensors, or None if they can."""
    if head_dim != HEAD_DIM:
        return f"a block in three kernels has head dim {HEAD_DIM}, not {head_dim}"
    return backends.missing("cutlass", device_type, dtype, head_dim)


def fold(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Folded:
    """Folds a norm into the product behind it.

    Args:
        weight: `[N, K]`, of the product, as it is multiplied.
        bias: `[N]`.
        scale: `[G, K]`, the norm's weight.
        shift: `[G, K]`, its bias.
        eps: Added to the variance.
    """
    exact = weight.double().t()
    mean_part, rest = scale.double() @ exact, shift.double() @ exact + bias.double()
    affine = torch.stack([mean_part, rest], dim=-1).float().contiguous()
    return Folded(weight=weight.contiguous(), affine=affine, eps=eps)


def split_for(num_tokens: int, num_rows: int, num_heads: int, num_processors: int) -> tuple[int, int]:
    """Queries of a tile, and parts of its keys, a power of two.

    Tiles, heads and parts are at most as many CTAs as processors; tiles are small where they are so few that
    the most parts leave half of the processors idle.
    """
    small, large = ((num_tokens // tile + num_rows) * num_heads for tile in TILES)
    if small * _MOST_PARTS <= num_processors:
        return TILES[0], _MOST_PARTS
    parts = 1
    while parts < _MOST_PARTS and 2 * parts * large <= num_processors:
        parts *= 2
    return TILES[1], parts


@triton.jit
def _tiles_kernel(
    offsets, cached_ptr, visible_end, out, num_rows,
    HAS_CACHE: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, FACTS: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    row = -1
    first = 0
    before = 0
    for b in range(num_rows):
        count = tl.cdiv(tl.load(offsets + b + 1) - tl.load(offsets + b), SIZE)
        inside = (tile >= before) & (tile < before + count)
        row = tl.where(inside, b, row)
        first = tl.where(inside, (tile - before) * SIZE, first)
        before += count
    out += tile * FACTS
    if row < 0:
        tl.store(out + 1, 0)
        return
    key_start = tl.load(offsets + row)
    length = tl.load(offsets + row + 1) - key_start
    i = first + tl.arange(0, SIZE)
    end = tl.load(visible_end + key_start + i, mask=i < length, other=0)
    least = tl.where(i < length, end, FAR)
    upper = tl.arange(0, SIZE) < HALF
    tl.store(out, key_start + first)
    tl.store(out + 1, tl.minimum(length - first, SIZE))
    tl.store(out + 2, first)
    tl.store(out + 3, length)
    tl.store(out + 4, key_start)
    tl.store(out + 5, tl.load(cached_ptr + row) if HAS_CACHE else 0)
    tl.store(out + 6, tl.max(end))
    tl.store(out + 7, tl.min(tl.where(upper, least, FAR)))
    tl.store(out + 8, tl.min(tl.where(upper, FAR, least)))
    tl.store(out + 9, row)


def query_tiles(offsets: Tensor, visible_end: Tensor, cached: Tensor | None, size: int) -> Tensor:
    """Tiles of queries of each row, for all blocks: int32 `[tiles, 12]`, as `QueryTile` in serve.h.

    Args:
        offsets: int32 `[B + 1]`, of the rows, from 0 to T.
        visible_end: int32 `[T]`, as in `Seen`.
        cached: int32 `[B]`, leading tokens of a row that are in the cache; None: no row has any.
        size: Queries of a tile, of `TILES`.
    """
    num_rows = offsets.shape[0] - 1
    out = torch.empty(
        visible_end.shape[0] // size + num_rows, _FACTS, dtype=torch.int32, device=offsets.device
    )
    _tiles_kernel[(len(out),)](
        offsets, cached, visible_end, out, num_rows,
        HAS_CACHE=cached is not None, SIZE=size, HALF=TILES[0], FACTS=_FACTS, FAR=_FAR,
    )  # fmt: skip
    return out


def normed_product(normed: Normed, group: Tensor, folded: Folded) -> Tensor:
    """`GLN(x) W^T + b`, `[T, N]`.

    Args:
        normed: What is to be normed.
        group: int32 `[T]`.
        folded: Norm and product.
    """
    out = torch.empty(len(group), len(folded.weight), dtype=folded.weight.dtype, device=folded.weight.device)
    torch.ops.hstu_ops.normed_product_sm90(
        normed.scaled, normed.sums, group, folded.weight, folded.affine, folded.eps, out
    )
    return out


def add_product(normed: Normed, group: Tensor, folded: Folded, x: Tensor, scale: Tensor) -> Normed:
    """Adds `GLN(y) W^T + b` to `x` `[T, N]`, in place, and returns it for the next norm, of weight `scale`.

    Args:
        normed: y, which is to be normed.
        group: int32 `[T]`.
        folded: Norm and product.
        x: 16 bits, contiguous; changed.
        scale: float32 `[G, N]`.
    """
    scaled = torch.empty_like(x)
    sums = torch.empty(len(x), x.shape[1] // 64, 2, dtype=torch.float32, device=x.device)
    torch.ops.hstu_ops.normed_product_sm90(
        normed.scaled, normed.sums, group, folded.weight, folded.affine, folded.eps, x, scale, scaled, sums
    )
    return Normed(scaled=scaled, sums=sums)


def gated_attention(
    uvqk: Tensor, seen: Seen, scale: Tensor, cache: Tensor | None, alpha: float, inv_n: float
) -> Normed:
    """Attention of MTGR's mask (arXiv 2505.18654, 3.2 and 3.3) times u, for a norm of weight `scale`.

    Args:
        uvqk: `[T, 4, N, 256]`, contiguous.
        seen: Who attends to what.
        scale: float32 `[G, N * 256]`.
        cache: `[pages, 2, 64, N * 256]`, keys and values of this block, or None.
        alpha: Scale of the scores.
        inv_n: Scale of their weights.
    """
    num_tokens, _, num_heads, head_dim = uvqk.shape
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=uvqk.dtype, device=uvqk.device)
    sums = torch.empty(num_tokens, num_heads * seen.parts, 2, dtype=torch.float32, device=uvqk.device)
    torch.ops.hstu_ops.gated_parts_sm90(
        uvqk, seen.tiles, seen.visible_end, seen.group, scale, cache, seen.pages, alpha, inv_n, seen.parts,
        out, sums,
    )  # fmt: skip
    return Normed(scaled=out, sums=sums)
