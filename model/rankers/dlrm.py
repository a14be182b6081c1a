"""What DLRM rankers share: a candidate as fields, and target attention over behaviours (SIM).

Each scores one candidate at a time from the same fields of width D: the user (an MLP of the profile), what
the candidate reads of the user's behaviours by target attention, its own token, one field for each of its
ids, and one for the numbers of each owner (item, statistics, cross features, context). A ranker of the family
is one file that says how fields interact. Tokens, tables and heads are those of MTGR, and so is what makes
attention learn (`matching_start`): a win over them is no win over a handicap.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, C candidates, F fields, N heads, D width)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from hstu_ops import mtgr_attention
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.layout import GROUPS, Layout
from model.rankers.heads import Heads
from model.rankers.inputs import Embeddings, InputTokens, mlp, runs_of, take_rows
from model.rankers.protocol import Ranker, RankerConfig
from spark_jobs.contract.features import Dataset, Group, Owner

INV_N = 1 / 32  # a constant, as in MTGR, which the norm behind the attention takes out again
_SHARED_FIELDS = 3  # user, what attention reads, the candidate's token


@dataclass(frozen=True, kw_only=True)
class DlrmConfig(RankerConfig):
    """Sizes of a ranker of the DLRM family.

    Args:
        ops_backend: Backend of `hstu_ops`: `auto`, `reference`, `cpu`, `triton` or `cutlass`.
    """

    takes_padded: ClassVar[bool] = True

    ops_backend: str = "auto"


@torch.no_grad()
def matching_start(query: nn.Linear, key: nn.Linear, head_dim: int, *, is_tied: bool) -> None:
    """Starts scores `alpha q k` around 1, so that attention starts as a mean; see `MtgrConfig`.

    Args:
        query: Makes q.
        key: Makes k, perhaps with more behind it.
        head_dim: Width of a head.
        is_tied: Whether k starts as the same projection as q.
    """
    width = query.out_features
    if is_tied:
        key.weight[:width] = query.weight
    for bias in (query.bias, key.bias[:width]):
        bias.add_(head_dim**-0.25)


class TargetAttention(nn.Module):
    """What candidates read of the behaviours that they see: `LN(SiLU(alpha q k^T) / n v)`, without softmax.

    A softmax over behaviours forgets how many match. Rows are jagged, as in MTGR, by the same operator, of
    which a candidate is a query alone and a behaviour a key and a value alone.
    """

    def __init__(self, config: RankerConfig, ops_backend: str) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.backend = ops_backend
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        matching_start(self.query, self.key_value, self.head_dim, is_tied=config.shares_items)

    def forward(self, tokens: Mapping[Group, Tensor], where: Layout) -> Tensor:
        """What each candidate reads, `[C, D]`; tokens by group as `InputTokens` gives them."""
        width = self.query.out_features
        q_CD = self.query(tokens[Group.CANDIDATE])
        kv_LD = self.key_value(torch.cat([tokens[Group.STATIC], tokens[Group.REALTIME]]))
        in_groups = torch.cat(
            [
                q_CD.new_zeros(tokens[Group.PROFILE].shape[:2].numel(), 3 * width),
                nn.functional.pad(kv_LD, (width, 0)),
                nn.functional.pad(q_CD, (0, 2 * width)),
            ]
        )
        qkv_T3ND = take_rows(where.source, in_groups).view(-1, 3, self.num_heads, self.head_dim)
        q_TND, k_TND, v_TND = qkv_T3ND.unbind(1)
        is_candidate_T = where.group == GROUPS.index(Group.CANDIDATE)
        read_TND = mtgr_attention(
            q_TND,
            k_TND,
            v_TND,
            where.offsets,
            where.visible_end * is_candidate_T,
            self.head_dim**-0.5,
            INV_N,
            backend=self.backend,
            deterministic=True,
        )
        normed_CD: Tensor = self.norm(take_rows(where.candidates, read_TND.flatten(1)))
        return normed_CD


class CandidateFields(nn.Module):
    """A candidate's features as fields of width D: one for each id, one for the numbers of each owner.

    Args:
        dataset: Declares the features.
        inputs: Gives them side by side.
        d_model: Width D of a field.
        part: Which part of every embedding the fields are made of, and of how many.

    Attributes:
        owners: Whom each field describes.
    """

    def __init__(
        self, dataset: Dataset, inputs: InputTokens, d_model: int, part: tuple[int, int] = (0, 1)
    ) -> None:
        super().__init__()
        self.owners: list[Owner] = []
        self.columns: list[list[slice]] = []
        first = 0
        number, num_parts = part
        ids = inputs.embeddings.features[Group.CANDIDATE]
        for feature, width in zip(ids, inputs.embeddings.widths(Group.CANDIDATE), strict=True):
            share = width // num_parts
            self.owners.append(feature.owner)
            self.columns.append([slice(first + number * share, first + (number + 1) * share)])
            first += width
        numbers: dict[Owner, list[int]] = {}
        for feature in dataset.in_group(Group.CANDIDATE):
            if feature not in ids:
                numbers.setdefault(feature.owner, []).append(first)
                first += 1
        self.owners += numbers
        self.columns += [runs_of(columns) for columns in numbers.values()]
        self.projections = nn.ModuleList(
            nn.Linear(sum(run.stop - run.start for run in runs), d_model) for runs in self.columns
        )

    def forward(self, x_CW: Tensor) -> list[Tensor]:
        """Fields `[C, D]` of what `InputTokens.features` gives."""
        return [
            project(torch.cat([x_CW[:, run] for run in runs], dim=1))
            for project, runs in zip(self.projections, self.columns, strict=True)
        ]


class DlrmRanker(Ranker):
    """A ranker of the family; arguments as `MtgrRanker`. A subclass says how fields interact."""

    def __init__(self, dataset: Dataset, config: DlrmConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.d_model
        self.inputs = config.inputs(dataset, generator)
        num_profile = len(dataset.in_group(Group.PROFILE))  # one token a feature
        self.user = mlp(num_profile * width, config.token_hidden, width)
        self.attention: nn.Module = TargetAttention(config, config.ops_backend)
        self.fields = CandidateFields(dataset, self.inputs, width)
        self.num_fields = _SHARED_FIELDS + len(self.fields.owners)
        self.heads = Heads(width, config.head_hidden)

    def forward(self, batch: JaggedBatch, embeddings: Embeddings | None = None) -> Tensor:
        """Logits of click and conversion (over all impressions), float32 `[2, C]`."""
        embeddings = self.inputs.embeddings(batch) if embeddings is None else embeddings
        tokens = self.inputs(batch, embeddings)
        where = batch.layout()
        user_BD = self.user(tokens[Group.PROFILE].flatten(1))
        shared = [
            user_BD.index_select(0, row_of_candidates(where)),
            self.attend(tokens, batch, where),
            tokens[Group.CANDIDATE],
        ]
        x_CW = self.inputs.features(batch, embeddings, Group.CANDIDATE)
        logits: Tensor = self.heads(*self.interact(shared, x_CW))
        return logits

    def attend(self, tokens: Mapping[Group, Tensor], batch: JaggedBatch, where: Layout) -> Tensor:
        """What each candidate reads of the behaviours that it sees, `[C, D]`."""
        read_CD: Tensor = self.attention(tokens, where)
        return read_CD

    def interact(self, shared: list[Tensor], x_CW: Tensor) -> tuple[Tensor, ...]:
        """What the heads read: one tensor `[C, D]` for both tasks, or one for each.

        Args:
            shared: Fields `[C, D]`: user, what attention reads, the candidate's token.
            x_CW: The candidates' features side by side, of which `CandidateFields` makes the others.
        """
        return self.interact_fields(torch.stack([*shared, *self.fields(x_CW)], dim=1))

    def interact_fields(self, x_CFD: Tensor) -> tuple[Tensor, ...]:
        """As `interact`, of all fields together, `[C, F, D]`."""
        raise NotImplementedError


def row_of_candidates(where: Layout) -> Tensor:
    """The row of each candidate, int64 `[C]`."""
    return torch.searchsorted(where.offsets[1:], where.candidates.int(), right=True)
