"""Embedding tables of a dataset, and the constants that standardise its numbers.

The tables are TorchRec `EmbeddingCollection`s, one for each embedding width (TorchRec asks for equal widths
within one), so that `DistributedModelParallel` can shard them; a module that is not sharded looks up the
same rows. Hashed ids become rows here, modulo the table's size: how many buckets there are is the model's.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, F features)

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from model.data.batch import JaggedBatch
from model.data.encoder import id_features
from model.embeddings.sizes import TableSize
from spark_jobs.contract.features import Dataset, Group


def rows_of(hashed_FT: Tensor, rows_F1: Tensor) -> Tensor:
    """The row of each id: its 64 bits, read without a sign, modulo the rows of its table.

    Args:
        hashed_FT: int64, `mix64` of ids, or categories.
        rows_F1: int64, rows of each feature's table; a category is below it and stays what it is.
    """
    half_FT = (hashed_FT >> 1) & 0x7FFF_FFFF_FFFF_FFFF  # torch shifts the sign in
    return (half_FT % rows_F1 * 2 + (hashed_FT & 1)) % rows_F1


class FeatureEmbeddings(nn.Module):
    """Looks up all ids of a batch.

    Args:
        dataset: Declares the tables.
        sizes: Size of every table.
        generator: Source of the initial values, N(0, 1 / width).
    """

    def __init__(self, dataset: Dataset, sizes: Mapping[str, TableSize], generator: torch.Generator) -> None:
        super().__init__()
        self.features = {group: id_features(dataset, group) for group in Group}
        self.sizes = dict(sizes)
        users: dict[str, list[str]] = defaultdict(list)
        for group, features in self.features.items():
            for feature in features:
                users[feature.table].append(f"{group}_{feature.name}")
        by_width: dict[int, list[EmbeddingConfig]] = defaultdict(list)
        for table, names in users.items():
            rows, width = sizes[table].rows, sizes[table].width
            by_width[width].append(
                EmbeddingConfig(name=table, num_embeddings=rows, embedding_dim=width, feature_names=names)
            )
        self.tables = nn.ModuleDict(
            {f"width_{width}": EmbeddingCollection(tables=by_width[width]) for width in sorted(by_width)}
        )
        self.keys = {
            f"width_{width}": [key for config in by_width[width] for key in config.feature_names]
            for width in by_width
        }
        self.place = {
            f"{group}_{feature.name}": (group, index)
            for group, features in self.features.items()
            for index, feature in enumerate(features)
        }
        for parameter in self.tables.parameters():
            with torch.no_grad():
                values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
                parameter.copy_(values)

    def widths(self, group: Group) -> list[int]:
        """Width of each id feature of a group."""
        return [self.sizes[feature.table].width for feature in self.features[group]]

    def forward(self, batch: JaggedBatch) -> dict[Group, list[Tensor]]:
        """Embeddings by group: one `[tokens, width]` for each id feature, in token order."""
        embedded: dict[str, Tensor] = {}
        rows = {group: self._rows(batch.ids[group], group) for group in Group}
        ones_B = torch.ones_like(batch.lengths[Group.CANDIDATE])
        lengths = {group: batch.lengths.get(group, ones_B) for group in Group}
        if not batch.num_rows:  # TorchRec needs a row: one without ids stands for none
            lengths = dict.fromkeys(Group, ones_B.new_zeros(1))
        for name, tables in self.tables.items():
            places = [self.place[key] for key in self.keys[name]]
            ids = KeyedJaggedTensor(
                keys=self.keys[name],
                values=torch.cat([rows[group][index] for group, index in places]),
                lengths=torch.cat([lengths[group] for group, _ in places]),
            )
            embedded |= {key: jagged.values() for key, jagged in tables(ids).items()}
        return {
            group: [embedded[f"{group}_{feature.name}"] for feature in features]
            for group, features in self.features.items()
        }

    def _rows(self, hashed_FT: Tensor, group: Group) -> Tensor:
        sizes = [self.sizes[feature.table].rows for feature in self.features[group]]
        rows_F1 = torch.tensor(sizes, dtype=torch.int64, device=hashed_FT.device).unsqueeze(1)
        return rows_of(hashed_FT, rows_F1)
