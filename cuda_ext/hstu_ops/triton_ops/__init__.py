"""Adds the Triton kernels to the operators `*_triton`; triton itself is imported when one first runs."""

import importlib
from collections.abc import Callable
from typing import Any

from hstu_ops.schemas import library

# Operator: module and function that launch it.
_LAUNCHERS = {
    "mtgr_attention_triton": ("attention_forward", "attention_forward"),
    "mtgr_attention_triton_backward": ("attention_backward", "attention_backward"),
    "group_layer_norm_triton": ("group_layer_norm", "norm_forward"),
    "group_layer_norm_triton_backward": ("group_layer_norm", "norm_backward"),
    "add_group_layer_norm_triton": ("group_layer_norm", "add_norm_forward"),
    "add_group_layer_norm_triton_backward": ("group_layer_norm", "add_norm_backward"),
    "column_sums_triton": ("column_sums", "column_sums"),
}


def _launcher(module: str, function: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)(*args)

    return launch


def register() -> None:
    """Adds the launchers to the CUDA dispatch key."""
    for operator, (module, function) in _LAUNCHERS.items():
        library.impl(operator, _launcher(module, function), "CUDA")  # type: ignore[no-untyped-call]
