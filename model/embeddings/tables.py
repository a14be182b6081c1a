"""Embedding tables of a dataset.

Categories have a row for each value, in TorchRec `EmbeddingCollection`s, one for each embedding width
(TorchRec asks for equal widths within one), so that `DistributedModelParallel` can shard them. Ids are either
`dynamic`, in a `DynamicEmbeddingCollection` for each width, or `hashed`: rows of the same collections as
categories, by the hash of the id modulo the table's rows, which ids then share.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, F features)

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from model.data.batch import JaggedBatch
from model.data.stored import id_features
from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.embeddings.exchange import Route
from model.embeddings.mixing import mix64
from model.embeddings.sizes import TableSize
from spark_jobs.contract.features import Dataset, Group, Kind

ID_TABLES = ("dynamic", "hashed")


@dataclass(frozen=True, kw_only=True)
class Dispatched:
    """Ids of a batch that are where their rows are.

    Attributes:
        fixed: By width, TorchRec's context of the tables, and what has come in.
        dynamic: By width, how the ids were sent; None if there is one rank.
    """

    fixed: Mapping[str, tuple[Any, Any]]
    dynamic: Mapping[str, Route | None]

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that `stream` uses what another stream has sent."""
        for context, ids in self.fixed.values():
            context.record_stream(stream)
            ids.record_stream(stream)
        for route in self.dynamic.values():
            if route is not None:
                route.record_stream(stream)


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
        begins = {
            config.name: begin
            for configs in fixed.values()
            for config, begin in zip(
                configs, itertools.accumulate((c.num_embeddings for c in configs), initial=0), strict=False
            )
        }
        for group, features in self.features.items():
            of_group = [begins.get(feature.table, 0) for feature in features]
            self.register_buffer(f"begins_{group}", torch.tensor(of_group).reshape(-1, 1), persistent=False)

    def _register(self, group: Group) -> None:
        """Keeps what turns ids of a group into rows beside the weights, on their device."""
        rows = [[self.sizes[feature.table].rows] for feature in self.features[group]]
        is_id = [[feature.kind is Kind.ID] for feature in self.features[group]]
        self.register_buffer(f"rows_{group}", torch.tensor(rows).reshape(-1, 1), persistent=False)
        self.register_buffer(f"is_id_{group}", torch.tensor(is_id).reshape(-1, 1), persistent=False)

    def widths(self, group: Group) -> list[int]:
        """Width of each id feature of a group."""
        return [self.sizes[feature.table].width for feature in self.features[group]]

    def dispatch(self, batch: JaggedBatch) -> Dispatched:
        """Sends the ids of a batch to the ranks that keep their rows, for `forward`; every rank must call it.

        It needs no row, so that it can be done while the batch before is computed; it waits for the device.
        """
        fixed = {}
        for name, ids in self._fixed_ids(batch).items():
            tables: Any = self.tables[name]
            context = tables.create_context()
            fixed[name] = context, tables.input_dist(context, ids).wait().wait()
        return Dispatched(
            fixed=fixed,
            dynamic={name: tables.dispatch(*self._ids(tables, batch)) for name, tables in self._growing()},
        )

    def forward(self, batch: JaggedBatch, dispatched: Dispatched | None = None) -> dict[Group, list[Tensor]]:
        """Embeddings by group: one `[tokens, width]` for each id feature, in token order.

        Args:
            batch: Whose ids are looked up.
            dispatched: What `dispatch` gave for it; by default ids are sent now.
        """
        embedded = {**self._of_fixed(batch, dispatched), **self._of_dynamic(batch, dispatched)}
        return {
            group: [embedded[f"{group}_{feature.name}"] for feature in features]
            for group, features in self.features.items()
        }

    def _of_fixed(self, batch: JaggedBatch, dispatched: Dispatched | None) -> dict[str, Tensor]:
        embedded = self._of_whole(batch)
        if dispatched is None:
            vectors = {name: self.tables[name](ids) for name, ids in self._fixed_ids(batch).items()}
        else:
            sharded: Any = self.tables
            vectors = {
                name: sharded[name].compute_and_output_dist(*sent) for name, sent in dispatched.fixed.items()
            }
        for of_width in vectors.values():
            embedded |= {key: jagged.values() for key, jagged in of_width.items()}
        return embedded

    def _of_whole(self, batch: JaggedBatch) -> dict[str, Tensor]:
        """Of tables that are not sharded: for one request TorchRec's way costs ten times that."""
        embedded: dict[str, Tensor] = {}
        whole = [tables for tables in self.tables.values() if isinstance(tables, EmbeddingCollection)]
        rows = {group: self._rows(batch.ids[group], group) for group in Group} if whole else {}
        for tables in whole:
            configs = tables.embedding_configs()
            weights = [tables.embeddings[config.name].weight for config in configs]
            if torch.is_grad_enabled():
                embedded |= self._of_one(configs, torch.cat(weights), rows)
                continue
            for config, weight in zip(configs, weights, strict=True):
                for key in config.feature_names:
                    group, index = self.place[key]
                    embedded[key] = nn.functional.embedding(rows[group][index], weight)
        return embedded

    def _of_one(
        self, configs: Sequence[EmbeddingConfig], weight: Tensor, rows: Mapping[Group, Tensor]
    ) -> dict[str, Tensor]:
        """Of tables that stand one after the other in `weight`: one lookup, and one sum of gradients."""
        keys = [key for config in configs for key in config.feature_names]
        places = [self.place[key] for key in keys]
        shifted = {
            group: rows[group] + self.get_buffer(f"begins_{group}") for group in {g for g, _ in places}
        }
        asked = [shifted[group][index] for group, index in places]
        vectors = torch.split_with_sizes(
            nn.functional.embedding(torch.cat(asked), weight), [len(some) for some in asked]
        )
        return dict(zip(keys, vectors, strict=True))

    def _fixed_ids(self, batch: JaggedBatch) -> dict[str, KeyedJaggedTensor]:
        """What is looked up in the fixed tables of each width."""
        ids = {}
        rows = {group: self._rows(batch.ids[group], group) for group in Group}
        ones_B = torch.ones_like(batch.lengths[Group.CANDIDATE])
        lengths = {group: batch.lengths.get(group, ones_B) for group in Group}
        if not batch.num_rows:  # TorchRec needs a row: one without ids stands for none
            lengths = dict.fromkeys(Group, ones_B.new_zeros(1))
        for name, tables in self.tables.items():
            if isinstance(tables, EmbeddingCollection):
                continue
            places = [self.place[key] for key in self.keys[name]]
            ids[name] = KeyedJaggedTensor(
                keys=self.keys[name],
                values=torch.cat([rows[group][index] for group, index in places]),
                lengths=torch.cat([lengths[group] for group, _ in places]),
                # What the host knows is not read back from the device.
                length_per_key=[rows[group].shape[1] for group, _ in places],
            )
        return ids

    def _rows(self, ids_FT: Tensor, group: Group) -> Tensor:
        """Rows of the fixed tables; those of ids that are in a dynamic table mean nothing."""
        if self.dynamic:
            return ids_FT
        return rows_of(ids_FT, self.get_buffer(f"is_id_{group}"), self.get_buffer(f"rows_{group}"))

    def _of_dynamic(self, batch: JaggedBatch, dispatched: Dispatched | None) -> dict[str, Tensor]:
        embedded: dict[str, Tensor] = {}
        for name, tables in self._growing():
            ids, sizes, numbers = self._ids(tables, batch)
            route = None if dispatched is None else dispatched.dynamic[name]
            vectors = tables.lookup(ids, sizes, numbers, route)
            embedded |= zip(tables.numbers, torch.split(vectors, sizes), strict=True)
        return embedded

    def _growing(self) -> Iterator[tuple[str, DynamicEmbeddingCollection]]:
        for name, tables in self.dynamic.items():
            assert isinstance(tables, DynamicEmbeddingCollection)
            yield name, tables

    def _ids(
        self, tables: DynamicEmbeddingCollection, batch: JaggedBatch
    ) -> tuple[Tensor, list[int], list[int]]:
        """The ids of dynamic tables laid end to end, with the size and the table of each feature's."""
        ids = [batch.ids[group][index] for group, index in map(self.place.__getitem__, tables.numbers)]
        return torch.cat(ids), [len(some) for some in ids], list(tables.numbers.values())


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
