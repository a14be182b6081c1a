"""Requests side by side in one page-locked buffer of a fixed size: what one copy takes to a GPU.

Nothing is gathered on the way: the arrays that the encoder has made are written to their places.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.data.batch import JaggedBatch
from model.data.encoder import mix64
from model.serving import kernels
from model.serving.columns import SIDES, Columns
from spark_jobs.contract.features import Group

_ALIGNMENT = 64
Array = npt.NDArray[Any]


class Part(enum.Enum):
    """Which tokens of a request are computed."""

    WHOLE = "whole"  # all
    PREFIX = "prefix"  # profile and static behaviours, whose keys and values are kept
    REST = "rest"  # real-time behaviours and candidates, which see what was kept


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """How many requests, and tokens of all of them, a buffer has room for.

    Attributes:
        rows: Requests.
        static: Static behaviours.
        realtime: Real-time behaviours.
        candidates: Candidates.
    """

    rows: int
    static: int
    realtime: int
    candidates: int

    def places(self, part: Part) -> tuple[int, int, int]:
        """Requests, behaviours and candidates of a part of the tokens."""
        behaviours = (part is not Part.REST) * self.static + (part is not Part.PREFIX) * self.realtime
        return self.rows, behaviours, (part is not Part.PREFIX) * self.candidates

    def fits(self, other: Bucket, part: Part) -> bool:
        """Whether a part of its tokens finds room in `other`."""
        return all(map(operator.le, self.places(part), other.places(part)))


def needed(batch: JaggedBatch) -> Bucket:
    """The least bucket for a batch."""
    static, realtime, candidates = (
        batch.ids[group].shape[1] for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
    )
    return Bucket(rows=batch.num_rows, static=static, realtime=realtime, candidates=candidates)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Leading tokens of a request in the cache.

    Attributes:
        pages: Where they lie, in order.
        length: How many there are.
    """

    pages: tuple[int, ...]
    length: int


