"""How the attention kernels find their work in jagged rows without a synchronisation.

Row b, of tokens [o_b, o_b+1), owns the tile slots from `o_b // BLOCK + b` to `o_b+1 // BLOCK + b + 1`: always
at least the `ceil(length / BLOCK)` it needs, and the slots of all rows are `T // BLOCK + B`, a number known
from the shapes. One small kernel writes down which row owns each slot; a slot behind its row's end has no
work.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rows_of_tiles_kernel(offsets, tile_row, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    first = tl.load(offsets + row) // BLOCK + row
    last = tl.load(offsets + row + 1) // BLOCK + row + 1
    for slot in range(first, last, WIDTH):
        slots = slot + tl.arange(0, WIDTH)
        tl.store(tile_row + slots, tl.zeros([WIDTH], tl.int32) + row, mask=slots < last)


def rows_of_tiles(offsets: Tensor, num_tokens: int, block: int) -> Tensor:
    """Returns the row that owns each tile slot, int32 `[T // block + B]`; `offsets` has at least one row."""
    num_rows = offsets.shape[0] - 1
    tile_row = torch.empty(num_tokens // block + num_rows, dtype=torch.int32, device=offsets.device)
    _rows_of_tiles_kernel[(num_rows,)](offsets, tile_row, BLOCK=block, WIDTH=32, num_warps=1)
    return tile_row


@triton.jit
def locate_tile(offsets, tile_row, tile, BLOCK: tl.constexpr):
    """Returns the row's first token, its length, and the tile's first position in the row."""
    row = tl.load(tile_row + tile)
    start = tl.load(offsets + row)
    length = tl.load(offsets + row + 1) - start
    return start, length, (tile - start // BLOCK - row) * BLOCK
