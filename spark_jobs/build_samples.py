"""Builds the samples of one day from events, users and items: `contract.sample_columns`, one partition.

    python -m spark_jobs.build_samples --dataset foodlog --ds 2026-03-01 [--late]

Knows of the deliveries that their gate has passed, or that an operator has allowed, and of no other
(`spark_jobs/samples/deliveries.py`). Reads each table at one version, which the commit records; replaces
exactly the partition `ds`, atomically. `--late` also makes those earlier days again whose samples no longer
hold the candidates and labels that the events say: an outcome belongs to the day of its impression, whenever
it happened and whatever brought it. A partition that this very code made from these very table versions is
left as it is. What may know what is said in `spark_jobs/samples/build.py`; bots and outcomes without an
impression are reported in `quarantine`.

Prints one JSON line: `{"ds", "rebuilt", "stale", "rows", "candidates", "samples_version", "empty", ...}`;
`stale` names later days that were built before this delivery was there as it is now: build them again. A day
without impressions never touches existing rows: exit code 1, unless the day has neither delivery nor samples.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.features import Dataset, EventType
from spark_jobs.contract.phases import reach
from spark_jobs.contract.tables import rows_digest, sample_columns
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import Commit, commits, current_version, last_commit, partition_values, table_id
from spark_jobs.lake.quarantine import quarantine
from spark_jobs.lake.session import at_once, keeping, spark_session
from spark_jobs.lake.verdicts import partition_of
from spark_jobs.lake.writer import EmptyInputError, already_written, replace_partition, table_at
from spark_jobs.samples.again import changed_days
from spark_jobs.samples.build import build
from spark_jobs.samples.deliveries import Deliveries, deliveries_of
from spark_jobs.samples.events import days_after, is_event
from spark_jobs.samples.inputs import INPUTS, Inputs, inputs_of, unused

logger = logging.getLogger(__name__)
STAGE = "build_samples"


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
        NotPassedError: The day's delivery failed its gate, or one up to the day was not judged.
        LakeError: A table cannot be read or written.
    """
    versions = {name: current_version(locations.table(dataset.name, name)) for name in INPUTS}
    reach(f"{STAGE}:inputs_pinned")
    deliveries = deliveries_of(dataset, ds, versions)
    events_df = deliveries.events(
        table_at(spark, locations.table(dataset.name, "events"), versions["events"])
    )
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
        return {
            "dataset": dataset.name,
            "ds": ds,
            "rebuilt": [],
            "stale": [],
            "rows": 0,
            "candidates": 0,
            "empty": True,
        }
    made = _last_commits(dataset, built)
    made_from = {
        **versions,
        "tables": {name: table_id(locations.table(dataset.name, name)) for name in versions},
        "declaration": rows_digest(dataset),
        "left_out": list(deliveries.left_out),
    }
    earlier = _earlier(dataset, ds, built, deliveries.left_out) if late else []
    with inputs_of(spark, dataset, [*earlier, ds], versions, deliveries) as inputs:
        again = _again(spark, dataset, inputs, earlier) if earlier else []
        done = _build(spark, dataset, [*again, ds], inputs, made_from, deliveries)
    reach(f"{STAGE}:done")
    # A day that an attempt before this one made again is named once more: its gate may not have seen it.
    rebuilt = {day for day, commit in made.items() if late and commit.metadata.get("run") == ds and day < ds}
    rebuilt |= done.keys() - {ds}
    versions_made = {day: made[day].version for day in rebuilt if day in made}
    return {
        "dataset": dataset.name,
        "ds": ds,
        "rebuilt": sorted(rebuilt),
        "stale": _stale(dataset, ds, made, deliveries),
        "versions": versions_made | {day: result["samples_version"] for day, result in done.items()},
        **done[ds],
        "empty": False,
    }


def _last_commits(dataset: Dataset, built: Sequence[str]) -> dict[str, Commit]:
    """The last commit of each built day."""
    uri, made = locations.table(dataset.name, "samples"), dict[str, Commit]()
    for commit in commits(uri) if built else ():
        made.setdefault(str(commit.metadata.get("partition", "")).removeprefix("ds="), commit)
    return {day: made[day] for day in built if day in made}


