"""What becomes of a tile whose results are not finite: each token is computed once more, from what it sees.

The products of a tile also multiply what the mask hides, by a weight of zero, and zero times NaN or infinity
is NaN: a token that is not finite would spoil those beside it. A sum once spoilt stays so, hence it is enough
to look at the results; this runs for poisoned tiles alone, slowly.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import triton
import triton.language as tl

from hstu_ops.triton_ops.silu import sigmoid


@triton.jit
def any_spoilt(sums, in_row):
    """Tells whether a row of `sums`, inside of the jagged row, holds NaN or infinity."""
    spoilt = tl.max((sums * 0.0 != 0.0).to(tl.int32), axis=1)
    return tl.max(tl.where(in_row, spoilt, 0)) > 0


@triton.jit
def sum_seen(
    x_row, a_row, y_rows, y_stride, b_rows, b_stride, z_rows, z_stride, visible_end, i, length, alpha,
    OF_KEY: tl.constexpr, SLOPE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Returns the sum of factor_j z_j over the tokens j that token i sees, or with OF_KEY that see it.

    The factor is SiLU(alpha x . y_j), or with SLOPE its derivative there times a . b_j.
    """
    dims = tl.arange(0, D)
    x = tl.load(x_row + dims).to(tl.float32)
    a = tl.load(a_row + dims).to(tl.float32)
    total = tl.zeros([D], tl.float32)
    own_end = tl.load(visible_end + i)
    for first in tl.range(0, length, WIDTH, num_stages=1):
        j = first + tl.arange(0, WIDTH)
        if OF_KEY:
            seen = (tl.load(visible_end + j, mask=j < length, other=0) > i) | (j == i)
        else:
            seen = ((j < own_end) | (j == i)) & (j < length)
        y = tl.load(y_rows + j[:, None] * y_stride + dims[None, :], mask=seen[:, None], other=0.0)
        score = tl.sum(x[None, :] * y.to(tl.float32), axis=1) * alpha
        s = sigmoid(score, False)
        factor = score * s
        if SLOPE:
            b = tl.load(b_rows + j[:, None] * b_stride + dims[None, :], mask=seen[:, None], other=0.0)
            factor = (s + factor * (1.0 - s)) * tl.sum(a[None, :] * b.to(tl.float32), axis=1)
        factor = tl.where(seen, factor, 0.0)
        z = tl.load(z_rows + j[:, None] * z_stride + dims[None, :], mask=seen[:, None], other=0.0)
        total += tl.sum(factor[:, None] * z.to(tl.float32), axis=0)
    return total
