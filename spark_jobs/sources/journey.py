"""journey: the real log of a grocery retailer, as `python -m spark_jobs.journey` writes it.

`root` holds `events/ds=<day>/`, one folder a day of the log, `history/ds=<day>/` with what was before its
first day, and `users.parquet` and `items.parquet`. These two are one file each for the whole year, and every
delivery brings them: the declaration says `BEFORE_DAY`, which no file proves (households, products and their
types do not change; whether a product exists yet is not told by them).
"""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import HISTORY_DS
from spark_jobs.contract.features import Owner
from spark_jobs.contract.journey import JOURNEY
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.sources import Delivery, day_of, typed
from spark_jobs.sources.files import read_parquet

_PARTITIONS = ("ds", "delivery_ds")


def read_delivery(spark: SparkSession, root: str, ds: str) -> Delivery:
    """Reads the day `ds` of the log below `root`.

    Raises:
        FileNotFoundError: There is no such day, or no log; names the day and the path.
        ValueError: A column is missing.
    """
    events_df, broken_df = _events(spark, f"{root}/events/ds={ds}", ds, f"of {ds}")
    return Delivery(
        events_df,
        _snapshot(spark, root, Owner.PROFILE, ds),
        _snapshot(spark, root, Owner.ITEM, ds),
        broken_df,
    )


def read_history(spark: SparkSession, root: str) -> Delivery | None:
    """Reads what was before the log's first day; None where the log begins with the tables.

    Raises:
        FileNotFoundError: There is no log below `root`.
        ValueError: A column is missing.
    """
    try:
        events_df, broken_df = _events(spark, f"{root}/history", HISTORY_DS, "before the log")
    except FileNotFoundError:
        _snapshot(spark, root, Owner.ITEM, HISTORY_DS)  # says so where there is no log at all
        return None
    return Delivery(events_df, None, None, broken_df)


def _events(spark: SparkSession, path: str, ds: str, what: str) -> tuple[DataFrame, DataFrame]:
    types = {name: kind for name, kind in event_columns(JOURNEY) if name not in _PARTITIONS}
    rows_df = read_parquet(spark.read, path, types, _absent(path, what))
    broken_df = rows_df.where("is_broken").select(
        F.lit("events").alias("log"),
        F.lit("not a row of the log's typed columns").alias("reason"),
        "record",
        "file",
    )
    return (
        rows_df.where(~F.col("is_broken"))
        .withColumns(
            {
                "ds": day_of(F.col("time_ms"), JOURNEY.utc_offset_hours),
                "delivery_ds": F.lit(ds),
                "arrival_ms": F.col("time_ms"),
                "log": F.lit("events"),
            }
        )
        .transform(typed, event_columns(JOURNEY), "arrival_ms", "log", "file"),
        broken_df,
    )


def _snapshot(spark: SparkSession, root: str, owner: Owner, ds: str) -> DataFrame:
    columns = dimension_columns(JOURNEY, owner)
    path = f"{root}/{'users' if owner is Owner.PROFILE else 'items'}.parquet"
    types = {name: kind for name, kind in columns if name != "ds"}
    rows_df = read_parquet(spark.read, path, types, _absent(path, f"of {ds}"))
    return rows_df.withColumn("ds", F.lit(ds)).transform(typed, columns)


def _absent(path: str, what: str) -> str:
    return (
        f"journey: no delivery {what}: {path} is absent; write the log: "
        "python -m spark_jobs.journey --first-day <day>"
    )
