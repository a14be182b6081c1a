"""`JaggedBatch`: rows of the samples table as tensors, without padding.

One dataclass from the encoder to the model, for training, evaluation and serving. Values of a group lie end
to end, feature by feature, so that a batch is some fifteen tensors however many features a dataset declares.
`packed` puts them, and the layout that was made with them on the CPU, into one buffer: what goes to a GPU
goes in one copy out of page-locked memory, and the tensors are views of it there.

Legend: B rows, P, S, R, C tokens of a group over all rows (P = B for the profile), F features.
"""
# ruff: noqa: N806 (names carry their shape)

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.data.layout import Layout, Sizes, layout, padded
from spark_jobs.contract.features import Group

SEQUENCES = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
_ALIGNMENT = 64  # bytes: of every tensor in a buffer
_LAYOUT = ("offsets", "group", "visible_end", "source", "candidates")


@dataclass(frozen=True, kw_only=True)
class JaggedBatch:
    """Rows as jagged tensors.

    Attributes:
        ids: By group, int64 `[F_ids, tokens]`: raw ids and categories.
        numbers: By group, float32 `[F_numbers, tokens]`: transformed numbers; NaN is "nothing known".
        lengths: By sequence group, int64 `[B]`.
        realtime_visible: int32 `[R]`: R tokens of the row strictly earlier than this one.
        candidate_visible: int32 `[C]`: R tokens of the row strictly earlier than this candidate.
        labels: float32 `[2, C]`: click, conversion (zero where a request has none yet).
        weights: float32 `[C]`: how many impressions a candidate stands for; 1 where nothing was sampled.
        frozen_numbers: float32 `[F_numbers of candidates]`: what replaces a candidate's number while the
            real-time state is frozen; infinity where the number stays.
        layouts: Where the tokens lie, one for each run of rows that is computed at once; none until
            `laid_out`.
        room: What the tensors of `_fixed_tensors` are padded to; None: nothing is.
        storage: uint8, the buffer whose views all tensors are; None until `packed`.
    """

    ids: dict[Group, Tensor]
    numbers: dict[Group, Tensor]
    lengths: dict[Group, Tensor]
    realtime_visible: Tensor
    candidate_visible: Tensor
    labels: Tensor
    weights: Tensor
    frozen_numbers: Tensor
    layouts: tuple[Layout, ...] = ()
    room: Sizes | None = None
    storage: Tensor | None = None

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

    def pairs_B(self) -> Tensor:  # noqa: N802
        """Pairs of tokens of each row of which one sees the other, itself included, int64 `[B]`."""
        static_B = self.lengths[Group.STATIC] + self.num_profile
        pairs_B = static_B * static_B
        for group, visible in (
            (Group.REALTIME, self.realtime_visible),
            (Group.CANDIDATE, self.candidate_visible),
        ):
            lengths_B = self.lengths[group]
            ends_B = lengths_B.cumsum(0)
            summed = torch.cat([visible.new_zeros(1, dtype=torch.int64), visible.cumsum(0)])
            pairs_B = pairs_B + lengths_B * (static_B + 1) + summed[ends_B] - summed[ends_B - lengths_B]
        return pairs_B

    def num_candidates_B(self) -> Tensor:  # noqa: N802
        """Candidates of each row, int64 `[B]`."""
        return self.lengths[Group.CANDIDATE]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, the profile's among them."""
        sequences = (tensor.shape[1] for group, tensor in self.ids.items() if group is not Group.PROFILE)
        return int(sum(sequences) + self.num_profile * self.num_rows)

    def layout(self) -> Layout:
        """The layout of all rows: the one made by `laid_out`, or else one that is made now."""
        if len(self.layouts) > 1:
            raise ValueError(f"the batch is laid out in {len(self.layouts)} parts: take one of `parts`")
        return self.layouts[0] if self.layouts else layout(self)

    def laid_out(self, num_parts: int = 1) -> JaggedBatch:
        """This batch with its layout, in runs of rows of about equal tokens."""
        ends = token_shares(self.tokens_B(), num_parts)
        return dataclasses.replace(
            self, layouts=tuple(layout(self, *run) for run in itertools.pairwise([0, *ends]))
        )

    def padded(self, room: Sizes) -> JaggedBatch:
        """This batch, laid out as one part, with what the dense part of a model reads padded to `room`.

        Ids and lengths stay those of the real rows: padding is looked up nowhere.
        """
        (where,) = self.layouts
        widths = {Group.PROFILE: room.rows, **room.groups}

        def wider(values: Tensor, group: Group) -> Tensor:
            return nn.functional.pad(values, (0, widths[group] - values.shape[-1]))

        return dataclasses.replace(
            self,
            numbers={group: wider(tensor, group) for group, tensor in self.numbers.items()},
            labels=wider(self.labels, Group.CANDIDATE),
            weights=wider(self.weights, Group.CANDIDATE),
            layouts=(padded(where, room, self.num_profile),),
            room=room,
            storage=None,
        )

    def fixed_views(self, storage: Tensor) -> JaggedBatch:
        """This batch with its fixed tensors in `storage`, as it lay in the leading bytes of its own."""
        fixed = self._fixed_tensors()
        return self._of([*_views(storage, fixed), *self._tensors()[len(fixed) :]], None)

    @property
    def fixed_bytes(self) -> int:
        """Leading bytes of `storage` that hold what is padded: of equal shapes for batches of one room."""
        return sum(map(_aligned_bytes, self._fixed_tensors()))

    def parts(self) -> list[JaggedBatch]:
        """The runs of rows by which it was laid out, each as a batch of views."""
        return [self] if len(self.layouts) == 1 else [self._part(where) for where in self.layouts]

    def _part(self, where: Layout) -> JaggedBatch:
        of = {group: slice(*bounds) for group, bounds in where.places.items()}
        rows = slice(*where.rows)
        return JaggedBatch(
            ids={group: tensor[:, of[group]] for group, tensor in self.ids.items()},
            numbers={group: tensor[:, of[group]] for group, tensor in self.numbers.items()},
            lengths={group: lengths_B[rows] for group, lengths_B in self.lengths.items()},
            realtime_visible=self.realtime_visible[of[Group.REALTIME]],
            candidate_visible=self.candidate_visible[of[Group.CANDIDATE]],
            labels=self.labels[:, of[Group.CANDIDATE]],
            weights=self.weights[of[Group.CANDIDATE]],
            frozen_numbers=self.frozen_numbers,
            layouts=(where,),
        )

    def _fixed_tensors(self) -> list[Tensor]:
        return [
            *self.numbers.values(),
            self.labels,
            self.weights,
            *(getattr(where, name) for where in self.layouts for name in _LAYOUT),
        ]

    def _tensors(self) -> list[Tensor]:
        return [
            *self._fixed_tensors(),
            *self.ids.values(),
            *self.lengths.values(),
            self.realtime_visible,
            self.candidate_visible,
            self.frozen_numbers,
        ]

    def _of(self, tensors: Sequence[Tensor], storage: Tensor | None) -> JaggedBatch:
        """This batch with other tensors, in the order of `_tensors`."""
        rest = iter(tensors)
        return JaggedBatch(  # keyword arguments are evaluated in this order
            numbers={group: next(rest) for group in self.numbers},
            labels=next(rest),
            weights=next(rest),
            layouts=tuple(_replaced(where, rest) for where in self.layouts),
            ids={group: next(rest) for group in self.ids},
            lengths={group: next(rest) for group in self.lengths},
            realtime_visible=next(rest),
            candidate_visible=next(rest),
            frozen_numbers=next(rest),
            room=self.room,
            storage=storage,
        )

    def packed(self, *, pin: bool = False) -> JaggedBatch:
        """This batch in one buffer, page-locked for copies to a GPU that nothing waits for."""
        tensors = self._tensors()
        size = sum(_aligned_bytes(tensor) for tensor in tensors)
        storage = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        views = _views(storage, tensors)
        for view, tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)
        return self._of(views, storage)

    def to(self, device: torch.device | str) -> JaggedBatch:
        """This batch on `device`: as it is if it is there, else by one copy, unwaited for if page-locked."""
        if self.device == torch.device(device):
            return self
        packed = self if self.storage is not None else self.packed()
        assert packed.storage is not None
        storage = packed.storage.to(device, non_blocking=packed.storage.is_pinned())
        return packed._of(_views(storage, packed._tensors()), storage)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tells the allocator that `stream` uses a batch of one buffer, so that it is not freed under it."""
        assert self.storage is not None
        self.storage.record_stream(stream)

    @staticmethod
    def joined(batches: Sequence[JaggedBatch]) -> JaggedBatch:
        """The rows of several batches of one dataset, one after the other."""
        if len(batches) == 1:
            return batches[0]
        first = batches[0]
        joined = [
            torch.cat(parts, dim=-1)
            for parts in zip(*(batch._tensors()[:-1] for batch in batches), strict=True)
        ]
        return dataclasses.replace(first, layouts=(), storage=None)._of([*joined, first.frozen_numbers], None)

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
        lengths_B = self.lengths[Group.CANDIDATE]
        frozen_C = rows_B.repeat_interleave(lengths_B, output_size=self.num_candidates)
        replaced_FC = ~self.frozen_numbers.isinf().unsqueeze(1) & frozen_C
        numbers = torch.where(replaced_FC, self.frozen_numbers.unsqueeze(1), self.numbers[Group.CANDIDATE])
        return dataclasses.replace(
            self,
            numbers={**self.numbers, Group.CANDIDATE: numbers},
            candidate_visible=self.candidate_visible.masked_fill(frozen_C, 0),
            layouts=(),
            storage=None,
        )


def ragged_index(lengths_B: Tensor, starts_B: Tensor, rows_N: Tensor) -> Tensor:  # noqa: N803
    """Positions of all tokens of the given rows, row after row: int64 `[sum of lengths]`."""
    lengths_N = lengths_B[rows_N]
    ends_N = lengths_N.cumsum(0)
    shift_N = starts_B[rows_N] - (ends_N - lengths_N)
    total = int(ends_N[-1]) if len(rows_N) else 0
    return torch.arange(total, device=lengths_B.device) + shift_N.repeat_interleave(lengths_N)


def _replaced(where: Layout, tensors: Iterator[Tensor]) -> Layout:
    values: dict[str, Any] = {name: next(tensors) for name in _LAYOUT}
    return dataclasses.replace(where, **values)


def _aligned_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes in a buffer."""
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def _views(storage: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of a buffer, in the shapes and dtypes of `tensors`, one behind the other."""
    views, first = [], 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        views.append(storage[first : first + size].view(tensor.dtype).view(tensor.shape))
        first += _aligned_bytes(tensor)
    return views


def nearest_cut(ends: npt.NDArray[np.float64], target: float, first: int = 0) -> int:
    """How many rows, from row `first` on, cost in sum what is nearest `target`; at least one.

    Args:
        ends: Cumulative cost of the rows, that of all before `first` included.
        target: What a run of rows should cost.
        first: Where the run starts.
    """
    done = float(ends[first - 1]) if first else 0.0
    place = int(np.searchsorted(ends, done + target))
    if place == len(ends):
        return place - first
    if place > first:  # the first row stays, however much it costs
        over, under = ends[place] - done - target, target + done - ends[place - 1]
        place -= int(under <= over)
    return place + 1 - first


def token_cuts(tokens: Tensor, target: int) -> list[int]:
    """Ends of runs of rows, each cut where its cumulative tokens are nearest `target` (at least one row)."""
    # Each run counts from where the one before ended, not from where it should have: errors do not add up.
    ends = tokens.cumsum(0).double().numpy()
    cuts = [0]
    while cuts[-1] < len(ends):
        cuts.append(cuts[-1] + nearest_cut(ends, target, cuts[-1]))
    return cuts[1:]


def token_shares(tokens: Tensor, num_parts: int) -> list[int]:
    """Ends of `num_parts` runs of rows of about equal tokens: a row falls to where its middle token lies."""
    ends = tokens.cumsum(0).double()
    middles = ends - tokens / 2
    total = ends[-1] if len(ends) else ends.new_zeros(())
    bounds = total * torch.arange(1, num_parts, dtype=torch.float64) / num_parts
    return [*torch.searchsorted(middles, bounds).tolist(), len(tokens)]
