"""MoE with SIM: experts that each are an MLP over all fields, mixed by a softmax gate."""
# ruff: noqa: N803, N806 (names carry their shape: C candidates, F fields, E experts, D width)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.rankers.dlrm import DlrmConfig, DlrmRanker
from model.rankers.protocol import require_positive
from spark_jobs.contract.features import Dataset


@dataclass(frozen=True, kw_only=True)
class MoeConfig(DlrmConfig):
    """Sizes of MoE.

    Args:
        num_experts: Experts, each with one hidden layer of `token_hidden`; the article's has 4.
    """

    architecture: str = field(init=False, default="moe")
    num_experts: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_experts")

    def build(self, dataset: Dataset, generator: torch.Generator) -> MoeRanker:
        """The ranker; see `RankerConfig.build`."""
        return MoeRanker(dataset, self, generator)


class Experts(nn.Module):
    """MLPs of one hidden layer over the same input, computed together."""

    def __init__(self, num_experts: int, width: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, num_experts * hidden)
        self.weight_EHD = nn.Parameter(torch.randn(num_experts, hidden, width_out) * hidden**-0.5)
        self.bias_ED = nn.Parameter(torch.zeros(num_experts, width_out))

    def forward(self, x_CD: Tensor) -> Tensor:
        """What each expert makes of `[C, D]`, `[C, E, D]`."""
        hidden_CEH = nn.functional.silu(self.first(x_CD)).view(len(x_CD), *self.weight_EHD.shape[:2])
        return torch.einsum("ceh,ehd->ced", hidden_CEH, self.weight_EHD) + self.bias_ED


class MoeRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: MoeConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        width = self.num_fields * config.d_model
        self.experts = Experts(config.num_experts, width, config.token_hidden, config.d_model)
        self.gate = nn.Linear(width, config.num_experts)

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        x_CD = x_CFD.flatten(1)
        gates_CE1 = self.gate(x_CD).softmax(-1).unsqueeze(-1)
        return ((gates_CE1 * self.experts(x_CD)).sum(1),)
