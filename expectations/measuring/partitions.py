"""What the gates of the lake look at: reading a partition and all that is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pyspark.sql import DataFrame, SparkSession

from expectations.measuring.alike import look_alikes
from expectations.measuring.facts import (
    Facts,
    KnownTables,
    event_joins,
    immature_share,
    measure,
    sample_joins,
)
from expectations.rules.rule import Suite, schema_differences
from spark_jobs.contract import locations
from spark_jobs.contract.clock import parse_day, shift_day
from spark_jobs.contract.features import Dataset, EventType
from spark_jobs.contract.tables import event_columns, sample_columns
from spark_jobs.lake.log import exists, last_commit, open_table, partition_values, written
from spark_jobs.lake.session import at_once
from spark_jobs.lake.verdicts import partition_of
from spark_jobs.lake.writer import table_at
from spark_jobs.samples.build import by_user
from spark_jobs.samples.deliveries import history_days, on_their_days
from spark_jobs.samples.events import around, at_requests, is_event


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was measured of one partition.

    Args:
        facts: Fact name to value; empty when the partition is absent.
        details: Fact name to more in words.
        table: Delta's id of the table; None when there is none.
        version: The commit that wrote the partition; None when there is no table.
        partition_df: Its rows.
    """

    facts: Facts = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    table: str | None = None
    version: int | None = None
    partition_df: DataFrame | None = None


def inspect_events(
    spark: SparkSession, dataset: Dataset, days: Sequence[str], suite: Suite
) -> dict[str, Inspection]:
    """Measures the deliveries of `days`; a delivery without rows has the facts of its schema and `rows` 0."""
    uri = locations.table(dataset.name, "events")
    if not exists(uri):
        return {ds: Inspection(facts={"rows": 0}) for ds in days}
    log = written(uri)
    of_history = history_days(open_table(uri, log.newest).partitions())
    events_df = on_their_days(table_at(spark, uri, log.newest), of_history)
    schema, details = _schema(events_df, event_columns(dataset))
    deliveries_df = events_df.where(_among("delivery_ds", days))
    by_day = {ds: events_df.where(_among("delivery_ds", [ds])) for ds in days}
    delivered = {*partition_values(uri, "delivery_ds", log.newest), *of_history}

    def joins(ds: str) -> Facts:
        if schema["schema_missing"] or ds not in delivered:
            return {}
        return event_joins(by_day[ds], _known_tables(spark, dataset, events_df, ds), ds)

    measured, *joined = at_once(
        partial(measure, deliveries_df, suite, "delivery_ds"), *(partial(joins, ds) for ds in days)
    )
    inspections = {}
    for (ds, delivery_df), of_joins in zip(by_day.items(), joined, strict=True):
        facts = {**schema, "rows": 0, **measured.get(ds, {})}
        if of_joins and facts.get("last_time_ms") is not None:
            facts |= of_joins | immature_share(delivery_df, dataset, ds, int(facts["last_time_ms"]))
        inspections[ds] = Inspection(
            facts=facts,
            details=details,
            table=log.table,
            version=log.version_of(partition_of("events", ds, of_history)),
            partition_df=delivery_df,
        )
    return inspections


