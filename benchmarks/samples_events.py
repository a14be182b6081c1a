"""Events for `bench_samples`: any number, in foodlog's tables, made by Spark from a range of ids.

Every column is a hash of the row's id, so that the same size gives the same events on any machine. The
day that is built has `impressions` of them; the 30 days before it have as many again, and days 31 to 90
before it hold the long history, clicks alone. There are late records, records in two deliveries, and one bot.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import DAY_MS, shift_day
from spark_jobs.contract.features import EventType, Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.sources import day_of

BENCH_DS = "2026-03-01"
_BOT = -1
_BOT_IMPRESSIONS = 3_000
_DELAY_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class World:
    """How much happens to whom.

    Args:
        impressions: Impressions on `BENCH_DS`.
        candidates_a_user: Mean number of them for a user.
        history_a_user: Mean number of a user's clicks on days 31 to 90 before.
    """

    impressions: int
    candidates_a_user: int = 50
    history_a_user: int = 25

    @property
    def users(self) -> int:
        """Number of users."""
        return max(20, self.impressions // self.candidates_a_user)


def write_tables(spark: SparkSession, folder: str, world: World) -> None:
    """Writes the Delta tables `events`, `users` and `items` below `folder`.

    Args:
        spark: Session.
        folder: An empty folder.
        world: What they hold.
    """
    impressions, users = world.impressions, world.users
    items = max(100, min(100_000, impressions // 100))
    shown_df = _impressions(spark, impressions, users, items)
    old_df = _impressions(
        spark, users * world.history_a_user, users, items, first_day=90, days=60, prefix="h"
    )
    events_df = (
        shown_df.unionByName(_followed(shown_df, EventType.CLICK, 0.15, "c"))
        .unionByName(_followed(shown_df, EventType.CONVERSION, 0.03, "o"))
        .unionByName(_followed(old_df, EventType.CLICK, 1.0, "k"))
        .withColumn("ds", day_of(F.col("time_ms"), FOODLOG.utc_offset_hours))
        .withColumn(
            "delivery_ds", F.when(_unit("event_id", 9) < 0.01, F.date_add("ds", 1)).otherwise(F.col("ds"))
        )
        .withColumn("delivery_ds", F.col("delivery_ds").cast("string"))
    )
    again_df = events_df.where(_unit("event_id", 10) < 0.0005).withColumn(
        "delivery_ds", F.date_add("ds", 2).cast("string")
    )
    columns = event_columns(FOODLOG)
    rows_df = events_df.unionByName(again_df).select(*(F.col(c).cast(kind).alias(c) for c, kind in columns))
    _save(
        rows_df.repartition("ds", F.pmod(F.xxhash64("user_id"), F.lit(4))),
        f"{folder}/events",
        "ds",
        "delivery_ds",
    )
    for name, owner, number in (("users", Owner.PROFILE, users), ("items", Owner.ITEM, items)):
        _save(_dimension(spark, owner, number), f"{folder}/{name}", "ds")


def _impressions(
    spark: SparkSession,
    number: int,
    users: int,
    items: int,
    *,
    first_day: int = 30,
    days: int = 0,
    prefix: str = "i",
) -> DataFrame:
    """Impressions of the day and as many of the 30 days before, or of `days` days from `first_day` before."""
    start = FOODLOG.day_start_ms(BENCH_DS)
    total = number if days else 2 * number
    before = F.floor(_unit("id", 3) * (days or 30)) - first_day
    day = before if days else F.when(F.col("id") < number, F.lit(0)).otherwise(before)
    bot_df = spark.range(_BOT_IMPRESSIONS if not days else 0).withColumn("is_bot", F.lit(True))
    ids_df = spark.range(total).withColumn("is_bot", F.lit(False))
    rows_df = ids_df.withColumn("day", day).unionByName(bot_df.withColumn("day", F.lit(0).cast("bigint")))
    # The busiest users see twice the mean: no day is cut, which DuckDB's side leaves out.
    share = _unit("id", 1)
    user = F.floor((share + share * share) / 2 * users)
    return rows_df.select(
        F.concat(F.when(F.col("is_bot"), "b").otherwise(prefix), F.col("id")).alias("event_id"),
        F.lit(EventType.IMPRESSION.value).alias("event_type"),
        F.when(F.col("is_bot"), _BOT).otherwise(user).cast("bigint").alias("user_id"),
        F.floor(F.pow(_unit("id", 2), F.lit(2.0)) * items).alias("item_id"),
        F.concat(F.lit("r"), F.floor(F.col("id") / 10)).alias("request_id"),
        F.concat(F.when(F.col("is_bot"), "b").otherwise(prefix), F.col("id")).alias("impression_id"),
        (start + F.col("day") * DAY_MS + F.floor(_unit("id", 4) * (DAY_MS - 3 * _DELAY_MS))).alias("time_ms"),
        F.lit(None).cast("int").alias("action"),
        F.floor(_unit("id", 5) * 8).alias("weather"),
        (_unit("id", 6) * 10).alias("distance_km"),
        F.floor(20 + _unit("id", 7) * 40).alias("delivery_minutes"),
    )


def _followed(shown_df: DataFrame, kind: EventType, share: float, prefix: str) -> DataFrame:
    action = 1 if kind is EventType.CLICK else 2
    return shown_df.where((_unit("event_id", 8) < share) & (F.col("user_id") != _BOT)).withColumns(
        {
            "event_id": F.concat(F.lit(prefix), "event_id"),
            "event_type": F.lit(kind.value),
            "request_id": F.lit(None).cast("string"),
            "time_ms": F.col("time_ms") + action * _DELAY_MS,
            "action": F.lit(action),
        }
    )


def _dimension(spark: SparkSession, owner: Owner, number: int) -> DataFrame:
    """One row a key from the first day on; values are hashes within the declared ranges."""
    columns = dimension_columns(FOODLOG, owner)
    specs = {f.name: f for f in FOODLOG.of(owner)}
    ids = {"merchant_id": max(10, number // 6), "home_cell": 10_000, "merchant_cell": 10_000}
    values: list[Column] = [F.col("id").alias(columns[0][0])]
    for i, (name, kind) in enumerate(columns[1:-1]):
        limit = ids.get(name) or specs[name].cardinality or 200
        values.append(F.floor(_unit("id", 20 + i) * limit).cast(kind).alias(name))
    return spark.range(number).select(*values, F.lit(shift_day(BENCH_DS, -90)).alias("ds"))


def _unit(column: str, salt: int) -> Column:
    """A number in [0, 1) from a column and a salt."""
    return F.pmod(F.xxhash64(column, F.lit(salt)), F.lit(1 << 30)) / F.lit(float(1 << 30))


def _save(df: DataFrame, uri: str, *partitions: str) -> None:
    df.write.format("delta").mode("error").partitionBy(*partitions).save(uri)