class RequestBuffer:
    """The buffer of one bucket.

    Args:
        columns: Of the model.
        bucket: Room.
        part: Which tokens it takes.
        max_pages: Most pages of a request's prefix; 0 without a cache.
        pin: Whether to lock its pages.

    Attributes:
        storage: uint8, the whole buffer.
        room: Places by side: of requests, of behaviours, of candidates.
        num_tokens: Tokens that all places make.
        spans: By name, dtype, shape and first byte of what lies in it.
    """

    def __init__(
        self, columns: Columns, bucket: Bucket, part: Part, *, max_pages: int = 0, pin: bool = False
    ) -> None:
        self.columns, self.bucket, self.part = columns, bucket, part
        self.profile_tokens = 0 if part is Part.REST else columns.profile_tokens
        rows, behaviours, candidates = bucket.places(part)
        self.room = {
            Group.PROFILE: 0 if part is Part.REST else rows,
            Group.STATIC: behaviours,
            Group.CANDIDATE: candidates,
        }
        self.num_tokens = self.room[Group.PROFILE] * columns.profile_tokens + behaviours + candidates
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "facts": (torch.int32, (kernels.NUM_FACTS, rows + 2)),
            "pages": (torch.int32, (rows, max(max_pages, 1))),
            "visible_b": (torch.int32, (behaviours,)),
            "visible_c": (torch.int32, (candidates,)),
            "ids": (torch.int64, (sum(self.room[side] * columns.features[side] for side in SIDES),)),
            "numbers": (torch.float32, (sum(self.room[side] * columns.num_numbers[side] for side in SIDES),)),
        }
        self.spans: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        size = 0
        for name, (dtype, shape) in shapes.items():
            self.spans[name] = (dtype, shape, size)
            size += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self.storage = torch.zeros(size, dtype=torch.uint8, pin_memory=pin)
        self._views = {name: view.numpy() for name, view in self.views(self.storage).items()}
        self._sides = {
            side: (
                self._block("ids", columns.features, side),
                self._block("numbers", columns.num_numbers, side),
            )
            for side in SIDES
        }

    def views(self, storage: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views by name of a buffer laid out like this one."""
        views = {}
        for name, (dtype, shape, first) in self.spans.items():
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            views[name] = storage[first : first + num_bytes].view(dtype).view(shape)
        return views

    def fill(self, batch: JaggedBatch, prefixes: Sequence[Prefix] | None = None) -> None:
        """Writes a part of the requests' tokens; nothing waits, and the copy before must be done.

        Args:
            batch: The requests, on the CPU, no more than the bucket has room for.
            prefixes: Of each request, where its leading tokens are kept; needed but for whole requests.

        Raises:
            ValueError: They do not fit the bucket.
        """
        size = needed(batch)
        if not size.fits(self.bucket, self.part):
            raise ValueError(f"requests of {size} do not fit into {self.bucket}")
        num_static = self._write_facts(batch, prefixes)
        for side in SIDES:
            for group, first in _groups(side, self.part, num_static):
                self._write_side(batch, side, group, first)
        realtime_end = num_static + len(batch.realtime_visible)
        if self.part is not Part.PREFIX:
            self._views["visible_b"][num_static:realtime_end] = batch.realtime_visible.numpy()
            self._views["visible_c"][: batch.num_candidates] = batch.candidate_visible.numpy()

    def _write_facts(self, batch: JaggedBatch, prefixes: Sequence[Prefix] | None) -> int:
        """Writes what is a number of a request; returns the first place of real-time behaviours."""
        static, realtime, candidates = (
            batch.lengths[group].tolist() for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
        )
        has_static, has_rest = self.part is not Part.REST, self.part is not Part.PREFIX
        num_static = sum(static) if has_static else 0
        end, of_static, of_realtime, of_candidate = 0, 0, num_static if has_rest else 0, 0
        columns = []
        for row in range(batch.num_rows):
            cached = prefixes[row].length if prefixes is not None and not has_static else 0
            lengths = static[row] * has_static, realtime[row] * has_rest, candidates[row] * has_rest
            base = cached or self.columns.profile_tokens + static[row]
            columns.append((end, *lengths, base, of_static, of_realtime, of_candidate, cached))
            end += self.profile_tokens + sum(lengths)
            of_static += lengths[0]
            of_realtime += lengths[1]
            of_candidate += lengths[2]
            if prefixes is not None:
                self._views["pages"][row, : len(prefixes[row].pages)] = prefixes[row].pages
        last = (0, 0, 0, 0, of_static, of_realtime, of_candidate, 0)
        columns += [(end, *last)] * (self.bucket.rows + 1 - batch.num_rows)
        columns.append((self.num_tokens, *last))  # places that are left over are a row, too
        self._views["facts"][:] = np.array(columns, np.int32).T
        return num_static

    def _write_side(self, batch: JaggedBatch, side: Group, group: Group, first: int) -> None:
        ids = batch.ids[group].numpy()
        last = first + ids.shape[1]
        to_ids, to_numbers = self._sides[side]
        to_ids[:, first:last] = ids
        places, rows = self.columns.hashed[side]
        if len(places):
            to_ids[places, first:last] = (mix64(ids[places]) % rows).astype(np.int64)
        to_numbers[:, first:last] = batch.numbers[group].numpy()

    def _block(self, name: str, counts: dict[Group, int], side: Group) -> Array:
        """View `[features, places]` of a side's ids or numbers."""
        first, room = self.first(counts, side), self.room[side]
        block: Array = self._views[name][first : first + counts[side] * room].reshape(counts[side], room)
        return block

    def first(self, counts: dict[Group, int], side: Group) -> int:
        """First place of a side's values, of which each place has `counts`."""
        return sum(self.room[other] * counts[other] for other in SIDES[: SIDES.index(side)])


def _groups(side: Group, part: Part, num_static: int) -> list[tuple[Group, int]]:
    """Groups of a side that a part takes, with the first place of each."""
    if side is Group.PROFILE:
        return [] if part is Part.REST else [(side, 0)]
    if side is Group.CANDIDATE:
        return [] if part is Part.PREFIX else [(side, 0)]
    static = [] if part is Part.REST else [(Group.STATIC, 0)]
    return static + ([] if part is Part.PREFIX else [(Group.REALTIME, num_static)])
