"""What turns requests' features into rows of an MLP's input on a GPU: a handful of launches, in Triton.

The features come as one buffer (`model.serving.collate`); none of these kernels waits for the host.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from hstu_ops.scoring import Normed
from torch import Tensor

# Rows of what the host says of each request, int32 `[FACTS, B + 2]`; see `lay_out`.
OFFSET, STATIC, REALTIME, CANDIDATE, BASE, FIRST_STATIC, FIRST_REALTIME, FIRST_CANDIDATE, CACHED = range(9)
NUM_FACTS = 9
_CLIP = 6.0  # as model.embeddings.numbers
_TOKENS = 32  # a program


@triton.jit
def _layout_kernel(
    facts, visible_b, visible_c, source_ptr, group_ptr, visible_end_ptr, own_ptr, candidate_ptr,
    candidate_end_ptr, num_tokens, num_rows, width, profile_tokens, num_profile, num_behaviours,
    BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.zeros([BLOCK], tl.int32)
    for b in range(1, num_rows + 1):
        row += (tl.load(facts + b) <= t).to(tl.int32)
    real = (t < num_tokens) & (row < num_rows)
    at = facts + row
    p = t - tl.load(at, mask=real, other=0)
    num_static = tl.load(at + 1 * width, mask=real, other=0)
    num_realtime = tl.load(at + 2 * width, mask=real, other=0)
    base = tl.load(at + 4 * width, mask=real, other=0)
    first_static = tl.load(at + 5 * width, mask=real, other=0)
    first_realtime = tl.load(at + 6 * width, mask=real, other=0)
    first_candidate = tl.load(at + 7 * width, mask=real, other=0)
    of_static = p - profile_tokens
    of_realtime = of_static - num_static
    of_candidate = of_realtime - num_realtime
    is_candidate = real & (of_candidate >= 0)
    is_realtime = real & (of_realtime >= 0) & (of_candidate < 0)
    is_static = real & (of_static >= 0) & (of_realtime < 0)
    behaviour = tl.where(is_realtime, first_realtime + of_realtime, first_static + of_static)
    candidate = first_candidate + of_candidate
    source = tl.where(is_realtime | is_static, num_profile + behaviour, row * profile_tokens + p)
    source = tl.where(is_candidate, num_profile + num_behaviours + candidate, source)
    group = tl.where(is_realtime, 2, tl.where(is_static, 1, 0))
    group = tl.where(real & (of_candidate < 0), group, 3)
    seen = tl.load(visible_b + behaviour, mask=is_realtime, other=0)
    seen += tl.load(visible_c + candidate, mask=is_candidate, other=0)
    end = tl.where(real, base + seen, 0)
    inside = t < num_tokens
    tl.store(source_ptr + t, tl.where(real, source, 0).to(tl.int64), mask=inside)
    tl.store(group_ptr + t, group, mask=inside)
    tl.store(visible_end_ptr + t, end, mask=inside)
    tl.store(own_ptr + t, tl.where(group > 1, t, -1), mask=inside)
    tl.store(candidate_ptr + candidate, t, mask=is_candidate)
    tl.store(candidate_end_ptr + candidate, end, mask=is_candidate)


@triton.jit
def _pick_kernel(pieces, ids_ptr, out_ptr, TOKENS: tl.constexpr):
    piece = pieces + tl.program_id(0) * 3
    i = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    mask = i < tl.load(piece + 1)
    ids = tl.load(ids_ptr + tl.load(piece) + i, mask=mask, other=0)
    tl.store(out_ptr + tl.load(piece + 2) + i, ids, mask=mask)


@triton.jit
def _vectors_kernel(
    pieces, rows_ptr, vectors_ptr, out_ptr, dim,
    BY_ROW: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    piece = pieces + tl.program_id(0) * 5
    first = tl.load(piece)
    count = tl.load(piece + 1)
    target = tl.load(piece + 2)
    stride = tl.load(piece + 3)
    i = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, WIDTH)
    is_token = i < count
    mask = is_token[:, None] & (d < dim)[None, :]
    row = first + i
    if BY_ROW:
        row = tl.load(rows_ptr + row, mask=is_token, other=0) + tl.load(piece + 4)
    values = tl.load(vectors_ptr + row[:, None].to(tl.int64) * dim + d[None, :], mask=mask, other=0.0)
    at = target + i[:, None] * stride + d[None, :]
    tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _numbers_kernel(
    pieces, constants, numbers_ptr, out_ptr, CLIP: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    number = tl.program_id(0)
    piece = pieces + number * 4
    first = tl.load(piece)
    count = tl.load(piece + 1)
    target = tl.load(piece + 2)
    stride = tl.load(piece + 3)
    mean = tl.load(constants + number * 3)
    std = tl.load(constants + number * 3 + 1)
    fitted = tl.load(constants + number * 3 + 2)
    i = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    mask = i < count
    x = tl.load(numbers_ptr + first + i, mask=mask, other=0.0)
    z = tl.minimum(tl.maximum((x - mean) / std, -CLIP), CLIP)
    z = tl.where(x == x, z, 0.0) * fitted  # NaN is "nothing known", which reads as the mean
    tl.store(out_ptr + target + i * stride, z.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _start_kernel(
    tokens_ptr, source_ptr, group_ptr, scale_ptr, x_ptr, scaled_ptr, sums_ptr, dim, WIDTH: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    mask = d < dim
    token = tl.load(tokens_ptr + tl.load(source_ptr + t) * dim + d, mask=mask, other=0.0)
    x = token.to(tl.float32)
    scale = tl.load(scale_ptr + tl.load(group_ptr + t).to(tl.int64) * dim + d, mask=mask, other=0.0)
    tl.store(x_ptr + t * dim + d, token, mask=mask)
    tl.store(scaled_ptr + t * dim + d, (x * scale).to(scaled_ptr.dtype.element_ty), mask=mask)
    tl.store(sums_ptr + 2 * t, tl.sum(x, axis=0))
    tl.store(sums_ptr + 2 * t + 1, tl.sum(x * x, axis=0))


@triton.jit
def _keep_kernel(
    k_ptr, v_ptr, cache_ptr, facts, pages_ptr, num_rows, num_pages, stride, page_stride, half_stride, dim,
    PAGE_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    row = 0
    for b in range(1, num_rows + 1):
        row += (tl.load(facts + b) <= t).to(tl.int32)
    if row >= num_rows:
        return
    p = t - tl.load(facts + row)
    page = tl.load(pages_ptr + row * num_pages + p // PAGE_TOKENS).to(tl.int64)
    d = tl.arange(0, WIDTH)
    mask = d < dim
    out = cache_ptr + page * page_stride + (p % PAGE_TOKENS) * dim + d
    at = t.to(tl.int64) * stride + d
    tl.store(out, tl.load(k_ptr + at, mask=mask), mask=mask)
    tl.store(out + half_stride, tl.load(v_ptr + at, mask=mask), mask=mask)


@triton.jit
def _head_norm_kernel(
    x_ptr, added_ptr, candidate_ptr, weight_ptr, bias_ptr, out_ptr, dim, eps, WIDTH: tl.constexpr
):  # fmt: skip
    c = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    mask = d < dim
    token = tl.load(candidate_ptr + c).to(tl.int64)
    x = tl.load(x_ptr + token * dim + d, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(added_ptr + c * dim + d, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / dim
    centered = tl.where(mask, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, axis=0) / dim + eps)
    y = centered * rstd * tl.load(weight_ptr + d, mask=mask, other=0.0)
    y += tl.load(bias_ptr + d, mask=mask, other=0.0)
    tl.store(out_ptr + c * dim + d, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _probability_kernel(hidden_ptr, weight_ptr, bias_ptr, out_ptr, num_candidates, dim, WIDTH: tl.constexpr):
    c = tl.program_id(0).to(tl.int64)
    tower = tl.program_id(1)
    d = tl.arange(0, WIDTH)
    mask = d < dim
    x = tl.load(hidden_ptr + (c * 2 + tower) * dim + d, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + tower * dim + d, mask=mask, other=0.0)
    logit = tl.sum(x / (1.0 + tl.exp(-x)) * weight, axis=0) + tl.load(bias_ptr + tower)
    tl.store(out_ptr + tower * num_candidates + c, 1.0 / (1.0 + tl.exp(-logit)))


def lay_out(
    facts: Tensor,
    visible: tuple[Tensor, Tensor],
    out: dict[str, Tensor],
    *,
    profile_tokens: int,
    num_behaviours: int,
) -> None:
    """Finds where each token comes from and what it sees, as `model.data.layout` does for a batch.

    Args:
        facts: int32 `[NUM_FACTS, B + 2]` of B requests.
        visible: int32 `[behaviours]` and `[candidates]`: real-time tokens of the row strictly earlier.
        out: `source` int64 `[T]`; int32 `[T]` `group`, `visible_end` and `own` (a token's place, or -1 if it
            is among the leading ones that it sees); int32 `[C]` `candidate` and `candidate_end`. Places
            behind the real tokens read from 0 and see nothing.
        profile_tokens: Tokens of a request's profile; 0 if they are in the cache.
        num_behaviours: Places for behaviours, static and real-time ones together.
    """
    num_tokens, width = out["source"].shape[0], facts.shape[1]
    num_rows = width - 2
    _layout_kernel[(-(-num_tokens // 128),)](
        facts, *visible, out["source"], out["group"], out["visible_end"], out["own"], out["candidate"],
        out["candidate_end"], num_tokens, num_rows, width, profile_tokens, num_rows * profile_tokens,
        num_behaviours, BLOCK=128,
    )  # fmt: skip


def pick(pieces: Tensor, most: int, ids: Tensor, out: Tensor) -> None:
    """Lays ids of some features end to end.

    Args:
        pieces: int64 `[F, 3]`: of each feature its first place in `ids`, tokens, first place in `out`.
        most: Most tokens of a piece.
        ids: int64, flat.
        out: int64, flat.
    """
    _pick_kernel[(len(pieces), -(-most // 256))](pieces, ids, out, TOKENS=256)


def put_vectors(pieces: Tensor, most: int, rows: Tensor | None, vectors: Tensor, out: Tensor) -> None:
    """Copies vectors of one width to their columns of the MLPs' inputs.

    Args:
        pieces: int64 `[F, 5]`: of each feature the first place in `rows` (or in `vectors`), tokens, first
            element in `out`, elements between two tokens there, and what is added to a row's number.
        most: Most tokens of a piece.
        rows: int64 `[n]`, the row of `vectors` for each place; None: they lie in order.
        vectors: float32 `[rows, width]`, contiguous.
        out: The inputs, flat.
    """
    if not len(pieces):
        return
    dim = vectors.shape[1]
    _vectors_kernel[(len(pieces), -(-most // _TOKENS))](
        pieces, vectors if rows is None else rows, vectors, out, dim,
        BY_ROW=rows is not None, WIDTH=triton.next_power_of_2(dim), TOKENS=_TOKENS,
    )  # fmt: skip


def put_numbers(pieces: Tensor, most: int, constants: Tensor, numbers: Tensor, out: Tensor) -> None:
    """Standardises numbers as `embeddings.NumberScaler` does, into their columns of the MLPs' inputs.

    Args:
        pieces: int64 `[F, 4]`, as the first four columns for `put_vectors`, one row for each number.
        most: Most tokens of a piece.
        constants: float32 `[F, 3]`: mean, standard deviation, whether they were fitted.
        numbers: float32, flat.
        out: The inputs, flat.
    """
    _numbers_kernel[(len(pieces), -(-most // 128))](pieces, constants, numbers, out, CLIP=_CLIP, TOKENS=128)


def start(tokens: Tensor, source: Tensor, group: Tensor, scale: Tensor) -> tuple[Tensor, Normed]:
    """Takes tokens in their order, ready for a norm of weight `scale`.

    Args:
        tokens: `[n, D]`, contiguous.
        source: int64 `[T]`, where each token is.
        group: int32 `[T]`.
        scale: float32 `[G, D]`.

    Returns:
        The tokens, `[T, D]`, and what the norm's product takes.
    """
    num_tokens, dim = len(source), tokens.shape[1]
    x = torch.empty(num_tokens, dim, dtype=tokens.dtype, device=tokens.device)
    scaled = torch.empty_like(x)
    sums = torch.empty(num_tokens, 1, 2, dtype=torch.float32, device=tokens.device)
    _start_kernel[(num_tokens,)](
        tokens, source, group, scale, x, scaled, sums, dim, WIDTH=triton.next_power_of_2(dim)
    )
    return x, Normed(scaled=scaled, sums=sums)


def keep_keys(k: Tensor, v: Tensor, cache: Tensor, facts: Tensor, pages: Tensor) -> None:
    """Writes keys and values of all tokens of some rows into the rows' pages.

    Args:
        k: `[T, N, D]`, last two dimensions contiguous.
        v: As k.
        cache: `[pages, 2, tokens of a page, N * D]`.
        facts: int32 `[NUM_FACTS, B + 2]`.
        pages: int32 `[B, P]`.
    """
    num_tokens, dim = k.shape[0], k.shape[1] * k.shape[2]
    _keep_kernel[(num_tokens,)](
        k, v, cache, facts, pages, pages.shape[0], pages.shape[1], k.stride(0), cache.stride(0),
        cache.stride(1), dim, PAGE_TOKENS=cache.shape[2], WIDTH=triton.next_power_of_2(dim),
    )  # fmt: skip


def head_norm(
    x: Tensor, added: Tensor, candidate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Layer norm of what the last block makes of candidates.

    Args:
        x: `[T, D]`, contiguous, what the last block got.
        added: `[C, D]`, contiguous, what it adds to its candidates.
        candidate: int32 `[C]`, their places in x.
        weight: float32 `[D]`.
        bias: float32 `[D]`.
        eps: Added to the variance.

    Returns:
        `[C, D]` in the dtype of x.
    """
    out = torch.empty_like(added)
    dim = x.shape[1]
    _head_norm_kernel[(len(added),)](
        x, added, candidate, weight, bias, out, dim, eps, WIDTH=triton.next_power_of_2(dim)
    )
    return out


def probabilities(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last layer of both heads.

    Args:
        hidden: `[C, 2, H]`, contiguous, of the first layer, before SiLU.
        weight: float32 `[2, H]`.
        bias: float32 `[2]`.

    Returns:
        float32 `[2, C]`, probabilities.
    """
    num_candidates, _, dim = hidden.shape
    out = torch.empty(2, num_candidates, dtype=torch.float32, device=hidden.device)
    _probability_kernel[(num_candidates, 2)](
        hidden, weight, bias, out, num_candidates, dim, WIDTH=triton.next_power_of_2(dim)
    )
    return out
