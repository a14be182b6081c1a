"""Reading events: which copy of an event counts, who is a bot, and what an event's columns mean to a feature.

Everything is a function DataFrame -> DataFrame over the columns of `contract.event_columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import DAY_MS, HOUR_MS, THURSDAY, shift_day
from spark_jobs.contract.features import Dataset, EventType, FeatureSpec, Owner, Snapshot
from spark_jobs.contract.tables import SCALAR_TYPES

REQUEST_MS = HOUR_MS  # a request goes on for at most an hour after midnight
_EVENT = ["event_type", "event_id", "ds"]


def repeated(events_df: DataFrame) -> DataFrame:
    """(event_type, event_id, ds, first_delivery_ds) of events that several deliveries brought.

    Copies have the same type, id and day; the same id in another log, or on another day, is another event. So
    a copy lies in a delivery of another day than its event's, and only such rows need to be looked for: few.
    """
    off_df = events_df.where(F.col("ds") != F.col("delivery_ds")).select(*_EVENT).distinct()
    return (
        events_df.select(*_EVENT, "delivery_ds")
        .join(off_df, _EVENT, "left_semi")
        .groupBy(*_EVENT)
        .agg(F.min("delivery_ds").alias("first_delivery_ds"), F.max("delivery_ds").alias("last_delivery_ds"))
        .where(F.col("first_delivery_ds") != F.col("last_delivery_ds"))
        .drop("last_delivery_ds")
    )


def events_of(events_df: DataFrame, repeated_df: DataFrame | None = None) -> DataFrame:
    """Every event once: of copies in several deliveries, the one that was delivered first.

    The first, so that what a day knew of an event does not change with what arrives later.

    Args:
        events_df: Rows of the table `events`.
        repeated_df: `repeated(events_df)`, when it is at hand.
    """
    first_df = repeated(events_df) if repeated_df is None else repeated_df
    return (
        events_df.join(first_df, _EVENT, "left")
        .where(F.coalesce(F.col("first_delivery_ds") == F.col("delivery_ds"), F.lit(True)))
        .select(*events_df.columns)
    )


def bots(events_df: DataFrame, dataset: Dataset) -> DataFrame:
    """(user_id, ds, known_ds, impressions, others): users with more events on a day than a person can cause.

    More impressions than `max_impressions_a_day`, or more other events than that. What arrived by the end of
    the day (`known_ds` is the day) decides about the day; a later delivery that alone brings so many
    (`known_ds` is its day) is left out by itself, and changes nothing of what was known before it. Without
    them no user's day grows without bound, so that lists and groups by user stay small.
    """
    is_impression = (F.col("event_type") == EventType.IMPRESSION.value).cast("int")
    limit = dataset.max_impressions_a_day
    return (
        events_df.groupBy("user_id", "ds", _known_ds().alias("known_ds"))
        .agg(F.sum(is_impression).alias("impressions"), F.sum(1 - is_impression).alias("others"))
        .where((F.col("impressions") > limit) | (F.col("others") > limit))
    )


def without(events_df: DataFrame, bots_df: DataFrame) -> DataFrame:
    """Events without those of a bot's days, and without the late deliveries that `bots` names."""
    named_df = bots_df.select(
        F.col("user_id").alias("bot_id"), F.col("ds").alias("bot_ds"), F.col("known_ds").alias("bot_known_ds")
    )
    is_named = (
        (F.col("user_id") == F.col("bot_id"))
        & (F.col("ds") == F.col("bot_ds"))
        & F.col("bot_known_ds").isin(F.col("ds"), _known_ds())
    )
    return events_df.join(F.broadcast(named_df), is_named, "left_anti")


def _known_ds() -> Column:
    """The day at whose end an event was known: its own, or its delivery's when that came later."""
    return F.greatest("ds", "delivery_ds")


