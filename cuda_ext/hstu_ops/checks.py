"""Argument checks, done before any kernel starts: shapes, dtypes, devices and strides; values in debug mode.

Shape checks read no tensor, so they cost no synchronisation and trace under `torch.compile`. Value checks
(offsets ascending, `visible_end` inside its row, groups in range) read the tensors: set `HSTU_OPS_DEBUG=1`,
or `hstu_ops.checks.debug = True`, to have them; they are left out of compiled graphs.
"""

import os

import torch
from torch import Tensor

debug = os.environ.get("HSTU_OPS_DEBUG", "0") == "1"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def check_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, visible_end: Tensor) -> None:
    """Checks the tensors of `mtgr_attention`; raises ValueError naming the argument and what was expected."""
    _require(q.dim() == 3, f"q must be [T, N, D], got {_describe(q)}")
    _require(q.is_floating_point(), f"q must be floating point, got {_describe(q)}")
    for name, tensor in (("k", k), ("v", v)):
        same = tensor.shape == q.shape and tensor.dtype == q.dtype and tensor.device == q.device
        _require(same, f"{name} must be as q, {_describe(q)}, got {_describe(tensor)}")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _require(
            tensor.stride(-1) == 1 or tensor.shape[-1] == 1,
            f"{name} must have stride 1 in its last dimension, got {tensor.stride()}: call .contiguous()",
        )
    for name, tensor in (("offsets", offsets), ("visible_end", visible_end)):
        good = tensor.dim() == 1 and tensor.dtype == torch.int32 and tensor.device == q.device
        _require(good, f"{name} must be one-dimensional int32 on {q.device}, got {_describe(tensor)}")
        _require(tensor.is_contiguous(), f"{name} must be contiguous, got stride {tensor.stride()}")
    _require(offsets.shape[0] >= 1, "offsets must have B + 1 elements, got none")
    _require(
        visible_end.shape[0] == q.shape[0],
        f"visible_end must have one element a token, T = {q.shape[0]}, got {visible_end.shape[0]}",
    )
    _require(q.shape[0] < 2**31, f"offsets are int32: T must be below 2^31, got {q.shape[0]}")
    if debug and not torch.compiler.is_compiling():
        _check_attention_values(offsets, visible_end)


def _check_attention_values(offsets: Tensor, visible_end: Tensor) -> None:
    lengths = offsets.diff()
    _require(int(offsets[0]) == 0, f"offsets must start at 0, got {int(offsets[0])}")
    _require(
        int(offsets[-1]) == visible_end.shape[0],
        f"offsets must end at T = {visible_end.shape[0]}, got {int(offsets[-1])}",
    )
    if bool((lengths < 0).any()):
        row = int((lengths < 0).nonzero()[0])
        raise ValueError(f"offsets must ascend, row {row} has length {int(lengths[row])}")
    length_of_token = torch.repeat_interleave(lengths, lengths)
    outside = (visible_end < 0) | (visible_end > length_of_token)
    if bool(outside.any()):
        token = int(outside.nonzero()[0])
        raise ValueError(
            f"visible_end must lie in [0, length of its row]: token {token} has {int(visible_end[token])}, "
            f"its row has {int(length_of_token[token])} tokens"
        )


def check_norm(x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None) -> None:
    """Checks the tensors of `group_layer_norm`; raises ValueError naming argument and expectation."""
    _require(x.dim() == 2 and x.is_floating_point(), f"x must be floating point [T, D], got {_describe(x)}")
    _require(x.shape[1] >= 1, "x must have a width of at least 1")
    _require(
        x.stride(-1) == 1 or x.shape[1] == 1,
        f"x must have stride 1 in its last dimension, got strides {x.stride()}: call .contiguous()",
    )
    good = group.dim() == 1 and group.dtype in (torch.int32, torch.int64) and group.device == x.device
    _require(good, f"group must be one-dimensional int32 or int64 on {x.device}, got {_describe(group)}")
    _require(
        group.shape[0] == x.shape[0],
        f"group must have one element a token, T = {x.shape[0]}, got {group.shape[0]}",
    )
    for name, tensor in (("weight", weight), ("bias", bias)):
        good = tensor.dim() == 2 and tensor.shape[1] == x.shape[1] and tensor.is_floating_point()
        _require(good, f"{name} must be floating point [G, D] with D = {x.shape[1]}, got {_describe(tensor)}")
        _require(tensor.device == x.device, f"{name} must be on {x.device}, got {_describe(tensor)}")
    same = weight.shape == bias.shape and weight.dtype == bias.dtype
    _require(same, f"bias must be as weight, {_describe(weight)}, got {_describe(bias)}")
    if gate is not None:
        good = gate.shape == x.shape and gate.device == x.device and gate.dtype == x.dtype
        _require(good, f"gate must be as x, {_describe(x)}, got {_describe(gate)}")
        _require(
            gate.stride(-1) == 1 or gate.shape[1] == 1,
            f"gate must have stride 1 in its last dimension, got strides {gate.stride()}: call .contiguous()",
        )
    if debug and not torch.compiler.is_compiling() and x.shape[0] > 0:
        low, high = int(group.min()), int(group.max())
        _require(
            0 <= low and high < weight.shape[0],
            f"group must lie in [0, {weight.shape[0]}), got {low} to {high}",
        )
