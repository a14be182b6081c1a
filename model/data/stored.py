"""Rows of the samples table in few arrays: a matrix a group and type, whose rows are the features.

A table has some hundred columns, and a single request pays for each of them by itself; what is checked and
transformed is therefore a matrix. A request that comes in binary has this form already.

    rows = StoredRows.of_table(dataset, table)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.data.batch import SEQUENCES
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind

LABELS = ("label_click", "label_conversion")
WEIGHT = "candidate_weight"
BEHAVIOURS = (Group.STATIC, Group.REALTIME)
COUNTED = (Group.REALTIME, Group.CANDIDATE)  # the groups with a column `visible`
Array = npt.NDArray[Any]


def id_features(dataset: Dataset, group: Group) -> tuple[FeatureSpec, ...]:
    """Features of a group that are looked up in an embedding table, in token order."""
    return tuple(feature for feature in dataset.in_group(group) if feature.kind is not Kind.NUMBER)


def number_features(dataset: Dataset, group: Group) -> tuple[FeatureSpec, ...]:
    """Features of a group that are numbers, in order."""
    return tuple(feature for feature in dataset.in_group(group) if feature.kind is Kind.NUMBER)


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows as the samples table stores them: B rows, T tokens of a group over all rows (profile: T = B).

    Attributes:
        users: int64 `[B]`, `user_id`.
        starts: int64 `[B]`, `window_start_ms`.
        lengths: By sequence group, int64 `[B]`.
        ids: By group, int64 `[F, T]`: its ids and categories, in declared order.
        numbers: By group, float32 `[F, T]`: its numbers as stored, in declared order.
        times: By group of behaviours, int64 `[T]`, `time_ms`.
        visible: By group of `COUNTED`, `[T]` of integers.
        labels: float32 `[2, C]`, zero where there are none.
        weights: float32 `[C]`; None where there are none.
        numbers_of: By which numbers errors name the rows, e.g. those in a file.
    """

    users: Array
    starts: Array
    lengths: Mapping[Group, Array]
    ids: Mapping[Group, Array]
    numbers: Mapping[Group, Array]
    times: Mapping[Group, Array]
    visible: Mapping[Group, Array]
    labels: Array
    weights: Array | None = None
    numbers_of: Sequence[int] | Array | None = None

    @property
    def num_rows(self) -> int:
        """Rows B."""
        return len(self.users)

    def name(self, row: int) -> str:
        """A row's number and user, for messages."""
        number = row if self.numbers_of is None else self.numbers_of[row]
        return f"{int(number)} (user {int(self.users[row])})"

    def check(self, group: Group, values: Array, is_valid: Array, column: str, wanted: str) -> None:
        """Raises ValueError naming the first value of a column that is not valid."""
        if not is_valid.all():
            at = int((~is_valid).argmax())
            row = (
                at
                if group is Group.PROFILE
                else int(np.searchsorted(self.lengths[group].cumsum(), at, "right"))
            )
            raise ValueError(f"column {column}, row {self.name(row)}: {values[at]} is not {wanted}")

    def latest(self, max_static: int) -> StoredRows:
        """These rows with the latest `max_static` static behaviours of each."""
        static = self.lengths[Group.STATIC]
        kept = np.minimum(static, max_static)
        if (kept == static).all():
            return self
        ends = static.cumsum()
        within = np.arange(ends[-1]) - np.repeat(ends - static, static)
        is_kept = within >= np.repeat(static - kept, static)

        def cut(arrays: Mapping[Group, Array]) -> dict[Group, Array]:
            return {**arrays, Group.STATIC: arrays[Group.STATIC][..., is_kept]}

        return dataclasses.replace(
            self,
            lengths={**self.lengths, Group.STATIC: kept},
            ids=cut(self.ids),
            numbers=cut(self.numbers),
            times=cut(self.times),
        )

    @staticmethod
    def joined(parts: Sequence[StoredRows]) -> StoredRows:
        """The rows of several requests, one after the other; they have no weights."""
        if len(parts) == 1:
            return parts[0]

        def joined(of: Callable[[StoredRows], Mapping[Group, Array]]) -> dict[Group, Array]:
            return {
                group: np.concatenate([of(part)[group] for part in parts], axis=-1) for group in of(parts[0])
            }

        return StoredRows(
            users=np.concatenate([part.users for part in parts]),
            starts=np.concatenate([part.starts for part in parts]),
            lengths=joined(lambda part: part.lengths),
            ids=joined(lambda part: part.ids),
            numbers=joined(lambda part: part.numbers),
            times=joined(lambda part: part.times),
            visible=joined(lambda part: part.visible),
            labels=np.concatenate([part.labels for part in parts], axis=-1),
        )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """By column names, what `StoredRows` are made of."""

    ids: Mapping[Group, tuple[str, ...]]
    numbers: Mapping[Group, tuple[str, ...]]
    times: Mapping[Group, str]
    visible: Mapping[Group, str]

    @staticmethod
    def of(dataset: Dataset) -> Columns:
        """The columns of a dataset."""
        return Columns(
            ids={g: tuple(f"{g}_{f.name}" for f in id_features(dataset, g)) for g in Group},
            numbers={g: tuple(f"{g}_{f.name}" for f in number_features(dataset, g)) for g in Group},
            times={g: f"{g}_time_ms" for g in BEHAVIOURS},
            visible={g: f"{g}_visible" for g in COUNTED},
        )

    def length_of(self, group: Group) -> str:
        """The column by whose lists a group's lengths are told."""
        return self.times[group] if group in self.times else self.visible[group]


