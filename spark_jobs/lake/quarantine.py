"""The `quarantine` table: what a stage could not take, with the reason, so that nothing is lost unseen.

One partition per day and stage, replaced as a whole by every run of the stage: a rerun does not double it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import locations
from spark_jobs.lake.writer import replace_partition

QUARANTINE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("ds", "string"),  # the day of the run
    ("stage", "string"),  # ingest, build_samples or gate
    ("log", "string"),  # raw log or table that the record came from
    ("reason", "string"),
    ("record", "string"),  # the record as JSON or, where it could not be read, as it stands in the file
    ("file", "string"),  # raw file, where there is one
)


def as_quarantined(
    df: DataFrame,
    log: str | Column,
    reason: str = "reason",
    file: str | None = None,
    day: str | None = None,
) -> DataFrame:
    """Rows as (log, reason, record, file), behind the `day` where there is one.

    `reason`, `file` and `day` name columns, all others make the record.
    """
    record = [c for c in df.columns if c not in (reason, file, day)]
    return df.select(
        *([day] if day else []),
        (F.lit(log) if isinstance(log, str) else log).alias("log"),
        F.col(reason).alias("reason"),
        F.to_json(F.struct(*record)).alias("record"),
        (F.col(file) if file else F.lit(None).cast("string")).alias("file"),
    )


def quarantine(df: DataFrame, dataset: str, ds: str, stage: str, metadata: Mapping[str, Any]) -> int:
    """Replaces what a stage has quarantined for a day.

    Args:
        df: (log, reason, record, file), see `as_quarantined`; may be empty.
        dataset: Name of the dataset.
        ds: Day of the run.
        stage: Name of the stage.
        metadata: What the commit shall say.

    Returns:
        Table version, -1 when there is no table because nothing was ever quarantined.
    """
    # A broken line may hold any bytes; other engines refuse a text that is not UTF-8, and the table with it.
    texts = [F.make_valid_utf8(F.col(name)).alias(name) for name in ("log", "reason", "record", "file")]
    rows_df = df.select(F.lit(ds).alias("ds"), F.lit(stage).alias("stage"), *texts)
    return replace_partition(
        rows_df,
        locations.table(dataset, "quarantine"),
        {"ds": ds, "stage": stage},
        columns=QUARANTINE_COLUMNS,
        partition_by=["ds", "stage"],
        stage=f"{stage}_quarantine",
        metadata=metadata,
        allow_empty=True,
    )
