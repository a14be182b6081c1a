"""`gated_attention`: what stands between the two products of a block, `GLN(attention(q, k, v) * u)`.

It adds no kernel to those of `mtgr_attention` and `group_layer_norm`. On a GPU its backward pass lets them
write the gradients of u, v, q and k into one tensor, the gradient of the UVQK product; taken apart, four
tensors have to be copied together, as much traffic as eight passes over a token's width.
"""
# ruff: noqa: N803, N806 (a name carries its shape: T tokens, N heads, D width, B rows, G groups, L longest)

from typing import Any

import torch
from torch import Tensor

from hstu_ops.attention import mtgr_attention
from hstu_ops.backends import resolve
from hstu_ops.checks import check_attention, check_norm, check_uvqk
from hstu_ops.norm import group_layer_norm
from hstu_ops.schemas import NAMESPACE, library

_OPERATORS = ("gated_attention", "gated_attention_triton")


def gated_attention(
    uvqk_T4ND: Tensor,
    offsets_B1: Tensor,
    visible_end_T: Tensor,
    group_T: Tensor,
    weight_GD: Tensor,
    bias_GD: Tensor,
    alpha: float,
    inv_n: float,
    eps: float,
    *,
    backend: str = "auto",
    deterministic: bool = False,
    plan: Tensor | None = None,
    uvqk_bias: Tensor | None = None,
) -> Tensor:
    """Computes `group_layer_norm(mtgr_attention(q, k, v), gate u)` of a block (arXiv 2505.18654, 3.3).

    Args:
        uvqk_T4ND: `[T, 4, N, D]`, contiguous: u, v, q and k of each token, as one product gives them.
        offsets_B1: As in `mtgr_attention`.
        visible_end_T: As in `mtgr_attention`.
        group_T: int32 or int64 `[T]`, the group of each token, in `[0, G)`.
        weight_GD: `[G, N * D]`, floating, not necessarily of the dtype of uvqk.
        bias_GD: As weight.
        alpha: Scale of the scores.
        inv_n: Scale of the weights.
        eps: Added to the variance.
        backend: `auto`, `reference`, `cpu`, `triton` or `cutlass`.
        deterministic: Asks for a backward pass that gives equal bits for equal inputs.
        plan: As in `mtgr_attention`.
        uvqk_bias: `[4 * N * D]`, what is in every token of uvqk already, detached: it gets its gradient here
            (backends `triton` and `cutlass`), where it costs less than a pass over that of uvqk.

    Returns:
        `[T, N * D]`, contiguous, in the dtype of uvqk (under autocast, in its dtype).

    Raises:
        ValueError: A shape, dtype, device or stride is not as said; in debug mode also a value.
        BackendUnavailableError: The backend asked for cannot run here or cannot take these tensors.
    """
    check_uvqk(uvqk_T4ND)
    device_type = uvqk_T4ND.device.type
    if torch.is_autocast_enabled(device_type) and uvqk_T4ND.dtype != torch.float64:
        uvqk_T4ND = uvqk_T4ND.to(torch.get_autocast_dtype(device_type))
    u_TND, v_TND, q_TND, k_TND = uvqk_T4ND.unbind(1)
    chosen = resolve(backend, device_type, uvqk_T4ND.dtype, uvqk_T4ND.shape[3])
    if chosen in ("reference", "cpu"):
        if uvqk_bias is not None:
            raise ValueError("uvqk_bias gets its gradient by backends 'triton' and 'cutlass' alone")
        out_TND = mtgr_attention(
            q_TND,
            k_TND,
            v_TND,
            offsets_B1,
            visible_end_T,
            alpha,
            inv_n,
            backend=chosen,
            deterministic=deterministic,
        )
        return group_layer_norm(
            out_TND.flatten(1), group_T, weight_GD, bias_GD, eps, gate_TD=u_TND.flatten(1), backend=chosen
        )
    check_attention(q_TND, k_TND, v_TND, offsets_B1, visible_end_T)
    check_norm(u_TND.flatten(1), group_T, weight_GD, bias_GD, None)
    operators = torch.ops.hstu_ops
    operator = operators.gated_attention_triton if chosen == "triton" else operators.gated_attention
    y: Tensor = operator(
        uvqk_T4ND,
        offsets_B1,
        visible_end_T,
        group_T,
        weight_GD,
        bias_GD,
        alpha,
        inv_n,
        eps,
        deterministic,
        plan,
        uvqk_bias,
    )[0]
    return y


