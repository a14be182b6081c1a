"""Wukong with SIM: stacked factorisation machines over fields (Zhang et al., arXiv 2403.02545).

A layer makes new fields of the old ones, `LN(FMB(X) | LCB(X) + residual)`: a block of factorisation machines,
which reads all products of two fields through a projection (`X X^T Y`), and linear combinations of fields.
`l` layers hold products of up to `2^l` fields.
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
class WukongConfig(DlrmConfig):
    """Sizes of Wukong.

    Args:
        num_layers: Layers.
        num_products: Fields that a layer makes of products.
        num_sums: Fields that a layer makes of linear combinations.
        rank: Columns of Y, by which the products of a field with all others are read.
    """

    architecture: str = field(init=False, default="wukong")
    num_layers: int = 2
    num_products: int = 8
    num_sums: int = 8
    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_layers", "num_products", "num_sums", "rank")

    def build(self, dataset: Dataset, generator: torch.Generator) -> WukongRanker:
        """The ranker; see `RankerConfig.build`."""
        return WukongRanker(dataset, self, generator)


class WukongLayer(nn.Module):
    """Fields to fields."""

    def __init__(self, num_fields: int, config: WukongConfig) -> None:
        super().__init__()
        width = config.d_model
        self.projection_FK = nn.Parameter(torch.randn(num_fields, config.rank) * num_fields**-0.5)
        products = num_fields * config.rank
        self.products = nn.Sequential(
            nn.LayerNorm(products), mlp(products, config.token_hidden, config.num_products * width)
        )
        self.sums = nn.Linear(num_fields, config.num_sums, bias=False)
        self.residual = nn.Linear(num_fields, config.num_products + config.num_sums, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_CFD: Tensor) -> Tensor:
        """New fields `[C, products + sums, D]`."""
        read_CFK = x_CFD @ (x_CFD.transpose(1, 2) @ self.projection_FK)
        made_CFD = self.products(read_CFK.flatten(1)).unflatten(1, (-1, x_CFD.shape[2]))
        x_CDF = x_CFD.transpose(1, 2)
        made_CFD = torch.cat([made_CFD, self.sums(x_CDF).transpose(1, 2)], dim=1)
        normed_CFD: Tensor = self.norm(made_CFD + self.residual(x_CDF).transpose(1, 2))
        return normed_CFD


class WukongRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: WukongConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        made = config.num_products + config.num_sums
        self.layers = nn.ModuleList(
            WukongLayer(made if number else self.num_fields, config) for number in range(config.num_layers)
        )
        self.mlp = mlp(made * config.d_model, config.token_hidden, config.d_model)

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        for layer in self.layers:
            x_CFD = layer(x_CFD)
        return (self.mlp(x_CFD.flatten(1)),)
