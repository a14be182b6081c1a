"""`mtgr_attention`: MTGR's masked SiLU attention over jagged rows, and its fake kernels and derivatives."""
# ruff: noqa: N803, N806 (a name carries its shape: T tokens, N heads, D width, B rows, G groups, L longest)

from typing import Any

import torch
from torch import Tensor

from hstu_ops.backends import resolve
from hstu_ops.checks import check_attention
from hstu_ops.reference import mtgr_attention_reference
from hstu_ops.schemas import NAMESPACE, library

# Operator by backend; `_backward` is appended for its derivative.
_OPERATORS = ("mtgr_attention", "mtgr_attention_triton")


def mtgr_attention(
    q_TND: Tensor,
    k_TND: Tensor,
    v_TND: Tensor,
    offsets_B1: Tensor,
    visible_end_T: Tensor,
    alpha: float,
    inv_n: float,
    *,
    backend: str = "auto",
    deterministic: bool = False,
    plan: Tensor | None = None,
) -> Tensor:
    """Computes MTGR's attention (arXiv 2505.18654, 3.3): `SiLU(alpha q k^T) * inv_n`, masked, times v.

    Token i of a row sees the row's leading `visible_end[i]` tokens, and itself (counted once where it is
    among them). No mask, bias or padding is ever built by the kernels. Differentiable once in q, k and v (the
    reference: at will). Under autocast q, k and v are cast to its dtype.

    Args:
        q_TND: `[T, N, D]`, floating, last stride 1; its other strides are free, so slices of one UVQK product
            need no copy.
        k_TND: As q.
        v_TND: As q.
        offsets_B1: int32 `[B + 1]`, where each row starts in T, ascending from 0 to T; empty rows are
            allowed.
        visible_end_T: int32 `[T]`, `0 <= visible_end <= length of the row`, counted from the row's start.
        alpha: Scale of the scores.
        inv_n: Scale of the weights: 1 / n, n a constant of the model.
        backend: `auto`, `reference`, `cpu`, `triton` or `cutlass`.
        deterministic: Asks for a backward pass that gives equal bits for equal inputs.
        plan: What `attention_plan` made of these offsets and visible_end, if it is to be made once for
            several calls.

    Returns:
        `[T, N, D]`, contiguous, in the dtype of q.

    Raises:
        ValueError: A shape, dtype, device or stride is not as said; in debug mode also a value.
        BackendUnavailableError: The backend asked for cannot run here or cannot take these tensors.
    """
    device_type = q_TND.device.type
    if torch.is_autocast_enabled(device_type) and q_TND.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        q_TND, k_TND, v_TND = q_TND.to(dtype), k_TND.to(dtype), v_TND.to(dtype)
    check_attention(q_TND, k_TND, v_TND, offsets_B1, visible_end_T)
    chosen = resolve(backend, device_type, q_TND.dtype, q_TND.shape[2])
    if chosen == "reference":
        return mtgr_attention_reference(q_TND, k_TND, v_TND, offsets_B1, visible_end_T, alpha, inv_n)
    operators = torch.ops.hstu_ops
    operator = operators.mtgr_attention_triton if chosen == "triton" else operators.mtgr_attention
    out: Tensor = operator(q_TND, k_TND, v_TND, offsets_B1, visible_end_T, alpha, inv_n, deterministic, plan)
    return out


def attention_plan(
    offsets_B1: Tensor, visible_end_T: Tensor, *, dtype: torch.dtype, head_dim: int, backend: str = "auto"
) -> Tensor | None:
    """Makes what the kernels of backend `cutlass` know of a mask: once a batch, for all blocks and passes.

    Calls that share a plan must be on one stream. Other backends need none.

    Args:
        offsets_B1: As in `mtgr_attention`.
        visible_end_T: As in `mtgr_attention`.
        dtype: Of q.
        head_dim: Of q.
        backend: As in `mtgr_attention`.

    Returns:
        int32, or None if the backend is another.
    """
    device_type = visible_end_T.device.type
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    if resolve(backend, device_type, dtype, head_dim) != "cutlass":
        return None
    plan: Tensor = torch.ops.hstu_ops.mtgr_plan(offsets_B1, visible_end_T)
    return plan


def _fake_plan(offsets: Tensor, visible_end: Tensor) -> Tensor:
    # As csrc/sm90/params.h lays it out: a head of 32 bytes, and 48 for each tile there may be.
    return offsets.new_empty(8 + 12 * (visible_end.shape[0] // 128 + offsets.shape[0] - 1))


def _fake_forward(
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
    return q.new_empty(q.shape)


def _fake_backward(
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
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, offsets, visible_end, ctx.alpha, ctx.inv_n, ctx.deterministic, plan = inputs
    ctx.save_for_backward(q, k, v, offsets, visible_end, plan)


def _register(name: str) -> None:
    backward_operator = getattr(torch.ops.hstu_ops, name + "_backward")

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if grad_out.stride(-1) != 1 or grad_out.stride(0) == 0:  # expanded, as `out.sum()` sends it
            grad_out = grad_out.contiguous()
        *tensors, plan = ctx.saved_tensors
        grads = backward_operator(grad_out, *tensors, ctx.alpha, ctx.inv_n, ctx.deterministic, plan)
        return (*grads, None, None, None, None, None, None)

    def no_double_backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{NAMESPACE}::{name} is differentiable once; backend 'reference' is twice")

    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, _fake_forward, lib=library)
    torch.library.register_fake(qualified + "_backward", _fake_backward, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=_setup_context, lib=library)
    torch.library.register_autograd(qualified + "_backward", no_double_backward, lib=library)


torch.library.register_fake(f"{NAMESPACE}::mtgr_plan", _fake_plan, lib=library)
for _name in _OPERATORS:
    _register(_name)
