"""From a batch to tokens: what every ranker reads."""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, C candidates, D width, F features)

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from hstu_ops import linear
from torch import Tensor, nn

from model.data.batch import SEQUENCES, JaggedBatch
from model.data.encoder import number_names
from model.embeddings.numbers import NumberScaler
from model.embeddings.sizes import TableSize
from model.embeddings.tables import FeatureEmbeddings
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind, Owner

_ALIGNED = 8  # 16-bit values in 16 bytes: a GPU's products over other widths take twice the time

Embeddings = Mapping[Group, list[Tensor]]  # by group, `[tokens, width]` of each id feature


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of the given widths with SiLU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class _TakeRows(torch.autograd.Function):
    """`x[index]` of different rows: its gradient is copied to their places, where that of indexing sorts."""

    @staticmethod
    def forward(ctx: Any, index_N: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.num_parts, ctx.num_rows = len(parts), parts[0].shape[0]
        first_ND, *others = (x_TD.index_select(0, index_N) for x_TD in parts)
        return sum(others, first_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index_N,) = ctx.saved_tensors
        (grad_ND,) = grads
        grad_TD = grad_ND.new_zeros(ctx.num_rows, *grad_ND.shape[1:])
        return None, *(grad_TD.index_copy_(0, index_N, grad_ND),) * ctx.num_parts


def take_rows(index_N: Tensor, *parts: Tensor) -> Tensor:
    """Rows of `[T, D]`, or of the sum of several, by int64 `[N]`, each at most once."""
    rows_ND: Tensor = _TakeRows.apply(index_N, *parts)  # type: ignore[no-untyped-call]
    return rows_ND


class ProfileTokens(nn.Module):
    """One token of width D for each profile feature: a projection of its embedding, or of its number."""

    def __init__(self, widths: list[int], num_numbers: int, d_model: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, d_model) for width in widths)
        self.weight_FD = nn.Parameter(torch.randn(num_numbers, d_model) * 0.5)
        self.bias_FD = nn.Parameter(torch.randn(num_numbers, d_model) * 0.5)

    def forward(self, embeddings: list[Tensor], numbers_BF: Tensor) -> Tensor:
        """Tokens `[B, features, D]`: ids in order, then numbers."""
        tokens = [project(e) for project, e in zip(self.projections, embeddings, strict=True)]
        numbers_BFD = numbers_BF.unsqueeze(-1) * self.weight_FD + self.bias_FD
        return torch.cat([torch.stack(tokens, dim=1), numbers_BFD.to(tokens[0].dtype)], dim=1)


class InputTokens(nn.Module):
    """Embeds a batch and makes tokens of width D of every group.

    Args:
        dataset: Declares features and tables.
        d_model: Width D of a token.
        token_hidden: Hidden widths of the MLPs of behaviours and candidates.
        tables: Size of every embedding table.
        id_tables: What tables of ids are; see `FeatureEmbeddings`.
        without: Owners whose features of candidates are read as zeros.
        shares_items: Whether behaviours and candidates have one more projection together, of the item's ids
            and categories: what makes a behaviour and a candidate of one item alike from the start.
        generator: Source of the tables' initial values.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        d_model: int,
        token_hidden: Sequence[int],
        tables: Mapping[str, TableSize],
        id_tables: str,
        without: Sequence[str],
        shares_items: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.embeddings = FeatureEmbeddings(dataset, tables, id_tables, generator)
        self.scaler = NumberScaler(dataset)
        columns = {group: self._columns(dataset, group) for group in Group}
        self.kept_W: Tensor | None
        kept = [float(one is None or one.owner not in without) for one in columns[Group.CANDIDATE]]
        self.register_buffer("kept_W", torch.tensor(kept) if without else None, persistent=False)
        self.profile = ProfileTokens(
            self.embeddings.widths(Group.PROFILE), len(self.scaler.columns[Group.PROFILE]), d_model
        )
        self.behaviour = mlp(len(columns[Group.STATIC]), *token_hidden, d_model)
        self.candidate = mlp(len(columns[Group.CANDIDATE]), *token_hidden, d_model)
        self.shared: nn.Linear | None = None
        if shares_items:
            self.item_columns = {
                group: runs_of(
                    i for i, one in enumerate(columns[group]) if one is not None and _is_shared(one)
                )
                for group in SEQUENCES
            }
            width = sum(run.stop - run.start for run in self.item_columns[Group.CANDIDATE])
            self.shared = nn.Linear(width, d_model, bias=False)

    def _columns(self, dataset: Dataset, group: Group) -> list[FeatureSpec | None]:
        """The feature of each column of `features`; None for recency, which none declares."""
        ids = zip(self.embeddings.features[group], self.embeddings.widths(group), strict=True)
        numbers = {feature.name: feature for feature in dataset.in_group(group)}
        return [
            *(feature for feature, width in ids for _ in range(width)),
            *(numbers.get(name) for name in number_names(dataset, group)),
        ]

    def features(self, batch: JaggedBatch, embeddings: Embeddings, group: Group) -> Tensor:
        """A group's embeddings and then its numbers, side by side, `[tokens, W]`."""
        x_TW = torch.cat([*embeddings[group], self.scaler(batch, group)], dim=-1)
        return x_TW * self.kept_W if group is Group.CANDIDATE and self.kept_W is not None else x_TW

    def forward(self, batch: JaggedBatch, embeddings: Embeddings | None = None) -> dict[Group, Tensor]:
        """Tokens by group: the profile `[B, features, D]`, the others `[tokens, D]`."""
        embeddings = self.embeddings(batch) if embeddings is None else embeddings
        profile = self.profile(embeddings[Group.PROFILE], self.scaler(batch, Group.PROFILE))
        tokens = {Group.PROFILE: profile}
        for group in SEQUENCES:
            tokens[group] = self.encoded(self.features(batch, embeddings, group), group)
        return tokens

    def encoded(self, x_TW: Tensor, group: Group) -> Tensor:
        """Tokens `[tokens, D]` of what `features` gave."""
        tokens_TD = _encoded(self.candidate if group is Group.CANDIDATE else self.behaviour, x_TW)
        if self.shared is None:
            return tokens_TD
        shared_TD: Tensor = self.shared(torch.cat([x_TW[:, run] for run in self.item_columns[group]], dim=-1))
        return tokens_TD + shared_TD


def runs_of(columns: Iterable[int]) -> list[slice]:
    """Ascending columns as runs of neighbours: slices are views, a list would be copied to the GPU."""
    runs: list[slice] = []
    for column in columns:
        if runs and runs[-1].stop == column:
            runs[-1] = slice(runs[-1].start, column + 1)
        else:
            runs.append(slice(column, column + 1))
    return runs


def _is_shared(feature: FeatureSpec | None) -> bool:
    return feature is not None and feature.owner is Owner.ITEM and feature.kind is not Kind.NUMBER


def _encoded(encode: nn.Sequential, x_TW: Tensor) -> Tensor:
    """What an MLP makes of features side by side, `[tokens, D]`."""
    first, rest = encode[0], encode[1:]
    assert isinstance(first, nn.Linear)
    weight: Tensor = first.weight
    missing = -first.in_features % _ALIGNED
    if missing and weight.is_cuda:
        x_TW = nn.functional.pad(x_TW, (0, missing))
        weight = nn.functional.pad(weight, (0, missing))
    tokens: Tensor = rest(linear(x_TW, weight, first.bias))
    return tokens
