"""Group layer norm in Triton, forward and backward, with the optional gate in the same pass.

The backward kernel is persistent: each program walks its own stretch of tokens and adds the gradients of
scale and shift to its own partial sums, which are then added in a fixed order; no atomics, so equal inputs
give equal bits.
"""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS_PER_PROCESSOR = 4
_TILE_ELEMENTS = 4096


@triton.jit
def _norm_forward_kernel(
    x_ptr, gate_ptr, group_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, num_tokens, dim, eps,
    x_stride, gate_stride,
    GATED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    row = i < num_tokens
    mask = row[:, None] & (d < dim)[None, :]
    z = tl.load(x_ptr + i[:, None] * x_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if GATED:
        z *= tl.load(gate_ptr + i[:, None] * gate_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(z, axis=1) / dim
    centered = tl.where(mask, z - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, axis=1) / dim + eps)
    group = tl.load(group_ptr + i, mask=row, other=0).to(tl.int64)
    affine = group[:, None] * dim + d[None, :]
    weight = tl.load(weight_ptr + affine, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + affine, mask=mask, other=0.0).to(tl.float32)
    y = centered * rstd[:, None] * weight + bias
    tl.store(y_ptr + i[:, None] * dim + d[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + i, mean, mask=row)
    tl.store(rstd_ptr + i, rstd, mask=row)


@triton.jit
def _norm_backward_kernel(
    grad_y_ptr, x_ptr, gate_ptr, group_ptr, weight_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_gate_ptr,
    partial_ptr, num_tokens, dim, num_groups, tiles_a_program, grad_y_stride, x_stride, gate_stride,
    grad_gate_stride, GATED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    grad_weight_ptr = partial_ptr + program * 2 * num_groups * dim
    grad_bias_ptr = grad_weight_ptr + num_groups * dim
    for tile in range(tiles_a_program):
        i = (program * tiles_a_program + tile) * ROWS + tl.arange(0, ROWS)
        row = i < num_tokens
        mask = row[:, None] & (d < dim)[None, :]
        x = tl.load(x_ptr + i[:, None] * x_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
        z = x
        if GATED:
            gate = tl.load(gate_ptr + i[:, None] * gate_stride + d[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
            z = x * gate
        grad_y = tl.load(grad_y_ptr + i[:, None] * grad_y_stride + d[None, :], mask=mask, other=0.0)
        grad_y = grad_y.to(tl.float32)
        group = tl.load(group_ptr + i, mask=row, other=-1).to(tl.int32)
        affine = tl.maximum(group, 0).to(tl.int64)[:, None] * dim + d[None, :]
        weight = tl.load(weight_ptr + affine, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + i, mask=row, other=0.0)
        rstd = tl.load(rstd_ptr + i, mask=row, other=0.0)
        normed = tl.where(mask, (z - mean[:, None]) * rstd[:, None], 0.0)
        scaled = grad_y * weight
        average = tl.sum(scaled, axis=1) / dim
        average_normed = tl.sum(scaled * normed, axis=1) / dim
        grad_z = rstd[:, None] * (scaled - average[:, None] - normed * average_normed[:, None])
        out = i[:, None] * dim + d[None, :]
        if GATED:
            out_gate = i[:, None] * grad_gate_stride + d[None, :]
            tl.store(grad_gate_ptr + out_gate, (grad_z * x).to(grad_gate_ptr.dtype.element_ty), mask=mask)
            grad_z *= gate
        tl.store(grad_x_ptr + out, grad_z.to(grad_x_ptr.dtype.element_ty), mask=mask)
        # Tokens of a group lie together, so a tile meets one or two of them.
        first_group = tl.min(tl.where(row, group, num_groups))
        for g in range(first_group, tl.max(group) + 1):
            of_group = (group == g)[:, None]
            at = g.to(tl.int64) * dim + d
            weight_sums = tl.load(grad_weight_ptr + at, mask=d < dim, other=0.0)
            weight_sums += tl.sum(tl.where(of_group, grad_y * normed, 0.0), axis=0)
            bias_sums = tl.load(grad_bias_ptr + at, mask=d < dim, other=0.0)
            bias_sums += tl.sum(tl.where(of_group, grad_y, 0.0), axis=0)
            tl.debug_barrier()  # several threads may hold one element: all have read before one writes
            tl.store(grad_weight_ptr + at, weight_sums, mask=d < dim)
            tl.store(grad_bias_ptr + at, bias_sums, mask=d < dim)
            tl.debug_barrier()


def _tile(dim: int) -> dict[str, int]:
    width = triton.next_power_of_2(dim)
    return {
        "WIDTH": width,
        "ROWS": max(1, min(16, _TILE_ELEMENTS // width)),
        "num_warps": 4 if width <= 4096 else 16,
    }


def norm_forward(
    x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward kernel; arguments as in `hstu_ops.schemas`."""
    num_tokens, dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if num_tokens == 0:
        return y, mean, rstd
    tile = _tile(dim)
    with torch.cuda.device(x.device):
        _norm_forward_kernel[(triton.cdiv(num_tokens, tile["ROWS"]),)](
            x, gate if gate is not None else x, group.contiguous(), weight.contiguous(), bias.contiguous(),
            y, mean, rstd, num_tokens, dim, eps,
            x.stride(0), gate.stride(0) if gate is not None else 0,
            GATED=gate is not None, **tile,
        )  # fmt: skip
    return y, mean, rstd


def norm_backward(
    grad_y: Tensor, x: Tensor, group: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the backward kernel and adds its partial sums; arguments as in `hstu_ops.schemas`."""
    grad_gate = torch.empty(x.shape if gate is not None else (0,), dtype=x.dtype, device=x.device)
    grads = norm_backward_out(grad_y, x, group, weight, mean, rstd, gate, grad_gate)
    return *grads, grad_gate


def norm_backward_out(
    grad_y: Tensor,
    x: Tensor,
    group: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gate: Tensor | None,
    grad_gate: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the gradient of the gate into a tensor of last stride 1; returns those of x, weight and bias."""
    num_tokens, dim = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return grad_x, torch.zeros_like(weight), torch.zeros_like(weight)
    tile = _tile(dim)
    num_tiles = triton.cdiv(num_tokens, tile["ROWS"])
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles_a_program = triton.cdiv(num_tiles, processors * _PROGRAMS_PER_PROCESSOR)
    num_programs = triton.cdiv(num_tiles, tiles_a_program)
    partial = torch.zeros(num_programs, 2, *weight.shape, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        _norm_backward_kernel[(num_programs,)](
            grad_y, x, gate if gate is not None else x, group.contiguous(), weight.contiguous(), mean, rstd,
            grad_x, grad_gate, partial, num_tokens, dim, weight.shape[0], tiles_a_program,
            grad_y.stride(0), x.stride(0), gate.stride(0) if gate is not None else 0, grad_gate.stride(0),
            GATED=gate is not None, **tile,
        )  # fmt: skip
    grad_weight, grad_bias = partial.sum(0).to(weight.dtype).unbind(0)
    return grad_x, grad_weight.clone(), grad_bias.clone()
