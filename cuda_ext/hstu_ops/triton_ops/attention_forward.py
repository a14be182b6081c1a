"""Forward kernel of `mtgr_attention` in Triton: one program a tile of queries and head.

A program loops over the keys that its queries see: first the tiles that all of them see whole, without a
mask, then the few tiles on the edge. What a token takes from itself, where it lies behind what it sees
(real-time tokens, candidates), is one product a token.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor

from hstu_ops.triton_ops.configs import precision, tiles_for
from hstu_ops.triton_ops.repair import any_spoilt, sum_seen
from hstu_ops.triton_ops.silu import sigmoid
from hstu_ops.triton_ops.tiles import locate_tile, rows_of_tiles


@triton.jit
def _attend(
    acc, q, end, k_start, v_start, k_stride, v_stride, begin, stop, alpha,
    MASKED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Adds SiLU(alpha q k^T) v over the keys [begin, stop); masked, keys from `end` on are left out."""
    dims = tl.arange(0, D)
    for first in range(begin, stop, KEYS):
        j = first + tl.arange(0, KEYS)
        if MASKED:
            k = tl.load(k_start + j[:, None] * k_stride + dims[None, :], mask=(j < stop)[:, None], other=0.0)
            v = tl.load(v_start + j[:, None] * v_stride + dims[None, :], mask=(j < stop)[:, None], other=0.0)
        else:
            k = tl.load(k_start + j[:, None] * k_stride + dims[None, :])
            v = tl.load(v_start + j[:, None] * v_stride + dims[None, :])
        x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * alpha
        weight = x * sigmoid(x, FAST)
        if MASKED:
            weight = tl.where(j[None, :] < end[:, None], weight, 0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, offsets, visible_end, tile_row, alpha, inv_n,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    FAST: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    start, length, first = locate_tile(offsets, tile_row, tl.program_id(0), QUERIES)
    if first >= length:
        return
    token = start.to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    i = first + tl.arange(0, QUERIES)
    dims = tl.arange(0, D)
    in_row = i < length
    end = tl.load(visible_end + token + i, mask=in_row, other=0)
    farthest = tl.max(end)
    seen_by_all = tl.min(tl.where(in_row, end, farthest)) // KEYS * KEYS

    q_start = q_ptr + token * q_token + head * q_head
    k_start = k_ptr + token * k_token + head * k_head
    v_start = v_ptr + token * v_token + head * v_head
    q = tl.load(q_start + i[:, None] * q_token + dims[None, :], mask=in_row[:, None], other=0.0)
    # The weight that a token behind what it sees gives itself: taken now, before the sums fill the registers.
    behind = in_row & (i >= end)
    any_behind = tl.max(behind.to(tl.int32)) > 0
    own_weight = tl.zeros([QUERIES], tl.float32)
    if any_behind:
        k = tl.load(k_start + i[:, None] * k_token + dims[None, :], mask=behind[:, None], other=0.0)
        x = tl.sum(q.to(tl.float32) * k.to(tl.float32), axis=1) * alpha
        own_weight = x * sigmoid(x, FAST)
    acc = tl.zeros([QUERIES, D], tl.float32)
    acc = _attend(
        acc, q, end, k_start, v_start, k_token, v_token, 0, seen_by_all, alpha,
        False, FAST, PRECISION, D, KEYS,
    )  # fmt: skip
    acc = _attend(
        acc, q, end, k_start, v_start, k_token, v_token, seen_by_all, farthest, alpha,
        True, FAST, PRECISION, D, KEYS,
    )  # fmt: skip

    if any_behind:
        v = tl.load(v_start + i[:, None] * v_token + dims[None, :], mask=behind[:, None], other=0.0)
        acc += own_weight[:, None] * v.to(tl.float32)

    out = out_ptr + token * out_token + head * out_head + i[:, None] * out_token + dims[None, :]
    tl.store(out, (acc * inv_n).to(out_ptr.dtype.element_ty), mask=in_row[:, None])
    if any_spoilt(acc, in_row):
        tl.debug_barrier()  # what is written here has been written by other threads
        out_start = out_ptr + token * out_token + head * out_head
        for place in range(first, tl.minimum(first + QUERIES, length)):
            total = sum_seen(
                q_start + place * q_token, q_start + place * q_token, k_start, k_token, k_start, k_token,
                v_start, v_token, visible_end + token, place, length, alpha, False, False, D, 16,
            )  # fmt: skip
            tl.store(out_start + place * out_token + dims, (total * inv_n).to(out_ptr.dtype.element_ty))


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    visible_end: Tensor,
    alpha: float,
    inv_n: float,
    deterministic: bool,
    plan: Tensor | None = None,
) -> Tensor:
    """Launches the forward kernel; arguments as in `hstu_ops.schemas`."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    num_tokens, num_heads, head_dim = q.shape
    tile = tiles_for(q.device, head_dim, q.dtype).forward
    with torch.cuda.device(q.device):
        tile_row = rows_of_tiles(offsets, num_tokens, tile.queries)
        _forward_kernel[(tile_row.shape[0], num_heads)](
            q, k, v, out, offsets, visible_end, tile_row, alpha, inv_n,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            out.stride(0), out.stride(1),
            FAST=q.dtype == torch.bfloat16, PRECISION=precision(q.dtype), D=head_dim,
            QUERIES=tile.queries, KEYS=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out
