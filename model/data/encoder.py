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
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.data.batch import SEQUENCES, JaggedBatch
from model.data.stored import (
    BEHAVIOURS,
    LABELS,
    WEIGHT,
    Array,
    Columns,
    StoredRows,
    TableReader,
    check_lengths,
    id_features,
    number_features,
)
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
_LIMITS = {Group.STATIC: MAX_STATIC, Group.REALTIME: MAX_REALTIME}
_RATE_MARGIN = 1e-4  # rates are clipped to [margin, 1 - margin] before the logit


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


def number_names(dataset: Dataset, group: Group) -> tuple[str, ...]:
    """Names of a group's numbers, in order; behaviours have `recency` last."""
    names = tuple(feature.name for feature in number_features(dataset, group))
    return (*names, RECENCY) if group in BEHAVIOURS else names


class Transform(StrEnum):
    """What a number becomes."""

    LOGIT = "logit"  # NaN at 0, "nothing known"
    LOG1P = "log1p"
    NONE = "none"

    @staticmethod
    def of(feature: FeatureSpec) -> Transform:
        """As the module's table says."""
        statistic = feature.statistic
        if statistic is not None and statistic.measure.is_rate:
            return Transform.LOGIT if statistic.days > 0 else Transform.NONE
        return Transform.NONE if feature.low < 0 else Transform.LOG1P

    def __call__(self, values: Array) -> Array:
        """Transforms raw values, float32 of any shape."""
        if self is Transform.LOGIT:
            clipped = np.clip(values, _RATE_MARGIN, 1 - _RATE_MARGIN)
            logit: Array = np.where(values == 0, np.float32(np.nan), np.log(clipped / (1 - clipped)))
            return logit
        return np.log1p(values) if self is Transform.LOG1P else values


class _GroupPlan:
    """What the ids and numbers of a group must be and become, as columns `[F, 1]` beside their matrices."""

    def __init__(self, dataset: Dataset, group: Group) -> None:
        self.group = group
        self.ids = id_features(dataset, group)
        self.numbers = number_features(dataset, group)
        is_id = [feature.kind is Kind.ID for feature in self.ids]
        self._is_id = np.array(is_id, bool).reshape(-1, 1)
        self._cardinality = np.array([[feature.cardinality] for feature in self.ids], np.int64).reshape(-1, 1)
        self._low = np.array([[feature.low] for feature in self.numbers], np.float32).reshape(-1, 1)
        self._high = np.array([[feature.high] for feature in self.numbers], np.float32).reshape(-1, 1)
        transforms = [Transform.of(feature) for feature in self.numbers]
        self.rows = {
            kind: np.array([row for row, of in enumerate(transforms) if of is kind], np.int64)
            for kind in (Transform.LOGIT, Transform.LOG1P)
            if kind in transforms
        }

    def check(self, rows: StoredRows) -> None:
        """Checks the values of the group.

        Raises:
            ValueError: One is not valid; the message names column, value and row.
        """
        ids = rows.ids[self.group]
        is_category = (ids >= 0) & (ids < self._cardinality)
        is_valid = np.where(self._is_id, (ids != NO_IDS[0]) & (ids != NO_IDS[1]), is_category)
        if not is_valid.all():
            row = int((~is_valid).any(1).argmax())
            feature = self.ids[row]
            wanted = (
                "an id: -1 and 2^63 - 1 stand for none"
                if feature.kind is Kind.ID
                else f"a category in [0, {feature.cardinality})"
            )
            rows.check(self.group, ids[row], is_valid[row], f"{self.group}_{feature.name}", wanted)
        numbers = rows.numbers[self.group]
        is_valid = (numbers >= self._low) & (numbers <= self._high)
        if not is_valid.all():
            row = int((~is_valid).any(1).argmax())
            feature = self.numbers[row]
            wanted = f"a finite number in [{feature.low:g}, {feature.high:g}]"
            rows.check(self.group, numbers[row], is_valid[row], f"{self.group}_{feature.name}", wanted)


