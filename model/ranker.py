"""The MTGR ranker: tokens, blocks, and the CTR and CTCVR of every candidate of a row in one pass.

Each profile feature is one token; each behaviour is one token by the behaviours' MLP, from ids, side info,
action, context and recency; each candidate is one token by the candidates' MLP, from item, cross features,
statistics and context (arXiv 2505.18654, 3.1 to 3.3). Candidates never see each other.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, C candidates, D width, F features)

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from model.batch import JaggedBatch
from model.config import ModelConfig
from model.embeddings import FeatureEmbeddings, NumberScaler
from model.layers import Block, layout
from spark_jobs.contract import Dataset, Group


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of the given widths with SiLU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


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

    def __init__(self, dataset: Dataset, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.embeddings = FeatureEmbeddings(dataset, config.low_cardinality_width, generator)
        self.scaler = NumberScaler(dataset)
        width = {
            group: sum(self.embeddings.widths(group)) + len(self.scaler.columns[group]) for group in Group
        }
        self.profile = ProfileTokens(
            self.embeddings.widths(Group.PROFILE), len(self.scaler.columns[Group.PROFILE]), config.d_model
        )
        self.behaviour = mlp(width[Group.STATIC], config.token_hidden, config.d_model)
        self.candidate = mlp(width[Group.CANDIDATE], config.token_hidden, config.d_model)

    def forward(self, batch: JaggedBatch) -> dict[Group, Tensor]:
        """Tokens by group: the profile `[B, features, D]`, the others `[tokens, D]`."""
        embeddings = self.embeddings(batch)
        numbers = {group: self.scaler(batch, group) for group in Group}
        tokens = {Group.PROFILE: self.profile(embeddings[Group.PROFILE], numbers[Group.PROFILE])}
        for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE):
            encode = self.candidate if group is Group.CANDIDATE else self.behaviour
            tokens[group] = encode(torch.cat([*embeddings[group], numbers[group]], dim=-1))
        return tokens


class Heads(nn.Module):
    """CTR and CTCVR heads: one MLP each over the normalised candidate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.towers = nn.ModuleList(mlp(width, hidden, 1) for _ in range(2))

    @torch.no_grad()
    def start_at(self, rates: Tensor) -> None:
        """Sets the bias so that training starts from the labels' rates `[2]`, not from one half."""
        for tower, logit in zip(self.towers, rates.clamp(1e-4, 0.5).logit(), strict=True):
            tower[-1].bias.fill_(logit)  # type: ignore[index,union-attr,operator]

    def forward(self, x_CD: Tensor) -> Tensor:
        """Logits of click and conversion, float32 `[2, C]`."""
        z_CD = self.norm(x_CD)
        return torch.cat([tower(z_CD) for tower in self.towers], dim=-1).t().float()


class MtgrRanker(nn.Module):
    """The ranker.

    Args:
        dataset: Declares features and tables.
        config: Sizes; `config.architecture` is `mtgr`.
        generator: Source of the embedding tables' initial values; other weights take torch's global one.
    """

    def __init__(self, dataset: Dataset, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.inputs = InputTokens(dataset, config, generator)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.heads = Heads(config.d_model, config.head_hidden)

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Logits of click and conversion (over all impressions), float32 `[2, C]`."""
        tokens = self.inputs(batch)
        where = layout(batch)
        in_groups = torch.cat(
            [tokens[Group.PROFILE].flatten(0, 1), *(tokens[group] for group in list(Group)[1:])]
        )
        x_TD = in_groups[where.source]
        for block in self.blocks:
            x_TD = block(x_TD, where)
        logits: Tensor = self.heads(x_TD[where.candidates])
        return logits
