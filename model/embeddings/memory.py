"""Memory of a dynamic hash table: segments of keys, and chunks of rows, both growing without a copy."""

from __future__ import annotations

import torch
from torch import Tensor

# As in cuda_ext/csrc/tables/layout.h.
SEGMENT = 2048  # entries
BLOCK = 64  # segments
CHUNK = 65536  # rows
SEGMENTS, IDS, TABLES, COUNTS, SEEN, VECTORS, STATE = range(7)
_COLUMNS = 8
_WAITING = 1 << 31
_MOST_BYTES = 1 << 30  # of vectors that are allocated at once


class Memory:
    """Segments and rows, and the addresses by which kernels find them.

    Args:
        width: Of a vector.
        dtype: Of vectors, float32 or bfloat16.
        state_widths: Of the optimizer's state, by column.
        device: Where it lies.
        capacity: Most chunks, and most blocks of segments.
    """

    def __init__(
        self,
        width: int,
        dtype: torch.dtype,
        state_widths: tuple[int, ...],
        device: torch.device,
        capacity: int = 4096,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.addresses = torch.zeros(_COLUMNS, capacity, dtype=torch.int64, device=device)
        self.num_segments = 0
        self.num_rows = 0
        self._blocks: list[Tensor] = []
        self._chunks: dict[int, list[Tensor]] = {column: [] for column in range(1, STATE + len(state_widths))}
        self._widths = {IDS: 1, TABLES: 1, COUNTS: 1, SEEN: 1, VECTORS: width}
        self._widths |= {STATE + k: state_width for k, state_width in enumerate(state_widths)}
        self._types = {IDS: torch.int64, TABLES: torch.int32, COUNTS: torch.int32, SEEN: torch.int32}

    def add_segments(self, num_segments: int) -> None:
        """Makes place for so many segments, all empty; the new ones are still to be split."""
        while len(self._blocks) * BLOCK < num_segments:
            block = torch.zeros(BLOCK * SEGMENT, 2, dtype=torch.int64, device=self.device)
            self._name(SEGMENTS, len(self._blocks), [block.data_ptr()])
            self._blocks.append(block)
        self.num_segments = num_segments

    def add_rows(self, num_rows: int) -> None:
        """Makes place for at least so many rows, an eighth more than there were, in memory of its own."""
        have = self.num_rows // CHUNK
        need = -(-num_rows // CHUNK) - have
        if need <= 0:
            return
        row_bytes = self._widths[VECTORS] * self._type(VECTORS).itemsize
        spare = min(have // 8, _MOST_BYTES // (CHUNK * row_bytes))
        count = max(need, spare)
        for column, chunks in self._chunks.items():
            width, dtype = self._widths[column], self._type(column)
            block = torch.empty(count * CHUNK, width, dtype=dtype, device=self.device)
            if column == TABLES:
                block.fill_(-1)
            parts = list(torch.split(block, CHUNK))
            self._name(column, have, [part.data_ptr() for part in parts])
            chunks += parts
        self.num_rows += count * CHUNK

    def read(self, column: int, rows: Tensor) -> Tensor:
        """Values of a column for rows, `[rows]` or `[rows, width]`."""
        width = self._widths[column]
        out = torch.empty(len(rows), width, dtype=self._type(column), device=self.device)
        for chunk, places, at in self._parts(column, rows):
            out[places] = chunk[at]
        return out.squeeze(1) if column < VECTORS else out

    def write(self, column: int, rows: Tensor, values: Tensor) -> None:
        """Sets values of a column for rows."""
        values = values.unsqueeze(1) if column < VECTORS else values
        for chunk, places, at in self._parts(column, rows):
            chunk[at] = values[places]

    def taken_rows(self) -> Tensor:
        """Rows that are some key's, ascending."""
        tables = self._chunks[TABLES]
        starts = range(0, len(tables) * CHUNK, CHUNK)
        parts = [(t.squeeze(1) >= 0).nonzero().squeeze(1) + s for t, s in zip(tables, starts, strict=True)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self.device)

    def waiting(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys that have no row yet: ids, tables, how often seen, day of the last time (its low 14 bits)."""
        kept = []
        for block in self._blocks:
            meta = block[:, 1]
            kept.append(block[((meta & 3) == 3) & (meta < 0)])
        entries = torch.cat(kept) if kept else torch.empty(0, 2, dtype=torch.int64, device=self.device)
        ids, meta = entries.unbind(1)
        return ids, (meta >> 16) & 0xFFFF, (meta >> 32) & (_WAITING - 1), (meta >> 2) & 0x3FFF

    def nbytes(self) -> int:
        """Bytes of keys and rows."""
        chunks = [part for parts in self._chunks.values() for part in parts]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self._blocks, *chunks))

    def _type(self, column: int) -> torch.dtype:
        return self.dtype if column == VECTORS else self._types.get(column, torch.float32)

    def _parts(self, column: int, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each chunk that has any of the rows: itself, their places in `rows`, theirs in the chunk."""
        chunks = self._chunks[column]
        number = rows // CHUNK
        places = number.argsort(stable=True)
        counts = torch.bincount(number, minlength=len(chunks)).tolist()
        return [
            (chunk, some, rows[some] % CHUNK)
            for chunk, some in zip(chunks, torch.split(places, counts), strict=True)
            if len(some)
        ]

    def _name(self, column: int, first: int, addresses: list[int]) -> None:
        if first + len(addresses) > self.addresses.shape[1]:
            raise ValueError(
                f"a table of {self.addresses.shape[1]} chunks of {CHUNK} rows is at its largest; shard it"
            )
        values = torch.tensor(addresses, dtype=torch.int64)
        if self.device.type == "cuda":
            values = values.pin_memory()
        self.addresses[column, first : first + len(addresses)].copy_(values, non_blocking=True)
