"""MTGR's attention as one writes it without a jagged kernel: rows padded to the longest, one dense product.

What the benchmarks hold the CPU backend against. The mask is built once, outside of what is timed; padding
the inputs and taking the result's tokens out again is inside.
"""
# ruff: noqa: N803, N806 (a name carries its shape: T tokens, N heads, D width, B rows, G groups, L longest)

import torch
import torch.nn.functional as F  # noqa: N812
from hstu_ops.reference import visible_mask
from torch import Tensor

from benchmarks.shapes import Jagged


class PaddedAttention:
    """Attention over the rows of one jagged structure, padded; called without its offsets."""

    def __init__(self, rows: Jagged) -> None:
        """Builds the dense mask and the places of the tokens; memory is B x L x L."""
        lengths = rows.offsets.diff().long()
        self.num_rows, self.longest = lengths.numel(), int(lengths.max())
        within = torch.arange(self.longest, device=lengths.device)
        filled_BL = within < lengths.unsqueeze(1)
        self.place_T = filled_BL.flatten().nonzero().flatten()
        end_BL = torch.zeros(filled_BL.shape, dtype=torch.int64, device=lengths.device)
        end_BL[filled_BL] = rows.visible_end.long()
        self.mask_B1LL = visible_mask(end_BL).unsqueeze(1)

    def __call__(self, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, alpha: float, inv_n: float) -> Tensor:
        """Returns `[T, N, D]`."""
        q_BNLD, k_BNLD, v_BNLD = self._pad(q_TND), self._pad(k_TND), self._pad(v_TND)
        weights = F.silu(q_BNLD @ k_BNLD.transpose(-1, -2) * alpha) * inv_n * self.mask_B1LL
        return (weights @ v_BNLD).transpose(1, 2).flatten(0, 1)[self.place_T]

    def _pad(self, tensor_TND: Tensor) -> Tensor:
        shape = (self.num_rows * self.longest, *tensor_TND.shape[1:])
        padded = tensor_TND.new_zeros(shape).index_copy(0, self.place_T, tensor_TND)
        return padded.view(self.num_rows, self.longest, *tensor_TND.shape[1:]).transpose(1, 2)