class SampleEncoder:
    """Turns rows of a dataset's samples table into a `JaggedBatch`.

    Args:
        dataset: Whose declaration the rows follow.
        max_static: How many of the latest static behaviours the model reads.
    """

    def __init__(self, dataset: Dataset, max_static: int = 1000) -> None:
        self.dataset = dataset
        self.max_static = max_static
        weights = (WEIGHT,) if dataset.has_weights else ()
        self.label_columns = (*LABELS, *weights)
        unread = {"candidate_request_id", "candidate_impression_id", "candidate_time_ms", *self.label_columns}
        self.columns = [name for name, _ in sample_columns(dataset) if name not in unread]
        read = {*self.columns, *self.label_columns}
        self._schema = pa.schema([field for field in arrow_schema(dataset) if field.name in read])
        self._right: pa.Schema | None = None  # the schema that was checked last
        self._columns = Columns.of(dataset)
        self._plans = [_GroupPlan(dataset, group) for group in Group]
        self.limits = {**_LIMITS, Group.STATIC: max(MAX_STATIC, max_static)}
        self._frozen = self._frozen_numbers()

    def encode(
        self,
        rows: pa.Table | StoredRows | Sequence[dict[str, Any]],
        numbers: Sequence[int] | Array | None = None,
    ) -> JaggedBatch:
        """Encodes rows, whose label columns may be missing (a request has none yet).

        Args:
            rows: An Arrow table with the columns of the samples table in any order, rows as dictionaries, or
                their matrices, which the batch may share memory with.
            numbers: By which numbers errors name the rows, e.g. those in a file; by default from 0 on.

        Raises:
            ValueError: A column is missing, of another type, has a null, unequal lists, a value out of range
                or NaN, times out of order, more behaviours than a row may have, or a reserved id; the message
                names the column, the value and the row.
        """
        if isinstance(rows, StoredRows):
            check_lengths(rows.lengths, self.limits, rows.name)
            stored = rows.latest(self.max_static)
        else:
            stored = self.stored(rows, numbers).latest(self.max_static)
        self._check_times(stored)
        self._check_labels(stored)
        for plan in self._plans:
            plan.check(stored)
        self._check_visible(stored)
        num_candidates = stored.labels.shape[1]
        weights = stored.weights
        return JaggedBatch(
            ids={group: torch.from_numpy(ids) for group, ids in stored.ids.items()},
            numbers={plan.group: self._numbers(stored, plan) for plan in self._plans},
            lengths={group: torch.from_numpy(stored.lengths[group]) for group in SEQUENCES},
            realtime_visible=torch.from_numpy(stored.visible[Group.REALTIME]),
            candidate_visible=torch.from_numpy(stored.visible[Group.CANDIDATE]),
            labels=torch.from_numpy(stored.labels),
            weights=torch.ones(num_candidates) if weights is None else torch.from_numpy(weights),
            frozen_numbers=self._frozen,
        )

    def stored(
        self, rows: pa.Table | Sequence[dict[str, Any]], numbers: Sequence[int] | Array | None = None
    ) -> StoredRows:
        """The columns of rows as matrices, their types, nulls and lengths of lists checked; see `encode`."""
        table = rows if isinstance(rows, pa.Table) else self._table(rows)
        if self._right is None or not table.schema.equals(self._right):
            self._check_schema(table.schema)
            self._right = table.schema
        return TableReader(table, self.limits, numbers).read(self._columns, self.dataset.has_weights)

    def empty(self) -> JaggedBatch:
        """A batch without rows."""
        return self.encode(arrow_schema(self.dataset).empty_table())

    def _check_schema(self, schema: pa.Schema) -> None:
        names = set(schema.names)
        missing = [name for name in self.columns if name not in names]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ValueError(f"samples of {self.dataset.name} lack the columns {shown}")
        for field in self._schema:
            place = schema.get_field_index(field.name)
            if place >= 0 and not _reads_as(schema.field(place).type, field.type):
                raise ValueError(
                    f"column {field.name} is {schema.field(place).type}, where it must be {field.type}"
                )

    @staticmethod
    def _check_times(rows: StoredRows) -> None:
        """Checks that behaviours lie oldest first, on their side of the window's start."""
        for group in BEHAVIOURS:
            column, lengths, times = f"{group}_time_ms", rows.lengths[group], rows.times[group]
            if not len(times):
                continue
            is_valid = np.empty(len(times), bool)
            np.greater_equal(times[1:], times[:-1], out=is_valid[1:])
            is_valid[(lengths.cumsum() - lengths)[lengths > 0]] = True
            rows.check(
                group, times, is_valid, column, "at or after the one before it: behaviours lie oldest first"
            )
            start = np.repeat(rows.starts, lengths)
            is_valid = times < start if group is Group.STATIC else times >= start
            wanted = "before" if group is Group.STATIC else "at or after"
            rows.check(group, times, is_valid, column, f"{wanted} the window's start")

    @staticmethod
    def _check_visible(rows: StoredRows) -> None:
        for group, values in rows.visible.items():
            limit = np.repeat(rows.lengths[Group.REALTIME], rows.lengths[group])
            is_valid = (values >= 0) & (values <= limit)
            rows.check(group, values, is_valid, f"{group}_visible", "a count of real-time events")

    @staticmethod
    def _check_labels(rows: StoredRows) -> None:
        for column, labels in zip(LABELS, rows.labels, strict=True):
            rows.check(Group.CANDIDATE, labels, (labels == 0) | (labels == 1), column, "0 or 1")
        if rows.weights is not None:
            is_valid = (rows.weights > 0) & np.isfinite(rows.weights)
            rows.check(Group.CANDIDATE, rows.weights, is_valid, WEIGHT, "a finite weight above 0")

    @staticmethod
    def _numbers(rows: StoredRows, plan: _GroupPlan) -> Tensor:
        """Transformed numbers of a group, and for behaviours `recency` behind them."""
        raw = rows.numbers[plan.group]
        is_behaviour = plan.group in BEHAVIOURS
        numbers = np.empty((len(raw) + is_behaviour, raw.shape[1]), np.float32)
        numbers[: len(raw)] = raw
        for transform, of in plan.rows.items():
            numbers[of] = transform(raw[of])
        if is_behaviour:
            start = np.repeat(rows.starts, rows.lengths[plan.group])
            minutes = (rows.times[plan.group] - start) / 60_000.0
            numbers[-1] = np.sign(minutes) * np.log1p(np.abs(minutes))
        return torch.from_numpy(numbers)

    def _frozen_numbers(self) -> Tensor:
        """Encoded value of each candidate number while the state is frozen; infinity where it stays."""
        values = []
        for feature in number_features(self.dataset, Group.CANDIDATE):
            is_frozen = feature.owner is Owner.REALTIME_STATISTIC
            empty = Transform.of(feature)(np.zeros(1, np.float32))[0] if is_frozen else np.inf
            values.append(float(empty))
        return torch.tensor(values, dtype=torch.float32)

    def _table(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        fields = [field for field in arrow_schema(self.dataset) if rows and field.name in rows[0]]
        return pa.table([_column(field, rows) for field in fields], schema=pa.schema(fields))


def _column(field: pa.Field, rows: Sequence[dict[str, Any]]) -> pa.Array:
    """A column of rows that are dictionaries.

    Raises:
        ValueError: A row's value is of another type; the message names column and row.
    """
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        if len(rows) == 1:
            raise ValueError(f"column {field.name} is not {field.type}: {error}") from error
        for place, row in enumerate(rows):
            try:
                _column(field, [row])
            except ValueError as of_row:
                raise ValueError(f"row {place}: {of_row}") from error
        raise


def _reads_as(given: pa.DataType, declared: pa.DataType) -> bool:
    """Whether values of a type can be read where another is declared: integers as numbers, no text, ..."""
    if _is_list(declared) or _is_list(given):
        return _is_list(declared) and _is_list(given) and _reads_as(given.value_type, declared.value_type)
    if pa.types.is_integer(declared):
        return bool(pa.types.is_integer(given) and not pa.types.is_uint64(given))
    if pa.types.is_floating(declared):
        return bool(pa.types.is_integer(given) or pa.types.is_floating(given))
    return bool(given == declared or pa.types.is_large_string(given))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
