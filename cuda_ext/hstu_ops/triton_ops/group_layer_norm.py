"""Group layer norm in Triton, forward and backward, with the gate, or the sum, before it in the same pass.

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

from hstu_ops import libraries
from hstu_ops.triton_ops.column_sums import column_sums

_PROGRAMS_PER_PROCESSOR = 4
_SM90_WIDTHS = (256, 512, 768, 1024)  # of csrc/sm90/norm_backward.cu
_TILE_ELEMENTS = 2048


@triton.jit
def _norm_forward_kernel(
    x_ptr, gate_ptr, group_ptr, weight_ptr, bias_ptr, sum_ptr, y_ptr, mean_ptr, rstd_ptr, num_tokens, dim,
    eps, x_stride, gate_stride,
    GATED: tl.constexpr, ADDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    row = i < num_tokens
    mask = row[:, None] & (d < dim)[None, :]
    z = tl.load(x_ptr + i[:, None] * x_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if GATED or ADDED:  # the gate's place holds what is added
        gate = tl.load(gate_ptr + i[:, None] * gate_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)
        z = z * gate if GATED else z + gate
    if ADDED:
        rounded = z.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + i[:, None] * dim + d[None, :], rounded, mask=mask)
        z = rounded.to(tl.float32)
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
    grad_gate_stride,
    GATED: tl.constexpr, ADDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    grad_weight_ptr = partial_ptr + program * (2 * num_groups + 1) * dim
    grad_bias_ptr = grad_weight_ptr + num_groups * dim
    sums = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
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
            grad_gate = grad_z * x
            sums += grad_gate
            tl.store(grad_gate_ptr + out_gate, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
            grad_z *= gate
        if ADDED:  # the gate's place holds the gradient that comes to the sum by its other way
            grad_z += tl.load(gate_ptr + i[:, None] * gate_stride + d[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
            sums += grad_z
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
    tl.store(grad_bias_ptr + num_groups * dim + d, tl.sum(sums, axis=0), mask=d < dim)


def _tile(dim: int) -> dict[str, int]:
    width = triton.next_power_of_2(dim)
    return {
        "WIDTH": width,
        "ROWS": max(1, min(16, _TILE_ELEMENTS // width)),
        "num_warps": 2 if width <= 1024 else 4 if width <= 4096 else 16,
    }


def norm_forward(
    x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward kernel; arguments as in `hstu_ops.schemas`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    _launch_forward(x, gate, group, weight, bias, eps, None, y, mean, rstd)
    return y, mean, rstd


def add_norm_forward(
    x: Tensor, residual: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float, *_: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the forward kernel on a sum; arguments as in `hstu_ops.schemas`."""
    summed, y = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    mean = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    _launch_forward(x, residual, group, weight, bias, eps, summed, y, mean, rstd)
    return summed, y, mean, rstd


def _launch_forward(x, other, group, weight, bias, eps, summed, y, mean, rstd) -> None:
    num_tokens, dim = x.shape
    if num_tokens == 0:
        return
    tile = _tile(dim)
    with torch.cuda.device(x.device):
        _norm_forward_kernel[(triton.cdiv(num_tokens, tile["ROWS"]),)](
            x, other if other is not None else x, group.contiguous(), weight.contiguous(), bias.contiguous(),
            summed if summed is not None else y, y, mean, rstd, num_tokens, dim, eps,
            x.stride(0), other.stride(0) if other is not None else 0,
            GATED=other is not None and summed is None, ADDED=summed is not None, **tile,
        )  # fmt: skip


def norm_backward(
    grad_y: Tensor, x: Tensor, group: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the backward kernel and adds its partial sums; arguments as in `hstu_ops.schemas`."""
    grad_gate = torch.empty(x.shape if gate is not None else (0,), dtype=x.dtype, device=x.device)
    grads = norm_backward_out(grad_y, x, group, weight, mean, rstd, gate, grad_gate)
    return *grads[:3], grad_gate


def norm_backward_out(
    grad_y: Tensor,
    x: Tensor,
    group: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gate: Tensor | None,
    grad_gate: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Writes the gradient of the gate into a tensor of last stride 1.

    Returns:
        The gradients of x, weight and bias, and the sums over tokens of the gate's, float32.
    """
    return _launch_backward(grad_y, x, group, weight, mean, rstd, gate, grad_gate, added=False)


def add_norm_backward(
    grad_sum: Tensor, grad_y: Tensor, x: Tensor, group: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the backward kernel on a sum `x`; arguments as in `hstu_ops.schemas`."""
    return _launch_backward(grad_y, x, group, weight, mean, rstd, grad_sum, grad_y, added=True)


def _launch_backward(
    grad_y, x, group, weight, mean, rstd, other, grad_gate, *, added
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, dim = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        nothing = torch.zeros(dim, dtype=torch.float32, device=x.device)
        return grad_x, torch.zeros_like(weight), torch.zeros_like(weight), nothing
    num_groups = weight.shape[0]
    if _is_for_sm90(grad_y, x, group, weight, other, grad_gate):
        gate, grad_sum = (None, other) if added else (other, None)
        inputs = grad_y, x, group.contiguous(), weight.contiguous(), mean, rstd, gate, grad_sum
        grad_x, partial = torch.ops.hstu_ops.norm_backward_sm90(
            *inputs, grad_gate if gate is not None else None
        )
    else:
        partial = _triton_backward(grad_y, x, group, weight, mean, rstd, other, grad_gate, grad_x, added)
    parts = column_sums(partial.flatten(1)).split([num_groups * dim, num_groups * dim, dim])
    grad_weight, grad_bias = (part.view_as(weight).to(weight.dtype, copy=True) for part in parts[:2])
    return grad_x, grad_weight, grad_bias, parts[2].clone()


def _is_for_sm90(grad_y, x, group, weight, other, grad_gate) -> bool:
    """Whether the compiled kernel, which is the faster one, takes the tensors."""
    aligned = [one for one in (grad_y, x, other, grad_gate) if one is not None and one.numel()]
    return (
        libraries.loaded("sm90")
        and torch.cuda.get_device_capability(x.device) == (9, 0)
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.shape[1] in _SM90_WIDTHS
        and weight.dtype == torch.float32
        and group.dtype == torch.int32
        and all(one.stride(0) % 8 == 0 and one.data_ptr() % 16 == 0 for one in aligned)
    )


def _triton_backward(grad_y, x, group, weight, mean, rstd, other, grad_gate, grad_x, added) -> Tensor:
    """Writes the gradient of x; returns the partial sums."""
    num_tokens, dim = x.shape
    tile = _tile(dim)
    num_tiles = triton.cdiv(num_tokens, tile["ROWS"])
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles_a_program = triton.cdiv(num_tiles, processors * _PROGRAMS_PER_PROCESSOR)
    num_programs = triton.cdiv(num_tiles, tiles_a_program)
    num_groups = weight.shape[0]
    partial = torch.zeros(num_programs, 2 * num_groups + 1, dim, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        _norm_backward_kernel[(num_programs,)](
            grad_y, x, other if other is not None else x, group.contiguous(), weight.contiguous(), mean, rstd,
            grad_x, grad_gate, partial, num_tokens, dim, num_groups, tiles_a_program,
            grad_y.stride(0), x.stride(0), other.stride(0) if other is not None else 0, grad_gate.stride(0),
            GATED=other is not None and not added, ADDED=added, **tile,
        )  # fmt: skip
    return partial
