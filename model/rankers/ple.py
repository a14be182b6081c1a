"""PLE with SIM: experts of each task and experts of both, in levels (Tang et al., RecSys 2020).

In a level a task's gate mixes its own experts and the shared ones; the shared gate mixes all. What they give
is what the next level's experts read, and, of the last one, what each task's head does.
"""
# ruff: noqa: N803 (names carry their shape: C candidates, F fields, E experts, D width)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.rankers.dlrm import DlrmConfig, DlrmRanker
from model.rankers.moe import Experts
from model.rankers.protocol import require_positive
from spark_jobs.contract.features import Dataset

_TASKS = 2


@dataclass(frozen=True, kw_only=True)
class PleConfig(DlrmConfig):
    """Sizes of PLE.

    Args:
        num_levels: Levels.
        num_experts: Experts of each task, and of both together, in each level.
    """

    architecture: str = field(init=False, default="ple")
    num_levels: int = 2
    num_experts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_levels", "num_experts")

    def build(self, dataset: Dataset, generator: torch.Generator) -> PleRanker:
        """The ranker; see `RankerConfig.build`."""
        return PleRanker(dataset, self, generator)


class Level(nn.Module):
    """Experts of each task and of both, and their gates; what the last level shares is not read."""

    def __init__(self, width: int, config: PleConfig, *, is_last: bool) -> None:
        super().__init__()
        num, width_out = config.num_experts, config.d_model
        self.experts = nn.ModuleList(
            Experts(num, width, config.token_hidden // 2, width_out) for _ in range(_TASKS + 1)
        )
        sizes = [2 * num] * _TASKS + ([] if is_last else [(_TASKS + 1) * num])
        self.gates = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Inputs of each task and of what they share, `[C, D]` each, to the same of the next level."""
        made = [experts(x_CD) for experts, x_CD in zip(self.experts, inputs, strict=True)]
        reads = [torch.cat([own_CED, made[-1]], dim=1) for own_CED in made[:-1]] + [torch.cat(made, dim=1)]
        return [
            (gate(x_CD).softmax(-1).unsqueeze(-1) * read_CED).sum(1)
            for gate, x_CD, read_CED in zip(self.gates, inputs, reads, strict=False)
        ]


class PleRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: PleConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        self.levels = nn.ModuleList(
            Level(
                config.d_model if number else self.num_fields * config.d_model,
                config,
                is_last=number == config.num_levels - 1,
            )
            for number in range(config.num_levels)
        )

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        inputs = [x_CFD.flatten(1)] * (_TASKS + 1)
        for level in self.levels:
            inputs = level(inputs)
        return tuple(inputs)
