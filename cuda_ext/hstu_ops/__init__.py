"""MTGR's two operators on jagged rows: masked SiLU attention and group layer norm, forward and backward.

    from hstu_ops import add_group_layer_norm, gated_attention, group_layer_norm, linear, mtgr_attention

Backends: a readable PyTorch reference, C++ for CPUs, Triton for NVIDIA GPUs from sm80 on, CUTLASS for sm90a.
Works from its sources (`PYTHONPATH=cuda_ext`) without the compiled two. Reading order: `reference`,
`schemas`, `attention`, `norm`, `gated`, `linear`.
"""

from hstu_ops import libraries, schemas, triton_ops

libraries.load()
triton_ops.register()

from hstu_ops.attention import attention_plan, mtgr_attention  # noqa: E402
from hstu_ops.backends import BACKENDS, BackendUnavailableError, available  # noqa: E402
from hstu_ops.gated import gated_attention  # noqa: E402
from hstu_ops.linear import defers_bias_gradient, linear  # noqa: E402
from hstu_ops.norm import add_group_layer_norm, group_layer_norm  # noqa: E402

__all__ = [
    "BACKENDS",
    "BackendUnavailableError",
    "add_group_layer_norm",
    "attention_plan",
    "available",
    "defers_bias_gradient",
    "gated_attention",
    "group_layer_norm",
    "libraries",
    "linear",
    "mtgr_attention",
    "schemas",
]