def inspect_samples(
    spark: SparkSession, dataset: Dataset, days: Sequence[str], suite: Suite
) -> dict[str, Inspection]:
    """Measures the samples of `days`; a day without rows has the facts of its schema and `rows` 0."""
    uri = locations.table(dataset.name, "samples")
    if not exists(uri):
        return {ds: Inspection(facts={"rows": 0}) for ds in days}
    log = written(uri)
    samples_df = table_at(spark, uri, log.newest)
    schema, details = _schema(samples_df, sample_columns(dataset))
    by_day = {ds: samples_df.where(_among("ds", [ds])) for ds in days}
    events_uri = locations.table(dataset.name, "events")
    log_days = partition_values(uri, "ds", log.newest)

    def joins(ds: str) -> Facts:
        if schema["schema_missing"] or ds not in log_days or not exists(events_uri):
            return {}
        of_history = history_days(open_table(events_uri).partitions())
        known_df = on_their_days(table_at(spark, events_uri), of_history)
        known_df = known_df.where(_not_among("delivery_ds", _left_out(uri, ds)))
        events_df = around(known_df, dataset, [ds]).where(is_event(EventType.IMPRESSION))
        placed_df = events_df.transform(by_user).transform(at_requests, dataset).where(_among("ds", [ds]))
        return sample_joins(by_day[ds], placed_df, _lost(spark, dataset, ds), dataset)

    measured, *joined = at_once(
        partial(measure, samples_df.where(_among("ds", days)), suite, "ds"),
        *(partial(joins, ds) for ds in days),
    )
    inspections = {}
    for (ds, partition_df), of_joins in zip(by_day.items(), joined, strict=True):
        details_of_day: dict[str, str] = {}
        facts = {**schema, "rows": 0, **measured.get(ds, {})}
        if facts["rows"]:
            facts |= of_joins
            age = (parse_day(ds) - parse_day(min(log_days, default=ds))).days
            details_of_day = look_alikes(dataset, facts, age)
        inspections[ds] = Inspection(
            facts=facts,
            details=details | details_of_day,
            table=log.table,
            version=log.version_of(partition_of("samples", ds)),
            partition_df=partition_df,
        )
    return inspections


def _lost(spark: SparkSession, dataset: Dataset, ds: str) -> DataFrame:
    """Records of the day's delivery in quarantine that are impressions, or may have been."""
    uri = locations.table(dataset.name, "quarantine")
    if not exists(uri):
        return spark.createDataFrame([], "log string")
    kind = "coalesce(get_json_object(record, '$.event_type'), 'impression') = 'impression'"
    others = "log NOT IN ('users', 'items', 'clicks', 'orders')"
    return table_at(spark, uri).where(f"ds = '{ds}' AND stage = 'ingest' AND {others} AND {kind}")


def _left_out(uri: str, ds: str) -> list[str]:
    """Deliveries that the day's samples were built without, as they had not passed their gate."""
    commit = last_commit(uri, partition_of("samples", ds))
    return list(commit.metadata.get("inputs", {}).get("left_out", ())) if commit else []


def _schema(df: DataFrame, declared: list[tuple[str, str]]) -> tuple[Facts, dict[str, str]]:
    differences = schema_differences(declared, dict(df.dtypes))
    return (
        {name: len(columns) for name, columns in differences.items()},
        {name: "; ".join(columns) for name, columns in differences.items() if columns},
    )


def _known_tables(spark: SparkSession, dataset: Dataset, events_df: DataFrame, ds: str) -> KnownTables:
    """What delivery `ds` refers to; a table that is not there knows nothing."""

    def newest(table: str) -> str:
        days = partition_values(locations.table(dataset.name, table), "ds")
        return f"ds = '{max((day for day in days if day <= ds), default='')}'"

    def read(table: str, column: str, where: str) -> DataFrame:
        uri = locations.table(dataset.name, table)
        if not exists(uri):
            return spark.createDataFrame([], f"{column} string")
        return table_at(spark, uri).where(where).select(column)

    first, last = shift_day(ds, -dataset.late_days - 1), shift_day(ds, 1)
    return KnownTables(
        impressions_df=events_df.where(
            f"ds BETWEEN '{first}' AND '{last}' AND delivery_ds <= '{ds}'"
            f" AND event_type = '{EventType.IMPRESSION}'"
        ).select("impression_id"),
        users_df=read("users", "user_id", newest("users")),
        items_df=read("items", "item_id", newest("items")),
        quarantined_df=read("quarantine", "reason", f"ds = '{ds}' AND stage = 'ingest'"),
    )


def _among(column: str, days: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(repr(day) for day in days)})"


def _not_among(column: str, days: Sequence[str]) -> str:
    return f"NOT {_among(column, days)}" if days else "true"
