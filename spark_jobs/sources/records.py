"""Which records of a delivery can be taken, and why not the others: the same for every source.

Of copies within a delivery the one that arrived last is kept. A record that cannot be taken has a `reason`;
nothing is dropped here, and nothing corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import DAY_MS, HISTORY_DS
from spark_jobs.contract.features import NO_ID, NO_IDS, Dataset, EventType, FeatureSpec, Kind, Owner
from spark_jobs.contract.tables import WEIGHTS, dimension_columns, event_columns
from spark_jobs.sources import day_of

_NEEDS_IMPRESSION = (EventType.IMPRESSION, EventType.CLICK, EventType.CONVERSION)


def last_copies(events_df: DataFrame) -> DataFrame:
    """One row an event id and type: the copy that arrived last; of equal arrivals the greatest row.

    Logs may count their ids each for itself: click 1 is no copy of order 1. Rows without an id are kept as
    they are: they are quarantined later, each of them. Adds `copies`, how many records the row stands for.
    """
    rest = [c for c in events_df.columns if c not in ("event_type", "event_id", "arrival_ms")]
    last_df = (
        events_df.where(F.col("event_id").isNotNull())
        .groupBy("event_type", "event_id")
        .agg(F.max(F.struct("arrival_ms", *rest)).alias("last"), F.count("*").alias("copies"))
        .select("event_type", "event_id", "last.*", "copies")
    )
    without_id_df = events_df.where(F.col("event_id").isNull()).withColumn("copies", F.lit(1).cast("bigint"))
    return last_df.unionByName(without_id_df)


def with_days(events_df: DataFrame, dataset: Dataset, ds: str) -> DataFrame:
    """Sets `ds` from the event's time and `delivery_ds` to the day of the delivery."""
    return events_df.withColumns(
        {"ds": day_of(F.col("time_ms"), dataset.utc_offset_hours), "delivery_ds": F.lit(ds)}
    )


def with_reason(events_df: DataFrame, dataset: Dataset, ds: str) -> DataFrame:
    """Adds `reason`: why the event cannot be taken, null when it can.

    Times are milliseconds; a value in seconds or microseconds is refused by its year, never guessed at.
    """
    is_type = [F.col("event_type") == kind.value for kind in EventType]
    checks: list[tuple[Column, str | Column]] = [
        *_text_checks(events_df),
        (F.col("event_id").isNull() | (F.col("event_id") == ""), "no event_id"),
        (
            F.col("event_type").isNull() | ~reduce(Column.__or__, is_type),
            f"event_type is none of {', '.join(EventType)}",
        ),
        (F.col("user_id").isNull(), "no user_id"),
        (F.col("item_id").isNull(), "no item_id"),
        (F.col("user_id").isin(*NO_IDS), f"user_id is {NO_ID}"),
        (F.col("item_id").isin(*NO_IDS), f"item_id is {NO_ID}"),
        (F.col("time_ms").isNull(), "no time_ms"),
        *_time_checks(dataset, ds),
        (
            F.col("event_type").isin(*_NEEDS_IMPRESSION) & F.col("impression_id").isNull(),
            "no impression_id",
        ),
        (
            ~F.col("action").between(0, len(dataset.actions)),
            f"action is outside of 0..{len(dataset.actions)}",
        ),
    ]
    if dataset.has_requests:
        is_impression = F.col("event_type") == EventType.IMPRESSION.value
        checks.append((is_impression & F.col("request_id").isNull(), "no request_id"))
    if dataset.has_weights:
        checks.append(
            (~F.col("weight").between(*WEIGHTS), "weight is outside of {:g}..{:g}".format(*WEIGHTS))
        )
    names = {name for name, _ in event_columns(dataset)}
    checks += [
        (_is_invalid(f), f"{f.name} {_wrong(f)}") for f in dataset.of(Owner.CONTEXT) if f.name in names
    ]
    return events_df.withColumn("reason", _first_reason(checks))


