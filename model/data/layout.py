"""Where the tokens of a batch lie, and the dynamic mask as visibility counts (arXiv 2505.18654, 3.2)."""
# ruff: noqa: N806 (names carry their shape: B rows, T tokens, N heads, D width, G groups)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.batch import JaggedBatch
from spark_jobs.contract.features import Group

GROUPS = tuple(Group)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens of a batch lie, row by row: profile, static, real-time, candidates.

    Attributes:
        offsets: int32 `[B + 1]`, where each row starts.
        group: int32 `[T]`, index of each token's group in `GROUPS`.
        visible_end: int32 `[T]`, leading tokens of its own row that a token sees, beside itself.
        source: int64 `[T]`, each token's place in the groups laid one after the other.
        candidates: int64 `[C]`, places of the candidates in T.
    """

    offsets: Tensor
    group: Tensor
    visible_end: Tensor
    source: Tensor
    candidates: Tensor


def layout(batch: JaggedBatch) -> Layout:
    """Lays a batch's tokens out and draws the dynamic mask as visibility counts (3.2).

    Profile and static tokens see all static ones; a real-time token and a candidate see these and the
    real-time tokens strictly earlier than themselves. Real-time tokens lie oldest first, so that what token
    i sees is `[0, visible_end[i])` and itself.
    """
    device = batch.device
    profile_B = torch.full_like(batch.lengths[Group.CANDIDATE], batch.num_profile)
    lengths_GB = torch.stack([batch.lengths.get(group, profile_B) for group in GROUPS])
    ends_B = lengths_GB.sum(0).cumsum(0)
    offsets_B1 = torch.cat([ends_B.new_zeros(1), ends_B])
    # The tokens of (row, group) are a run of T; the groups laid end to end are G runs of rows.
    runs = lengths_GB.t().flatten()
    total = int(offsets_B1[-1])
    group_T = torch.arange(len(GROUPS), device=device).repeat(batch.num_rows)
    group_T = group_T.repeat_interleave(runs, output_size=total)
    starts_GB = (lengths_GB.flatten().cumsum(0) - lengths_GB.flatten()).view_as(lengths_GB)
    shift = starts_GB.t().flatten() - (runs.cumsum(0) - runs)
    source_T = torch.arange(total, device=device) + shift.repeat_interleave(runs, output_size=total)
    num_static_B = lengths_GB[0] + lengths_GB[1]
    visible = torch.cat(
        [
            num_static_B.new_zeros(int(num_static_B.sum())),
            batch.realtime_visible,
            batch.candidate_visible,
        ]
    )
    row_T = torch.arange(batch.num_rows, device=device).repeat_interleave(
        lengths_GB.sum(0), output_size=total
    )
    visible_end_T = num_static_B[row_T] + visible[source_T]
    return Layout(
        offsets=offsets_B1.int(),
        group=group_T.int(),
        visible_end=visible_end_T.int(),
        source=source_T,
        candidates=(group_T == GROUPS.index(Group.CANDIDATE)).nonzero().flatten(),
    )
