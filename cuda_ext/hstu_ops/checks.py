"""Argument checks, done before any kernel starts: shapes, dtypes, devices and strides; values in debug mode.

Shape checks read no tensor, so they cost no synchronisation and trace under `torch.compile`; messages are
built only when a check fails. Value checks (offsets ascending, `visible_end` inside its row, groups in range)
read the tensors: `HSTU_OPS_DEBUG=1`, or `hstu_ops.checks.debug = True`, turns them on; compiled graphs leave
them out.
"""

import os

import torch
from torch import Tensor

debug = os.environ.get("HSTU_OPS_DEBUG", "0") == "1"


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    same = tensor.shape == other.shape and tensor.dtype == other.dtype and tensor.device == other.device
    if not same:
        raise ValueError(f"{name} must be as {other_name}, {_describe(other)}, got {_describe(tensor)}")


def _check_last_stride(name: str, tensor: Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        raise ValueError(
            f"{name} must have stride 1 in its last dimension, got {tensor.stride()}: call .contiguous()"
        )


def _check_index(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dim() != 1 or tensor.dtype != torch.int32 or tensor.device != device:
        raise ValueError(f"{name} must be one-dimensional int32 on {device}, got {_describe(tensor)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got stride {tensor.stride()}")


def check_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, visible_end: Tensor) -> None:
    """Checks the tensors of `mtgr_attention`; raises ValueError naming the argument and what was expected."""
    if q.dim() != 3:
        raise ValueError(f"q must be [T, N, D], got {_describe(q)}")
    if not q.is_floating_point():
        raise ValueError(f"q must be floating point, got {_describe(q)}")
    _check_like("k", k, "q", q)
    _check_like("v", v, "q", q)
    _check_last_stride("q", q)
    _check_last_stride("k", k)
    _check_last_stride("v", v)
    _check_index("offsets", offsets, q.device)
    _check_index("visible_end", visible_end, q.device)
    if offsets.shape[0] < 1:
        raise ValueError("offsets must have B + 1 elements, got none")
    if visible_end.shape[0] != q.shape[0]:
        raise ValueError(
            f"visible_end must have one element a token, T = {q.shape[0]}, got {visible_end.shape[0]}"
        )
    if q.shape[0] >= 2**31:
        raise ValueError(f"offsets are int32: T must be below 2^31, got {q.shape[0]}")
    if debug and not torch.compiler.is_compiling():
        _check_attention_values(q, offsets, visible_end)


def _check_attention_values(q: Tensor, offsets: Tensor, visible_end: Tensor) -> None:
    lengths = offsets.diff()
    if int(offsets[0]) != 0:
        raise ValueError(f"offsets must start at 0, got {int(offsets[0])}")
    if int(offsets[-1]) != visible_end.shape[0]:
        raise ValueError(f"offsets must end at T = {visible_end.shape[0]}, got {int(offsets[-1])}")
    if bool((lengths < 0).any()):
        row = int((lengths < 0).nonzero()[0])
        raise ValueError(f"offsets must ascend, row {row} has length {int(lengths[row])}")
    longest = int(lengths.max()) if lengths.numel() else 0
    if q.is_cuda and longest * q.stride(0) >= 2**31:  # inside a row the GPU kernels count in int32
        raise ValueError(
            f"a row's tokens times q's stride must stay below 2^31, got {longest} x {q.stride(0)}"
        )
    length_of_token = torch.repeat_interleave(lengths, lengths)
    outside = (visible_end < 0) | (visible_end > length_of_token)
    if bool(outside.any()):
        token = int(outside.nonzero()[0])
        raise ValueError(
            f"visible_end must lie in [0, length of its row]: token {token} has {int(visible_end[token])}, "
            f"its row has {int(length_of_token[token])} tokens"
        )


def check_uvqk(uvqk: Tensor) -> None:
    """Checks the product that `gated_attention` takes; raises ValueError with what was expected."""
    if uvqk.dim() != 4 or uvqk.shape[1] != 4:
        raise ValueError(f"uvqk must be [T, 4, N, D], got {_describe(uvqk)}")
    if not uvqk.is_contiguous():
        raise ValueError(f"uvqk must be contiguous, got strides {uvqk.stride()}: call .contiguous()")


def check_norm(x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None) -> None:
    """Checks the tensors of `group_layer_norm`; raises ValueError naming argument and expectation."""
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] < 1:
        raise ValueError(f"x must be floating point [T, D] with D >= 1, got {_describe(x)}")
    _check_last_stride("x", x)
    if group.dim() != 1 or group.dtype not in (torch.int32, torch.int64) or group.device != x.device:
        raise ValueError(
            f"group must be one-dimensional int32 or int64 on {x.device}, got {_describe(group)}"
        )
    if group.shape[0] != x.shape[0]:
        raise ValueError(f"group must have one element a token, T = {x.shape[0]}, got {group.shape[0]}")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1] or not weight.is_floating_point():
        raise ValueError(
            f"weight must be floating point [G, D] with D = {x.shape[1]}, got {_describe(weight)}"
        )
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device}, got {_describe(weight)}")
    _check_like("bias", bias, "weight", weight)
    if gate is not None:
        _check_like("gate", gate, "x", x)
        _check_last_stride("gate", gate)
    if debug and not torch.compiler.is_compiling() and x.shape[0] > 0:
        low, high = int(group.min()), int(group.max())
        if low < 0 or high >= weight.shape[0]:
            raise ValueError(f"group must lie in [0, {weight.shape[0]}), got {low} to {high}")
