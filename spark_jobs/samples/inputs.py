"""What the samples of some days are made from, and what of it no sample contains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.features import Dataset, EventType
from spark_jobs.lake.log import partition_values
from spark_jobs.lake.quarantine import as_quarantined
from spark_jobs.lake.session import keeping
from spark_jobs.lake.writer import table_at
from spark_jobs.samples.deliveries import Deliveries
from spark_jobs.samples.events import bots, days_after, events_of, is_event, repeated, snapshot_ds, without

INPUTS = ("events", "users", "items")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the samples of some days are made from.

    Args:
        events_df: Events in `scope`, every event once.
        bots_df: See `events.bots`.
        people_df: `events_df` without the bots.
        users_df: The users as of each `day`.
        items_df: The items as of each `day`.
    """

    events_df: DataFrame
    bots_df: DataFrame
    people_df: DataFrame
    users_df: DataFrame
    items_df: DataFrame


@contextlib.contextmanager
def inputs_of(
    spark: SparkSession,
    dataset: Dataset,
    days: Sequence[str],
    versions: Mapping[str, int],
    deliveries: Deliveries,
) -> Iterator[Inputs]:
    """Reads the tables at their versions; who is a bot and what came twice is determined once and kept."""
    uris = {name: locations.table(dataset.name, name) for name in INPUTS}
    tables = {name: table_at(spark, uri, versions[name]) for name, uri in uris.items()}
    held = {
        name: deliveries.days(partition_values(uris[name], "ds", versions[name]))
        for name in ("users", "items")
    }
    scope_df = scope(deliveries.events(tables["events"]), dataset, days)
    with keeping() as keep:
        repeated_df = keep(repeated(scope_df))
        once_df = scope_df if repeated_df.isEmpty() else events_of(scope_df, repeated_df)
        bots_df = keep(bots(once_df, dataset))
        yield Inputs(
            events_df=once_df,
            bots_df=bots_df,
            people_df=once_df if bots_df.isEmpty() else without(once_df, bots_df),
            users_df=as_of(tables["users"], held["users"], dataset, days),
            items_df=as_of(tables["items"], held["items"], dataset, days),
        )


def as_of(snapshots_df: DataFrame, held: Sequence[str], dataset: Dataset, days: Sequence[str]) -> DataFrame:
    """The snapshot that holds on each `day`, whole, and nothing of any other.

    Args:
        snapshots_df: The table `users` or `items`.
        held: Days of which the table has a snapshot.
        dataset: Dataset.
        days: The days.
    """
    newest = {day: snapshot_ds(held, dataset, day) for day in days}
    return reduce(
        DataFrame.unionByName,
        (
            snapshots_df.where(F.lit(False) if ds is None else F.col("ds") == ds).withColumn(
                "day", F.lit(day)
            )
            for day, ds in newest.items()
        ),
    ).drop("ds")


def scope(events_df: DataFrame, dataset: Dataset, days: Sequence[str]) -> DataFrame:
    """Events that the samples of `days` can depend on: history, the days, and the days of their outcomes."""
    first, last = shift_day(days[0], -dataset.reach_days), shift_day(days[-1], days_after(dataset))
    return events_df.where(F.col("ds").between(first, last))


def unused(inputs: Inputs, dataset: Dataset, days: Sequence[str]) -> DataFrame:
    """What no sample contains: the days' bots, and their outcomes that label no impression.

    Args:
        inputs: Of the days.
        dataset: Dataset.
        days: The days, ascending.

    Returns:
        `as_quarantined` rows with the `day` that they are of.
    """
    events_df = inputs.events_df
    bots_today_df = (
        inputs.bots_df.where(F.col("ds").isin(*days))
        .withColumn("day", F.col("ds"))
        .withColumn("reason", F.lit("a bot: more events on the day than max_impressions_a_day"))
    )
    first = {day: shift_day(day, -days_after(dataset)) for day in days}
    spans = F.array(*(F.struct(F.lit(a).alias("first"), F.lit(day).alias("day")) for day, a in first.items()))
    holding = F.filter(spans, lambda span: F.col("ds").between(span["first"], span["day"]))
    shown_df = (
        events_df.where(F.col("ds").between(first[days[0]], days[-1]) & is_event(EventType.IMPRESSION))
        .withColumn("day", F.explode(holding["day"]))
        .groupBy("day", "user_id", "impression_id")
        .agg(F.min("time_ms").alias("first_ms"), F.max("time_ms").alias("last_ms"))
    )
    is_in_time = F.col("time_ms").between(F.col("first_ms"), F.col("last_ms") + dataset.attribution_ms)
    is_outcome = is_event(EventType.CLICK) | is_event(EventType.CONVERSION)
    orphans_df = (
        events_df.where(F.col("ds").isin(*days) & is_outcome)
        .withColumn("day", F.col("ds"))
        .join(shown_df, ["day", "user_id", "impression_id"], "left")
        .withColumn(
            "reason",
            F.when(F.col("first_ms").isNull(), "no impression of this user with this impression_id").when(
                ~is_in_time, "outside of the attribution window of its impression"
            ),
        )
        .where("reason IS NOT NULL")
        .select("day", "event_id", "event_type", "user_id", "item_id", "impression_id", "time_ms", "reason")
    )
    return as_quarantined(bots_today_df, "users", day="day").unionByName(
        as_quarantined(orphans_df, "events", day="day")
    )
