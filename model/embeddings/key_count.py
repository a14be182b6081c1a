"""How many keys a table has, known without waiting for the device that counts them."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

_FLIGHT = 8  # readings that may be on their way


class KeyCount:
    """Counters on a device, and bounds of them on the host.

    Args:
        device: Where kernels count.

    Attributes:
        counters: int64 `[2]`: rows taken since the free ones were listed, entries that are not empty.
    """

    def __init__(self, device: torch.device) -> None:
        self.counters = torch.zeros(2, dtype=torch.int64, device=device)
        self._known = (0, 0)
        self._ids = self._ids_then = 0  # ids that came, all of them and when `_known` was so
        self._flight: deque[tuple[Any, Tensor, int]] = deque()

    def bounds(self) -> tuple[int, int]:
        """What the counters are at most: as if every id since they were read had been new."""
        self._take_up()
        since = self._ids - self._ids_then
        return self._known[0] + since, self._known[1] + since

    def exact(self) -> tuple[int, int]:
        """What the counters are; waits for the device."""
        self._flight.clear()
        rows, entries = self.counters.tolist()
        self._known, self._ids_then = (rows, entries), self._ids
        return self._known

    def came(self, num_ids: int) -> None:
        """So many ids were inserted; on a GPU, has the counters copied once the device gets there."""
        self._ids += num_ids
        if not self.counters.is_cuda:
            self.exact()
        elif len(self._flight) < _FLIGHT:
            copy = torch.empty(2, dtype=torch.int64, pin_memory=True)
            copy.copy_(self.counters, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._flight.append((event, copy, self._ids))

    def _take_up(self) -> None:
        while self._flight and self._flight[0][0].query():
            _, copy, self._ids_then = self._flight.popleft()
            rows, entries = copy.tolist()
            self._known = (rows, entries)
