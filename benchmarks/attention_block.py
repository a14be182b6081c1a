"""One block of MTGR around the operators, as the benchmarks time it: what they are worth in a model.

X~ = GLN(X);  U, V, Q, K = linear(X~);  X = linear(GLN(attention(Q, K, V) * U)) + X

Also its parts, each on its own: their sum falls short of the whole by what autograd does between them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from hstu_ops.attention import mtgr_attention
from hstu_ops.gated import gated_attention
from hstu_ops.norm import group_layer_norm
from torch import Tensor

from benchmarks.attention_timing import Steps, both_passes
from benchmarks.shapes import Jagged, Workload

_NUM_GROUPS = 4
_EPS = 1e-5
_INV_N = 1 / 500


class BlockBench:
    """The inputs of a block on one workload: x, the eight parameters, and what lies between its parts."""

    def __init__(
        self, workload: Workload, rows: Jagged, device: str, dtype: torch.dtype, backend: str
    ) -> None:
        """Draws x and the parameters, all of which want gradients."""
        self.rows, self.backend = rows, backend
        self.heads, self.dim = workload.num_heads, workload.head_dim
        width = self.heads * self.dim
        generator = torch.Generator(device=device).manual_seed(0)

        def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
            values = torch.randn(*shape, generator=generator, device=device) * scale
            return values.to(dtype).requires_grad_()

        self.x = draw(rows.num_tokens, width)
        self.norm_in = [draw(_NUM_GROUPS, width, dtype=torch.float32) for _ in range(2)]
        self.uvqk = [draw(4 * width, width, scale=width**-0.5), draw(4 * width)]
        self.norm_out = [draw(_NUM_GROUPS, width, dtype=torch.float32) for _ in range(2)]
        self.out = [draw(width, width, scale=width**-0.5), draw(width)]

    def _norm(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor | None = None) -> Tensor:
        return group_layer_norm(x, self.rows.group, scale, shift, _EPS, gate_TD=gate, backend=self.backend)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        offsets, end = self.rows.offsets, self.rows.visible_end
        return mtgr_attention(q, k, v, offsets, end, self.dim**-0.5, _INV_N, backend=self.backend)

    def _gated_attention(self, uvqk: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return gated_attention(
            uvqk,
            self.rows.offsets,
            self.rows.visible_end,
            self.rows.group,
            scale,
            shift,
            self.dim**-0.5,
            _INV_N,
            _EPS,
            backend=self.backend,
        )

    def _two_operators(self, uvqk: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        u, v, q, k = uvqk.unbind(1)
        return self._norm(self._attention(q, k, v).flatten(1), scale, shift, u.flatten(1))

    def steps(self, side: str, *, fused: bool = True) -> Steps:
        """Both passes of the whole block, with `gated_attention` or with the two operators it stands for."""
        middle = self._gated_attention if fused else self._two_operators

        def block(x: Tensor, *parameters: Tensor) -> Tensor:
            norm_in, uvqk, norm_out, out = (parameters[i : i + 2] for i in range(0, 8, 2))
            product = F.linear(self._norm(x, norm_in[0], norm_in[1]), *uvqk).view(-1, 4, self.heads, self.dim)
            return F.linear(middle(product, *norm_out), *out) + x

        return both_passes(side, block, [self.x, *self.norm_in, *self.uvqk, *self.norm_out, *self.out])

    def parts(self) -> Steps:
        """Both passes of each part on its own, on inputs as they are inside the block."""
        with torch.no_grad():
            normed = self._norm(self.x, self.norm_in[0], self.norm_in[1])
            uvqk = F.linear(normed, *self.uvqk).view(-1, 4, self.heads, self.dim)
            u, v, q, k = uvqk.unbind(1)
            out = self._attention(q, k, v).flatten(1)
            gated = self._norm(out, self.norm_out[0], self.norm_out[1], u.flatten(1))
        wanted = [part.requires_grad_() for part in (q.detach(), k.detach(), v.detach())]
        gate = u.flatten(1).detach().requires_grad_()
        sides: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
            "norm": (self._norm, [self.x, *self.norm_in]),
            "UVQK product and bias": (F.linear, [normed.requires_grad_(), *self.uvqk]),
            "attention": (self._attention, wanted),
            "gate and norm": (self._norm, [out.requires_grad_(), *self.norm_out, gate]),
            "output product and bias": (F.linear, [gated.requires_grad_(), *self.out]),
            "residual": (torch.add, [gated, self.x]),
        }
        steps: Steps = {}
        for side, (forward, inputs) in sides.items():
            steps |= both_passes(side, forward, inputs)
        return steps
