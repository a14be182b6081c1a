"""Sources: how a dataset's raw logs become rows of `events`, `users` and `items`.

A source is a module of this package named after its dataset, with one function,
`read_delivery(spark, root, ds) -> Delivery`. It only reads and types: deduplication, the placing of late
records and quarantine are the work of `spark_jobs.ingest`, the same for every source. `docs/sources.md` shows
how to write one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.datasets import dataset_named


@dataclass(frozen=True)
class Delivery:
    """What arrived for one day's run, typed but not yet checked.

    Args:
        events_df: `event_columns(dataset)` with `arrival_ms` (bigint, when the record reached the log; the
            latest copy of an event wins) and `file` (string). May hold duplicates, nulls and invalid values.
        users_df: `dimension_columns(dataset, Owner.PROFILE)`, the users as known on the day.
        items_df: `dimension_columns(dataset, Owner.ITEM)`, the items as known on the day.
        broken_df: (log, reason, record, file), all strings: lines that could not be parsed.
    """

    events_df: DataFrame
    users_df: DataFrame
    items_df: DataFrame
    broken_df: DataFrame


class Source(Protocol):
    """A module that reads one dataset's raw logs."""

    def read_delivery(self, spark: SparkSession, root: str, ds: str) -> Delivery:
        """Reads the delivery of day `ds` below the folder `root`.

        Raises:
            FileNotFoundError: The delivery is absent; the message names the day and the path.
        """


def source_of(dataset: str) -> Source:
    """The module that reads a dataset's raw logs.

    Raises:
        ValueError: The dataset is unknown, or has no module in `spark_jobs/sources`.
    """
    name = f"{__name__}.{dataset_named(dataset).name}"
    try:
        return cast(Source, importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(
            f"dataset {dataset!r} has no source: write {name.replace('.', '/')}.py with "
            "read_delivery(spark, root, ds), see docs/sources.md"
        ) from error


def typed(df: DataFrame, columns: list[tuple[str, str]], *more: str) -> DataFrame:
    """Selects `columns`, each cast to its Spark SQL type, then the columns `more` as they are."""
    return df.select(*(F.col(name).cast(kind).alias(name) for name, kind in columns), *more)


def code_of(name: Column, table: tuple[str, ...]) -> Column:
    """The category of a name: 1 + its index in `table`, and 0 for null and for what is not in it."""
    pairs = [F.lit(part) for i, value in enumerate(table, start=1) for part in (value, i)]
    return F.coalesce(F.element_at(F.create_map(*pairs), name), F.lit(0))


def day_of(time_ms: Column, utc_offset_hours: int) -> Column:
    """The day `YYYY-MM-DD` of a UTC time in milliseconds, in a clock with a fixed offset.

    Integer arithmetic on days since 1970, so that neither the session's time zone nor the machine's matters.
    """
    day = F.floor((time_ms + F.lit(utc_offset_hours * 3_600_000)) / F.lit(86_400_000))
    return F.date_format(F.date_from_unix_date(day.cast("int")), "yyyy-MM-dd")
