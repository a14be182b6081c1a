"""Sums over tokens in Triton: the gradient of a bias, in one pass at the memory's speed.

Each program adds one stretch of tokens of some columns; the stretches' sums are added in a fixed order, so
equal inputs give equal bits.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS_PER_PROCESSOR = 8
_COLUMNS = 64
_ROWS = 16


@triton.jit
def _column_sums_kernel(
    x_ptr, partial_ptr, num_rows, num_columns, tiles_a_program, x_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * tiles_a_program * ROWS
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for tile in range(tiles_a_program):
        i = first + tile * ROWS + tl.arange(0, ROWS)
        mask = (i < num_rows)[:, None] & (c < num_columns)[None, :]
        sums += tl.load(x_ptr + i[:, None] * x_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
    out = partial_ptr + tl.program_id(1).to(tl.int64) * num_columns + c
    tl.store(out, tl.sum(sums, axis=0), mask=c < num_columns)


def column_sums(x: Tensor) -> Tensor:
    """Launches the kernel and adds its partial sums; arguments as in `hstu_ops.schemas`."""
    num_rows, num_columns = x.shape
    if num_rows == 0 or num_columns == 0:
        return torch.zeros(num_columns, dtype=torch.float32, device=x.device)
    blocks, num_tiles = triton.cdiv(num_columns, _COLUMNS), triton.cdiv(num_rows, _ROWS)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    stretches = max(1, min(num_tiles, processors * _PROGRAMS_PER_PROCESSOR // blocks))
    tiles_a_program = triton.cdiv(num_tiles, stretches)
    stretches = triton.cdiv(num_tiles, tiles_a_program)
    partial = torch.empty(stretches, num_columns, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        _column_sums_kernel[(blocks, stretches)](
            x, partial, num_rows, num_columns, tiles_a_program, x.stride(0), ROWS=_ROWS, COLUMNS=_COLUMNS
        )
    return partial.sum(0)
