"""Where the tokens of a batch lie, and the dynamic mask as visibility counts (arXiv 2505.18654, 3.2)."""
# ruff: noqa: N806 (names carry their shape: B rows, T tokens, N heads, D width, G groups)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spark_jobs.contract.features import Group

if TYPE_CHECKING:
    from model.data.batch import JaggedBatch

GROUPS = tuple(Group)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much a batch has, or has room for.

    Attributes:
        rows: Rows B.
        groups: Tokens of each sequence group over all rows.
        tokens: Tokens T of all rows, the profile's among them.
    """

    rows: int
    groups: Mapping[Group, int]
    tokens: int

    def __hash__(self) -> int:
        return hash((self.rows, tuple(self.groups.values()), self.tokens))

    def fits(self, room: Sizes) -> bool:
        """Whether all of it is below `room`, so that padding has a place everywhere."""
        return (
            self.rows < room.rows
            and self.tokens < room.tokens
            and all(number < room.groups[group] for group, number in self.groups.items())
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens of a batch, or of a run of its rows, lie: profile, static, real-time, candidates.

    What is a number here is known without a look at a tensor: nothing that asks for it waits for a device.

    Attributes:
        offsets: int32 `[B + 1]`, where each row starts.
        group: int32 `[T]`, index of each token's group in `GROUPS`.
        visible_end: int32 `[T]`, leading tokens of its own row that a token sees, beside itself.
        source: int64 `[T]`, each token's place in the groups laid one after the other.
        candidates: int64 `[C]`, places of the candidates in T.
        rows: First row in the batch, and the one after the last.
        places: By group, the first token in the batch's tensors and the one after the last (profile: rows).
        longest: By group, tokens of the row that has most of them.
        num_pairs: Pairs of tokens of which one sees the other, itself included: what attention must compute.
    """

    offsets: Tensor
    group: Tensor
    visible_end: Tensor
    source: Tensor
    candidates: Tensor
    rows: tuple[int, int]
    places: Mapping[Group, tuple[int, int]]
    longest: Mapping[Group, int]
    num_pairs: int

    @property
    def num_tokens(self) -> int:
        """Tokens T."""
        return int(self.group.shape[0])


def layout(batch: JaggedBatch, first: int = 0, end: int | None = None) -> Layout:
    """Lays the tokens of a run of rows out and draws the dynamic mask as visibility counts (3.2).

    Profile and static tokens see all static ones; a real-time token and a candidate see these and the
    real-time tokens strictly earlier than themselves. Real-time tokens lie oldest first, so that what token
    i sees is `[0, visible_end[i])` and itself. Made where the batch is, which for training is the CPU: on a
    GPU it waits for the device.

    Args:
        batch: The rows.
        first: First row.
        end: The row after the last; by default all from `first` on.
    """
    device = batch.device
    end = batch.num_rows if end is None else end
    places = _places(batch, first, end)
    lengths_B = batch.lengths[Group.CANDIDATE][first:end]
    num_rows = end - first
    profile_B = torch.full_like(lengths_B, batch.num_profile)
    lengths_GB = torch.stack([profile_B, *(batch.lengths[group][first:end] for group in GROUPS[1:])])
    ends_B = lengths_GB.sum(0).cumsum(0)
    offsets_B1 = torch.cat([ends_B.new_zeros(1), ends_B])
    # The tokens of (row, group) are a run of T; the groups laid end to end are G runs of rows.
    runs = lengths_GB.t().flatten()
    total = int(offsets_B1[-1])
    group_T = torch.arange(len(GROUPS), device=device).repeat(num_rows)
    group_T = group_T.repeat_interleave(runs, output_size=total)
    starts_GB = (lengths_GB.flatten().cumsum(0) - lengths_GB.flatten()).view_as(lengths_GB)
    shift = starts_GB.t().flatten() - (runs.cumsum(0) - runs)
    source_T = torch.arange(total, device=device) + shift.repeat_interleave(runs, output_size=total)
    num_static_B = lengths_GB[0] + lengths_GB[1]
    of_realtime, of_candidates = (slice(*places[group]) for group in (Group.REALTIME, Group.CANDIDATE))
    visible = torch.cat(
        [
            num_static_B.new_zeros(int(num_static_B.sum())),
            batch.realtime_visible[of_realtime],
            batch.candidate_visible[of_candidates],
        ]
    )
    row_T = torch.arange(num_rows, device=device).repeat_interleave(lengths_GB.sum(0), output_size=total)
    visible_end_T = num_static_B[row_T] + visible[source_T]
    sees_itself = lengths_GB[2:].sum()  # static tokens count themselves among the static ones
    return Layout(
        offsets=offsets_B1.int(),
        group=group_T.int(),
        visible_end=visible_end_T.int(),
        source=source_T,
        candidates=(group_T == GROUPS.index(Group.CANDIDATE)).nonzero().flatten(),
        rows=(first, end),
        places=places,
        longest={
            group: int(lengths.max()) if num_rows else 0
            for group, lengths in zip(GROUPS, lengths_GB, strict=True)
        },
        num_pairs=int(visible_end_T.sum() + sees_itself),
    )


def padded(where: Layout, sizes: Sizes, num_profile: int) -> Layout:
    """The layout of a whole batch, padded to `sizes`; what is a number stays that of the real rows.

    The tokens behind the last row are one more row, of candidates that see only themselves; rows behind that
    one are empty. All padding is read from the last place of the last group, and candidates without a token
    from the last token: what goes back there is zero.

    Args:
        where: Of all rows of a batch.
        sizes: More of everything than the batch has.
        num_profile: Profile tokens of a row.
    """
    tokens = sizes.tokens
    room = [sizes.rows * num_profile, *(sizes.groups[group] for group in GROUPS[1:])]
    used = [end - first for first, end in where.places.values()]
    used[0] *= num_profile
    behind = torch.tensor(room[:-1]).cumsum(0) - torch.tensor(used[:-1]).cumsum(0)
    shift_G = torch.cat([behind.new_zeros(1), behind])
    candidates = where.candidates
    return dataclasses.replace(
        where,
        offsets=_padded(where.offsets, sizes.rows + 1, tokens),
        group=_padded(where.group, tokens, GROUPS.index(Group.CANDIDATE)),
        visible_end=_padded(where.visible_end, tokens, 0),
        source=_padded(where.source + shift_G[where.group.long()], tokens, sum(room) - 1),
        candidates=_padded(candidates, sizes.groups[Group.CANDIDATE], tokens - 1),
    )


def _padded(values: Tensor, size: int, padding: int) -> Tensor:
    """Values `[size]`, those at the end `padding`."""
    return torch.nn.functional.pad(values, (0, size - values.shape[0]), value=padding)


def _places(batch: JaggedBatch, first: int, end: int) -> dict[Group, tuple[int, int]]:
    places = {Group.PROFILE: (first, end)}
    for group in GROUPS[1:]:
        before = int(batch.lengths[group][:first].sum())
        places[group] = (before, before + int(batch.lengths[group][first:end].sum()))
    return places
