"""The columns of the lake's tables, as a dataset's declaration gives them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from spark_jobs.contract.clock import CLOCK_FEATURES
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind, Owner

# Columns beside the features, with the type names of Spark SQL. The list columns of a group have equal
# lengths in a row and run oldest first.
EVENT_COLUMNS: tuple[tuple[str, str], ...] = (
    ("event_id", "string"),  # unique; the key of deduplication
    ("event_type", "string"),
    ("user_id", "bigint"),
    ("item_id", "bigint"),
    ("request_id", "string"),
    ("impression_id", "string"),  # the impression that the event belongs to; its own for an impression
    ("time_ms", "bigint"),  # when it happened, UTC
    ("action", "int"),  # behaviours only: 1 + index in Dataset.actions; null for what makes no token
    ("ds", "string"),  # day of time_ms in the dataset's clock; first partition column
    ("delivery_ds", "string"),  # day of the delivery that brought it: known to runs of later days only
)

KEY_COLUMNS: tuple[tuple[str, str], ...] = (
    ("user_id", "bigint"),
    ("ds", "string"),
    ("window_start_ms", "bigint"),
    ("window_end_ms", "bigint"),
)

WEIGHTS = (1e-3, 1e6)  # least and greatest sampling weight of an impression
_WEIGHT = (Group.CANDIDATE, "candidate_weight", "array<float>")
_STRUCTURE_COLUMNS: tuple[tuple[Group, str, str], ...] = (
    (Group.STATIC, "static_time_ms", "array<bigint>"),
    (Group.REALTIME, "realtime_time_ms", "array<bigint>"),
    (Group.REALTIME, "realtime_visible", "array<int>"),
    (Group.CANDIDATE, "candidate_time_ms", "array<bigint>"),
    (Group.CANDIDATE, "candidate_visible", "array<int>"),
    (Group.CANDIDATE, "candidate_request_id", "array<string>"),
    (Group.CANDIDATE, "candidate_impression_id", "array<string>"),
    (Group.CANDIDATE, "label_click", "array<tinyint>"),
    (Group.CANDIDATE, "label_conversion", "array<tinyint>"),
)

SCALAR_TYPES = {Kind.ID: "bigint", Kind.CATEGORY: "int", Kind.NUMBER: "float"}


@dataclass(frozen=True)
class TypeNames:
    """What a type of Spark SQL is called elsewhere.

    Attributes:
        arrow: In Arrow.
        delta: In a Delta table's schema.
        mlflow: In a model's signature: the wide one, as rows from JSON have it; narrow ones widen to it.
    """

    arrow: str
    delta: str
    mlflow: str


TYPE_NAMES = {
    "string": TypeNames("string", "string", "string"),
    "bigint": TypeNames("int64", "long", "long"),
    "int": TypeNames("int32", "integer", "long"),
    "tinyint": TypeNames("int8", "byte", "long"),
    "float": TypeNames("float32", "float", "double"),
}


def item_type(kind: str) -> tuple[str, bool]:
    """The type of a column's values, and whether the column holds lists of them."""
    item = kind.removeprefix("array<").removesuffix(">")
    return item, item != kind


def event_columns(dataset: Dataset) -> list[tuple[str, str]]:
    """(column, Spark SQL type) of the `events` table: the common columns, the weight, the context features.

    `hour` and `weekday` are computed from `time_ms` when samples are built and are not stored in events.
    """
    context = [f for f in dataset.of(Owner.CONTEXT) if f.name not in CLOCK_FEATURES]
    weight = [("weight", "float")] if dataset.has_weights else []
    return [*EVENT_COLUMNS, *weight, *((f.name, SCALAR_TYPES[f.kind]) for f in context)]


def dimension_columns(dataset: Dataset, owner: Owner) -> list[tuple[str, str]]:
    """(column, Spark SQL type) of the `users` (Owner.PROFILE) or `items` (Owner.ITEM) table.

    A row holds from its day `ds` on, until the same key has a later one; statistics are not stored here.
    """
    key = {Owner.PROFILE: "user_id", Owner.ITEM: "item_id"}[owner]
    features = [f for f in dataset.of(owner) if f.statistic is None and f.name != key]
    return [(key, "bigint"), *((f.name, SCALAR_TYPES[f.kind]) for f in features), ("ds", "string")]


def structure_columns(dataset: Dataset) -> tuple[tuple[Group, str, str], ...]:
    """(group, column, Spark SQL type) of what the samples hold of tokens beside features."""
    return (*_STRUCTURE_COLUMNS, _WEIGHT) if dataset.has_weights else _STRUCTURE_COLUMNS


def sample_columns(dataset: Dataset) -> list[tuple[str, str]]:
    """(column, Spark SQL type) of the `samples` table, in order: key, then group by group."""
    columns = list(KEY_COLUMNS)
    for group in Group:
        columns += [(name, kind) for of, name, kind in structure_columns(dataset) if of is group]
        for feature in dataset.in_group(group):
            scalar = SCALAR_TYPES[feature.kind]
            column = f"{group}_{feature.name}"
            columns.append((column, scalar if group is Group.PROFILE else f"array<{scalar}>"))
    return columns


def rows_digest(dataset: Dataset) -> str:
    """Digest of all that a declaration says of the rows of samples, and of nothing else.

    Samples made under another digest are others. Descriptions, numbers of values, ranges that clip nothing
    and whatever the model decides are not in it: when these change, no day is made again.
    """
    clock = (dataset.utc_offset_hours, dataset.attribution_ms, dataset.history_days, dataset.snapshot)
    columns = [_made_from(feature) for feature in dataset.features]
    made_from = (dataset.name, clock, dataset.max_impressions_a_day, dataset.has_weights, columns)
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]


def _made_from(feature: FeatureSpec) -> tuple[object, ...]:
    if feature.statistic is None:
        value = feature.unknown
    else:  # a count ends at the feature's bound, a rate at 1 whatever the bound
        value = 1.0 if feature.statistic.measure.is_rate else feature.high
    return feature.name, feature.owner, feature.kind, float(value), repr(feature.statistic)