def days_after(dataset: Dataset) -> int:
    """How many days after a day the outcomes of its impressions may lie."""
    return -(-(REQUEST_MS + dataset.attribution_ms) // DAY_MS)


def around(events_df: DataFrame, dataset: Dataset, days: Sequence[str]) -> DataFrame:
    """Events of `days`, and the impressions around them whose requests may reach over a midnight."""
    borders = [(dataset.day_start_ms(ds) - REQUEST_MS, dataset.day_end_ms(ds) + REQUEST_MS) for ds in days]
    is_near = reduce(Column.__or__, (F.col("time_ms").between(*border) for border in borders))
    near = {shift_day(ds, n) for ds in days for n in (-1, 0, 1)}
    is_wanted = F.col("ds").isin(*days) | (is_near & is_event(EventType.IMPRESSION))
    return events_df.where(F.col("ds").isin(*sorted(near)) & is_wanted)


def at_requests(events_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Gives an impression the time and the day of its request, its first one; adds `shown_ms`, its own time.

    The candidates of a request were ranked at once, with one state of the user: what happens while they are
    logged one by one is not known to any of them. So they also lie in one window and on one day; what follows
    within `REQUEST_MS` after midnight on a request of the day before belongs to it.

    Args:
        events_df: Events that lie by user, with the hour before and the hour after the days of interest.
        dataset: Dataset.
    """
    events_df = events_df.withColumn("shown_ms", F.col("time_ms"))
    if not dataset.has_requests:
        return events_df
    shown_ms = F.when(is_event(EventType.IMPRESSION), F.col("time_ms"))
    local = F.col("time_ms") + F.lit(dataset.utc_offset_ms)
    is_evening = F.floor((local + REQUEST_MS) / DAY_MS) > F.floor(local / DAY_MS)
    night = Window.partitionBy("user_id", "request_id", F.floor((local + REQUEST_MS) / DAY_MS))
    began_ms = F.min(F.when(is_evening, shown_ms)).over(night)
    goes_on = shown_ms.isNotNull() & ~is_evening & (F.col("time_ms") < began_ms + REQUEST_MS)
    day_before = F.date_sub(F.col("ds").cast("date"), 1).cast("string")
    request = Window.partitionBy("user_id", "request_id", "ds")
    return events_df.withColumn("ds", F.when(goes_on, day_before).otherwise(F.col("ds"))).withColumn(
        "time_ms", F.coalesce(F.when(shown_ms.isNotNull(), F.min(shown_ms).over(request)), F.col("time_ms"))
    )


def snapshot_ds(held: Iterable[str], dataset: Dataset, ds: str) -> str | None:
    """The delivery whose snapshot holds on day `ds`: the newest one that was taken by the start of the day.

    Args:
        held: Days of the deliveries that brought a snapshot.
        dataset: Declares when a snapshot is taken.
        ds: The day.
    """
    last = ds if dataset.snapshot is Snapshot.BEFORE_DAY else shift_day(ds, -1)
    return max((day for day in held if day <= last), default=None)


def with_context(events_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Adds `hour` and `weekday` in the dataset's clock and gives absent context its "unknown" value."""
    local = F.col("time_ms") + F.lit(dataset.utc_offset_ms)
    day = F.floor(local / F.lit(DAY_MS))
    clock = {
        "hour": F.floor(local / F.lit(HOUR_MS)) % 24,
        "weekday": (day + THURSDAY) % 7,
    }
    columns = {name: value.cast("int") for name, value in clock.items()}
    for feature in dataset.of(Owner.CONTEXT):
        if feature.name not in clock:
            columns[feature.name] = known(feature)
    return events_df.withColumns(columns)


def with_weights(events_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Gives an event without a weight the weight 1, where the dataset has weights."""
    if not dataset.has_weights:
        return events_df
    return events_df.withColumn("weight", F.coalesce(F.col("weight"), F.lit(1.0)).cast("float"))


def with_items(events_df: DataFrame, items_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Adds the item's features as of `day`; an item that the catalogue lacks has the "unknown" values."""
    features = [f for f in dataset.of(Owner.ITEM) if f.name != "item_id"]
    return events_df.join(items_df, ["day", "item_id"], "left").withColumns(
        {f.name: known(f) for f in features}
    )


def known(feature: FeatureSpec) -> Column:
    """The feature's column with null as 0, or as the bound that lies nearest to 0."""
    return F.coalesce(F.col(feature.name), F.lit(feature.unknown)).cast(SCALAR_TYPES[feature.kind])


def is_event(kind: EventType) -> Column:
    """Whether the row is an event of this type."""
    return F.col("event_type") == kind.value
