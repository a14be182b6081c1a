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

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.features import EventType, Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.sources import Delivery, code_of, day_of, typed
from spark_jobs.sources.files import present
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
    parsed = {log: _parsed(df, log) for log, df in lines.items()}
    events_df: DataFrame | None = None
    broken_df: DataFrame | None = None
    for log, key, event_type, action in _EVENT_LOGS:
        part_df = _events(parsed[log], key, event_type, action, ds)
        events_df = part_df if events_df is None else events_df.unionByName(part_df)
    for log, df in parsed.items():
        part_df = _broken(df, log)
        broken_df = part_df if broken_df is None else broken_df.unionByName(part_df)
    assert events_df is not None
    assert broken_df is not None
    return Delivery(events_df, _users(parsed["users"], ds), _items(parsed["items"], ds), broken_df)


def _lines(spark: SparkSession, root: str, log: str, ds: str) -> DataFrame:
    path = f"{root}/{log}/ds={ds}"
    lines_df = present(
        lambda: spark.read.text(path),
        f"foodlog: no delivery of {ds}: {path} is absent; wait for it, or write it by "
        f"`python -m spark_jobs.simulate --dataset foodlog --from {ds} --to {ds}`",
    )
    return lines_df.select("value", F.col("_metadata.file_path").alias("file"))


def _parsed(lines_df: DataFrame, log: str) -> DataFrame:
    """Columns `row` (the parsed line), `value` (the line itself), `file`."""
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "_corrupt_record"}
    row = F.from_json("value", f"{SCHEMAS[log]}, _corrupt_record string", options)
    return lines_df.where(F.trim("value") != "").select(row.alias("row"), "value", "file")


def _is_broken() -> Column:
    return F.col("row").isNull() | F.col("row._corrupt_record").isNotNull()


def _broken(parsed_df: DataFrame, log: str) -> DataFrame:
    return parsed_df.where(_is_broken()).select(
        F.lit(log).alias("log"),
        F.lit("not a JSON line with the log's fields and types").alias("reason"),
        F.col("value").alias("record"),
        "file",
    )


def _rows(parsed_df: DataFrame) -> DataFrame:
    return parsed_df.where(~_is_broken()).select("row.*", "file")


def _events(parsed_df: DataFrame, key: str, event_type: EventType, action: str | None, ds: str) -> DataFrame:
    code = None if action is None else 1 + FOODLOG.actions.index(action)
    return (
        _rows(parsed_df)
        .select(
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
            "file",
        )
        .transform(typed, event_columns(FOODLOG), "arrival_ms", "file")
    )


def _users(parsed_df: DataFrame, ds: str) -> DataFrame:
    member = F.when(F.col("is_member"), 2).when(~F.col("is_member"), 1).otherwise(0)
    days = F.datediff(F.lit(ds).cast("date"), F.expr("try_cast(registered_on as date)"))
    return (
        _rows(parsed_df)
        .select(
            "user_id",
            code_of(F.col("city"), CITIES).alias("city"),
            code_of(F.col("age"), AGES).alias("age_band"),
            code_of(F.col("budget"), BUDGETS).alias("budget_band"),
            member.alias("member"),
            F.coalesce("home_cell", F.lit(0)).alias("home_cell"),
            F.greatest(F.coalesce(days, F.lit(0)), F.lit(0)).alias("registered_days"),
            F.lit(ds).alias("ds"),
        )
        .transform(typed, dimension_columns(FOODLOG, Owner.PROFILE))
    )


def _items(parsed_df: DataFrame, ds: str) -> DataFrame:
    band = F.lit(len(PRICE_LIMITS) + 1)
    for code, limit in reversed(list(enumerate(PRICE_LIMITS, start=1))):
        band = F.when(F.col("price") < limit, F.lit(code)).otherwise(band)
    return (
        _rows(parsed_df)
        .select(
            "item_id",
            "merchant_id",
            code_of(F.col("cuisine"), CUISINES).alias("cuisine"),
            F.when(F.col("price").isNull(), 0).otherwise(band).alias("price_band"),
            "price",
            "merchant_cell",
            F.lit(ds).alias("ds"),
        )
        .transform(typed, dimension_columns(FOODLOG, Owner.ITEM))
    )
