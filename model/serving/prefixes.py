"""Keys and values that the leading tokens of requests have left in every block, in pages.

Profile and static behaviours are a prefix that no later token changes: what they become is the same for every
request of a user until the day's snapshot changes. Whoever asks gives a key of all that decides them. The
least recent go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from hstu_ops.triton_ops.inference import PAGE

from model.serving.collate import Prefix
from spark_jobs.contract.features import MAX_STATIC

_MAX_PROFILE = 256  # tokens
MAX_PAGES = -(-(MAX_STATIC + _MAX_PROFILE) // PAGE)  # of one prefix


@dataclass(kw_only=True)
class Counts:
    """What a cache has done: requests that found their prefix, that did not, prefixes that were put out."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class PrefixCache:
    """The cache of one model.

    Args:
        budget_bytes: Of keys and values.
        num_blocks: Blocks of the model.
        dim: Width of a token.
        dtype: Of keys and values.
        device: Where they lie.

    Attributes:
        memory: `[pages, blocks, 2, PAGE, dim]`.
        counts: What it has done.

    Raises:
        ValueError: The budget is less than a page.
    """

    def __init__(
        self, budget_bytes: int, *, num_blocks: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        page_bytes = num_blocks * 2 * PAGE * dim * dtype.itemsize
        num_pages = budget_bytes // page_bytes
        if num_pages < 1:
            raise ValueError(
                f"a prefix cache of {budget_bytes} bytes does not hold a page, which takes {page_bytes}"
            )
        self.memory = torch.zeros(num_pages, num_blocks, 2, PAGE, dim, dtype=dtype, device=device)
        self.counts = Counts()
        self._free = list(range(num_pages))
        self._held: OrderedDict[Hashable, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Prefix | None:
        """The prefix of a key, which is the most recent then; counted as a hit or a miss."""
        prefix = self._held.get(key)
        if prefix is None:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        self._held.move_to_end(key)
        return prefix

    def put(self, key: Hashable, length: int, keep: Iterable[Hashable] = ()) -> Prefix | None:
        """Makes room for a prefix, whose keys and values are then to be written.

        Args:
            key: Of the prefix; not held.
            length: Its tokens.
            keep: Keys that must not go for it.

        Returns:
            Where it lies; None if there is no room without those to be kept.
        """
        needed, kept = -(-length // PAGE), set(keep)
        leaving = []
        room = len(self._free)
        for other, prefix in self._held.items():
            if room >= needed:
                break
            if other not in kept:
                leaving.append(other)
                room += len(prefix.pages)
        if room < needed:
            return None
        for other in leaving:
            self._free += self._held.pop(other).pages
        self.counts.evictions += len(leaving)
        pages = tuple(self._free[len(self._free) - needed :])
        del self._free[len(self._free) - needed :]
        self._held[key] = Prefix(pages=pages, length=length)
        return self._held[key]

    def drop(self, key: Hashable) -> None:
        """Forgets a prefix, if it is held."""
        prefix = self._held.pop(key, None)
        if prefix is not None:
            self._free += prefix.pages

    def clear(self) -> None:
        """Forgets all, as when the day's snapshot has changed."""
        for key in list(self._held):
            self.drop(key)
