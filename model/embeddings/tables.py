"""Embedding tables of a dataset.

Categories have a row for each value, in TorchRec `EmbeddingCollection`s, one for each embedding width
(TorchRec asks for equal widths within one), so that `DistributedModelParallel` can shard them. Ids are either
`dynamic`, in a `DynamicEmbeddingCollection` for each width, or `hashed`: rows of the same collections as
categories, by the hash of the id modulo the table's rows, which ids then share.
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
from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.embeddings.mixing import mix64
from model.embeddings.sizes import TableSize
from spark_jobs.contract.features import Dataset, Group, Kind

ID_TABLES = ("dynamic", "hashed")


def rows_of(ids_FT: Tensor, is_id_F1: Tensor, rows_F1: Tensor) -> Tensor:
    """The row of each id: its hash, 64 bits read without a sign, modulo the rows of its table.

    Args:
        ids_FT: int64, raw ids and categories.
        is_id_F1: bool, whether a feature is an id.
        rows_F1: int64, rows of each feature's table; a category is below it and stays what it is.
    """
    hashed_FT = torch.where(is_id_F1, mix64(ids_FT), ids_FT)
    half_FT = (hashed_FT >> 1) & 0x7FFF_FFFF_FFFF_FFFF  # torch shifts the sign in
    return (half_FT % rows_F1 * 2 + (hashed_FT & 1)) % rows_F1


class FeatureEmbeddings(nn.Module):
    """Looks up all ids of a batch.

    Args:
        dataset: Declares the tables.
        sizes: Size of every table.
        id_tables: What tables of ids are, one of `ID_TABLES`.
        generator: Source of the initial values, N(0, 1 / width); of dynamic tables, of their seed.
    """

    def __init__(
        self,
        dataset: Dataset,
        sizes: Mapping[str, TableSize],
        id_tables: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.features = {group: id_features(dataset, group) for group in Group}
        self.sizes = dict(sizes)
        users: dict[str, list[str]] = defaultdict(list)
        dynamic: set[str] = set()
        for group, features in self.features.items():
            for feature in features:
                users[feature.table].append(f"{group}_{feature.name}")
                if feature.kind is Kind.ID and id_tables == "dynamic":
                    dynamic.add(feature.table)
            self._register(group)
        fixed = _by_width(sizes, {table: names for table, names in users.items() if table not in dynamic})
        self.tables = nn.ModuleDict(
            {width: EmbeddingCollection(tables=configs) for width, configs in fixed.items()}
        )
        for parameter in self.tables.parameters():
            with torch.no_grad():
                values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
                parameter.copy_(values)
        growing = _by_width(sizes, {table: names for table, names in users.items() if table in dynamic})
        seed = int(torch.randint(2**62, (1,), generator=generator)) if growing else 0
        self.dynamic = nn.ModuleDict(
            {width: DynamicEmbeddingCollection(configs, seed) for width, configs in growing.items()}
        )
        self.keys = {
            width: [key for config in configs for key in config.feature_names]
            for width, configs in fixed.items()
        }
        self.place = {
            f"{group}_{feature.name}": (group, index)
            for group, features in self.features.items()
            for index, feature in enumerate(features)
        }

    def _register(self, group: Group) -> None:
        """Keeps what turns ids of a group into rows beside the weights, on their device."""
        rows = [[self.sizes[feature.table].rows] for feature in self.features[group]]
        is_id = [[feature.kind is Kind.ID] for feature in self.features[group]]
        self.register_buffer(f"rows_{group}", torch.tensor(rows).reshape(-1, 1), persistent=False)
        self.register_buffer(f"is_id_{group}", torch.tensor(is_id).reshape(-1, 1), persistent=False)

    def widths(self, group: Group) -> list[int]:
        """Width of each id feature of a group."""
        return [self.sizes[feature.table].width for feature in self.features[group]]

    def forward(self, batch: JaggedBatch) -> dict[Group, list[Tensor]]:
        """Embeddings by group: one `[tokens, width]` for each id feature, in token order."""
        embedded = {**self._of_fixed(batch), **self._of_dynamic(batch)}
        return {
            group: [embedded[f"{group}_{feature.name}"] for feature in features]
            for group, features in self.features.items()
        }

    def _of_fixed(self, batch: JaggedBatch) -> dict[str, Tensor]:
        embedded: dict[str, Tensor] = {}
        rows = {
            group: rows_of(
                batch.ids[group], self.get_buffer(f"is_id_{group}"), self.get_buffer(f"rows_{group}")
            )
            for group in Group
        }
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
                # What the host knows is not read back from the device.
                length_per_key=[rows[group].shape[1] for group, _ in places],
            )
            embedded |= {key: jagged.values() for key, jagged in tables(ids).items()}
        return embedded

    def _of_dynamic(self, batch: JaggedBatch) -> dict[str, Tensor]:
        embedded: dict[str, Tensor] = {}
        for tables in self.dynamic.values():
            assert isinstance(tables, DynamicEmbeddingCollection)
            keys = list(tables.numbers)
            ids = [batch.ids[group][index] for group, index in map(self.place.__getitem__, keys)]
            sizes = [len(some) for some in ids]
            vectors = tables.lookup(torch.cat(ids), sizes, list(tables.numbers.values()))
            embedded |= zip(keys, torch.split(vectors, sizes), strict=True)
        return embedded


def _by_width(
    sizes: Mapping[str, TableSize], users: Mapping[str, list[str]]
) -> dict[str, list[EmbeddingConfig]]:
    """Configs of tables by `width_<width>`, ascending."""
    by_width: dict[int, list[EmbeddingConfig]] = defaultdict(list)
    for table, names in users.items():
        rows, width = sizes[table].rows, sizes[table].width
        by_width[width].append(
            EmbeddingConfig(name=table, num_embeddings=rows, embedding_dim=width, feature_names=names)
        )
    return {f"width_{width}": by_width[width] for width in sorted(by_width)}
