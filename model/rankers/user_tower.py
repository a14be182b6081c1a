"""UserTower, the DLRM baseline: what MTGR has to beat, and the first champion.

The article's "scaling the user module": profile and behaviour sequence are read by learned queries
(multi-query attention) into a user vector, which a mixture of experts transforms; a candidate attends to the
behaviours it may see (target attention), and an MLP over user, attention, item, cross features and context
scores it, one candidate at a time. Same inputs, tables and heads as MTGR, and its target attention without
softmax.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, L behaviours, C candidates, Q queries, D width)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.data.batch import SEQUENCES, JaggedBatch
from model.rankers.dlrm import TargetAttention
from model.rankers.heads import Heads
from model.rankers.inputs import Embeddings, mlp, take_rows
from model.rankers.padding import pad, places, sees, within
from model.rankers.protocol import Ranker, RankerConfig, require_positive
from spark_jobs.contract.features import Dataset, Group

TARGETS = ("softmax", "silu")


@dataclass(frozen=True, kw_only=True)
class UserTowerConfig(RankerConfig):
    """Sizes of UserTower.

    Args:
        num_experts: Experts of the mixture.
        num_queries: Learned queries of the sequence encoder.
        target: Target attention: `silu`, as DLRM rankers have it (`dlrm.TargetAttention`), or `softmax`.
        ops_backend: Backend of `hstu_ops`, for `silu`.
    """

    architecture: str = field(init=False, default="user_tower")
    num_experts: int = 16
    num_queries: int = 4
    target: str = "softmax"
    ops_backend: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_experts", "num_queries")
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}; use one of {', '.join(TARGETS)}")

    def build(self, dataset: Dataset, generator: torch.Generator) -> UserTowerRanker:
        """The ranker; see `RankerConfig.build`."""
        return UserTowerRanker(dataset, self, generator)


class MixtureOfExperts(nn.Module):
    """Experts of equal shape, mixed by a softmax gate of the input."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts)
        self.weight_EDD = nn.Parameter(torch.randn(num_experts, width, width) * width**-0.5)
        self.bias_ED = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Transforms `[B, D]`."""
        experts_BED = nn.functional.silu(torch.einsum("bd,edk->bek", x_BD, self.weight_EDD) + self.bias_ED)
        return torch.einsum("be,bek->bk", self.gate(x_BD).softmax(-1), experts_BED)


class UserTowerRanker(Ranker):
    """The baseline; arguments as `MtgrRanker`."""

    def __init__(self, dataset: Dataset, config: UserTowerConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.d_model
        self.inputs = config.inputs(dataset, generator)
        num_profile = len(dataset.in_group(Group.PROFILE))  # one token a feature
        self.profile = mlp(num_profile * width, config.token_hidden, width)
        self.queries_QD = nn.Parameter(torch.randn(config.num_queries, width))
        self.sequence = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.user = nn.Linear((1 + config.num_queries) * width, width)
        self.experts = MixtureOfExperts(width, config.num_experts)
        self.target: nn.Module
        if config.target == "silu":
            self.target = TargetAttention(config, config.ops_backend)
        else:
            self.target = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.score = mlp(4 * width, config.token_hidden, width)
        self.heads = Heads(width, config.head_hidden)

    def forward(self, batch: JaggedBatch, embeddings: Embeddings | None = None) -> Tensor:
        """Logits of click and conversion (over all impressions), float32 `[2, C]`."""
        tokens = self.inputs(batch, embeddings)
        where = batch.layout()
        static, candidate = batch.lengths[Group.STATIC], batch.lengths[Group.CANDIDATE]
        static_BLD = pad(tokens[Group.STATIC], static, where.longest[Group.STATIC])
        user_BD = self._user(tokens[Group.PROFILE], static_BLD, static)
        if isinstance(self.target, TargetAttention):
            interest_CD = self.target(tokens, where)
        else:
            interest_CD = self._attended(tokens, batch, static_BLD)
        x_CD = tokens[Group.CANDIDATE]
        user_CD = user_BD.repeat_interleave(candidate, dim=0, output_size=batch.num_candidates)
        mixed_CD = self.score(torch.cat([x_CD, interest_CD, user_CD, user_CD * x_CD], dim=-1))
        logits: Tensor = self.heads(mixed_CD + x_CD)
        return logits

    def _attended(self, tokens: Mapping[Group, Tensor], batch: JaggedBatch, static_BLD: Tensor) -> Tensor:
        """What candidates read by softmax attention, `[C, D]`."""
        longest = batch.layout().longest
        _, realtime, candidate = (batch.lengths[group] for group in SEQUENCES)
        candidate_BCD = pad(tokens[Group.CANDIDATE], candidate, longest[Group.CANDIDATE])
        realtime_BLD = pad(tokens[Group.REALTIME], realtime, longest[Group.REALTIME])
        behaviours_BLD = torch.cat([static_BLD, realtime_BLD], dim=1)
        attended_BCD = _attention(self.target, candidate_BCD, behaviours_BLD, sees(batch))
        place_C = places(candidate, longest[Group.CANDIDATE], batch.num_candidates)
        return take_rows(place_C, attended_BCD.flatten(0, 1))

    def _user(self, profile_BFD: Tensor, static_BLD: Tensor, static_B: Tensor) -> Tensor:
        queries_BQD = self.queries_QD.expand(len(static_B), -1, -1).to(static_BLD.dtype)
        sees_BQL = within(static_B, static_BLD.shape[1]).unsqueeze(1).expand(-1, queries_BQD.shape[1], -1)
        read_BQD = _attention(self.sequence, queries_BQD, static_BLD, sees_BQL)
        user_BD = self.user(torch.cat([self.profile(profile_BFD.flatten(1)), read_BQD.flatten(1)], dim=-1))
        moved: Tensor = user_BD + self.experts(user_BD)
        return moved


def _attention(layer: nn.Module, query_BQD: Tensor, key_BLD: Tensor, sees_BQL: Tensor) -> Tensor:
    """Attends with a key of zeros in front, which stands for "nothing seen" and keeps the softmax finite."""
    assert isinstance(layer, nn.MultiheadAttention)
    if not query_BQD.shape[0]:  # torch's layer needs a row; the weights must stay in the graph, for DDP
        one = query_BQD.new_zeros(1, 1, query_BQD.shape[2])
        nothing: Tensor = layer(one, one, one, need_weights=False)[0]
        return nothing[:0].expand(0, query_BQD.shape[1], -1)
    key_BLD = nn.functional.pad(key_BLD, (0, 0, 1, 0))
    hidden_BQL = nn.functional.pad(~sees_BQL, (1, 0), value=False)
    hidden = hidden_BQL.repeat_interleave(layer.num_heads, dim=0)
    attended: Tensor = layer(query_BQD, key_BLD, key_BLD, attn_mask=hidden, need_weights=False)[0]
    return attended
