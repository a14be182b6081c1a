"""From rows of the samples table to tensors: the one path that training, evaluation and serving share.

`SampleEncoder` checks a table against the dataset's declaration and transforms numbers:

| kind of feature | becomes |
|---|---|
| id | itself; one of `NO_IDS` is refused. What a table makes of it is the model's (`embeddings/tables.py`) |
| category | itself; a value outside [0, cardinality) is refused |
| rate over days (smoothed towards all users') | its logit; 0, "nothing known", becomes NaN |
| rate of today (smoothed towards 0) | itself |
| count, and any number that cannot be negative | `log1p` |
| other number | itself |
| `recency` (of behaviours, from their times) | `+-log1p(minutes between window start and event)` |

The model standardises numbers by constants of its own and reads NaN as the mean (`embeddings.NumberScaler`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from model.data.batch import SEQUENCES, JaggedBatch
from spark_jobs.contract.features import (
    MAX_REALTIME,
    MAX_STATIC,
    NO_IDS,
    Dataset,
    FeatureSpec,
    Group,
    Kind,
    Owner,
)
from spark_jobs.contract.tables import TYPE_NAMES, item_type, sample_columns

RECENCY = "recency"
LABELS = ("label_click", "label_conversion")
_BEHAVIOURS = (Group.STATIC, Group.REALTIME)
_LIMITS = {Group.STATIC: MAX_STATIC, Group.REALTIME: MAX_REALTIME}
_RATE_MARGIN = 1e-4  # rates are clipped to [margin, 1 - margin] before the logit
Array = npt.NDArray[Any]


def arrow_schema(dataset: Dataset) -> pa.Schema:
    """Arrow schema of the dataset's samples table."""
    fields = []
    for name, kind in sample_columns(dataset):
        item, is_list = item_type(kind)
        arrow = pa.type_for_alias(TYPE_NAMES[item].arrow)
        fields.append((name, pa.list_(arrow) if is_list else arrow))
    return pa.schema(fields)


def mix64(ids: Array) -> Array:
    """Mixes the bits of 64-bit integers: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).

    Args:
        ids: int64 of any shape.

    Returns:
        uint64 of the same shape; equal on every platform and in every version.
    """
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


def id_features(dataset: Dataset, group: Group) -> tuple[FeatureSpec, ...]:
    """Features of a group that are looked up in an embedding table, in token order."""
    return tuple(feature for feature in dataset.in_group(group) if feature.kind is not Kind.NUMBER)


def number_names(dataset: Dataset, group: Group) -> tuple[str, ...]:
    """Names of a group's numbers, in order; behaviours have `recency` last."""
    names = tuple(feature.name for feature in dataset.in_group(group) if feature.kind is Kind.NUMBER)
    return (*names, RECENCY) if group in _BEHAVIOURS else names


def _is_rate_over_days(feature: FeatureSpec) -> bool:
    statistic = feature.statistic
    return statistic is not None and statistic.measure.is_rate and statistic.days > 0


def transform_number(feature: FeatureSpec, values: Array) -> Array:
    """Transforms a number's raw values, float32 of any shape, as the module's table says."""
    if _is_rate_over_days(feature):
        clipped = np.clip(values, _RATE_MARGIN, 1 - _RATE_MARGIN)
        logit: Array = np.where(values == 0, np.float32(np.nan), np.log(clipped / (1 - clipped)))
        return logit
    is_rate = feature.statistic is not None and feature.statistic.measure.is_rate
    return values if is_rate or feature.low < 0 else np.log1p(values)


