"""`JaggedBatch`: rows of the samples table as tensors, without padding.

One dataclass from the encoder to the model, for training, evaluation and serving. Values of a group lie end
to end, feature by feature, so that a batch is twelve tensors however many features a dataset declares.

Legend: B rows, P, S, R, C tokens of a group over all rows (P = B for the profile), F features.
"""
# ruff: noqa: N806 (names carry their shape)

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spark_jobs.contract.features import Group

SEQUENCES = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)


@dataclass(frozen=True, kw_only=True)
class JaggedBatch:
    """Rows as jagged tensors.

    Attributes:
        ids: By group, int64 `[F_ids, tokens]`: hashed ids and categories, of which tables make rows.
        numbers: By group, float32 `[F_numbers, tokens]`: transformed numbers; NaN is "nothing known".
        lengths: By sequence group, int64 `[B]`.
        realtime_visible: int32 `[R]`: R tokens of the row strictly earlier than this one.
        candidate_visible: int32 `[C]`: R tokens of the row strictly earlier than this candidate.
        labels: float32 `[2, C]`: click, conversion (zero where a request has none yet).
        weights: float32 `[C]`: how many impressions a candidate stands for; 1 where nothing was sampled.
        frozen_numbers: float32 `[F_numbers of candidates]`: what replaces a candidate's number while the
            real-time state is frozen; infinity where the number stays.
    """

    ids: dict[Group, Tensor]
    numbers: dict[Group, Tensor]
    lengths: dict[Group, Tensor]
    realtime_visible: Tensor
    candidate_visible: Tensor
    labels: Tensor
    weights: Tensor
    frozen_numbers: Tensor

    @property
    def num_rows(self) -> int:
        """Rows B."""
        return int(self.lengths[Group.CANDIDATE].shape[0])

    @property
    def num_candidates(self) -> int:
        """Candidates of all rows."""
        return int(self.candidate_visible.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.labels.device

    @property
    def num_profile(self) -> int:
        """Profile tokens of a row: one a feature."""
        return self.ids[Group.PROFILE].shape[0] + self.numbers[Group.PROFILE].shape[0]

    def tokens_B(self) -> Tensor:  # noqa: N802
        """Tokens of each row, int64 `[B]`: profile features and the three sequences."""
        total: Tensor = sum(self.lengths.values(), torch.zeros_like(self.lengths[Group.CANDIDATE]))
        return total + self.num_profile

    def weights_B(self) -> Tensor:  # noqa: N802
        """Sum of the candidates' weights of each row, float64 `[B]`."""
        ends_B = self.lengths[Group.CANDIDATE].cumsum(0)
        summed = torch.cat([self.weights.new_zeros(1, dtype=torch.float64), self.weights.double().cumsum(0)])
        return summed[ends_B] - summed[ends_B - self.lengths[Group.CANDIDATE]]

    def num_candidates_B(self) -> Tensor:  # noqa: N802
        """Candidates of each row, int64 `[B]`."""
        return self.lengths[Group.CANDIDATE]

    def _map(self, change: Callable[[Tensor], Tensor]) -> JaggedBatch:
        return JaggedBatch(
            ids={group: change(tensor) for group, tensor in self.ids.items()},
            numbers={group: change(tensor) for group, tensor in self.numbers.items()},
            lengths={group: change(tensor) for group, tensor in self.lengths.items()},
            realtime_visible=change(self.realtime_visible),
            candidate_visible=change(self.candidate_visible),
            labels=change(self.labels),
            weights=change(self.weights),
            frozen_numbers=change(self.frozen_numbers),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> JaggedBatch:
        """This batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> JaggedBatch:
        """This batch in page-locked memory, from which a copy to the GPU can overlap with computing."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tells the allocator that `stream` uses the tensors, so that none is freed under it."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def select(self, rows_N: Tensor) -> JaggedBatch:  # noqa: N803
        """The given rows, in the given order: int64 `[N]` of row numbers."""
        place = {
            group: ragged_index(lengths_B, lengths_B.cumsum(0) - lengths_B, rows_N)
            for group, lengths_B in self.lengths.items()
        } | {Group.PROFILE: rows_N}
        return JaggedBatch(
            ids={group: tensor[:, place[group]] for group, tensor in self.ids.items()},
            numbers={group: tensor[:, place[group]] for group, tensor in self.numbers.items()},
            lengths={group: lengths_B[rows_N] for group, lengths_B in self.lengths.items()},
            realtime_visible=self.realtime_visible[place[Group.REALTIME]],
            candidate_visible=self.candidate_visible[place[Group.CANDIDATE]],
            labels=self.labels[:, place[Group.CANDIDATE]],
            weights=self.weights[place[Group.CANDIDATE]],
            frozen_numbers=self.frozen_numbers,
        )

    def frozen(self, rows_B: Tensor | None = None) -> JaggedBatch:  # noqa: N803
        """This batch with the real-time state frozen at the window's start.

        Candidates see no real-time token, and real-time statistics take their empty values, so that no
        candidate of a window knows a label that another does not.

        Args:
            rows_B: bool `[B]`, the rows to freeze; all by default.
        """
        if rows_B is None:
            rows_B = torch.ones(self.num_rows, dtype=torch.bool, device=self.device)
        frozen_C = rows_B.repeat_interleave(self.lengths[Group.CANDIDATE])
        replaced_FC = ~self.frozen_numbers.isinf().unsqueeze(1) & frozen_C
        numbers = torch.where(replaced_FC, self.frozen_numbers.unsqueeze(1), self.numbers[Group.CANDIDATE])
        return dataclasses.replace(
            self,
            numbers={**self.numbers, Group.CANDIDATE: numbers},
            candidate_visible=self.candidate_visible.masked_fill(frozen_C, 0),
        )


def ragged_index(lengths_B: Tensor, starts_B: Tensor, rows_N: Tensor) -> Tensor:  # noqa: N803
    """Positions of all tokens of the given rows, row after row: int64 `[sum of lengths]`."""
    lengths_N = lengths_B[rows_N]
    ends_N = lengths_N.cumsum(0)
    shift_N = starts_B[rows_N] - (ends_N - lengths_N)
    total = int(ends_N[-1]) if len(rows_N) else 0
    return torch.arange(total, device=lengths_B.device) + shift_N.repeat_interleave(lengths_N)


def token_cuts(tokens: Tensor, target: int) -> list[int]:
    """Ends of runs of rows, each cut where its cumulative tokens are nearest `target` (at least one row)."""
    # Row i ends at token ends[i]. A step wants to end at token `done + target`; `place` is the first row that
    # ends there or beyond, so the cut goes after this row or, where that is nearer, after the one before. The
    # next step counts from where this one ended, not from where it should have: errors do not add up, and the
    # cuts depend on the rows alone, not on how many ranks share a step.
    ends = tokens.cumsum(0)
    cuts: list[int] = []
    done = 0
    while (first := cuts[-1] if cuts else 0) < len(tokens):
        place = int(torch.searchsorted(ends, done + target))
        if place < len(ends) and place > first:  # the first row of a step stays, however long it is
            over, under = int(ends[place]) - done - target, target + done - int(ends[place - 1])
            place -= int(under <= over)
        cuts.append(min(max(place, first) + 1, len(tokens)))
        done = int(ends[cuts[-1] - 1])
    return cuts