def _earlier(dataset: Dataset, ds: str, built: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """Earlier days that the run of `ds` may have to make again, ascending.

    A day without samples is made by its own run alone; one whose own delivery is left out, by none.
    """
    first = shift_day(ds, -dataset.late_days - days_after(dataset))
    return [day for day in built if first <= day < ds and day not in left_out]


def _again(spark: SparkSession, dataset: Dataset, inputs: Inputs, days: Sequence[str]) -> list[str]:
    """Those of the earlier days that are made again: what has arrived has changed them."""
    samples_df = table_at(spark, locations.table(dataset.name, "samples"))
    last = shift_day(days[-1], days_after(dataset))
    near_df = inputs.people_df.where(F.col("ds").between(shift_day(days[0], -1), last))
    return changed_days(near_df, samples_df, dataset, days)


def _stale(dataset: Dataset, ds: str, made: Mapping[str, Commit], deliveries: Deliveries) -> list[str]:
    """Built later days that know of delivery `ds`, and were made before it was as it is now."""
    last = shift_day(ds, dataset.reach_days + 1)
    later = {day: commit for day, commit in made.items() if ds < day <= last}
    partition = partition_of("events", ds, deliveries.of_history)
    delivered = last_commit(locations.table(dataset.name, "events"), partition) if later else None
    if delivered is None:
        return []
    inputs = {day: commit.metadata["inputs"] for day, commit in later.items()}
    stale = [
        day for day, of in inputs.items() if of["events"] < delivered.version or ds in of.get("left_out", ())
    ]
    if stale:
        logger.warning(
            "%s: %d later days were built before delivery %s was as it is now, %s to %s: build them again",
            dataset.name,
            len(stale),
            ds,
            stale[0],
            stale[-1],
        )
    return stale


def _build(
    spark: SparkSession,
    dataset: Dataset,
    days: Sequence[str],
    inputs: Inputs,
    made_from: Mapping[str, Any],
    deliveries: Deliveries,
) -> dict[str, dict[str, Any]]:
    """Builds `days` (ascending) in the run of the last, all by one plan; what was done by day."""
    uri = locations.table(dataset.name, "samples")
    made = {
        day: version for day in days if (version := already_written(uri, {"ds": day}, made_from)) is not None
    }
    for day, version in made.items():
        logger.info(
            "samples of %s %s: made from the same inputs by the same code, version %d",
            dataset.name,
            day,
            version,
        )
    done = {day: {"samples_version": version, "unchanged": True} for day, version in made.items()}
    left = [day for day in days if day not in made]
    if left:
        metadata = {
            day: {"ds": day, "run": days[-1], "inputs": made_from, "allowed": dict(deliveries.allowed)}
            for day in left
        }
        with ThreadPoolExecutor(1, thread_name_prefix="quarantine") as beside:
            # While the samples are planned.
            quarantined = beside.submit(_quarantine, inputs, dataset, metadata)
            with samples_of(inputs, dataset, left) as samples_df:
                for day in left:
                    # The samples last: once they are there, a rerun takes the day for done.
                    quarantined.result()
                    version = write_samples(samples_df, inputs, dataset, day, metadata[day])
                    done[day] = {"samples_version": version, "unchanged": False}
    sizes = at_once(*(partial(_sizes, spark, uri, day, int(done[day]["samples_version"])) for day in done))
    return {day: result | size for (day, result), size in zip(done.items(), sizes, strict=True)}


@contextlib.contextmanager
def samples_of(inputs: Inputs, dataset: Dataset, days: Sequence[str]) -> Iterator[DataFrame]:
    """The samples of `days`, and what is kept for them while they are written."""
    with keeping() as keep:
        users_df, items_df = (df.where(F.col("day").isin(*days)) for df in (inputs.users_df, inputs.items_df))
        samples_df = build(inputs.people_df, users_df, items_df, dataset, days, keep=keep)
        # Several days are written one by one; each would compute all of them.
        yield samples_df if len(days) == 1 else keep(samples_df)


def write_samples(
    samples_df: DataFrame, inputs: Inputs, dataset: Dataset, ds: str, metadata: Mapping[str, Any]
) -> int:
    """Replaces the partition of a day by its rows of `samples_df`; returns the table version."""
    is_shown = (F.col("ds") == ds) & is_event(EventType.IMPRESSION)
    return replace_partition(
        samples_df.where(F.col("ds") == ds),
        locations.table(dataset.name, "samples"),
        {"ds": ds},
        columns=sample_columns(dataset),
        partition_by=["ds"],
        stage=STAGE,
        metadata=metadata,
        witness_df=inputs.people_df.where(is_shown).select("user_id"),
    )


def _quarantine(inputs: Inputs, dataset: Dataset, metadata: Mapping[str, Mapping[str, Any]]) -> None:
    """Replaces what the builds of some days have quarantined, by day; `metadata` is of each."""
    with keeping() as keep:
        unused_df = keep(unused(inputs, dataset, list(metadata)))
        for day, of_day in metadata.items():
            quarantine(unused_df.where(F.col("day") == day), dataset.name, day, STAGE, of_day)


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