class SampleEncoder:
    """Turns rows of a dataset's samples table into a `JaggedBatch`.

    Args:
        dataset: Whose declaration the rows follow.
        max_static: How many of the latest static behaviours the model reads.
    """

    def __init__(self, dataset: Dataset, max_static: int = 1000) -> None:
        self.dataset = dataset
        self.max_static = max_static
        weights = ("candidate_weight",) if dataset.has_weights else ()
        self.label_columns = (*LABELS, *weights)
        unread = {"candidate_request_id", "candidate_impression_id", "candidate_time_ms", *self.label_columns}
        self.columns = [name for name, _ in sample_columns(dataset) if name not in unread]
        read = {*self.columns, *self.label_columns}
        self._schema = pa.schema([field for field in arrow_schema(dataset) if field.name in read])

    def encode(
        self, rows: pa.Table | Sequence[dict[str, Any]], numbers: Sequence[int] | Array | None = None
    ) -> JaggedBatch:
        """Encodes rows, whose label columns may be missing (a request has none yet).

        Args:
            rows: An Arrow table with the columns of the samples table in any order, or rows as dictionaries.
            numbers: By which numbers errors name the rows, e.g. those in a file; by default from 0 on.

        Raises:
            ValueError: A column is missing, of another type, has a null, unequal lists, a value out of range
                or NaN, times out of order, more behaviours than a row may have, or a reserved id; the message
                names the column, the value and the row.
        """
        table = rows if isinstance(rows, pa.Table) else self._table(rows)
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ValueError(f"samples of {self.dataset.name} lack the columns {shown}")
        self._check_types(table)
        reader = _Rows(table, self.max_static, numbers)
        self._check_times(reader)
        labels = self._labels(reader)
        return JaggedBatch(
            ids={group: self._ids(reader, group) for group in Group},
            numbers={group: self._numbers(reader, group) for group in Group},
            lengths={group: torch.from_numpy(reader.lengths[group]) for group in SEQUENCES},
            realtime_visible=self._visible(reader, Group.REALTIME),
            candidate_visible=self._visible(reader, Group.CANDIDATE),
            labels=labels,
            weights=self._weights(reader),
            frozen_numbers=self.frozen_numbers(),
        )

    def empty(self) -> JaggedBatch:
        """A batch without rows."""
        return self.encode(arrow_schema(self.dataset).empty_table())

    def _check_types(self, table: pa.Table) -> None:
        for field in self._schema:
            place = table.schema.get_field_index(field.name)
            if place >= 0 and not _reads_as(table.schema.field(place).type, field.type):
                raise ValueError(
                    f"column {field.name} is {table.schema.field(place).type}, where it must be {field.type}"
                )

    def _check_times(self, reader: _Rows) -> None:
        """Checks that behaviours lie oldest first, on their side of the window's start."""
        reader.scalar("user_id")
        starts = reader.scalar("window_start_ms")
        for group in _BEHAVIOURS:
            column, lengths = f"{group}_time_ms", reader.lengths[group]
            times = reader.values(column, group)
            if not len(times):
                continue
            is_first = np.zeros(len(times), bool)
            is_first[(lengths.cumsum() - lengths)[lengths > 0]] = True
            reader.check(column, group, times, is_first | (times >= np.roll(times, 1)),
                         "at or after the one before it: behaviours lie oldest first")  # fmt: skip
            start = np.repeat(starts, lengths)
            is_valid = times < start if group is Group.STATIC else times >= start
            wanted = "before" if group is Group.STATIC else "at or after"
            reader.check(column, group, times, is_valid, f"{wanted} the window's start")

    def frozen_numbers(self) -> Tensor:
        """Encoded value of each candidate number while the state is frozen; infinity where it stays."""
        values = []
        for feature in self.dataset.in_group(Group.CANDIDATE):
            if feature.kind is Kind.NUMBER:
                is_frozen = feature.owner is Owner.REALTIME_STATISTIC
                empty = transform_number(feature, np.zeros(1, np.float32))[0] if is_frozen else np.inf
                values.append(float(empty))
        return torch.tensor(values, dtype=torch.float32)

    def _table(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        schema = arrow_schema(self.dataset)
        try:
            present = [field for field in schema if rows and field.name in rows[0]]
            return pa.Table.from_pylist(list(rows), schema=pa.schema(present))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"rows do not fit the samples of {self.dataset.name}: {error}") from error

    def _ids(self, reader: _Rows, group: Group) -> Tensor:
        features = id_features(self.dataset, group)
        ids = np.empty((len(features), reader.num_tokens(group)), np.int64)
        for row, feature in zip(ids, features, strict=True):
            column = f"{group}_{feature.name}"
            values = reader.values(column, group)
            row[:] = values
            if feature.kind is Kind.ID:
                is_id = (values != NO_IDS[0]) & (values != NO_IDS[1])
                reader.check(column, group, values, is_id, "an id: -1 and 2^63 - 1 stand for none")
            else:
                reader.check(column, group, values, (values >= 0) & (values < feature.cardinality),
                             f"a category in [0, {feature.cardinality})")  # fmt: skip
        return torch.from_numpy(ids)

    def _numbers(self, reader: _Rows, group: Group) -> Tensor:
        features = [feature for feature in self.dataset.in_group(group) if feature.kind is Kind.NUMBER]
        numbers = np.empty((len(number_names(self.dataset, group)), reader.num_tokens(group)), np.float32)
        for row, feature in zip(numbers, features, strict=False):
            column = f"{group}_{feature.name}"
            values = reader.values(column, group).astype(np.float32, copy=False)
            is_valid = (values >= np.float32(feature.low)) & (values <= np.float32(feature.high))
            reader.check(column, group, values, is_valid,
                         f"a finite number in [{feature.low:g}, {feature.high:g}]")  # fmt: skip
            row[:] = transform_number(feature, values)
        if group in _BEHAVIOURS:
            start = np.repeat(reader.scalar("window_start_ms"), reader.lengths[group])
            minutes = (reader.values(f"{group}_time_ms", group) - start) / 60_000.0
            numbers[-1] = np.sign(minutes) * np.log1p(np.abs(minutes))
        return torch.from_numpy(numbers)

    def _visible(self, reader: _Rows, group: Group) -> Tensor:
        column = f"{group}_visible"
        values = reader.values(column, group).astype(np.int32)
        limit = np.repeat(reader.lengths[Group.REALTIME], reader.lengths[group])
        reader.check(column, group, values, (values >= 0) & (values <= limit), "a count of real-time events")
        return torch.from_numpy(values)

    def _labels(self, reader: _Rows) -> Tensor:
        labels = np.zeros((2, reader.num_tokens(Group.CANDIDATE)), np.float32)
        for row, column in zip(labels, LABELS, strict=True):
            if column in reader.table.column_names:
                row[:] = reader.values(column, Group.CANDIDATE)
                reader.check(column, Group.CANDIDATE, row, (row == 0) | (row == 1), "0 or 1")
        return torch.from_numpy(labels)

    def _weights(self, reader: _Rows) -> Tensor:
        """Weights of candidates; 1 where the dataset or the table has none."""
        column = "candidate_weight"
        if not self.dataset.has_weights or column not in reader.table.column_names:
            return torch.ones(reader.num_tokens(Group.CANDIDATE))
        values = reader.values(column, Group.CANDIDATE).astype(np.float32)
        is_valid = (values > 0) & np.isfinite(values)
        reader.check(column, Group.CANDIDATE, values, is_valid, "a finite weight above 0")
        return torch.from_numpy(values)


