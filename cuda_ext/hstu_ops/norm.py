"""`group_layer_norm`: layer norm with scale and shift by token group; its gate, its derivatives."""
# ruff: noqa: N803, N806 (a name carries its shape: T tokens, N heads, D width, B rows, G groups, L longest)

from typing import Any

import torch
from torch import Tensor

from hstu_ops.backends import resolve
from hstu_ops.checks import check_norm
from hstu_ops.reference import group_layer_norm_reference
from hstu_ops.schemas import NAMESPACE, library

_OPERATORS = ("group_layer_norm", "group_layer_norm_triton")


def group_layer_norm(
    x_TD: Tensor,
    group_T: Tensor,
    weight_GD: Tensor,
    bias_GD: Tensor,
    eps: float,
    *,
    gate_TD: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Normalises each token over its width, with its group's scale and shift (GLN, arXiv 2505.18654, 3.3).

    With a gate it normalises `x * gate`, as the second half of a block does, in one pass. Statistics and the
    product with the gate are in float32 (float64 for float64 x). Every backend is deterministic. Under
    autocast the inputs keep their dtypes, except that a gate takes that of x.

    Args:
        x_TD: `[T, D]`, floating, last stride 1.
        group_T: int32 or int64 `[T]`, the group of each token, in `[0, G)`.
        weight_GD: `[G, D]`, floating, not necessarily of the dtype of x.
        bias_GD: As weight.
        eps: Added to the variance.
        gate_TD: As x, or None.
        backend: `auto`, `reference`, `cpu`, `triton` or `cutlass`; the last runs the Triton kernel, since the
            norm has no matrix product to gain from.

    Returns:
        `[T, D]`, contiguous, in the dtype of x.

    Raises:
        ValueError: A shape, dtype, device or stride is not as said; in debug mode also a group out of range.
        BackendUnavailableError: The backend asked for cannot run here or cannot take these tensors.
    """
    if gate_TD is not None and torch.is_autocast_enabled(x_TD.device.type):
        gate_TD = gate_TD.to(x_TD.dtype)
    check_norm(x_TD, group_T, weight_GD, bias_GD, gate_TD)
    chosen = resolve(backend, x_TD.device.type, x_TD.dtype, None)
    if chosen == "reference":
        return group_layer_norm_reference(x_TD, group_T, weight_GD, bias_GD, eps, gate_TD)
    operators = torch.ops.hstu_ops
    operator = operators.group_layer_norm if chosen == "cpu" else operators.group_layer_norm_triton
    y: Tensor = operator(x_TD, group_T, weight_GD, bias_GD, eps, gate_TD)[0]
    return y


def add_group_layer_norm(
    x_TD: Tensor,
    residual_TD: Tensor,
    group_T: Tensor,
    weight_GD: Tensor,
    bias_GD: Tensor,
    eps: float,
    *,
    x_bias_D: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Adds what a block gives to what it got, and normalises the sum: `group_layer_norm(x + residual)`.

    On a GPU one kernel each way: the backward pass also adds the two gradients that meet in the sum.

    Args:
        x_TD: As in `group_layer_norm`.
        residual_TD: As x.
        group_T: As in `group_layer_norm`.
        weight_GD: As in `group_layer_norm`.
        bias_GD: As weight.
        eps: Added to the variance.
        x_bias_D: `[D]`, what is in every token of x already, detached: it gets its gradient here (backends
            `triton` and `cutlass`), where it costs no pass over that of x.
        backend: As in `group_layer_norm`.

    Returns:
        The sum and its norm, `[T, D]`, in the dtype of x.

    Raises:
        ValueError: As in `group_layer_norm`; `gate` stands for the residual.
        BackendUnavailableError: The backend asked for cannot run here or cannot take these tensors.
    """
    check_norm(x_TD, group_T, weight_GD, bias_GD, residual_TD)
    if resolve(backend, x_TD.device.type, x_TD.dtype, None) in ("reference", "cpu"):
        if x_bias_D is not None:
            raise ValueError("x_bias gets its gradient by backends 'triton' and 'cutlass' alone")
        sum_TD = x_TD + residual_TD
        return sum_TD, group_layer_norm(sum_TD, group_T, weight_GD, bias_GD, eps, backend=backend)
    operator = torch.ops.hstu_ops.add_group_layer_norm_triton
    sum_TD, y_TD, *_ = operator(x_TD, residual_TD, group_T, weight_GD, bias_GD, eps, x_bias_D)
    return sum_TD, y_TD


def _fake_forward(
    x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = (x.shape[0],)
    return x.new_empty(x.shape), x.new_empty(rows, dtype=statistics), x.new_empty(rows, dtype=statistics)


def _fake_backward(
    grad_y: Tensor, x: Tensor, group: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_gate = x.new_empty(x.shape if gate is not None else (0,))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape), grad_gate


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, group, weight, _, _, gate = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, group, weight, mean, rstd, gate)


def _register(name: str) -> None:
    backward_operator = getattr(torch.ops.hstu_ops, name + "_backward")

    def backward(ctx: Any, grad_y: Tensor, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
        x, group, weight, mean, rstd, gate = ctx.saved_tensors
        if grad_y.stride(-1) != 1:  # expanded, as `y.sum()` sends it
            grad_y = grad_y.contiguous()
        grad_x, grad_weight, grad_bias, grad_gate = backward_operator(
            grad_y, x, group, weight, mean, rstd, gate
        )
        return grad_x, None, grad_weight, grad_bias, None, grad_gate if gate is not None else None

    def no_double_backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{NAMESPACE}::{name} is differentiable once; backend 'reference' is twice")

    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, _fake_forward, lib=library)
    torch.library.register_fake(qualified + "_backward", _fake_backward, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=_setup_context, lib=library)
    torch.library.register_autograd(qualified + "_backward", no_double_backward, lib=library)


def _fake_add_forward(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd


def _fake_add_backward(
    grad_sum: Tensor, grad_y: Tensor, x: Tensor, group: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = x.new_empty(x.shape[1], dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape), sums


def _setup_add_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, group, weight, _, _, x_bias = inputs
    summed, _, mean, rstd = output
    ctx.bias_dtype = None if x_bias is None else x_bias.dtype
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(summed, group, weight, mean, rstd)


def _add_backward(
    ctx: Any, grad_sum: Tensor, grad_y: Tensor, *unused: Tensor | None
) -> tuple[Tensor | None, ...]:
    grad_sum, grad_y = (one if one.stride(-1) == 1 else one.contiguous() for one in (grad_sum, grad_y))
    operator = torch.ops.hstu_ops.add_group_layer_norm_triton_backward
    grad_x, grad_weight, grad_bias, sums = operator(grad_sum, grad_y, *ctx.saved_tensors)
    grad_x_bias = None if ctx.bias_dtype is None else sums.to(ctx.bias_dtype)
    return grad_x, grad_x, None, grad_weight, grad_bias, None, grad_x_bias


def _no_double_add_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        f"{NAMESPACE}::add_group_layer_norm_triton is differentiable once; backend 'reference' is twice"
    )


def _register_add() -> None:
    name = f"{NAMESPACE}::add_group_layer_norm_triton"
    torch.library.register_fake(name, _fake_add_forward, lib=library)
    torch.library.register_fake(name + "_backward", _fake_add_backward, lib=library)
    torch.library.register_autograd(name, _add_backward, setup_context=_setup_add_context, lib=library)
    torch.library.register_autograd(name + "_backward", _no_double_add_backward, lib=library)


for _name in _OPERATORS:
    _register(_name)
_register_add()
