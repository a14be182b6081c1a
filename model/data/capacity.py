"""Room for batches: a few sizes that stand for all, so that what is captured once runs for many batches.

A CUDA graph replays kernels on fixed shapes. A batch is padded to the next size: its rows end in one row
of padding that nothing sees and that has no candidate with a weight, so that losses and gradients stay the
same.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from model.data.batch import SEQUENCES, JaggedBatch
from model.data.layout import Sizes

_MOST_PADDING = 0.06  # of a batch's tokens: above it a size of its own pays
_STEPS_AN_OCTAVE = 16  # sizes between T and 2 T
# For the tokens of a group, beyond those of a batch that finds no room: of these, and of all tokens.
_ROOM, _ROOM_OF_ALL = 0.1, 0.04


@dataclass(kw_only=True)
class Capacities:
    """The sizes that batches are padded to; grows with the batches it sees.

    Args:
        batch_tokens: Tokens of a usual batch.
    """

    batch_tokens: int

    def __post_init__(self) -> None:
        # Batches are cut at the nearest row: half of them end below their share, half above it.
        self._tokens = [round_up(int(share * self.batch_tokens), 128) for share in (1.001, 1.01)]
        self._groups: dict[int, Sizes] = {}

    def of(self, batch: JaggedBatch) -> Sizes:
        """The sizes for a batch, all greater than its own: there is room for one of padding in each."""
        needed = sizes_of(batch)
        places = range(bisect_left(self._tokens, needed.tokens + 1), len(self._tokens))
        near = [n for n in (self._tokens[k] for k in places) if n <= (1 + _MOST_PADDING) * needed.tokens]
        for tokens in near:
            if tokens in self._groups and needed.fits(self._groups[tokens]):
                return self._groups[tokens]
        tokens = near[0] if near else self._new(max(1, needed.tokens))
        rows = round_up(int((1 + _ROOM) * needed.rows) + 1, 4)
        groups = {
            group: round_up(int((1 + _ROOM) * n + _ROOM_OF_ALL * tokens) + 1, 64)
            for group, n in needed.groups.items()
        }
        before = self._groups.get(tokens)
        if before is not None:
            rows = max(rows, before.rows)
            groups = {group: max(n, before.groups[group]) for group, n in groups.items()}
        self._groups[tokens] = Sizes(rows=rows, groups=groups, tokens=tokens)
        return self._groups[tokens]

    def _new(self, tokens: int) -> int:
        """A token count somewhat above `tokens`, taken up among those that there are."""
        step = max(64, (1 << (tokens.bit_length() - 1)) // _STEPS_AN_OCTAVE)
        count = round_up(tokens + 1, step)
        if count not in self._tokens:
            self._tokens.insert(bisect_left(self._tokens, count), count)
        return count


def sizes_of(batch: JaggedBatch) -> Sizes:
    """What a batch has."""
    groups = {group: batch.ids[group].shape[1] for group in SEQUENCES}
    return Sizes(rows=batch.num_rows, groups=groups, tokens=batch.num_tokens)


def round_up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step