def as_counts(values: Array) -> Array:
    """Visibility counts as int32; what is far out of range stays so."""
    counts: Array = values.clip(-1, 2**31 - 1).astype(np.int32)
    return counts


def check_lengths(
    lengths: Mapping[Group, Array], limits: Mapping[Group, int], name: Callable[[int], str]
) -> None:
    """Checks that each row has a candidate and no more behaviours than a row may have.

    Raises:
        ValueError: One has not; the message names the row.
    """
    candidates = lengths[Group.CANDIDATE]
    if not candidates.all():
        raise ValueError(f"row {name(int(candidates.argmin()))} has no candidate")
    for group, limit in limits.items():
        if (lengths[group] > limit).any():
            at = int(lengths[group].argmax())
            raise ValueError(
                f"row {name(at)} has {lengths[group][at]} {group} behaviours; at most {limit} are allowed"
            )


class TableReader:
    """Reads the columns of one Arrow table, whose types have been checked, into matrices.

    Args:
        table: Rows of the samples table.
        limits: How many behaviours of each group a row may have.
        numbers_of: By which numbers errors name the rows.
    """

    def __init__(
        self, table: pa.Table, limits: Mapping[Group, int], numbers_of: Sequence[int] | Array | None
    ) -> None:
        self._limits = limits
        self._batches = table.to_batches()
        self._places = {name: place for place, name in enumerate(table.schema.names)}
        self._num_rows = table.num_rows
        self._numbers_of = numbers_of
        self._firsts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])[:-1].tolist()
        self._offsets: dict[Group, list[Array]] = {}

    def read(self, columns: Columns, has_weights: bool) -> StoredRows:
        """All that the columns hold.

        Raises:
            ValueError: A null, lists of a group that are unequal, or too long; the message names column and
                row.
        """
        for group in SEQUENCES:
            name = columns.length_of(group)
            self._offsets[group] = [
                self._offsets_of(name, number, batch.column(self._places[name]))
                for number, batch in enumerate(self._batches)
            ]
        lengths = {group: self._lengths(offsets) for group, offsets in self._offsets.items()}
        check_lengths(lengths, self._limits, self._name)
        totals = {group: int(of_rows.sum()) for group, of_rows in lengths.items()}
        totals[Group.PROFILE] = self._num_rows

        def matrix(names: Sequence[str], group: Group, dtype: Any) -> Array:
            values = np.empty((len(names), totals[group]), dtype)
            for row, name in zip(values, names, strict=True):
                self._filled(name, group, row)
            return values

        def vector(name: str, group: Group, dtype: Any) -> Array:
            return self._filled(name, group, np.empty(totals[group], dtype))

        labels = np.zeros((2, totals[Group.CANDIDATE]), np.float32)
        for row, name in zip(labels, LABELS, strict=True):
            if name in self._places:
                self._filled(name, Group.CANDIDATE, row)
        return StoredRows(
            users=vector("user_id", Group.PROFILE, np.int64),
            starts=vector("window_start_ms", Group.PROFILE, np.int64),
            lengths=lengths,
            times={group: vector(name, group, np.int64) for group, name in columns.times.items()},
            ids={group: matrix(names, group, np.int64) for group, names in columns.ids.items()},
            numbers={group: matrix(names, group, np.float32) for group, names in columns.numbers.items()},
            visible={g: as_counts(vector(name, g, np.int64)) for g, name in columns.visible.items()},
            labels=labels,
            weights=vector(WEIGHT, Group.CANDIDATE, np.float32)
            if has_weights and WEIGHT in self._places
            else None,
            numbers_of=self._numbers_of,
        )

    @staticmethod
    def _lengths(offsets: Sequence[Array]) -> Array:
        parts = [np.diff(of_batch) for of_batch in offsets]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def _offsets_of(self, name: str, number: int, array: pa.Array) -> Array:
        if array.null_count:
            raise ValueError(
                f"column {name} has {array.null_count} nulls where it needs lists, the first in row "
                f"{self._null(array, number)}"
            )
        offsets: Array = array.offsets.to_numpy()
        return offsets

    def _filled(self, name: str, group: Group, out: Array) -> Array:
        """Writes a column's values, token after token, into `out`, which is returned."""
        place, at = self._places[name], 0
        for number, batch in enumerate(self._batches):
            values = batch.column(place)
            if group is not Group.PROFILE:
                values = self._list_values(name, group, number, values)
            elif values.null_count:
                raise ValueError(
                    f"column {name} has {values.null_count} nulls, the first in row "
                    f"{self._null(values, number)}; the samples gate refuses these"
                )
            end = at + len(values)
            out[at:end] = values.to_numpy(zero_copy_only=False)
            at = end
        return out

    def _list_values(self, name: str, group: Group, number: int, array: pa.Array) -> pa.Array:
        offsets, wanted = self._offsets_of(name, number, array), self._offsets[group][number]
        if offsets.tobytes() != wanted.tobytes():  # compared by value only where lists begin elsewhere
            lengths, full = np.diff(offsets), np.diff(wanted)
            if (lengths != full).any():
                at = int((lengths != full).argmax())
                raise ValueError(
                    f"column {name} has {lengths[at]} values in row {self._name(self._firsts[number] + at)}, "
                    f"where the group {group} has {full[at]}"
                )
        values = array.values
        if offsets[0] or offsets[-1] != len(values):
            values = values.slice(offsets[0], offsets[-1] - offsets[0])
        if values.null_count:
            null = int(np.asarray(values.is_null()).argmax())
            row = int(np.searchsorted(np.diff(offsets).cumsum(), null, "right"))
            raise ValueError(
                f"column {name} has {values.null_count} nulls inside its lists, the first in row "
                f"{self._name(self._firsts[number] + row)}"
            )
        return values

    def _null(self, array: pa.Array, number: int) -> str:
        is_null = array.is_null().to_numpy(zero_copy_only=False)
        return self._name(self._firsts[number] + int(is_null.argmax()))

    def _name(self, row: int) -> str:
        """A row's number and user, for messages."""
        name = row if self._numbers_of is None else int(self._numbers_of[row])
        number = int(np.searchsorted(self._firsts, row, "right")) - 1
        users = self._batches[number].column(self._places["user_id"])
        return f"{name} (user {users[row - self._firsts[number]].as_py()})"
