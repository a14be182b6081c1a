"""foodlog: the raw logs of a food delivery app, as `python -m spark_jobs.simulate` writes them.

`root` holds one folder a log and day, `<root>/<log>/ds=YYYY-MM-DD/`, with JSON lines (plain or compressed):

| log | one line | key |
|---|---|---|
| `impressions` | a dish shown: who, what, when, at which position, in which context | impression_id |
| `clicks` | the impression's ids and context, and the time of the click | click_id |
| `orders` | the same of an order | order_id |
| `users` | snapshot of the day | user_id |
| `items` | snapshot of the day: dishes with their merchant | item_id |

`SCHEMAS` has the fields. Context is weather, distance_km and delivery_minutes, which clients copy from
the impression into what follows it. Every log line carries `received_ms`, the time at which the collector got
it. `position` is read by nothing: what ranks the page cannot know it.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.features import EventType, Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.sources import Delivery, code_of, day_of, typed
from spark_jobs.sources.files import read_json_lines
from spark_jobs.sources.foodlog_names import AGES, BUDGETS, CITIES, CUISINES, PRICE_LIMITS, WEATHERS

_CONTEXT = "weather string, distance_km double, delivery_minutes double"
_EVENT = (
    "impression_id string, request_id string, user_id bigint, item_id bigint, time_ms bigint, "
    f"received_ms bigint, {_CONTEXT}"
)
SCHEMAS = {
    "impressions": f"{_EVENT}, position int",
    "clicks": f"click_id string, {_EVENT}",
    "orders": f"order_id string, {_EVENT}",
    "users": (
        "user_id bigint, city string, age string, budget string, is_member boolean, home_cell bigint, "
        "registered_on string"
    ),
    "items": ("item_id bigint, merchant_id bigint, cuisine string, price double, merchant_cell bigint"),
}
_EVENT_LOGS = (  # log, its key, event type, action
    ("impressions", "impression_id", EventType.IMPRESSION, None),
    ("clicks", "click_id", EventType.CLICK, "click"),
    ("orders", "order_id", EventType.CONVERSION, "order"),
)


def read_delivery(spark: SparkSession, root: str, ds: str) -> Delivery:
    """Reads the delivery of day `ds` below `root`.

    Raises:
        FileNotFoundError: One of the five logs has no folder for the day; names the day and the path.
    """
    lines = {log: _lines(spark, root, log, ds) for log in SCHEMAS}
    good = {log: lines_df.where("NOT is_broken") for log, lines_df in lines.items()}
    events = [_events(good[log], log, key, kind, action, ds) for log, key, kind, action in _EVENT_LOGS]
    broken = [_broken(lines_df, log) for log, lines_df in lines.items()]
    return Delivery(
        reduce(DataFrame.unionByName, events),
        _users(good["users"], ds),
        _items(good["items"], ds),
        reduce(DataFrame.unionByName, broken),
    )


def _lines(spark: SparkSession, root: str, log: str, ds: str) -> DataFrame:
    path = f"{root}/{log}/ds={ds}"
    absent = (
        f"foodlog: no delivery of {ds}: {path} is absent; wait for it, or write it by "
        f"`python -m spark_jobs.simulate --dataset foodlog --from {ds} --to {ds}`"
    )
    return read_json_lines(spark.read, path, SCHEMAS[log], absent)


def _broken(lines_df: DataFrame, log: str) -> DataFrame:
    return lines_df.where("is_broken").select(
        F.lit(log).alias("log"),
        F.lit("not one JSON object a line with the log's fields and types").alias("reason"),
        "record",
        "file",
    )


def _events(
    rows_df: DataFrame, log: str, key: str, event_type: EventType, action: str | None, ds: str
) -> DataFrame:
    code = None if action is None else 1 + FOODLOG.actions.index(action)
    return rows_df.select(
        F.col(key).alias("event_id"),
        F.lit(str(event_type)).alias("event_type"),
        "user_id",
        "item_id",
        "request_id",
        "impression_id",
        "time_ms",
        F.lit(code).alias("action"),
        day_of(F.col("time_ms"), FOODLOG.utc_offset_hours).alias("ds"),
        F.lit(ds).alias("delivery_ds"),
        code_of(F.col("weather"), WEATHERS).alias("weather"),
        "distance_km",
        "delivery_minutes",
        F.col("received_ms").alias("arrival_ms"),
        F.lit(log).alias("log"),
        "file",
    ).transform(typed, event_columns(FOODLOG), "arrival_ms", "log", "file")


def _users(rows_df: DataFrame, ds: str) -> DataFrame:
    member = F.when(F.col("is_member"), 2).when(~F.col("is_member"), 1).otherwise(0)
    days = F.datediff(F.lit(ds).cast("date"), F.expr("try_cast(registered_on as date)"))
    return rows_df.select(
        "user_id",
        code_of(F.col("city"), CITIES).alias("city"),
        code_of(F.col("age"), AGES).alias("age_band"),
        code_of(F.col("budget"), BUDGETS).alias("budget_band"),
        member.alias("member"),
        F.coalesce("home_cell", F.lit(0)).alias("home_cell"),
        F.greatest(F.coalesce(days, F.lit(0)), F.lit(0)).alias("registered_days"),
        F.lit(ds).alias("ds"),
    ).transform(typed, dimension_columns(FOODLOG, Owner.PROFILE))


def _items(rows_df: DataFrame, ds: str) -> DataFrame:
    band = F.lit(len(PRICE_LIMITS) + 1)
    for code, limit in reversed(list(enumerate(PRICE_LIMITS, start=1))):
        band = F.when(F.col("price") < limit, F.lit(code)).otherwise(band)
    return rows_df.select(
        "item_id",
        "merchant_id",
        code_of(F.col("cuisine"), CUISINES).alias("cuisine"),
        F.when(F.col("price").isNull(), 0).otherwise(band).alias("price_band"),
        "price",
        "merchant_cell",
        F.lit(ds).alias("ds"),
    ).transform(typed, dimension_columns(FOODLOG, Owner.ITEM))
