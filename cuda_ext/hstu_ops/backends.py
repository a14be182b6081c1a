"""Which backend runs an operator: named by the caller, or chosen once by `auto` and logged.

A backend that cannot run what is asked raises `BackendUnavailableError` with what to do; nothing falls back
silently.
"""

import functools
import logging

import torch

from hstu_ops import libraries

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "cpu", "triton", "cutlass")
CUTLASS_HEAD_DIMS = (64, 128, 256)
CUTLASS_DTYPES = (torch.bfloat16, torch.float16)
TRITON_HEAD_DIMS = (16, 32, 64, 128, 256)
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BUILD = "build it with `pip install --no-build-isolation ./cuda_ext`"
_BUILD_CUTLASS = "build it with `HSTU_OPS_CUDA=1 pip install --no-build-isolation ./cuda_ext`"


class BackendUnavailableError(RuntimeError):
    """The backend asked for cannot run here, or cannot take these tensors; the message says what to do."""


def missing(backend: str, device_type: str, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Says why `backend` cannot run such tensors (head dim None: the norm), or None if it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        if device_type != "cpu":
            return f"backend 'cpu' takes CPU tensors, not {device_type}: use 'triton' or 'cutlass'"
        if dtype not in CPU_DTYPES:
            return f"backend 'cpu' does not take {dtype}: use one of {CPU_DTYPES}"
        return (
            None
            if libraries.loaded("cpu")
            else f"backend 'cpu' is not compiled: {_BUILD}, or use 'reference'"
        )
    if device_type != "cuda":
        return f"backend {backend!r} takes CUDA tensors, not {device_type}: use 'cpu' or 'reference'"
    if not torch.cuda.is_available():
        return f"backend {backend!r} needs an NVIDIA GPU, PyTorch sees none: use 'cpu' or 'reference'"
    capability = torch.cuda.get_device_capability()
    if backend == "cutlass" and head_dim is not None:
        if capability[0] != 9:
            return f"backend 'cutlass' needs compute capability 9.0, this GPU has {capability}: use 'triton'"
        if dtype not in CUTLASS_DTYPES:
            return f"backend 'cutlass' does not take {dtype}: use bfloat16 or float16, or backend 'triton'"
        if head_dim not in CUTLASS_HEAD_DIMS:
            return f"backend 'cutlass' has no head dim {head_dim}, only {CUTLASS_HEAD_DIMS}: use 'triton'"
        return None if libraries.loaded("sm90") else f"backend 'cutlass' is not compiled: {_BUILD_CUTLASS}"
    if capability < (8, 0):
        return f"backend 'triton' needs compute capability 8.0 or more, not {capability}: use 'reference'"
    if dtype not in TRITON_DTYPES:
        return f"backend 'triton' does not take {dtype}: use one of {TRITON_DTYPES}, or 'reference'"
    if head_dim is not None and head_dim not in TRITON_HEAD_DIMS:
        return f"backend 'triton' has no head dim {head_dim}, only {TRITON_HEAD_DIMS}: use 'reference'"
    if not libraries.HAS_TRITON:
        return "backend 'triton' needs the package triton: `pip install triton`, or use 'reference'"
    return None


def resolve(backend: str, device_type: str, dtype: torch.dtype, head_dim: int | None) -> str:
    """Returns the backend to run: `backend` itself, or for `auto` the fastest that can (logged once a case).

    Raises:
        ValueError: `backend` is no backend's name.
        BackendUnavailableError: it cannot run here or cannot take these tensors.
    """
    if torch.compiler.is_compiling():  # a graph is traced once, and has no place for a cache or a log
        return _choose(backend, device_type, dtype, head_dim)[0]
    return _choose_and_log(backend, device_type, dtype, head_dim)


def _choose(
    backend: str, device_type: str, dtype: torch.dtype, head_dim: int | None
) -> tuple[str, list[str]]:
    """Returns the backend, and why each faster one cannot run."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: use one of {BACKENDS}")
    if backend != "auto":
        reason = missing(backend, device_type, dtype, head_dim)
        if reason is not None:
            raise BackendUnavailableError(reason)
        return backend, []
    reasons: list[str] = []
    for candidate in ("cpu",) if device_type == "cpu" else ("cutlass", "triton"):
        reason = missing(candidate, device_type, dtype, head_dim)
        if reason is None:
            return candidate, reasons
        reasons.append(reason)
    return "reference", reasons


@functools.lru_cache(maxsize=256)
def _choose_and_log(backend: str, device_type: str, dtype: torch.dtype, head_dim: int | None) -> str:
    chosen, reasons = _choose(backend, device_type, dtype, head_dim)
    if backend == "auto":
        operator = "group_layer_norm" if head_dim is None else f"mtgr_attention, head dim {head_dim}"
        because = f" ({'; '.join(reasons)})" if reasons else ""
        level = logging.WARNING if chosen == "reference" else logging.INFO
        logger.log(level, "auto chose %s for %s in %s on %s%s", chosen, operator, dtype, device_type, because)
    return chosen


def available(device_type: str = "cpu") -> dict[str, str | None]:
    """Maps every backend to None if it runs on `device_type` here (head dim 64), else to why not."""
    dtype = torch.float32 if device_type == "cpu" else torch.bfloat16
    return {name: missing(name, device_type, dtype, 64) for name in BACKENDS[1:]}
