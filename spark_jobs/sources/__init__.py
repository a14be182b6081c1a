"""Sources: how a dataset's raw logs become rows of `events`, `users` and `items`.

A source is a module of this package named after its dataset, with the function
`read_delivery(spark, root, ds) -> Delivery` and, where there is history from before the log,
`read_history(spark, root) -> Delivery | None`. It only reads and types: deduplication, the placing of late
records and quarantine are the work of `spark_jobs.ingest`, the same for every source. `docs/sources.md` shows
how to write one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import DAY_MS, HOUR_MS
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.sources.files import castable

_CALENDAR_MS = (-62_135_596_800_000 + DAY_MS, 253_402_300_799_999 - DAY_MS)  # years 1 to 9999, any offset


@dataclass(frozen=True)
class Delivery:
    """What arrived for one day's run, typed but not yet checked.

    Args:
        events_df: `event_columns(dataset)` with `arrival_ms` (bigint, when the record reached the log; the
            latest copy of an event wins) and `file` (string). May hold duplicates, nulls and invalid values.
            Ids are unique within their event type. May have `log` (string, the raw log of the record) and
            `mistyped`, see `typed`.
        users_df: `dimension_columns(dataset, Owner.PROFILE)`, every user as known when the snapshot was
            taken; may have `mistyped`. None: no snapshot came with this delivery, the newest one holds.
        items_df: `dimension_columns(dataset, Owner.ITEM)`, every item, the same way.
        broken_df: (log, reason, record, file), all strings: lines that could not be parsed. `log` is `users`
            and `items` for those of the snapshots, else as in `events_df`.
    """

    events_df: DataFrame
    users_df: DataFrame | None
    items_df: DataFrame | None
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


def has_history(dataset: str) -> bool:
    """Whether a dataset's source can read history from before the log."""
    return hasattr(source_of(dataset), "read_history")


def read_history(spark: SparkSession, dataset: str, root: str) -> Delivery | None:
    """What happened before the log, as one delivery; None where the source knows none or `root` has none."""
    if not has_history(dataset):
        return None
    return cast(Delivery | None, source_of(dataset).read_history(spark, root))  # type: ignore[attr-defined]


def typed(df: DataFrame, columns: list[tuple[str, str]], *more: str) -> DataFrame:
    """Selects `columns`, each cast to its Spark SQL type, then the columns `more` as they are.

    Adds `mistyped`: the values that are not of their type, as JSON by column, else null. Their record is
    quarantined; the others are taken.

    Raises:
        ValueError: A column is missing, or none of its values can have the type.
    """
    has = dict(df.dtypes)
    for name, kind in columns:
        if name not in has:
            raise ValueError(f"column {name} is missing; the source gives {', '.join(has)}")
        if not castable(has[name], kind):
            raise ValueError(f"column {name} is {has[name]}, declared {kind}")
    cast = {name: F.col(name).try_cast(kind) for name, kind in columns}
    doubtful = [name for name, kind in columns if has[name] not in (kind, "void")]
    wrong = [
        F.when(F.col(name).isNotNull() & cast[name].isNull(), F.col(name)).alias(name) for name in doubtful
    ]
    mistyped = F.nullif(F.to_json(F.struct(*wrong)), F.lit("{}")) if wrong else F.lit(None).cast("string")
    return df.select(*(value.alias(name) for name, value in cast.items()), *more, mistyped.alias("mistyped"))


def code_of(name: Column, table: tuple[str, ...]) -> Column:
    """The category of a name: 1 + its index in `table`, and 0 for null and for what is not in it."""
    pairs = [F.lit(part) for i, value in enumerate(table, start=1) for part in (value, i)]
    return F.coalesce(F.element_at(F.create_map(*pairs), name), F.lit(0))


def day_of(time_ms: Column, utc_offset_hours: float) -> Column:
    """The day `YYYY-MM-DD` of a UTC time in milliseconds, in a clock with a fixed offset.

    Integer arithmetic on days since 1970, so that neither the session's time zone nor the machine's matters.
    Null for a time that no calendar has: Spark's casts would end the job for one such record.
    """
    in_calendar = F.when(time_ms.between(*_CALENDAR_MS), time_ms)
    day = F.floor((in_calendar + F.lit(int(utc_offset_hours * HOUR_MS))) / F.lit(DAY_MS))
    return F.date_format(F.date_from_unix_date(day.cast("int")), "yyyy-MM-dd")
