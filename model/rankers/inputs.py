"""From a batch to tokens: what every ranker reads."""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, C candidates, D width, F features)

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from hstu_ops import linear
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.embeddings.numbers import NumberScaler
from model.embeddings.sizes import TableSize
from model.embeddings.tables import FeatureEmbeddings
from spark_jobs.contract.features import Dataset, Group

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
    """Embeds a batch and makes tokens of width D of every group."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        d_model: int,
        token_hidden: int,
        tables: Mapping[str, TableSize],
        id_tables: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.embeddings = FeatureEmbeddings(dataset, tables, id_tables, generator)
        self.scaler = NumberScaler(dataset)
        width = {
            group: sum(self.embeddings.widths(group)) + len(self.scaler.columns[group]) for group in Group
        }
        self.profile = ProfileTokens(
            self.embeddings.widths(Group.PROFILE), len(self.scaler.columns[Group.PROFILE]), d_model
        )
        self.behaviour = mlp(width[Group.STATIC], token_hidden, d_model)
        self.candidate = mlp(width[Group.CANDIDATE], token_hidden, d_model)

    def forward(self, batch: JaggedBatch, embeddings: Embeddings | None = None) -> dict[Group, Tensor]:
        """Tokens by group: the profile `[B, features, D]`, the others `[tokens, D]`."""
        embeddings = self.embeddings(batch) if embeddings is None else embeddings
        numbers = {group: self.scaler(batch, group) for group in Group}
        tokens = {Group.PROFILE: self.profile(embeddings[Group.PROFILE], numbers[Group.PROFILE])}
        for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE):
            encode = self.candidate if group is Group.CANDIDATE else self.behaviour
            tokens[group] = _encoded(encode, [*embeddings[group], numbers[group]])
        return tokens


def _encoded(encode: nn.Sequential, parts: list[Tensor]) -> Tensor:
    """What an MLP makes of features side by side, `[tokens, D]`."""
    first, rest = encode[0], encode[1:]
    assert isinstance(first, nn.Linear)
    weight: Tensor = first.weight
    missing = -first.in_features % _ALIGNED
    if missing and weight.is_cuda:
        parts = [*parts, parts[0].new_zeros(len(parts[0]), missing)]
        weight = nn.functional.pad(weight, (0, missing))
    tokens: Tensor = rest(linear(torch.cat(parts, dim=-1), weight, first.bias))
    return tokens