def _time_checks(dataset: Dataset, ds: str) -> list[tuple[Column, str]]:
    """What a time may be; that of the history from before the log any since 1990."""
    time = F.col("time_ms")
    if ds == HISTORY_DS:
        since, until = dataset.day_start_ms("1990-01-01"), dataset.day_start_ms("2100-01-01")
        return [(~time.between(since, until), "time_ms is not in milliseconds of 1990 to 2100")]
    start, end = dataset.day_start_ms(ds), dataset.day_end_ms(ds)
    return [
        (
            ~time.between(start - 366 * DAY_MS, end + 366 * DAY_MS),
            "time_ms is more than a year from the delivery: not milliseconds, or a wrong clock",
        ),
        (time.between(end + DAY_MS, end + 366 * DAY_MS), "time_ms is after the delivery was closed"),
        (
            time.between(start - 366 * DAY_MS, start - dataset.late_days * DAY_MS - 1),
            late_reason(dataset),
        ),
    ]


def _text_checks(rows_df: DataFrame) -> list[tuple[Column, str | Column]]:
    """What a source has marked as not of its type, and texts that other engines refuse."""
    texts = [name for name in ("event_id", "request_id", "impression_id") if name in rows_df.columns]
    checks: list[tuple[Column, str | Column]] = [
        (~F.is_valid_utf8(name), f"{name} is not UTF-8") for name in texts
    ]
    if "mistyped" in rows_df.columns:
        names = F.array_join(F.json_object_keys("mistyped"), ", ")
        checks.append((F.col("mistyped").isNotNull(), F.concat(F.lit("not of its type: "), names)))
    return checks


def late_reason(dataset: Dataset) -> str:
    """Why an event of a usable form is not taken: it is late, which is not broken."""
    return f"arrived more than {dataset.late_days} days late"


def _is_invalid(feature: FeatureSpec) -> Column:
    value = F.col(feature.name)
    if feature.kind is Kind.NUMBER:  # NaN is greater than any number in Spark, so the range refuses it, too
        return ~value.between(feature.low, feature.high)
    if feature.kind is Kind.CATEGORY:
        return ~value.between(0, feature.cardinality - 1)
    return value.isin(*NO_IDS)


def _wrong(feature: FeatureSpec) -> str:
    """What `_is_invalid` says of a value."""
    if feature.kind is Kind.NUMBER:
        return f"is NaN or outside of {feature.low:g}..{feature.high:g}"
    if feature.kind is Kind.CATEGORY:
        return f"is outside of 0..{feature.cardinality - 1}"
    return f"is {NO_ID}"


def _first_reason(checks: Sequence[tuple[Column, str | Column]]) -> Column:
    """The text of the first check that is true; null conditions are false."""
    texts = ((condition, F.lit(text) if isinstance(text, str) else text) for condition, text in checks)
    return F.coalesce(*(F.when(condition, text) for condition, text in texts))


def checked_dimension(rows_df: DataFrame, dataset: Dataset, owner: Owner, ds: str) -> DataFrame:
    """Rows of a snapshot, one a key and each without a key, with `reason` where a row cannot be taken."""
    columns = dimension_columns(dataset, owner)
    key = columns[0][0]
    names = [name for name, _ in columns if name not in (key, "ds")]
    specs = {f.name: f for f in dataset.of(owner)}
    checks = [*_text_checks(rows_df), (F.col(key).isNull(), f"no {key}")]
    checks.append((F.col(key).isin(*NO_IDS), f"{key} is {NO_ID}"))
    checks += [(_is_invalid(specs[name]), f"{name} {_wrong(specs[name])}") for name in names]
    rest = [*names, *({"mistyped"} & {*rows_df.columns})]
    rows_df = rows_df.select(key, *rest)
    keyed_df = rows_df.where(F.col(key).isNotNull())
    latest_df = keyed_df.groupBy(key).agg(F.max(F.struct(*rest)).alias("row")).select(key, "row.*")
    latest_df = latest_df.unionByName(rows_df.where(F.col(key).isNull()))
    return latest_df.withColumn("ds", F.lit(ds)).withColumn("reason", _first_reason(checks))
