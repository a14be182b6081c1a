"""DNN with SIM: an MLP over all fields side by side. The plainest of the DLRM family."""
# ruff: noqa: N803 (names carry their shape: C candidates, F fields, E experts, D width)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.rankers.dlrm import DlrmConfig, DlrmRanker
from model.rankers.inputs import mlp
from spark_jobs.contract.features import Dataset


@dataclass(frozen=True, kw_only=True)
class DnnConfig(DlrmConfig):
    """Sizes of DNN: its MLP has two hidden layers of `token_hidden`."""

    architecture: str = field(init=False, default="dnn")

    def build(self, dataset: Dataset, generator: torch.Generator) -> DnnRanker:
        """The ranker; see `RankerConfig.build`."""
        return DnnRanker(dataset, self, generator)


class DnnRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: DnnConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        hidden = config.token_hidden
        self.mlp = mlp(self.num_fields * config.d_model, hidden, hidden, config.d_model)

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        return (self.mlp(x_CFD.flatten(1)),)
