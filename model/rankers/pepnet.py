"""PEPNet with SIM: gates by who and where (Chang et al., arXiv 2302.01115).

EPNet scales every element of the fields by what the situation (context) is; PPNet scales the hidden layers
of each task's MLP by who the user and what the item is. A gate is `2 sigmoid(MLP(prior, fields))`, which sees
the fields without sending them gradients.
"""
# ruff: noqa: N803, N806 (names carry their shape: C candidates, F fields, E experts, D width)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.rankers.dlrm import DlrmConfig, DlrmRanker
from model.rankers.inputs import mlp
from spark_jobs.contract.features import Dataset, Owner

_TASKS = 2
_USER = 0  # place of the user among the fields
_FIRST = 3  # place of the candidate's first feature


@dataclass(frozen=True, kw_only=True)
class PepnetConfig(DlrmConfig):
    """Sizes of PEPNet: the towers have two hidden layers of `token_hidden`."""

    architecture: str = field(init=False, default="pepnet")

    def build(self, dataset: Dataset, generator: torch.Generator) -> PepnetRanker:
        """The ranker; see `RankerConfig.build`."""
        return PepnetRanker(dataset, self, generator)


class Gate(nn.Module):
    """Scales in (0, 2), which start around 1, by a prior and by what is scaled."""

    def __init__(self, prior: int, fields: int, hidden: int, width: int) -> None:
        super().__init__()
        self.mlp = mlp(prior + fields, hidden, width)

    def forward(self, prior_CP: Tensor, x_CD: Tensor) -> Tensor:
        """Scales `[C, width]`."""
        scales: Tensor = 2 * self.mlp(torch.cat([prior_CP, x_CD.detach()], dim=1)).sigmoid()
        return scales


class PepnetRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: PepnetConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        hidden, width = config.token_hidden, config.d_model
        places = {owner: self._places(owner) for owner in (Owner.CONTEXT, Owner.ITEM)}
        self.context, self.priors = places[Owner.CONTEXT], [_USER, *places[Owner.ITEM]]
        size = self.num_fields * width
        self.by_context = Gate(len(self.context) * width, size, hidden, size)
        sizes = [size, hidden, hidden]
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, width))
            for _ in range(_TASKS)
        )
        self.by_person = nn.ModuleList(
            Gate(len(self.priors) * width, size, hidden, one) for _ in range(_TASKS) for one in sizes[1:]
        )

    def _places(self, owner: Owner) -> list[int]:
        return [_FIRST + place for place, one in enumerate(self.fields.owners) if one is owner]

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        context_CD = torch.cat([x_CFD[:, place] for place in self.context], dim=1)
        person_CD = torch.cat([x_CFD[:, place] for place in self.priors], dim=1)
        fields_CD = x_CFD.flatten(1)
        fields_CD = fields_CD * self.by_context(context_CD, fields_CD)
        outputs, gates = [], iter(self.by_person)
        for tower in self.towers:
            h_CD = fields_CD
            for layer in tower[:-1]:  # type: ignore[index]
                h_CD = nn.functional.silu(layer(h_CD)) * next(gates)(person_CD, fields_CD)
            outputs.append(tower[-1](h_CD))  # type: ignore[index]
        return tuple(outputs)
