"""An `EmbeddingCollection` over dynamic hash tables: raw 64-bit ids in, their vectors out.

    tables = DynamicEmbeddingCollection([EmbeddingConfig(...)], seed=1)       # scores: state dict, or nothing
    tables.train_rows(RowOptimizer(name="adagrad", lr=0.02))                  # learns, from what it holds
    vectors = tables(keyed_jagged_tensor)                                     # dict of JaggedTensors

Its tables have one width and are one lookup. What it holds has two forms. To score, and in a state dict, keys
lie sorted beside their vectors, and a lookup is a binary search in PyTorch alone. To learn, they lie in a
`HashTable`, whose rows are updated in the backward pass. An id that is not there has the vector that it would
begin with (`mixing.initial_vectors`) in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hstu_ops
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingConfig, JaggedTensor, KeyedJaggedTensor

from model.embeddings.exchange import Exchange, Route
from model.embeddings.hash_table import Evicted, HashTable
from model.embeddings.mixing import initial_vectors
from model.embeddings.rules import Keeping, RowOptimizer
from model.embeddings.table_state import joined

_NO_MEMORY = torch.empty(8, 0, dtype=torch.int64)  # of a hash table without rows


class DynamicEmbeddingCollection(nn.Module):
    """Tables of one width without a vocabulary.

    Args:
        tables: Name, width and features of each; `num_embeddings` is not read. The order numbers the tables.
        seed: Of the vectors that ids begin with.
        dtype: Of the vectors, float32 or bfloat16.

    Raises:
        ValueError: There is no table, or widths differ.
    """

    ids: Tensor
    starts: Tensor
    vectors: Tensor

    def __init__(
        self, tables: Sequence[EmbeddingConfig], seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        widths = {config.embedding_dim for config in tables}
        if len(widths) != 1:
            raise ValueError(f"the tables have widths {sorted(widths)}; a collection has one")
        self.configs = list(tables)
        self.width = int(widths.pop())
        self.seed = seed
        self.dtype = dtype
        self.numbers = {name: k for k, config in enumerate(self.configs) for name in config.feature_names}
        self.live: HashTable | None = None
        self.exchange: Exchange | None = None
        self.register_buffer("ids", torch.empty(0, dtype=torch.int64))
        self.register_buffer("starts", torch.zeros(len(self.configs) + 1, dtype=torch.int64))
        self.register_buffer("vectors", torch.empty(0, self.width, dtype=dtype))

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The tables."""
        return self.configs

    def embedding_dim(self) -> int:
        """Width of a vector."""
        return self.width

    def embedding_names_by_table(self) -> list[list[str]]:
        """Features of each table."""
        return [list(config.feature_names) for config in self.configs]

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Vectors of all ids by feature, `[ids of the feature, width]`.

        Raises:
            ValueError: A feature is no table's.
        """
        unknown = [key for key in features.keys() if key not in self.numbers]
        if unknown:
            raise ValueError(f"no table has the feature {unknown[0]!r}; known: {', '.join(self.numbers)}")
        sizes = features.length_per_key()
        vectors = self.lookup(features.values(), sizes, [self.numbers[key] for key in features.keys()])
        return {
            key: JaggedTensor(values=part, lengths=features[key].lengths())
            for key, part in zip(features.keys(), torch.split(vectors, sizes), strict=True)
        }

    def dispatch(self, ids: Tensor, sizes: Sequence[int], tables: Sequence[int]) -> Route | None:
        """Sends ids, as `lookup` takes them, to the ranks that keep their rows; None if there is one rank."""
        if self.exchange is None:
            return None
        return self.exchange.route(ids.contiguous(), torch.tensor(sizes).cumsum(0).tolist(), tables)

    def lookup(
        self, ids: Tensor, sizes: Sequence[int], tables: Sequence[int], route: Route | None = None
    ) -> Tensor:
        """Vectors `[n, width]` of ids laid end to end; in training, new ids come in.

        Args:
            ids: int64 `[n]`.
            sizes: How many are of each slice.
            tables: Table of each slice.
            route: By which `dispatch` has sent these ids; by default they are sent now.
        """
        ends = torch.tensor(sizes).cumsum(0).tolist()
        ids = ids.contiguous()
        if self.live is None:
            return self._sorted_lookup(ids, ends, tables)
        learns = self.training and torch.is_grad_enabled()
        if self.exchange is not None:
            route = route or self.exchange.route(ids, ends, tables)
            return self.exchange.lookup(self.live, route, learns=learns)
        if learns:
            out: Tensor = _Lookup.apply(_anchor(ids), self.live, ids, ends, tables)  # type: ignore[no-untyped-call]
            return out
        return self.live.vectors(self.live.find(ids, ends, tables), ids, ends, tables)

    def train_rows(
        self,
        optimizer: RowOptimizer,
        keeping: Keeping | None = None,
        group: dist.ProcessGroup | None = None,
        on_evicted: Callable[[Evicted], None] | None = None,
    ) -> None:
        """Makes rows learn from here on, in the backward pass of every lookup in training mode.

        Args:
            optimizer: How.
            keeping: Which keys get and keep a row; `max_rows` is of all tables and all ranks together, of
                which each has an equal part.
            group: Ranks over which rows are spread, by their ids' hashes; by default this process has all.
            on_evicted: Is handed the keys that lose their rows.

        Raises:
            ValueError: `max_rows` is less than a row for each rank.
        """
        held = self.published()
        num_ranks = dist.get_world_size(group) if group is not None else 1
        self.live = HashTable(
            self.width,
            optimizer=optimizer,
            seed=self.seed,
            keeping=dataclasses.replace(keeping or Keeping(), num_ranks=num_ranks),
            dtype=self.dtype,
            device=self.ids.device,
            on_evicted=on_evicted,
            names=[config.name for config in self.configs],
        )
        self.exchange = Exchange(group) if group is not None and num_ranks > 1 else None
        self.live.load_vectors(*self._own(**held))
        self.ids, self.vectors = self.ids[:0], self.vectors[:0]
        self.starts = torch.zeros_like(self.starts)

    def start_day(self, day: int) -> int:
        """Begins a day of data; see `HashTable.start_day`."""
        if self.live is None:
            return 0
        return self.live.start_day(day)

    def published(self, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What a state dict has: `ids` `[n]` sorted within their tables, `starts` of the tables, `vectors`.

        Args:
            state: Of all ranks, joined; by default what this rank has.
        """
        if state is None and self.live is None:
            return {"ids": self.ids, "starts": self.starts, "vectors": self.vectors}
        if state is None:
            assert self.live is not None
            state = self.live.state()
        starts = torch.searchsorted(state["tables"], torch.arange(len(self.configs) + 1))
        return {"ids": state["ids"], "starts": starts, "vectors": state["vectors"]}

    def state(self) -> dict[str, Tensor]:
        """All that training needs to go on, of this rank's keys, as CPU tensors."""
        assert self.live is not None, "rows that do not learn have no state beside the state dict"
        return self.live.state()

    def sources(self, num_ranks: int) -> list[int]:
        """Of `num_ranks` ranks that gave a `state`, those whose states this rank needs."""
        return list(range(num_ranks)) if self.exchange is None else self.exchange.sources(num_ranks)

    def load_states(self, states: Iterable[dict[str, Tensor]]) -> None:
        """Takes up what `sources` gave by `state`, on any number of ranks.

        Args:
            states: Read one after the other: only this rank's keys of each are kept.
        """
        assert self.live is not None, "train_rows comes first"
        own = [state if self.exchange is None else self.exchange.own(state) for state in states]
        self.live.load(joined(own))

    def _own(self, ids: Tensor, starts: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tables = torch.arange(len(self.configs), device=ids.device).repeat_interleave(starts.diff())
        if self.exchange is None:
            return ids, tables, vectors
        mine = self.exchange.is_mine(ids, tables)
        return ids[mine], tables[mine], vectors[mine]

    def _sorted_lookup(self, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> Tensor:
        parts = []
        starts = self.starts.tolist()
        begin = 0
        for place, (end, table) in enumerate(zip(ends, tables, strict=True)):
            if place + 1 < len(tables) and tables[place + 1] == table:
                continue  # slices of one table that lie side by side are one search
            asked, begin = ids[begin:end], end
            parts.append(self._of_table(asked, table, starts[table], starts[table + 1]))
        return torch.cat(parts) if parts else self.vectors.new_empty(0, self.width)

    def _of_table(self, asked: Tensor, table: int, start: int, end: int) -> Tensor:
        keys = self.ids[start:end]
        if not len(keys):
            return self._fresh(asked, table)
        place = torch.searchsorted(keys, asked).clamp_(max=len(keys) - 1)
        held = self.vectors[place + start]
        is_new = keys[place] != asked
        if asked.device.type == "cpu":  # elsewhere, to know which are new is to wait for the device
            if len(new := is_new.nonzero().squeeze(1)):
                held[new] = self._fresh(asked[new], table)
            return held
        return torch.where(is_new.unsqueeze(1), self._fresh(asked, table), held)

    def _fresh(self, ids: Tensor, table: int) -> Tensor:
        """The vectors that ids begin with: by one call where the kernel is compiled, to the same bits."""
        if ids.device.type != "cpu" or not hstu_ops.libraries.loaded("cpu"):
            return initial_vectors(ids, table, self.width, self.seed, self.dtype)
        none = torch.full((len(ids),), -1, dtype=torch.int32)
        half = self.dtype == torch.bfloat16
        vectors: Tensor = torch.ops.hstu_ops.table_gather(
            _NO_MEMORY, none, ids, [len(ids)], [table], self.seed, self.width, half
        )
        return vectors

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.published().items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [prefix + name for name in ("ids", "starts", "vectors")]
        if absent := [name for name in names if name not in state_dict]:
            missing_keys += absent
            return
        ids, starts, vectors = (state_dict[name] for name in names)
        if len(starts) != len(self.configs) + 1 or vectors.shape != (len(ids), self.width):
            error_msgs.append(
                f"{prefix[:-1]} has {len(self.configs)} tables of width {self.width}, the state "
                f"{len(starts) - 1} and vectors {tuple(vectors.shape)} of {len(ids)} ids"
            )
            return
        if self.live is not None:
            error_msgs.append(f"{prefix[:-1]} learns: its whole state is loaded by load_states")
            return
        device = self.ids.device
        self.ids, self.starts = ids.to(device), starts.to(device)
        self.vectors = vectors.to(device, self.dtype)


def _anchor(ids: Tensor) -> Tensor:
    """A tensor that wants a gradient, so that the backward pass comes by."""
    return torch.empty(0, device=ids.device, requires_grad=True)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, anchor: Tensor, table: HashTable, ids: Tensor, ends: list[int], tables: Sequence[int]
    ) -> Tensor:
        ctx.table = table
        ctx.rows = table.insert(ids, ends, tables)
        return table.vectors(ctx.rows, ids, ends, tables)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        ctx.table.update(ctx.rows, grad)
        return (None,) * 5
