"""DIN: target attention by an activation unit, an MLP of each pair, without softmax (arXiv 1706.06978).

The unit reads candidate q, behaviour k, and their difference and product. Its first layer is linear in
these, so that it is computed as A q + B k + (q W_h) k for each hidden h: what grows with the pairs is the
hidden width, not four times the token's.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, L behaviours, C candidates, H hidden, D width)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.layout import Layout
from model.rankers.dlrm import INV_N, DlrmConfig, DlrmRanker
from model.rankers.inputs import mlp, take_rows
from model.rankers.padding import pad, places, sees
from model.rankers.protocol import require_positive
from spark_jobs.contract.features import Dataset, Group


@dataclass(frozen=True, kw_only=True)
class DinConfig(DlrmConfig):
    """Sizes of DIN.

    Args:
        unit_hidden: Hidden width of the activation unit.
    """

    takes_padded: ClassVar[bool] = False

    architecture: str = field(init=False, default="din")
    unit_hidden: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "unit_hidden")

    def build(self, dataset: Dataset, generator: torch.Generator) -> DinRanker:
        """The ranker; see `RankerConfig.build`."""
        return DinRanker(dataset, self, generator)


class ActivationUnit(nn.Module):
    """Sums a candidate's behaviours, each weighted by an MLP of the pair."""

    def __init__(self, config: DinConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.unit_hidden
        self.of_candidate = nn.Linear(width, hidden)
        self.of_behaviour = nn.Linear(width, hidden, bias=False)
        self.of_product_HD = nn.Parameter(torch.randn(hidden, width) * width**-0.5)
        self.weight = nn.Linear(hidden, 1)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, q_BCD: Tensor, k_BLD: Tensor, sees_BCL: Tensor) -> Tensor:
        """What each candidate reads, `[B, C, D]`."""
        q_BCHD = q_BCD.unsqueeze(2) * self.of_product_HD
        hidden_BCLH = torch.einsum("bchd,bld->bclh", q_BCHD, k_BLD)
        of_candidate_BCH, of_behaviour_BLH = self.of_candidate(q_BCD), self.of_behaviour(k_BLD)
        hidden_BCLH = hidden_BCLH + of_candidate_BCH.unsqueeze(2) + of_behaviour_BLH.unsqueeze(1)
        weight_BCL = self.weight(nn.functional.silu(hidden_BCLH)).squeeze(-1)
        read_BCD: Tensor = self.norm(INV_N * (weight_BCL.masked_fill(~sees_BCL, 0) @ k_BLD))
        return read_BCD


class DinRanker(DlrmRanker):
    """The ranker: an MLP over all fields, of which the activation unit makes one."""

    def __init__(self, dataset: Dataset, config: DinConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        hidden = config.token_hidden
        self.attention = ActivationUnit(config)
        self.mlp = mlp(self.num_fields * config.d_model, hidden, hidden, config.d_model)

    def attend(self, tokens: Mapping[Group, Tensor], batch: JaggedBatch, where: Layout) -> Tensor:
        """See `DlrmRanker`."""
        padded = {
            group: pad(tokens[group], batch.lengths[group], where.longest[group])
            for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
        }
        k_BLD = torch.cat([padded[Group.STATIC], padded[Group.REALTIME]], dim=1)
        read_BCD = self.attention(padded[Group.CANDIDATE], k_BLD, sees(batch))
        num = batch.num_candidates
        place_C = places(batch.lengths[Group.CANDIDATE], where.longest[Group.CANDIDATE], num)
        return take_rows(place_C, read_BCD.flatten(0, 1))

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        return (self.mlp(x_CFD.flatten(1)),)
