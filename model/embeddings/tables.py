"""Embedding tables of a dataset, and the constants that standardise its numbers.

The tables are TorchRec `EmbeddingCollection`s, one for each embedding width (TorchRec asks for equal widths
within one), so that `DistributedModelParallel` can shard them; a module that is not sharded looks up the
same rows. Ids are rows already (`features.SampleEncoder` hashes them).
"""
# ruff: noqa: N806 (names carry their shape: B rows, T tokens, F features)

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from model.data.batch import JaggedBatch
from model.data.encoder import id_features
from spark_jobs.contract.features import Dataset, Group

LOW_CARDINALITY = 4096


class FeatureEmbeddings(nn.Module):
    """Looks up all ids of a batch.

    Args:
        dataset: Declares the tables.
        low_cardinality_width: Least width of tables with at most 4096 rows.
        generator: Source of the initial values, N(0, 1 / width).
    """

    def __init__(self, dataset: Dataset, low_cardinality_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.features = {group: id_features(dataset, group) for group in Group}
        self.width: dict[str, int] = {}  # by table
        rows: dict[str, int] = {}
        users: dict[str, list[str]] = defaultdict(list)
        for group, features in self.features.items():
            for feature in features:
                low = low_cardinality_width if feature.cardinality <= LOW_CARDINALITY else 0
                self.width[feature.table] = max(feature.width, low)
                rows[feature.table] = feature.cardinality
                users[feature.table].append(f"{group}_{feature.name}")
        by_width: dict[int, list[EmbeddingConfig]] = defaultdict(list)
        for table, width in self.width.items():
            by_width[width].append(
                EmbeddingConfig(
                    name=table, num_embeddings=rows[table], embedding_dim=width, feature_names=users[table]
                )
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
        return [self.width[feature.table] for feature in self.features[group]]

    def forward(self, batch: JaggedBatch) -> dict[Group, list[Tensor]]:
        """Embeddings by group: one `[tokens, width]` for each id feature, in token order."""
        found: dict[str, Tensor] = {}
        ones_B = torch.ones_like(batch.lengths[Group.CANDIDATE])
        lengths = {group: batch.lengths.get(group, ones_B) for group in Group}
        if not batch.num_rows:  # TorchRec needs a row: one without ids stands for none
            lengths = dict.fromkeys(Group, ones_B.new_zeros(1))
        for name, tables in self.tables.items():
            places = [self.place[key] for key in self.keys[name]]
            ids = KeyedJaggedTensor(
                keys=self.keys[name],
                values=torch.cat([batch.ids[group][index] for group, index in places]),
                lengths=torch.cat([lengths[group] for group, _ in places]),
            )
            found |= {key: jagged.values() for key, jagged in tables(ids).items()}
        return {
            group: [found[f"{group}_{feature.name}"] for feature in features]
            for group, features in self.features.items()
        }
