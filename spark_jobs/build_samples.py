"""Builds the samples of one day from events, users and items: `contract.sample_columns`, one partition.

    python -m spark_jobs.build_samples --dataset foodlog --ds 2026-03-01 [--late]

Reads each table at one version, which the commit records; replaces exactly the partition `ds`, atomically.
`--late` also makes the earlier days again that this day's delivery brought records for. A partition that this
very code made from these very table versions is left as it is. What may know what is said in
`spark_jobs/samples/build.py`; bots and outcomes without an impression are reported in `quarantine`.

Prints one JSON line: `{"ds", "rebuilt", "rows", "candidates", "samples_version", "empty", ...}`. A day
without impressions never touches existing rows: exit code 1, unless the day has neither delivery nor samples.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.features import Dataset, EventType
from spark_jobs.contract.phases import reach
from spark_jobs.contract.tables import sample_columns
from spark_jobs.ingest import as_of
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import current_version, partition_values
from spark_jobs.lake.quarantine import as_quarantined, quarantine
from spark_jobs.lake.session import spark_session
from spark_jobs.lake.writer import EmptyInputError, already_written, replace_partition, table_at
from spark_jobs.samples.build import build
from spark_jobs.samples.events import bots, events_of, is_event, repeated, without

logger = logging.getLogger(__name__)
STAGE = "build_samples"
_INPUTS = ("events", "users", "items")


def build_days(spark: SparkSession, dataset: Dataset, ds: str, *, late: bool = False) -> dict[str, Any]:
    """Builds the samples of day `ds` and, with `late`, of the earlier days that its delivery changed.

    Args:
        spark: Session.
        dataset: Dataset.
        ds: The day.
        late: Whether days that late records of this delivery belong to are made again; they come first.

    Returns:
        What was done, as printed by the command.

    Raises:
        EmptyInputError: The day has no impressions although it has a delivery or samples.
        LakeError: A table cannot be read or written.
    """
    versions = {name: current_version(locations.table(dataset.name, name)) for name in _INPUTS}
    reach(f"{STAGE}:inputs_pinned")
    events_df = table_at(spark, locations.table(dataset.name, "events"), versions["events"])
    built = partition_values(locations.table(dataset.name, "samples"), "ds")
    of_day_df = events_df.where((F.col("ds") == ds) & is_event(EventType.IMPRESSION))
    if of_day_df.isEmpty():
        delivered = not events_df.where(F.col("delivery_ds") == ds).isEmpty()
        if delivered or ds in built:
            raise EmptyInputError(
                f"{dataset.name} {ds}: no impressions, although the day has "
                f"{'a delivery' if delivered else 'samples already'}; nothing was changed. "
                "Have the delivery repaired and ingest it again"
            )
        logger.info("%s %s: an empty day, nothing to build", dataset.name, ds)
        return {"dataset": dataset.name, "ds": ds, "rebuilt": [], "rows": 0, "candidates": 0, "empty": True}
    days = [*(late_days(events_df, dataset, ds, built) if late else []), ds]
    done = {day: _build_day(spark, dataset, day, versions) for day in days}
    reach(f"{STAGE}:done")
    return {
        "dataset": dataset.name,
        "ds": ds,
        "rebuilt": [day for day in days if day != ds],
        "versions": {day: result["samples_version"] for day, result in done.items()},
        **done[ds],
        "empty": False,
    }


def late_days(events_df: DataFrame, dataset: Dataset, ds: str, built: Sequence[str]) -> list[str]:
    """Earlier days that already have samples and for which the delivery of `ds` brought records."""
    rows = (
        events_df.where((F.col("delivery_ds") == ds) & (F.col("ds") < ds))
        .select("ds")
        .distinct()
        .limit(dataset.late_days + 1)
        .collect()
    )
    return sorted({str(row["ds"]) for row in rows} & set(built))


def _build_day(spark: SparkSession, dataset: Dataset, ds: str, versions: dict[str, int]) -> dict[str, Any]:
    uri = locations.table(dataset.name, "samples")
    inputs = {**versions, "declaration": declaration(dataset)}
    version = already_written(uri, {"ds": ds}, inputs)
    if version is not None:
        logger.info(
            "samples of %s %s: made from the same inputs by the same code, version %d",
            dataset.name,
            ds,
            version,
        )
        return {"samples_version": version, "unchanged": True, **_sizes(spark, uri, ds, version)}
    metadata = {"ds": ds, "inputs": inputs}
    with day_inputs(spark, dataset, ds, versions) as inputs_of_day:
        # The samples last: once they are there, a rerun takes the day for done.
        quarantine(unused(inputs_of_day, ds), dataset.name, ds, STAGE, metadata)
        version = write_samples(inputs_of_day, dataset, ds, metadata)
    return {"samples_version": version, "unchanged": False, **_sizes(spark, uri, ds, version)}


@dataclass(frozen=True, kw_only=True)
class DayInputs:
    """What the samples of a day are made from.

    Args:
        events_df: Events in `scope`, every event once.
        bots_df: See `events.bots`.
        people_df: `events_df` without the bots.
        users_df: The users as of the day.
        items_df: The items as of the day.
    """

    events_df: DataFrame
    bots_df: DataFrame
    people_df: DataFrame
    users_df: DataFrame
    items_df: DataFrame


@contextlib.contextmanager
def day_inputs(
    spark: SparkSession, dataset: Dataset, ds: str, versions: Mapping[str, int]
) -> Iterator[DayInputs]:
    """Reads the tables at their versions; who is a bot and what came twice is found once and kept."""
    tables = {name: table_at(spark, locations.table(dataset.name, name), versions[name]) for name in _INPUTS}
    scope_df = scope(tables["events"], dataset, ds)
    repeated_df = repeated(scope_df).persist()
    once_df = scope_df if repeated_df.isEmpty() else events_of(scope_df, repeated_df)
    bots_df = bots(once_df, dataset).persist()
    try:
        yield DayInputs(
            events_df=once_df,
            bots_df=bots_df,
            people_df=once_df if bots_df.isEmpty() else without(once_df, bots_df),
            users_df=as_of(tables["users"], ds),
            items_df=as_of(tables["items"], ds),
        )
    finally:
        bots_df.unpersist()
        repeated_df.unpersist()


def write_samples(inputs: DayInputs, dataset: Dataset, ds: str, metadata: Mapping[str, Any]) -> int:
    """Builds the samples of a day and replaces their partition; returns the table version."""
    people_df, kept = inputs.people_df, []

    def keep(df: DataFrame) -> DataFrame:
        kept.append(df.persist())
        return kept[-1]

    try:
        return replace_partition(
            build(people_df, inputs.users_df, inputs.items_df, dataset, ds, keep=keep),
            locations.table(dataset.name, "samples"),
            {"ds": ds},
            columns=sample_columns(dataset),
            partition_by=["ds"],
            stage=STAGE,
            metadata=metadata,
            witness_df=people_df.where((F.col("ds") == ds) & is_event(EventType.IMPRESSION)).select(
                "user_id"
            ),
        )
    finally:
        for df in kept:
            df.unpersist()


def scope(events_df: DataFrame, dataset: Dataset, ds: str) -> DataFrame:
    """Events that the samples of day `ds` can depend on: history, the day, and outcomes of the next day."""
    return events_df.where(
        F.col("ds").between(shift_day(ds, -dataset.history_days), ds)
        | ((F.col("ds") == shift_day(ds, 1)) & ~is_event(EventType.IMPRESSION))
    )


def unused(inputs: DayInputs, ds: str) -> DataFrame:
    """What no sample of the day contains: bots, and outcomes whose impression never arrived."""
    events_df = inputs.events_df
    bots_today_df = inputs.bots_df.where(F.col("ds") == ds).withColumn(
        "reason", F.lit("a bot: more events on the day than max_impressions_a_day")
    )
    shown_df = events_df.where(
        F.col("ds").between(shift_day(ds, -1), ds) & is_event(EventType.IMPRESSION)
    ).select("user_id", "impression_id")
    is_outcome = is_event(EventType.CLICK) | is_event(EventType.CONVERSION)
    orphans_df = (
        events_df.where((F.col("ds") == ds) & is_outcome)
        .join(shown_df, ["user_id", "impression_id"], "left_anti")
        .select("event_id", "event_type", "user_id", "item_id", "impression_id", "time_ms")
        .withColumn("reason", F.lit("no impression of this user with this impression_id"))
    )
    return as_quarantined(bots_today_df, "users").unionByName(as_quarantined(orphans_df, "events"))


def declaration(dataset: Dataset) -> str:
    """Digest of the dataset's declaration: another one makes other samples."""
    return hashlib.sha256(repr(dataset).encode()).hexdigest()[:16]


def _sizes(spark: SparkSession, uri: str, ds: str, version: int) -> dict[str, int]:
    row = (
        table_at(spark, uri, version)
        .where(F.col("ds") == ds)
        .agg(F.count("*").alias("rows"), F.sum(F.size("label_click")).alias("candidates"))
        .first()
    )
    assert row is not None
    return {"rows": int(row["rows"]), "candidates": int(row["candidates"] or 0)}


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset, ds = arguments.dataset, arguments.ds
    spark = spark_session(f"{STAGE} {dataset.name} {ds}")
    with spark_errors(f"{STAGE} of {dataset.name} {ds}"):
        return build_days(spark, dataset, ds, late=arguments.late)


def main(argv: Sequence[str] | None = None) -> int:
    """Builds samples; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.build_samples", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="day, YYYY-MM-DD")
    parser.add_argument(
        "--late", action="store_true", help="also earlier days that the delivery of --ds changed"
    )
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