def _fake_forward(uvqk: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, _, heads, dim = uvqk.shape
    y, out = uvqk.new_empty(tokens, heads * dim), uvqk.new_empty(tokens, heads, dim)
    mean, rstd = (uvqk.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    return y, out, mean, rstd


def _fake_backward(
    grad_y: Tensor,
    uvqk: Tensor,
    offsets: Tensor,
    visible_end: Tensor,
    group: Tensor,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with_sums = len(rest) == 8 and rest[-1]
    sums = uvqk.new_empty(uvqk[0].numel() if with_sums else 0, dtype=torch.float32)
    return uvqk.new_empty(uvqk.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape), sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    uvqk, offsets, visible_end, group, weight, _, ctx.alpha, ctx.inv_n, _, ctx.deterministic, plan, bias = (
        inputs
    )
    _, out, mean, rstd = output
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(out, mean, rstd)
    ctx.save_for_backward(uvqk, offsets, visible_end, group, weight, out, mean, rstd, plan)


def _register(name: str) -> None:
    operators = torch.ops.hstu_ops
    qualified = f"{NAMESPACE}::{name}"
    attention = getattr(operators, name.replace("gated", "mtgr")).default
    backward_operator = getattr(operators, name + "_backward")

    def forward_kernel(
        uvqk: Tensor,
        offsets: Tensor,
        visible_end: Tensor,
        group: Tensor,
        weight: Tensor,
        bias: Tensor,
        alpha: float,
        inv_n: float,
        eps: float,
        deterministic: bool,
        plan: Tensor | None = None,
        uvqk_bias: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        u, v, q, k = uvqk.unbind(1)
        out = attention(q, k, v, offsets, visible_end, alpha, inv_n, deterministic, plan)
        norm = operators.group_layer_norm_triton
        y, mean, rstd = norm(out.flatten(1), group, weight, bias, eps, u.flatten(1))
        return y, out, mean, rstd

    def backward_kernel(
        grad_y: Tensor,
        uvqk: Tensor,
        offsets: Tensor,
        visible_end: Tensor,
        group: Tensor,
        weight: Tensor,
        out: Tensor,
        mean: Tensor,
        rstd: Tensor,
        alpha: float,
        inv_n: float,
        deterministic: bool,
        plan: Tensor | None = None,
        with_sums: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Not at the top: they import triton, which a machine without a GPU need not have.
        from hstu_ops.triton_ops.attention_backward import attention_backward_out
        from hstu_ops.triton_ops.group_layer_norm import norm_backward_out

        grad_uvqk = torch.empty_like(uvqk)
        u, v, q, k = uvqk.unbind(1)
        grad_u, grad_v, grad_q, grad_k = grad_uvqk.unbind(1)
        grad_out, grad_weight, grad_bias, sums_of_u = norm_backward_out(
            grad_y, out.flatten(1), group, weight, mean, rstd, u.flatten(1), grad_u.flatten(1)
        )
        triton = name.endswith("_triton")
        attention_backward = attention_backward_out if triton else operators.mtgr_attention_backward_out
        attention_backward(
            grad_out.view_as(out),
            *(q, k, v, offsets, visible_end, alpha, inv_n, deterministic),
            *(grad_q, grad_k, grad_v, plan),
        )
        if not with_sums:
            return grad_uvqk, grad_weight, grad_bias, sums_of_u.new_empty(0)
        of_others = operators.column_sums_triton(grad_uvqk.flatten(1)[:, len(sums_of_u) :])
        return grad_uvqk, grad_weight, grad_bias, torch.cat([sums_of_u, of_others])

    def backward(ctx: Any, grad_y: Tensor, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_y.stride(-1) != 1:  # expanded, as `y.sum()` sends it
            grad_y = grad_y.contiguous()
        *tensors, plan = ctx.saved_tensors
        with_sums = ctx.bias_dtype is not None
        grad_uvqk, grad_weight, grad_bias, sums = backward_operator(
            grad_y, *tensors, ctx.alpha, ctx.inv_n, ctx.deterministic, plan, with_sums
        )
        grad_uvqk_bias = sums.to(ctx.bias_dtype) if with_sums else None
        return grad_uvqk, None, None, None, grad_weight, grad_bias, *(None,) * 5, grad_uvqk_bias

    def no_double_backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{qualified} is differentiable once; backend 'reference' is twice")

    library.impl(name, forward_kernel, "CUDA")  # type: ignore[no-untyped-call]
    library.impl(name + "_backward", backward_kernel, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(qualified, _fake_forward, lib=library)
    torch.library.register_fake(qualified + "_backward", _fake_backward, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=_setup_context, lib=library)
    torch.library.register_autograd(qualified + "_backward", no_double_backward, lib=library)


for _name in _OPERATORS:
    _register(_name)
