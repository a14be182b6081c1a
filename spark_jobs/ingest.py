"""Ingest: the delivery of one day becomes rows of `events`, `users`, `items` and, where broken, `quarantine`.

    python -m spark_jobs.ingest --dataset foodlog --ds 2026-03-01
    python -m spark_jobs.ingest --dataset kuairand --history

A delivery replaces what it brought before, in one commit, wherever in time its events lie: a rerun or a
corrected delivery leaves neither copies nor remains. An event goes to the day it happened on, never to the
day it arrived on; one that arrives more than `late_days` later is quarantined. Within a delivery the copy of
an event that arrived last wins; copies in several deliveries are resolved where events are read
(`spark_jobs.samples.events.events_of`). The snapshots of users and items are stored whole, a partition a day.

`--history` takes in what happened before the log, where the source knows of it, as a delivery of its own
(`HISTORY_DS`): its events lie on their own days, however long ago, and every day of the log knows them.

Prints one JSON line: `{"ds", "events", "duplicates", "late_days", "quarantined", ...}`. Exit code 1 when the
delivery is absent, has too many broken records (`MAX_BROKEN_SHARE`), or would replace events by nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.clock import HISTORY_DS
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset, Owner
from spark_jobs.contract.phases import reach
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.lake import verdicts
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import exists, open_table
from spark_jobs.lake.quarantine import as_quarantined, quarantine
from spark_jobs.lake.session import at_once, keeping, spark_session
from spark_jobs.lake.writer import replace_partition, table_at
from spark_jobs.samples.deliveries import history_days
from spark_jobs.sources import Delivery, read_history, source_of
from spark_jobs.sources.records import checked_dimension, last_copies, late_reason, with_days, with_reason

logger = logging.getLogger(__name__)
MAX_BROKEN_SHARE = 0.05  # of the events together, and of each log
_MIN_BROKEN = 10  # fewer broken records of one log are chance, whatever their share
_SNAPSHOTS = {"users": Owner.PROFILE, "items": Owner.ITEM}


class DeliveryRefusedError(CommandError):
    """The delivery as a whole cannot be taken; no table was changed."""


def ingest(spark: SparkSession, dataset: Dataset, ds: str, root: str) -> dict[str, Any]:
    """Takes the delivery of day `ds` into the lake.

    Args:
        spark: Session.
        dataset: Dataset.
        ds: Day of the delivery.
        root: Folder of the raw logs.

    Returns:
        What was done, as printed by the command; nothing is to be done where the history brought the day.

    Raises:
        FileNotFoundError: The delivery is absent.
        DeliveryRefusedError: Too many of its records are broken.
        LakeError: A table could not be written.
    """
    try:
        delivery = source_of(dataset.name).read_delivery(spark, root, ds)
    except FileNotFoundError:
        uri = locations.table(dataset.name, "events")
        if not (exists(uri) and ds in history_days(open_table(uri).partitions())):
            raise
        logger.info("%s %s: no delivery, the history from before the log brought the day", dataset.name, ds)
        return {"dataset": dataset.name, "ds": ds, "events": 0, "of_history": True}
    reach("ingest:delivery_read")
    return _take(spark, dataset, ds, delivery)


def ingest_history(spark: SparkSession, dataset: Dataset, root: str) -> dict[str, Any]:
    """Takes in what happened before the log; nothing where the source knows of none.

    Raises:
        DeliveryRefusedError: Too many of its records are broken.
        LakeError: A table could not be written.
    """
    delivery = read_history(spark, dataset.name, root)
    if delivery is None:
        logger.info("%s has no history from before the log", dataset.name)
        return {"dataset": dataset.name, "ds": HISTORY_DS, "events": 0}
    done = _take(spark, dataset, HISTORY_DS, delivery)
    verdicts.allow(
        dataset.name, "events", [HISTORY_DS], "history from before the log, which has no day to judge"
    )
    return done


def _take(spark: SparkSession, dataset: Dataset, ds: str, delivery: Delivery) -> dict[str, Any]:
    events_df = delivery.events_df
    if "log" not in events_df.columns:
        events_df = events_df.withColumn("log", F.lit("events"))
    with keeping() as keep:
        checked_df = keep(
            events_df.transform(last_copies)
            .transform(with_days, dataset, ds)
            .transform(with_reason, dataset, ds)
        )
        snapshots = {
            name: keep(checked_dimension(rows_df, dataset, _SNAPSHOTS[name], ds))
            for name, rows_df in (("users", delivery.users_df), ("items", delivery.items_df))
            if rows_df is not None
        }
        refused_df = checked_df.where("reason IS NOT NULL").drop("copies")
        quarantined_df = delivery.broken_df.unionByName(as_quarantined(refused_df, F.col("log"), file="file"))
        for name, snapshot_df in snapshots.items():
            refused_df = snapshot_df.where("reason IS NOT NULL")
            quarantined_df = quarantined_df.unionByName(as_quarantined(refused_df, name))
        # Kept, for what is broken is read from the raw files once more.
        return _write(spark, dataset, ds, checked_df, snapshots, keep(quarantined_df))


def _write(
    spark: SparkSession,
    dataset: Dataset,
    ds: str,
    checked_df: DataFrame,
    snapshots: Mapping[str, DataFrame],
    quarantined_df: DataFrame,
) -> dict[str, Any]:
    counts = _counts(dataset, ds, checked_df, quarantined_df, snapshots)
    _refuse_when_broken(dataset, ds, counts)
    metadata = {"ds": ds, "inputs": {"delivery": ds}}
    written = at_once(
        partial(quarantine, quarantined_df, dataset.name, ds, "ingest", metadata),
        *(partial(_write_dimension, dataset, name, snapshots[name], ds, metadata) for name in snapshots),
    )
    versions = dict(zip(["quarantine", *snapshots], written, strict=True))
    columns = event_columns(dataset)
    uri = locations.table(dataset.name, "events")
    good_df = checked_df.where("reason IS NULL").select(*(name for name, _ in columns))
    if ds == HISTORY_DS:
        good_df = good_df.repartition("ds")  # one file for each of many days, not one a task
    versions["events"] = replace_partition(
        good_df,
        uri,
        {"delivery_ds": ds},
        columns=columns,
        partition_by=["ds", "delivery_ds"],
        stage="ingest",
        metadata={**metadata, "counts": counts},
        # A day on which nothing happened is taken as such, but never in place of events that are there.
        allow_empty=not (
            exists(uri) and not table_at(spark, uri).where(F.col("delivery_ds") == ds).isEmpty()
        ),
    )
    reach("ingest:done")
    return {"dataset": dataset.name, "ds": ds, **counts, "versions": versions}


def _write_dimension(
    dataset: Dataset,
    name: str,
    rows_df: DataFrame,
    ds: str,
    metadata: dict[str, Any],
) -> int:
    """Stores a snapshot whole: what holds on a day is read from one delivery and from no other."""
    columns = dimension_columns(dataset, _SNAPSHOTS[name])
    return replace_partition(
        rows_df.where("reason IS NULL").select(*(c for c, _ in columns)),
        locations.table(dataset.name, name),
        {"ds": ds},
        columns=columns,
        partition_by=["ds"],
        stage=f"ingest_{name}",
        metadata=metadata,
        allow_empty=True,
    )


def _counts(
    dataset: Dataset,
    ds: str,
    checked_df: DataFrame,
    quarantined_df: DataFrame,
    snapshots: Mapping[str, DataFrame],
) -> dict[str, Any]:
    """Counts of a delivery; days, logs and reasons are few and come to the driver.

    `broken` counts event records alone, `logs` the usable and the broken records of every log, snapshots with
    theirs; what is only late is not broken.
    """
    is_good = F.col("reason").isNull().alias("good")
    numbers = F.count("*").alias("n"), F.sum("copies").alias("records")
    rows = checked_df.groupBy("ds", "log", is_good).agg(*numbers).collect()
    records = sum(row["records"] for row in rows)
    usable = {name: snapshot_df.where("reason IS NULL").count() for name, snapshot_df in snapshots.items()}
    refused = quarantined_df.groupBy("log", "reason").agg(F.count("*").alias("n")).collect()
    reasons: Counter[str] = Counter()
    logs: dict[str, dict[str, int]] = {name: {"usable": n, "broken": 0} for name, n in usable.items()}
    for row in rows:
        logs.setdefault(row["log"], {"usable": 0, "broken": 0})["usable"] += row["n"] if row["good"] else 0
    for row in refused:
        reasons[row["reason"]] += row["n"]
        if row["reason"] != late_reason(dataset):
            logs.setdefault(row["log"], {"usable": 0, "broken": 0})["broken"] += row["n"]
    return {
        "records": records,
        "events": sum(row["n"] for row in rows if row["good"]),
        "duplicates": records - sum(row["n"] for row in rows),
        "late_days": sorted({row["ds"] for row in rows if row["good"] and row["ds"] < ds}),
        "broken": sum(log["broken"] for name, log in logs.items() if name not in _SNAPSHOTS),
        "quarantined": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "logs": dict(sorted(logs.items())),
    }


def _refuse_when_broken(dataset: Dataset, ds: str, counts: dict[str, Any]) -> None:
    """Raises when the events together or one log have too many broken records, or a snapshot is none."""
    logs: dict[str, dict[str, int]] = counts["logs"]
    problems = [
        f"the snapshot {name} has no usable record ({log['broken']} broken)"
        for name, log in logs.items()
        if name in _SNAPSHOTS and not log["usable"]
    ]
    shares = {name: (log["broken"], log["broken"] + log["usable"]) for name, log in logs.items()}
    shares["the delivery"] = (counts["broken"], counts["broken"] + counts["events"] + counts["duplicates"])
    problems += [
        f"{broken} broken records, {broken / total:.1%} of {name}, at most {MAX_BROKEN_SHARE:.0%} are taken"
        for name, (broken, total) in shares.items()
        if broken > MAX_BROKEN_SHARE * total and (broken >= _MIN_BROKEN or name == "the delivery")
    ]
    if problems:
        raise DeliveryRefusedError(
            f"{dataset.name} {ds}: {'; '.join(problems)}; nothing was changed. Reasons: {counts['reasons']}. "
            "Have the delivery repaired, then run again"
        )


def raw_root(dataset: str) -> str:
    """Folder of a dataset's raw logs: `MTGR_<DATASET>` when set, else in the lake."""
    return environment.raw_logs(dataset) or locations.raw(dataset)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset, ds = arguments.dataset, arguments.ds
    spark = spark_session(f"ingest {dataset.name} {ds}")
    with spark_errors(f"ingest of {dataset.name} {ds or 'history'}"):
        if arguments.history:
            return ingest_history(spark, dataset, raw_root(dataset.name))
        return ingest(spark, dataset, ds, raw_root(dataset.name))


def main(argv: Sequence[str] | None = None) -> int:
    """Ingests one delivery; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.ingest", __doc__)
    command.add_dataset(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    command.add_day(what, required=False, help="day of the delivery, YYYY-MM-DD")
    what.add_argument("--history", action="store_true", help="what happened before the log")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
