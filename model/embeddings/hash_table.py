"""A dynamic hash table: 64-bit ids of several tables of one width to rows that learn.

Any int64 is an id: -1 and 2^63 - 1 are ids like others. Ids of different tables never meet. Rows come as ids
do; they go by age in days of data, or when a table that has a limit is full. On a GPU a step neither waits
nor copies: how many keys there are is read behind the steps, and what may be needed until it is known is
allocated ahead. Near its limit a table does wait, since then it must know.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hstu_ops
import torch
from torch import Tensor

from model.embeddings import memory as m
from model.embeddings.key_count import KeyCount
from model.embeddings.rules import OPTIMIZERS, Keeping, RowOptimizer, TableFullError
from model.embeddings.table_state import by_table_and_id, load_into, slices_of, state_of

logger = logging.getLogger(__name__)

_LOAD = 0.4  # keys over entries; segments that are still to be split are twice as full
_SHARE = 16  # a full table evicts at least this part of itself, not a row a step


@dataclass(frozen=True, kw_only=True)
class Evicted:
    """Keys that have lost their rows.

    Attributes:
        reason: `ttl`, `lru`, `lfu` or `deleted`.
        ids: int64.
        tables: int64, the table of each.
        counts: int32, on how many positions each was learned.
    """

    reason: str
    ids: Tensor
    tables: Tensor
    counts: Tensor


class HashTable:
    """Keys and rows of one width.

    Args:
        width: Of a vector.
        optimizer: How rows learn.
        seed: Of the vectors that ids begin with.
        keeping: Which keys get and keep a row.
        dtype: Of the vectors: float32, or bfloat16, which is rounded by chance so that small steps count.
        device: Where it lies.
        on_evicted: Is handed the keys that lose their rows.
        names: Of the tables, by their numbers, for errors.

    Raises:
        BackendUnavailableError: The kernels for the device are not compiled.
    """

    def __init__(
        self,
        width: int,
        *,
        optimizer: RowOptimizer,
        seed: int,
        keeping: Keeping | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        on_evicted: Callable[[Evicted], None] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        part = "cpu" if self.device.type == "cpu" else "sm90"
        if not hstu_ops.libraries.loaded(part):
            raise hstu_ops.BackendUnavailableError(
                f"dynamic tables on {self.device.type} need hstu_ops' library {part!r}: build it with "
                "`pip install --no-build-isolation ./cuda_ext`, or take hashed tables"
            )
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"rows of {dtype}: use torch.float32 or torch.bfloat16")
        self.width = width
        self.optimizer = optimizer
        self.state_widths = optimizer.state_widths(width)
        self.seed = seed
        self.keeping = keeping or Keeping()
        self.dtype = dtype
        self.on_evicted = on_evicted
        self.names = list(names)
        self.steps = 0
        self.days: list[int] = []  # of data, ascending
        self.first_ticks: list[int] = []  # the first tick of each
        self.clear()

    def clear(self) -> None:
        """Forgets all keys and what they had."""
        self.memory = m.Memory(self.width, self.dtype, self.state_widths, self.device)
        self.memory.add_segments(1)
        self._count = KeyCount(self.device)
        self._free = torch.empty(0, dtype=torch.int32, device=self.device)  # rows, taken first
        self._next_row = 0  # taken then

    @property
    def oldest_day(self) -> int:
        """The first day of data whose ids still have their rows."""
        if self.keeping.ttl_days is None or not self.days:
            return 0
        return self.days[-1] - self.keeping.ttl_days

    def insert(self, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> Tensor:
        """Rows of ids, int32; an id that is new gets one.

        Args:
            ids: int64 `[n]`; those of slice s end at `ends[s]`.
            ends: Ends of the slices, ascending, the last is n.
            tables: Table of each slice, 0 to 65535.

        Returns:
            int32 `[n]`; negative where an id waits for admission.

        Raises:
            TableFullError: More rows are needed than `max_rows`, and no one may go.
        """
        ids = ids.contiguous()
        self._make_room(ids, ends, tables)
        rows: Tensor = torch.ops.hstu_ops.table_insert(
            self.memory.addresses,
            self.memory.num_segments,
            self._count.counters,
            self._free,
            self._next_row,
            ids,
            ends,
            tables,
            self.keeping.admission,
            (self.days[-1] if self.days else 0) & 0x3FFF,
            self.steps + 1,
            self.seed,
            self.width,
            self.state_widths,
            self.dtype == torch.bfloat16,
        )
        self._count.came(len(ids))
        return rows

    def find(self, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> Tensor:
        """As `insert`, but no id is added: -1 of an unknown one, -1 - k of one that waits, seen k times."""
        rows: Tensor = torch.ops.hstu_ops.table_find(
            self.memory.addresses, self.memory.num_segments, ids.contiguous(), ends, tables
        )
        return rows

    def vectors(self, rows: Tensor, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> Tensor:
        """Vectors `[n, width]` of rows; of an id without one, the vector that it would begin with."""
        out: Tensor = torch.ops.hstu_ops.table_gather(
            self.memory.addresses,
            rows,
            ids.contiguous(),
            ends,
            tables,
            self.seed,
            self.width,
            self.dtype == torch.bfloat16,
        )
        return out

    def update(self, rows: Tensor, grad: Tensor) -> None:
        """Takes one optimizer step with the gradients of all positions; a row is written once.

        Args:
            rows: int32 `[n]`, as `insert` gave them.
            grad: `[n, width]`.
        """
        self.steps += 1
        torch.ops.hstu_ops.table_update(
            self.memory.addresses,
            rows,
            grad.float().contiguous(),
            max(self.memory.num_rows, 1),
            OPTIMIZERS.index(self.optimizer.name),
            self.optimizer.lr,
            self.optimizer.eps,
            self.optimizer.beta1,
            self.optimizer.beta2,
            self.steps,
            self.steps,
            self.seed,
            self.dtype == torch.bfloat16,
        )

    def delete(self, ids: Tensor, table: int) -> int:
        """Removes ids of a table with all that they have; returns how many rows that freed."""
        rows = self.find(ids, [len(ids)], [table])
        gone = self._evict(torch.unique(rows[rows >= 0].long()), "deleted")
        if self.keeping.admission > 1:  # those that wait have no row
            self._delete(ids, [len(ids)], [table])
            self._rebuild()
        return gone

    def start_day(self, day: int) -> int:
        """Begins a day of data; rows that were last seen more than `ttl_days` before it go.

        Args:
            day: Days since any fixed day; the same day again changes nothing.

        Returns:
            How many rows went.

        Raises:
            ValueError: The day lies before one that was begun.
        """
        if self.days and day < self.days[-1]:
            raise ValueError(f"day {day} of data after day {self.days[-1]}; days are read in order")
        if not self.days or day > self.days[-1]:
            self.days.append(day)
            self.first_ticks.append(self.steps + 1)
        if self.keeping.ttl_days is None:
            return 0
        kept_from = bisect.bisect_left(self.days, self.oldest_day)
        first_tick = self.first_ticks[kept_from]
        self.days, self.first_ticks = self.days[kept_from:], self.first_ticks[kept_from:]
        rows = self.memory.taken_rows()
        gone = self._evict(rows[self.memory.read(m.SEEN, rows) < first_tick], "ttl")
        if not gone and self.keeping.admission > 1:
            self._rebuild()  # who waits since too long goes too
        return gone

    def keys(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, ids and tables of all keys that have a row, by table and id."""
        rows = self.memory.taken_rows()
        ids, tables = self.memory.read(m.IDS, rows), self.memory.read(m.TABLES, rows).long()
        order = by_table_and_id(ids, tables)
        return rows[order], ids[order], tables[order]

    def __len__(self) -> int:
        """How many keys have a row; waits for the device."""
        return self._next_row - len(self._free) + self._count.exact()[0]

    def state(self) -> dict[str, Tensor]:
        """All that the table is, as CPU tensors; see `table_state.state_of`."""
        return state_of(self)

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` gave; a table on another device is the same table.

        Raises:
            ValueError: The state is of another width or optimizer.
        """
        load_into(self, state)

    def load_vectors(self, ids: Tensor, tables: Tensor, vectors: Tensor) -> None:
        """Adds keys, sorted by table, with their vectors; nothing is known of how they learned."""
        self.memory.write(m.VECTORS, self.admit(ids, tables), vectors.to(self.device))

    def admit(self, ids: Tensor, tables: Tensor) -> Tensor:
        """Rows, int64, of keys that are sorted by table, whatever the rules are."""
        keeping, self.keeping = self.keeping, Keeping()
        rows = self.insert(ids.to(self.device), *slices_of(tables))
        self.keeping = keeping
        return rows.long()

    def _make_room(self, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> None:
        """Segments and rows for `ids`, as if all were new; exactly where a limit stands against that."""
        limit = self.keeping.rows_of_rank
        if limit is not None and self._rows_with(self._count.bounds()[0], len(ids)) > limit:
            if self._rows_with(self._count.exact()[0], len(ids)) > limit:
                self._keep_within(limit, ids, ends, tables)
        taken, entries = self._count.bounds()
        rows = self._rows_with(taken, len(ids))
        self.memory.add_rows(min(rows, limit) if limit is not None else rows)
        have, need = self.memory.num_segments, -(-int((entries + len(ids)) / _LOAD) // m.SEGMENT)
        if need > have:
            self.memory.add_segments(need)
            self._split(have, need, grows=True)

    def _rows_with(self, taken: int, num_new: int) -> int:
        """Rows up to which memory is in use when so many ids more get one."""
        return self._next_row + max(0, taken + num_new - len(self._free))

    def _keep_within(self, limit: int, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> None:
        rows = self.find(ids, ends, tables)
        num_new = self._num_new(ids, rows, ends, tables)
        over = len(self) + num_new - limit
        if over <= 0:
            return
        if self.keeping.eviction == "none" or num_new > limit:
            raise TableFullError(
                f"{self._described()} has {len(self)} rows of at most {limit}{self._of_ranks()} and {num_new}"
                " new ids come in one step; raise max_rows, or let rows go (eviction lru or lfu, ttl_days)"
            )
        here = torch.zeros(self.memory.num_rows, dtype=torch.bool, device=self.device)
        here[rows[rows >= 0].long()] = True
        others, _, _ = self.keys()
        others = others[~here[others]]
        if over > len(others):
            raise TableFullError(
                f"{self._described()} has at most {limit} rows{self._of_ranks()}: one step needs {over} rows "
                f"more, and {len(others)} may go; raise max_rows"
            )
        column = m.SEEN if self.keeping.eviction == "lru" else m.COUNTS
        order = self.memory.read(column, others).argsort(stable=True)
        self._evict(others[order[: max(over, limit // _SHARE)]], self.keeping.eviction)

    def _described(self) -> str:
        """The tables by name with the rows that each has: the limit is of all together."""
        if not self.names:
            return "the table"
        _, _, tables = self.keys()
        counts = torch.bincount(tables, minlength=len(self.names)).tolist()
        shares = ", ".join(f"{name} ({count})" for name, count in zip(self.names, counts, strict=True))
        return f"the hash table of width {self.width} for {shares}"

    def _of_ranks(self) -> str:
        keeping = self.keeping
        whole = f" (max_rows {keeping.max_rows} over {keeping.num_ranks} ranks)"
        return whole if keeping.num_ranks > 1 else ""

    def _num_new(self, ids: Tensor, rows: Tensor, ends: Sequence[int], tables: Sequence[int]) -> int:
        """How many ids would get a row; `rows` are theirs before."""
        num_new = 0
        for table in set(tables):
            slices = [k for k, kind in enumerate(tables) if kind == table]
            places = torch.cat([torch.arange(ends[k - 1] if k else 0, ends[k]) for k in slices])
            places = places.to(ids.device)
            places = places[rows[places] < 0]
            _, inverse, counts = torch.unique(ids[places], return_inverse=True, return_counts=True)
            first = torch.empty_like(counts)
            first[inverse] = places
            num_new += int((counts - 1 - rows[first] >= self.keeping.admission).sum())
        return num_new

    def _evict(self, rows: Tensor, reason: str) -> int:
        """Frees rows with their keys, which are handed out."""
        if not len(rows):
            return 0
        ids, tables = self.memory.read(m.IDS, rows), self.memory.read(m.TABLES, rows).long()
        order = by_table_and_id(ids, tables)
        rows, ids, tables = rows[order], ids[order], tables[order]
        if self.on_evicted is not None:
            counts = self.memory.read(m.COUNTS, rows)
            self.on_evicted(Evicted(reason=reason, ids=ids, tables=tables, counts=counts))
        taken, _ = self._count.exact()
        self._delete(ids, *slices_of(tables))
        self._next_row += max(0, taken - len(self._free))
        self._free = torch.cat([self._free[taken:], rows.int()])
        self._count.counters[0] = 0
        self._rebuild()
        logger.info("%d rows went (%s)", len(rows), reason)
        return len(rows)

    def _delete(self, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> None:
        memory = self.memory
        torch.ops.hstu_ops.table_delete(memory.addresses, memory.num_segments, ids.contiguous(), ends, tables)

    def _rebuild(self) -> None:
        """Lays the keys of every segment anew: without those that were deleted or wait since too long."""
        self._split(0, self.memory.num_segments, grows=False)
        self._count.exact()

    def _split(self, first: int, last: int, *, grows: bool) -> None:
        torch.ops.hstu_ops.table_split(
            self.memory.addresses, self._count.counters, first, last, grows, self.oldest_day
        )