class _Rows:
    """Columns of a table as flat arrays, with the lengths of each group checked."""

    def __init__(
        self, table: pa.Table, max_static: int, numbers: Sequence[int] | Array | None = None
    ) -> None:
        self.table = table
        self.numbers = range(table.num_rows) if numbers is None else numbers
        self.full_lengths: dict[Group, Array] = {}
        for group in SEQUENCES:
            self.full_lengths[group] = self._lengths_of(f"{group}_time_ms" if group is not Group.CANDIDATE
                                                        else "candidate_visible")  # fmt: skip
        if not self.full_lengths[Group.CANDIDATE].all():
            raise ValueError(
                f"row {self._name(self.full_lengths[Group.CANDIDATE].argmin())} has no candidate"
            )
        for group, limit in {**_LIMITS, Group.STATIC: max(MAX_STATIC, max_static)}.items():
            if (self.full_lengths[group] > limit).any():
                at = int(self.full_lengths[group].argmax())
                raise ValueError(
                    f"row {self._name(at)} has {self.full_lengths[group][at]} {group} behaviours; at most "
                    f"{limit} are allowed"
                )
        static = self.full_lengths[Group.STATIC]
        kept = np.minimum(static, max_static)
        self.lengths = {**self.full_lengths, Group.STATIC: kept}
        self._static_kept: Array | None = None
        if (kept < static).any():
            first = np.repeat(static - kept, static)
            self._static_kept = _within(static) >= first

    def num_tokens(self, group: Group) -> int:
        """Tokens of a group over all rows; for the profile, rows."""
        return self.table.num_rows if group is Group.PROFILE else int(self.lengths[group].sum())

    def scalar(self, column: str) -> Array:
        """A column without lists."""
        chunk = self.table.column(column).combine_chunks()
        if chunk.null_count:
            raise ValueError(
                f"column {column} has {chunk.null_count} nulls, the first in row {self._null(chunk)}; the "
                "samples gate refuses these"
            )
        values: Array = chunk.to_numpy(zero_copy_only=False)
        return values

    def values(self, column: str, group: Group) -> Array:
        """A column's values, token after token."""
        if group is Group.PROFILE:
            return self.scalar(column)
        lengths = self._lengths_of(column)
        unequal = lengths != self.full_lengths[group]
        if unequal.any():
            at = int(unequal.argmax())
            raise ValueError(
                f"column {column} has {lengths[at]} values in row {self._name(at)}, "
                f"where the group {group} has {self.full_lengths[group][at]}"
            )
        flat = _flat(self.table.column(column))
        if flat.null_count:
            first = int(np.asarray(flat.is_null()).argmax())
            row = np.searchsorted(lengths.cumsum(), first, "right")
            raise ValueError(
                f"column {column} has {flat.null_count} nulls inside its lists, the first in row "
                f"{self._name(row)}"
            )
        values: Array = flat.to_numpy(zero_copy_only=False)
        return (
            values[self._static_kept] if group is Group.STATIC and self._static_kept is not None else values
        )

    def check(self, column: str, group: Group, values: Array, is_valid: Array, wanted: str) -> None:
        """Raises ValueError naming the first value that is not valid."""
        if not is_valid.all():
            at = int((~is_valid).argmax())
            row = (
                at
                if group is Group.PROFILE
                else int(np.searchsorted(self.lengths[group].cumsum(), at, "right"))
            )
            raise ValueError(f"column {column}, row {self._name(row)}: {values[at]} is not {wanted}")

    def _lengths_of(self, column: str) -> Array:
        array = self.table.column(column)
        if array.null_count:
            raise ValueError(
                f"column {column} has {array.null_count} nulls where it needs lists, the first in row "
                f"{self._null(array)}"
            )
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in array.chunks]
        return np.concatenate(lengths).astype(np.int64) if lengths else np.zeros(0, np.int64)

    def _null(self, array: pa.Array | pa.ChunkedArray) -> str:
        return self._name(array.is_null().to_numpy(zero_copy_only=False).argmax())

    def _name(self, row: Any) -> str:
        name = str(int(self.numbers[int(row)]))
        if "user_id" not in self.table.column_names:
            return name
        return f"{name} (user {self.table.column('user_id')[int(row)].as_py()})"


def _reads_as(given: pa.DataType, declared: pa.DataType) -> bool:
    """Whether values of a type can be read where another is declared: integers as numbers, no text, ..."""
    if _is_list(declared) or _is_list(given):
        return _is_list(declared) and _is_list(given) and _reads_as(given.value_type, declared.value_type)
    if pa.types.is_integer(declared):
        return bool(pa.types.is_integer(given))
    if pa.types.is_floating(declared):
        return bool(pa.types.is_integer(given) or pa.types.is_floating(given))
    return bool(given == declared or pa.types.is_large_string(given))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _flat(array: pa.ChunkedArray) -> pa.Array:
    chunks = [chunk.flatten() for chunk in array.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], type=array.type.value_type)


def _within(lengths: Array) -> Array:
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    within: Array = np.arange(len(starts)) - starts
    return within
