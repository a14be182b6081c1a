"""One block of MTGR around the operators, as the benchmarks time it: what they are worth in a model.

X~ = GLN(X);  Q, K, V, U = linear(X~);  V~ = attention(Q, K, V);  X = linear(GLN(V~ * U)) + X
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hstu_ops.attention import mtgr_attention
from hstu_ops.norm import group_layer_norm
from hstu_ops.shapes import Jagged, Workload

_NUM_GROUPS = 4
_EPS = 1e-5


def block_step(
    workload: Workload, rows: Jagged, device: str, dtype: torch.dtype, backend: str
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Returns a block's forward function and its inputs, x and the eight parameters, which want gradients."""
    heads, dim = workload.num_heads, workload.head_dim
    width = heads * dim
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
        values = torch.randn(*shape, generator=generator, device=device) * scale
        return values.to(dtype).requires_grad_()

    def norm_parameters() -> list[Tensor]:
        return [draw(_NUM_GROUPS, width, dtype=torch.float32) for _ in range(2)]

    inputs = [
        draw(rows.num_tokens, width),
        *norm_parameters(),
        draw(4 * width, width, scale=width**-0.5),
        draw(4 * width),
        *norm_parameters(),
        draw(width, width, scale=width**-0.5),
        draw(width),
    ]

    def forward(
        x: Tensor,
        scale_in: Tensor,
        shift_in: Tensor,
        uvqk_weight: Tensor,
        uvqk_bias: Tensor,
        scale_out: Tensor,
        shift_out: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
    ) -> Tensor:
        normed = group_layer_norm(x, rows.group, scale_in, shift_in, _EPS, backend=backend)
        uvqk = F.linear(normed, uvqk_weight, uvqk_bias).view(-1, 4, heads, dim)
        u, v, q, k = uvqk.unbind(1)
        out = mtgr_attention(q, k, v, rows.offsets, rows.visible_end, dim**-0.5, 1 / 500, backend=backend)
        gated = group_layer_norm(
            out.flatten(1), rows.group, scale_out, shift_out, _EPS, gate_TD=u.flatten(1), backend=backend
        )
        return F.linear(gated, out_weight, out_bias) + x

    return forward, inputs
