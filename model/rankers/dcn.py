"""DCN-v2 with SIM: low-rank cross layers beside an MLP (Wang et al., arXiv 2008.13535).

A cross layer is `x' = x0 * (U V x + b) + x`: each raises the degree of the products of features by one.
"""
# ruff: noqa: N803, N806 (names carry their shape: C candidates, F fields, E experts, D width)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.rankers.dlrm import DlrmConfig, DlrmRanker
from model.rankers.inputs import mlp
from model.rankers.protocol import require_positive
from spark_jobs.contract.features import Dataset


@dataclass(frozen=True, kw_only=True)
class DcnConfig(DlrmConfig):
    """Sizes of DCN-v2.

    Args:
        num_crosses: Cross layers.
        rank: Rank of their matrices.
    """

    architecture: str = field(init=False, default="dcn")
    num_crosses: int = 3
    rank: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_crosses", "rank")

    def build(self, dataset: Dataset, generator: torch.Generator) -> DcnRanker:
        """The ranker; see `RankerConfig.build`."""
        return DcnRanker(dataset, self, generator)


class DcnRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: DcnConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        width, hidden = self.num_fields * config.d_model, config.token_hidden
        self.crosses = nn.ModuleList(
            nn.Sequential(nn.Linear(width, config.rank, bias=False), nn.Linear(config.rank, width))
            for _ in range(config.num_crosses)
        )
        self.deep = mlp(width, hidden, hidden)
        self.joined = nn.Linear(width + hidden, config.d_model)

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        first_CD = x_CD = x_CFD.flatten(1)
        for cross in self.crosses:
            x_CD = first_CD * cross(x_CD) + x_CD
        deep_CD = nn.functional.silu(self.deep(first_CD))
        return (self.joined(torch.cat([x_CD, deep_CD], dim=1)),)
