"""Attention and gated norm of a block for one or a few requests, forward only, in Triton.

A request is one row: its tiles of queries are far fewer than a GPU has processors. Scores are not normalised
over keys, so the keys that a tile sees are cut into parts that are summed apart, each by a program of its
own; the norm behind adds them up. Keys of a row's leading tokens may be those that an earlier request has
left in pages of a cache.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hstu_ops.triton_ops.configs import precision

PAGE = 64  # tokens of a page of the cache
_LONG = 512  # queries, from which on a program takes more of them, and reads keys less often


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Tokens that attend, and where what they see lies.

    Attributes:
        offsets: int32 `[B + 1]`, of the rows in the queries.
        key_offsets: int32 `[B + 1]`, of the rows in the tokens whose keys and values are given.
        visible_end: int32 `[T]`, leading tokens of its row, cached ones among them, that a query sees.
        cached: int32 `[B]`, leading tokens of a row that are in the cache; None: no row has any.
        pages: int32 `[B, P]`, the pages where they lie, in order.
        most: Most queries of a row, for the size of the launch.
    """

    offsets: Tensor
    key_offsets: Tensor
    visible_end: Tensor
    cached: Tensor | None = None
    pages: Tensor | None = None
    most: int


@triton.jit
def _attend_part(
    acc, q, end, least, k_start, v_start, stride, begin, stop, shift, pages, page_stride, alpha,
    PAGED: tl.constexpr, PAGE_TOKENS: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Adds SiLU(alpha q k^T) v over the keys [begin, stop) of a row, which lie `shift` before their place.

    Keys below `least` are seen by all queries: their tiles need no mask.
    """
    tile = tl.arange(0, KEYS)[:, None] * stride + tl.arange(0, D)[None, :]
    whole = begin + tl.maximum(tl.minimum(least, stop) - begin, 0) // KEYS * KEYS
    for first in range(begin, whole, KEYS):
        if PAGED:  # a tile lies within one page
            page = tl.load(pages + first // PAGE_TOKENS).to(tl.int64)
            at = page * page_stride + first % PAGE_TOKENS * stride
        else:
            at = (first - shift).to(tl.int64) * stride
        k = tl.load(k_start + at + tile)
        v = tl.load(v_start + at + tile)
        x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * alpha
        acc = tl.dot((x / (1.0 + tl.exp(-x))).to(v.dtype), v, acc, input_precision=PRECISION)
    for first in range(whole, stop, KEYS):
        j = first + tl.arange(0, KEYS)
        is_key = (j < stop)[:, None]
        if PAGED:
            page = tl.load(pages + first // PAGE_TOKENS).to(tl.int64)
            at = page * page_stride + first % PAGE_TOKENS * stride
        else:
            at = (first - shift).to(tl.int64) * stride
        k = tl.load(k_start + at + tile, mask=is_key, other=0.0)
        v = tl.load(v_start + at + tile, mask=is_key, other=0.0)
        x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * alpha
        weight = tl.where(j[None, :] < tl.minimum(end, stop)[:, None], x / (1.0 + tl.exp(-x)), 0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _split_attention_kernel(
    q_ptr, k_ptr, v_ptr, cached_k_ptr, cached_v_ptr, out_ptr, offsets, key_offsets, visible_end, cached_ptr,
    pages_ptr, alpha, num_tokens, num_parts, num_pages, q_stride, kv_stride, page_stride, cached_stride,
    HAS_CACHE: tl.constexpr, PAGE_TOKENS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // num_parts
    part = tl.program_id(0) % num_parts
    head = tl.program_id(2)
    start = tl.load(offsets + row)
    stop = tl.load(offsets + row + 1)
    first = start + tl.program_id(1) * QUERIES
    if first >= stop:
        return
    i = first + tl.arange(0, QUERIES)
    in_row = i < stop
    dims = tl.arange(0, D)
    end = tl.load(visible_end + i, mask=in_row, other=0)
    farthest = tl.max(end)
    least = tl.min(tl.where(in_row, end, farthest))
    key_start = tl.load(key_offsets + row)
    cached = tl.load(cached_ptr + row) if HAS_CACHE else 0
    # Every program of a tile takes an equal part of the tiles of keys.
    share = tl.cdiv(tl.cdiv(farthest, KEYS), num_parts) * KEYS
    begin = tl.minimum(part * share, farthest)
    until = tl.minimum(begin + share, farthest)
    of_head = head * D
    at = i[:, None].to(tl.int64) * q_stride + of_head + dims[None, :]
    q = tl.load(q_ptr + at, mask=in_row[:, None], other=0.0)
    acc = tl.zeros([QUERIES, D], tl.float32)
    if HAS_CACHE:
        acc = _attend_part(
            acc, q, end, least, cached_k_ptr + of_head, cached_v_ptr + of_head, cached_stride,
            begin, tl.minimum(until, cached), 0, pages_ptr + row * num_pages, page_stride, alpha,
            True, PAGE_TOKENS, PRECISION, D, KEYS,
        )  # fmt: skip
    k_start = k_ptr + key_start.to(tl.int64) * kv_stride + of_head
    v_start = v_ptr + key_start.to(tl.int64) * kv_stride + of_head
    acc = _attend_part(
        acc, q, end, least, k_start, v_start, kv_stride, tl.maximum(begin, cached), until, cached, pages_ptr,
        page_stride, alpha, False, PAGE_TOKENS, PRECISION, D, KEYS,
    )  # fmt: skip
    out = out_ptr + part.to(tl.int64) * num_tokens * HEADS * D + i[:, None].to(tl.int64) * HEADS * D + of_head
    tl.store(out + dims[None, :], acc, mask=in_row[:, None])


@triton.jit
def _gate_norm_kernel(
    parts_ptr, gate_ptr, q_ptr, k_ptr, v_ptr, own_ptr, group_ptr, weight_ptr, bias_ptr, y_ptr, num_parts,
    num_tokens, alpha, inv_n, eps, q_stride, kv_stride,
    HEADS: tl.constexpr, HEADS_2: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS_2)
    at = heads[:, None] * D + tl.arange(0, D)[None, :]
    mask = heads[:, None] < HEADS
    dim = HEADS * D
    x = tl.zeros([HEADS_2, D], tl.float32)
    for part in range(num_parts):
        x += tl.load(parts_ptr + (part * num_tokens + i) * dim + at, mask=mask, other=0.0)
    own = tl.load(own_ptr + i).to(tl.int64)
    if own >= 0:
        q = tl.load(q_ptr + i * q_stride + at, mask=mask, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + own * kv_stride + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + own * kv_stride + at, mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(q * k, axis=1) * alpha
        x += (score / (1.0 + tl.exp(-score)))[:, None] * v
    z = x * inv_n * tl.load(gate_ptr + i * q_stride + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(z) / dim
    centered = tl.where(mask, z - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered) / dim + eps)
    affine = tl.load(group_ptr + i).to(tl.int64) * dim + at
    weight = tl.load(weight_ptr + affine, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + affine, mask=mask, other=0.0).to(tl.float32)
    y = (centered * rstd * weight + bias).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + i * dim + at, y, mask=mask)


def split_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Queries,
    alpha: float,
    num_parts: int,
    cache: Tensor | None = None,
) -> Tensor:
    """Attention of MTGR's mask (arXiv 2505.18654, 3.2 and 3.3), in parts that are still to be added up.

    Args:
        q: `[T, N, D]`, last two dimensions contiguous, of the queries.
        k: `[K, N, D]` as q, of a row's tokens that are not in the cache.
        v: As k.
        queries: Who attends to what.
        alpha: Scale of the scores.
        num_parts: Into how many parts keys are cut.
        cache: `[pages, 2, PAGE, N * D]`, keys and values of this block, last two dimensions contiguous.

    Returns:
        float32 `[num_parts, T, N * D]`; `gate_norm` adds them up, and what a token takes from itself where it
        is not among the leading ones that it sees.
    """
    num_tokens, num_heads, head_dim = q.shape
    out = torch.empty(num_parts, num_tokens, num_heads * head_dim, dtype=torch.float32, device=q.device)
    tile = tile_of(q.dtype, head_dim, queries.most)
    grid = ((queries.offsets.shape[0] - 1) * num_parts, -(-queries.most // tile["QUERIES"]), num_heads)
    held = k if cache is None else cache[:, 0]
    _split_attention_kernel[grid](
        q, k, v, held, v if cache is None else cache[:, 1], out, queries.offsets, queries.key_offsets,
        queries.visible_end, queries.cached, queries.pages, alpha, num_tokens, num_parts,
        0 if queries.pages is None else queries.pages.shape[1], q.stride(0), k.stride(0),
        0 if cache is None else cache.stride(0), 0 if cache is None else cache.stride(2),
        HAS_CACHE=cache is not None, PAGE_TOKENS=PAGE, PRECISION=precision(q.dtype), HEADS=num_heads,
        D=head_dim, **tile,
    )  # fmt: skip
    return out


def gate_norm(
    parts: Tensor,
    of_queries: Tensor,
    of_keys: Tensor,
    own: Tensor,
    group: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: float,
    inv_n: float,
    eps: float,
) -> Tensor:
    """`GLN(attention * u)` of the parts that `split_attention` gave, statistics in float32.

    Args:
        parts: float32 `[P, T, N * D]`.
        of_queries: `[T, 4, N, D]`, contiguous: u, v, q and k of the queries.
        of_keys: `[K, 4, N, D]`, contiguous, of the tokens whose keys are not cached.
        own: int32 `[T]`, the place in `of_keys` of a query that is not among the leading tokens that it sees,
            else -1.
        group: int32 `[T]`, the group of each query.
        weight: `[G, N * D]`.
        bias: `[G, N * D]`.
        alpha: Scale of the scores.
        inv_n: Scale of the attention's weights.
        eps: Added to the variance.

    Returns:
        `[T, N * D]` in the dtype of the queries.
    """
    num_parts, num_tokens, dim = parts.shape
    _, _, num_heads, head_dim = of_queries.shape
    y = torch.empty(num_tokens, dim, dtype=of_queries.dtype, device=of_queries.device)
    u, _, q, _ = of_queries.unbind(1)
    _, v, _, k = of_keys.unbind(1)
    heads = triton.next_power_of_2(num_heads)
    _gate_norm_kernel[(num_tokens,)](
        parts, u, q, k, v, own, group, weight, bias, y, num_parts, num_tokens, alpha, inv_n, eps, q.stride(0),
        k.stride(0), HEADS=num_heads, HEADS_2=heads, D=head_dim,
        num_warps=4 if heads * head_dim >= 512 else 1,
    )  # fmt: skip
    return y


def tile_of(dtype: torch.dtype, head_dim: int, most: int) -> dict[str, int]:
    """Sizes of a program for rows of at most `most` queries; a page is whole tiles of keys."""
    if dtype == torch.float32:
        return {"QUERIES": 32, "KEYS": 16, "num_warps": 4, "num_stages": 2}
    if most >= _LONG:
        return {"QUERIES": 128, "KEYS": 32 if head_dim > 128 else 64, "num_warps": 8, "num_stages": 3}
    return {"QUERIES": 64, "KEYS": 32 if head_dim > 128 else 64, "num_warps": 4, "num_stages": 3}
