"""HSTU as Meta describes it, over MTGR's tokens: what MTGR departs from (arXiv 2402.17152).

    U,V,Q,K = split(SiLU(linear(LN(X))))
    Y       = linear(LN(SiLU(QK^T + bias) / n V) * U) + X

Plain layer norm, one causal order of profile, behaviours and candidates, of which candidates do not see each
other, and a bias of each pair of tokens by the difference of their places and of their times. A candidate's
place is behind the last behaviour that it sees, and its time is that one's: a batch tells no other. Meta's
input has no cross features: `without=("cross",)` leaves them out. Rows are padded: no operator of `hstu_ops`
adds a bias.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, L tokens of a row, N heads, D width, C candidates)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.layout import GROUPS, Layout
from model.rankers.heads import Heads
from model.rankers.inputs import Embeddings, take_rows
from model.rankers.padding import pad, places, within
from model.rankers.protocol import Ranker, RankerConfig, require_positive
from spark_jobs.contract.features import Dataset, Group


@dataclass(frozen=True, kw_only=True)
class HstuConfig(RankerConfig):
    """Sizes of HSTU.

    Args:
        num_blocks: Blocks.
        inv_n: 1 / n, a constant.
        num_places: Differences of places that the bias tells apart; greater ones share the last.
        num_times: Logarithmic buckets of differences of times.
        block_start: As in `MtgrConfig`.
        score_start: As in `MtgrConfig`: here what the bias of places starts at.
    """

    architecture: str = field(init=False, default="hstu")
    num_blocks: int
    inv_n: float = 1 / 128
    num_places: int = 128
    num_times: int = 24
    block_start: float = 0.1
    score_start: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_blocks", "inv_n", "num_places", "num_times", "block_start")

    def visible_flops(self, num_tokens: int, num_pairs: int) -> int:
        """Forward FLOPs of the blocks' products: `blocks * (10 N d^2 + 4 pairs d)`."""
        d = self.d_model
        return self.num_blocks * (10 * num_tokens * d * d + 4 * num_pairs * d)

    def build(self, dataset: Dataset, generator: torch.Generator) -> HstuRanker:
        """The ranker; see `RankerConfig.build`."""
        return HstuRanker(dataset, self, generator)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What attention knows of each pair of tokens of a padded row, `[B, L, L]`.

    Attributes:
        sees: bool, whether the first one sees the second.
        place: int64, bucket of the difference of their places.
        time: int64, bucket of the difference of their times.
    """

    sees: Tensor
    place: Tensor
    time: Tensor


class HstuBlock(nn.Module):
    """One block."""

    def __init__(self, config: HstuConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads, self.alpha, self.inv_n = config.num_heads, config.head_dim**-0.5, config.inv_n
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.uvqk = nn.Linear(width, 4 * width)
        self.place_bias = nn.Parameter(torch.full((config.num_places,), config.score_start))
        self.time_bias = nn.Parameter(torch.zeros(config.num_times))
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, width)
        with torch.no_grad():
            self.out.weight.mul_(config.block_start)
            self.out.bias.mul_(config.block_start)

    def forward(self, x_BLD: Tensor, pairs: Pairs) -> Tensor:
        """Transforms `[B, L, D]`."""
        uvqk = nn.functional.silu(self.uvqk(self.norm_in(x_BLD)))
        u_BLD, *vqk = uvqk.chunk(4, dim=-1)
        in_heads = (*u_BLD.shape[:2], self.num_heads, u_BLD.shape[2] // self.num_heads)
        v_BNLD, q_BNLD, k_BNLD = (x.reshape(in_heads).transpose(1, 2) for x in vqk)
        bias_BLL = self.place_bias[pairs.place] + self.time_bias[pairs.time]
        scores_BNLL = self.alpha * q_BNLD @ k_BNLD.transpose(2, 3) + bias_BLL.unsqueeze(1)
        weights_BNLL = nn.functional.silu(scores_BNLL).masked_fill(~pairs.sees.unsqueeze(1), 0) * self.inv_n
        read_BLD = (weights_BNLL.to(v_BNLD.dtype) @ v_BNLD).transpose(1, 2).flatten(2)
        moved_BLD: Tensor = x_BLD + self.out(self.norm_out(read_BLD) * u_BLD)
        return moved_BLD


class HstuRanker(Ranker):
    """The ranker; arguments as `MtgrRanker`."""

    def __init__(self, dataset: Dataset, config: HstuConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.inputs = config.inputs(dataset, generator)
        self.num_places, self.num_times = config.num_places, config.num_times
        self.blocks = nn.ModuleList(HstuBlock(config) for _ in range(config.num_blocks))
        self.heads = Heads(config.d_model, config.head_hidden)

    def forward(self, batch: JaggedBatch, embeddings: Embeddings | None = None) -> Tensor:
        """Logits of click and conversion (over all impressions), float32 `[2, C]`."""
        tokens = self.inputs(batch, embeddings)
        where = batch.layout()
        in_groups = torch.cat([tokens[group].flatten(0, -2) for group in GROUPS])
        lengths_B = where.offsets.diff().long()
        longest = sum(where.longest.values())
        x_BLD = pad(take_rows(where.source, in_groups), lengths_B, longest)
        pairs = self._pairs(batch, where, lengths_B, longest)
        for block in self.blocks:
            x_BLD = block(x_BLD, pairs)
        place_C = places(lengths_B, longest, where.num_tokens)[where.candidates]
        logits: Tensor = self.heads(take_rows(place_C, x_BLD.flatten(0, 1)))
        return logits

    def _pairs(self, batch: JaggedBatch, where: Layout, lengths_B: Tensor, longest: int) -> Pairs:
        def row(values_T: Tensor) -> Tensor:
            return pad(values_T.unsqueeze(1), lengths_B, longest).squeeze(-1)

        column = torch.arange(longest, device=lengths_B.device)
        is_candidate_BL = row(where.group) == GROUPS.index(Group.CANDIDATE)
        place_BL = torch.where(is_candidate_BL, row(where.visible_end), column)
        sees_BLL = (column < place_BL.unsqueeze(2)) & ~is_candidate_BL.unsqueeze(1)
        sees_BLL = sees_BLL | torch.eye(longest, dtype=torch.bool, device=column.device)
        sees_BLL = sees_BLL & within(lengths_B, longest).unsqueeze(1)
        minutes_BL = row(_minutes(batch, where))
        last_BL = minutes_BL.gather(1, (place_BL - 1).clamp(min=0).long())
        minutes_BL = torch.where(is_candidate_BL, last_BL, minutes_BL)
        apart_BLL = (place_BL.unsqueeze(2) - place_BL.unsqueeze(1)).clamp(0, self.num_places - 1)
        waited_BLL = (minutes_BL.unsqueeze(2) - minutes_BL.unsqueeze(1)).clamp(min=0)
        time_BLL = (waited_BLL + 1).log2().long().clamp(max=self.num_times - 1)
        return Pairs(sees=sees_BLL, place=apart_BLL.long(), time=time_BLL)


def _minutes(batch: JaggedBatch, where: Layout) -> Tensor:
    """Minutes from the window's start to each behaviour, negative before it, float32 `[T]`; 0 of others."""
    recency = [batch.numbers[group][-1] for group in (Group.STATIC, Group.REALTIME)]
    minutes = torch.cat(recency)
    minutes = minutes.sign() * minutes.abs().expm1()
    num_profile = batch.num_profile * batch.num_rows
    in_groups = nn.functional.pad(minutes, (num_profile, batch.num_candidates))
    return in_groups[where.source]
