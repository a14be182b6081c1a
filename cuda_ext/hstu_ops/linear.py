"""`linear`: a layer over tokens whose backward pass is one pass over the gradient less, and rounds less."""
# ruff: noqa: N803, N806 (a name carries its shape: T tokens, I width in, O width out)

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hstu_ops.schemas import NAMESPACE, library


def defers_bias_gradient(x: Tensor) -> bool:
    """Whether what follows a `linear` of x may give its bias the gradient: on a GPU under autocast."""
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """`torch.nn.functional.linear` over tokens.

    On a GPU under autocast the gradients of weight and bias come in float32, as the optimizer takes them,
    without a copy in 16 bits; the bias' is a float32 sum in one pass at the memory's speed.

    Args:
        x_TI: `[T, I]`, floating.
        weight_OI: `[O, I]`, floating.
        bias_O: `[O]`, floating; detached if what follows gives it its gradient (`gated_attention`,
            `add_group_layer_norm`).

    Returns:
        `[T, O]`, in the dtype of x (under autocast, in its dtype).
    """
    if not defers_bias_gradient(x_TI):
        return F.linear(x_TI, weight_OI, bias_O)
    y_TO: Tensor = _Linear.apply(x_TI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return y_TO


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda")
        x_TI, narrow_OI = x_TI.to(dtype), weight_OI.to(dtype)
        ctx.save_for_backward(x_TI, narrow_OI)
        ctx.dtypes = weight_OI.dtype, bias_O.dtype
        ctx.needs_bias = ctx.needs_input_grad[2]
        with torch.autocast("cuda", enabled=False):
            return torch.addmm(bias_O.to(dtype), x_TI, narrow_OI.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (grad_TO,) = grads
        x_TI, narrow_OI = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        if grad_TO.stride(-1) != 1:
            grad_TO = grad_TO.contiguous()
        grad_weight_OI = torch.mm(grad_TO.t(), x_TI, out_dtype=torch.float32)
        grad_bias_O: Tensor | None = None
        if ctx.needs_bias:
            grad_bias_O = torch.ops.hstu_ops.column_sums_triton(grad_TO).to(bias_dtype)
        return grad_TO @ narrow_OI, grad_weight_OI.to(weight_dtype), grad_bias_O


def _fake_column_sums(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


torch.library.register_fake(f"{NAMESPACE}::column_sums_triton", _fake_column_sums, lib=library)
