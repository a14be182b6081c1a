"""Backward kernels of `mtgr_attention` in Triton: one for k and v, in one launch or two, and one for q.

Each program owns the tile it writes, so nothing is added atomically and equal inputs give equal bits; the
price is that scores are computed again in each launch. At head dim 256 the sums of both k and v do not fit
the registers beside a tile worth its name, so there they take a launch each.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor

from hstu_ops.triton_ops.configs import Tile, precision, tiles_for
from hstu_ops.triton_ops.repair import any_spoilt, sum_seen
from hstu_ops.triton_ops.silu import sigmoid
from hstu_ops.triton_ops.tiles import locate_tile, rows_of_tiles


@triton.jit
def _queries_that_see(visible_end, token, length, key, WIDTH: tl.constexpr):
    """Returns the range [low, high) of queries of a row outside which none sees position `key`."""
    low = length
    high = 0
    for first in range(0, length, WIDTH):
        i = first + tl.arange(0, WIDTH)
        end = tl.load(visible_end + token + i, mask=i < length, other=0)
        low = tl.minimum(low, tl.min(tl.where(end > key, i, length)))
        high = tl.maximum(high, tl.max(tl.where(end > key, i + 1, 0)))
    return low, high


@triton.jit
def _own_weights(a_ptr, b_ptr, a, b, behind, alpha, FAST: tl.constexpr, TOKENS: tl.constexpr):
    """Returns what tokens behind what they see give themselves: whether one does, weights, score gradients.

    The scores are products of the rows at `a_ptr` with `a` (q and k), the gradients of the weights of those
    at `b_ptr` with `b` (that of out, and v). Taken before the sums fill the registers.
    """
    any_behind = tl.max(behind.to(tl.int32)) > 0
    weight = tl.zeros([TOKENS], tl.float32)
    grad_x = tl.zeros([TOKENS], tl.float32)
    if any_behind:
        other = tl.load(a_ptr, mask=behind[:, None], other=0.0)
        x = tl.sum(other.to(tl.float32) * a.to(tl.float32), axis=1) * alpha
        s = sigmoid(x, FAST)
        other = tl.load(b_ptr, mask=behind[:, None], other=0.0)
        grad_weight = tl.sum(other.to(tl.float32) * b.to(tl.float32), axis=1)
        weight = x * s
        grad_x = grad_weight * (s + x * s * (1.0 - s))
    return any_behind, weight, grad_x


@triton.jit
def _backward_kv_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, grad_k_ptr, grad_v_ptr, offsets, visible_end, tile_row, alpha, inv_n,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token, out_head,
    GRAD_K: tl.constexpr, GRAD_V: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr,
        QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    start, length, first = locate_tile(offsets, tile_row, tl.program_id(0), KEYS)
    if first >= length:
        return
    token = start.to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    j = first + tl.arange(0, KEYS)
    dims = tl.arange(0, D)
    in_row = j < length
    q_start = q_ptr + token * q_token + head * q_head
    grad_start = grad_ptr + token * grad_token + head * grad_head
    k_tile = k_ptr + token * k_token + head * k_head + j[:, None] * k_token + dims[None, :]
    v_tile = v_ptr + token * v_token + head * v_head + j[:, None] * v_token + dims[None, :]
    k = tl.load(k_tile, mask=in_row[:, None], other=0.0)
    v = tl.load(v_tile, mask=in_row[:, None], other=0.0)
    behind = in_row & (j >= tl.load(visible_end + token + j, mask=in_row, other=0))
    own = q_start + j[:, None] * q_token + dims[None, :]
    own_grad = grad_start + j[:, None] * grad_token + dims[None, :]
    any_behind, own_weight, own_grad_x = _own_weights(own, own_grad, k, v, behind, alpha, FAST, KEYS)
    grad_k = tl.zeros([KEYS, D], tl.float32)
    grad_v = tl.zeros([KEYS, D], tl.float32)

    low, high = _queries_that_see(visible_end, token, length, first, 256)
    for query in range(low // QUERIES * QUERIES, high, QUERIES):
        i = query + tl.arange(0, QUERIES)
        end = tl.load(visible_end + token + i, mask=i < length, other=0)
        q = tl.load(q_start + i[:, None] * q_token + dims[None, :], mask=(i < length)[:, None], other=0.0)
        grad = tl.load(
            grad_start + i[:, None] * grad_token + dims[None, :], mask=(i < length)[:, None], other=0.0
        )
        sees = j[:, None] < end[None, :]
        x = tl.dot(k, tl.trans(q), input_precision=PRECISION) * alpha
        s = sigmoid(x, FAST)
        weight = tl.where(sees, x * s, 0.0)
        if GRAD_V:
            grad_v = tl.dot(weight.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        if GRAD_K:
            grad_weight = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
            grad_x = tl.where(sees, grad_weight * (s + x * s * (1.0 - s)), 0.0)
            grad_k = tl.dot(grad_x.to(q.dtype), q, grad_k, input_precision=PRECISION)

    out = token * out_token + head * out_head + j[:, None] * out_token + dims[None, :]
    if GRAD_V:
        if any_behind:
            own_grad = grad_start + j[:, None] * grad_token + dims[None, :]
            grad_v += own_weight[:, None] * tl.load(own_grad, mask=behind[:, None], other=0.0).to(tl.float32)
        tl.store(grad_v_ptr + out, (grad_v * inv_n).to(grad_v_ptr.dtype.element_ty), mask=in_row[:, None])
        if any_spoilt(grad_v, in_row):
            tl.debug_barrier()  # what is written here has been written by other threads
            k_start = k_ptr + token * k_token + head * k_head
            out_start = grad_v_ptr + token * out_token + head * out_head
            for place in range(first, tl.minimum(first + KEYS, length)):
                total = sum_seen(
                    k_start + place * k_token, k_start + place * k_token, q_start, q_token, q_start, q_token,
                    grad_start, grad_token, visible_end + token, place, length, alpha, True, False, D, 16,
                )  # fmt: skip
                tl.store(
                    out_start + place * out_token + dims, (total * inv_n).to(grad_v_ptr.dtype.element_ty)
                )
    if GRAD_K:
        if any_behind:
            own = q_start + j[:, None] * q_token + dims[None, :]
            grad_k += own_grad_x[:, None] * tl.load(own, mask=behind[:, None], other=0.0).to(tl.float32)
        grad_k *= alpha * inv_n
        tl.store(grad_k_ptr + out, grad_k.to(grad_k_ptr.dtype.element_ty), mask=in_row[:, None])
        if any_spoilt(grad_k, in_row):
            tl.debug_barrier()
            k_start = k_ptr + token * k_token + head * k_head
            v_start = v_ptr + token * v_token + head * v_head
            out_start = grad_k_ptr + token * out_token + head * out_head
            for place in range(first, tl.minimum(first + KEYS, length)):
                total = sum_seen(
                    k_start + place * k_token, v_start + place * v_token, q_start, q_token,
                    grad_start, grad_token, q_start, q_token, visible_end + token, place, length, alpha,
                    True, True, D, 16,
                )  # fmt: skip
                total *= alpha * inv_n
                tl.store(out_start + place * out_token + dims, total.to(grad_k_ptr.dtype.element_ty))


@triton.jit
def _collect_grad_q(
    acc, q, grad, end, k_start, v_start, k_stride, v_stride, begin, stop, alpha,
    MASKED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Adds the gradient that q takes from the keys [begin, stop); masked, keys from `end` on are left out."""
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
        s = sigmoid(x, FAST)
        grad_x = tl.dot(grad, tl.trans(v), input_precision=PRECISION) * (s + x * s * (1.0 - s))
        if MASKED:
            grad_x = tl.where(j[None, :] < end[:, None], grad_x, 0.0)
        acc = tl.dot(grad_x.to(k.dtype), k, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _backward_q_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, grad_q_ptr, offsets, visible_end, tile_row, alpha, inv_n,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token, out_head,
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

    q_tile = q_ptr + token * q_token + head * q_head + i[:, None] * q_token + dims[None, :]
    grad_tile = grad_ptr + token * grad_token + head * grad_head + i[:, None] * grad_token + dims[None, :]
    k_start = k_ptr + token * k_token + head * k_head
    v_start = v_ptr + token * v_token + head * v_head
    q = tl.load(q_tile, mask=in_row[:, None], other=0.0)
    grad = tl.load(grad_tile, mask=in_row[:, None], other=0.0)
    behind = in_row & (i >= end)
    own = k_start + i[:, None] * k_token + dims[None, :]
    own_v = v_start + i[:, None] * v_token + dims[None, :]
    any_behind, _, own_grad_x = _own_weights(own, own_v, q, grad, behind, alpha, FAST, QUERIES)
    acc = tl.zeros([QUERIES, D], tl.float32)
    acc = _collect_grad_q(
        acc, q, grad, end, k_start, v_start, k_token, v_token, 0, seen_by_all, alpha,
        False, FAST, PRECISION, D, KEYS,
    )  # fmt: skip
    acc = _collect_grad_q(
        acc, q, grad, end, k_start, v_start, k_token, v_token, seen_by_all, farthest, alpha,
        True, FAST, PRECISION, D, KEYS,
    )  # fmt: skip

    if any_behind:
        own = k_start + i[:, None] * k_token + dims[None, :]
        acc += own_grad_x[:, None] * tl.load(own, mask=behind[:, None], other=0.0).to(tl.float32)

    out = grad_q_ptr + token * out_token + head * out_head + i[:, None] * out_token + dims[None, :]
    tl.store(out, (acc * (alpha * inv_n)).to(grad_q_ptr.dtype.element_ty), mask=in_row[:, None])
    if any_spoilt(acc, in_row):
        tl.debug_barrier()  # what is written here has been written by other threads
        q_start = q_ptr + token * q_token + head * q_head
        grad_start = grad_ptr + token * grad_token + head * grad_head
        out_start = grad_q_ptr + token * out_token + head * out_head
        for place in range(first, tl.minimum(first + QUERIES, length)):
            total = sum_seen(
                q_start + place * q_token, grad_start + place * grad_token, k_start, k_token,
                v_start, v_token, k_start, k_token, visible_end + token, place, length, alpha,
                False, True, D, 16,
            )  # fmt: skip
            total *= alpha * inv_n
            tl.store(out_start + place * out_token + dims, total.to(grad_q_ptr.dtype.element_ty))


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    visible_end: Tensor,
    alpha: float,
    inv_n: float,
    deterministic: bool,
    plan: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches both backward kernels; arguments as in `hstu_ops.schemas`."""
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    attention_backward_out(
        grad_out, q, k, v, offsets, visible_end, alpha, inv_n, deterministic, grad_q, grad_k, grad_v
    )
    return grad_q, grad_k, grad_v


def attention_backward_out(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    visible_end: Tensor,
    alpha: float,
    inv_n: float,
    deterministic: bool,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    plan: Tensor | None = None,
) -> None:
    """Writes the gradients into tensors of equal strides, last stride 1; `plan` is not read."""
    if q.numel() == 0:
        return
    num_tokens, num_heads, head_dim = q.shape
    tiles = tiles_for(q.device, head_dim, q.dtype)
    strides = [s for t in (q, k, v, grad_out, grad_q) for s in (t.stride(0), t.stride(1))]
    rest = (offsets, visible_end)

    def constants(tile: Tile) -> dict[str, object]:
        return {
            "FAST": q.dtype == torch.bfloat16, "PRECISION": precision(q.dtype), "D": head_dim,
            "QUERIES": tile.queries, "KEYS": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip

    def launch_kv(tile: Tile, *, for_k: bool, for_v: bool) -> None:
        tile_row = rows_of_tiles(offsets, num_tokens, tile.keys)
        _backward_kv_kernel[(tile_row.shape[0], num_heads)](
            q, k, v, grad_out, grad_k, grad_v, *rest, tile_row, alpha, inv_n, *strides,
            GRAD_K=for_k, GRAD_V=for_v, **constants(tile),
        )  # fmt: skip

    with torch.cuda.device(q.device):
        if tiles.backward_k == tiles.backward_v:
            launch_kv(tiles.backward_k, for_k=True, for_v=True)
        else:
            launch_kv(tiles.backward_v, for_k=False, for_v=True)
            launch_kv(tiles.backward_k, for_k=True, for_v=False)
        tile = tiles.backward_q
        tile_row = rows_of_tiles(offsets, num_tokens, tile.queries)
        _backward_q_kernel[(tile_row.shape[0], num_heads)](
            q, k, v, grad_out, grad_q, *rest, tile_row, alpha, inv_n, *strides, **constants(tile)
        )
