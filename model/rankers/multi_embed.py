"""MultiEmbed with SIM: several sets of embeddings, each with an interaction of its own (arXiv 2310.04400).

One set of wide embeddings tends to span few dimensions ("collapse"), so that width buys nothing; several
sets, kept apart until the interactions' outputs are averaged, do not. Here a table is as many times as wide,
and each set reads its part of every embedding.
"""
# ruff: noqa: N803 (names carry their shape: C candidates, F fields, E experts, D width)

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.embeddings.sizes import TableSize
from model.rankers.dlrm import CandidateFields, DlrmConfig, DlrmRanker
from model.rankers.inputs import mlp
from model.rankers.protocol import require_positive
from spark_jobs.contract.features import Dataset


@dataclass(frozen=True, kw_only=True)
class MultiEmbedConfig(DlrmConfig):
    """Sizes of MultiEmbed.

    Args:
        num_sets: Sets of embeddings; tables whose size is not named are that many times as wide.
    """

    architecture: str = field(init=False, default="multi_embed")
    num_sets: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_sets")

    def table_sizes(self, dataset: Dataset) -> dict[str, TableSize]:
        """Size of every embedding table: widths are those of all sets together.

        Raises:
            ValueError: As `sizes.table_sizes`, or a width that is named cannot be shared out.
        """
        sizes = {}
        for name, size in super().table_sizes(dataset).items():
            is_named = name in self.tables
            if is_named and size.width % self.num_sets:
                raise ValueError(f"table {name!r} of width {size.width} has no {self.num_sets} equal parts")
            width = size.width if is_named else size.width * self.num_sets
            sizes[name] = dataclasses.replace(size, width=width)
        return sizes

    def build(self, dataset: Dataset, generator: torch.Generator) -> MultiEmbedRanker:
        """The ranker; see `RankerConfig.build`."""
        return MultiEmbedRanker(dataset, self, generator)


class MultiEmbedRanker(DlrmRanker):
    """The ranker."""

    def __init__(self, dataset: Dataset, config: MultiEmbedConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        width, hidden, num_sets = config.d_model, config.token_hidden, config.num_sets
        # The base's fields are of the first set alone.
        self.fields = CandidateFields(dataset, self.inputs, width, (0, num_sets))
        self.others = nn.ModuleList(
            CandidateFields(dataset, self.inputs, width, (number, num_sets)) for number in range(1, num_sets)
        )
        self.interactions = nn.ModuleList(
            mlp(self.num_fields * width, hidden, hidden, width) for _ in range(num_sets)
        )

    def interact(self, shared: list[Tensor], x_CW: Tensor) -> tuple[Tensor, ...]:
        """See `DlrmRanker`."""
        outputs = [
            interaction(torch.cat([*shared, *fields(x_CW)], dim=1))
            for fields, interaction in zip((self.fields, *self.others), self.interactions, strict=True)
        ]
        return (torch.stack(outputs).mean(0),)
