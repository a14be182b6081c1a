"""Days that are made again: which of their users changed, and whether the others' rows may stay.

After its own delivery nothing of a day changes but its candidates and labels: what features and sequences
know of was delivered by then. So only users with other candidates or labels are built again, a fifth of them
on a day of the embedded log, while what the day knew of is as it was and the same code made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import locations
from spark_jobs.contract.features import Dataset, EventType, Owner
from spark_jobs.lake.log import Commit, Written, written
from spark_jobs.lake.session import materialised
from spark_jobs.lake.writer import made_by_this_code
from spark_jobs.samples.build import by_user, outcomes, with_labels
from spark_jobs.samples.events import at_requests, bots, events_of, is_event, with_context, without


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Users whose rows of days that were built before are not as the events say.

    Args:
        users_df: (user_id, ds), one row a user and day, few.
        samples_df: The table `samples` as they were compared.
        days: Days with such users, ascending.
        partly: Those of `days` on which everybody else's rows may stay.
    """

    users_df: DataFrame
    samples_df: DataFrame
    days: tuple[str, ...]
    partly: frozenset[str]

    def of_partly(self) -> DataFrame:
        """(user_id, day) of the users that are built again on the days of `partly`."""
        return self.users_df.where(F.col("ds").isin(*self.partly)).withColumnRenamed("ds", "day")

    def with_others(self, samples_df: DataFrame, ds: str) -> DataFrame:
        """The rows of a day of `partly`: of users that changed from `samples_df`, of others as they are."""
        users_df = self.users_df.where(F.col("ds") == ds).select("user_id")
        others_df = self.samples_df.where(F.col("ds") == ds).join(
            F.broadcast(users_df), "user_id", "left_anti"
        )
        rows_df = samples_df.unionByName(others_df.select(*samples_df.columns))
        return rows_df.transform(by_user).sortWithinPartitions("ds", "user_id", "window_start_ms")


def people(events_df: DataFrame, dataset: Dataset, first: str, last: str) -> DataFrame:
    """Events of the days `first` to `last`, every event once, without bots."""
    once_df = events_of(events_df.where(F.col("ds").between(first, last)))
    return without(once_df, bots(once_df, dataset))


def changed_users(
    people_df: DataFrame, samples_df: DataFrame, dataset: Dataset, days: Sequence[str]
) -> DataFrame:
    """(user_id, ds) of the users whose samples hold other candidates or labels than the events say.

    Both sides are compared by the sum of their rows' hashes, in one job.

    Args:
        people_df: Events from the day before the first of `days` to `days_after` the last, see `people`.
        samples_df: The table `samples`.
        dataset: Dataset.
        days: Days, ascending.
    """
    context = [f.name for f in dataset.of(Owner.CONTEXT)]
    shown = ["item_id", *context]
    labels = ["label_click", "label_conversion"]
    lists = ["candidate_time_ms", "candidate_request_id", "candidate_impression_id"]
    held_df = (
        samples_df.where(F.col("ds").isin(*days))
        .select("user_id", "ds", F.explode(F.arrays_zip(*lists, *(f"candidate_{c}" for c in shown), *labels)))
        .select(
            "user_id",
            "ds",
            *(F.col("col")[c].alias(c.removeprefix("candidate_")) for c in lists),
            *(F.col("col")[f"candidate_{c}"].alias(c) for c in shown),
            *(F.col("col")[c].alias(c) for c in labels),
        )
    )
    said_df = (
        people_df.where(is_event(EventType.IMPRESSION))
        .transform(by_user)
        .transform(at_requests, dataset)
        .where(F.col("ds").isin(*days))
        .transform(with_context, dataset)
        .transform(with_labels, outcomes(people_df), dataset)
        .select(*held_df.columns)
    )
    row = F.xxhash64(*(F.coalesce(F.col(c).cast("string"), F.lit("-")) for c in held_df.columns))
    sides = [
        df.select(
            "user_id", "ds", F.lit(sign).alias("sign"), (row.cast("decimal(20,0)") * sign).alias("hash")
        )
        for sign, df in ((1, said_df), (-1, held_df))
    ]
    return (
        sides[0]
        .unionByName(sides[1])
        .groupBy("user_id", "ds")
        .agg(F.sum("sign").alias("more"), F.sum("hash").alias("other"))
        .where("more <> 0 OR other <> 0")
        .select("user_id", "ds")
    )


def changes(
    people_df: DataFrame,
    samples_df: DataFrame,
    dataset: Dataset,
    days: Sequence[str],
    made: Mapping[str, Commit],
    inputs: Mapping[str, Any],
) -> Changes:
    """Finds what is to be made again of `days`.

    Args:
        people_df: See `changed_users`.
        samples_df: The table `samples`, of a version that holds the commits of `made`.
        dataset: Dataset.
        days: Days, ascending.
        made: By day the commit that made its rows, for the days whose rows may stay.
        inputs: What samples would be made from now, as their commits record it.
    """
    users_df = materialised(changed_users(people_df, samples_df, dataset, days))
    changed = sorted(row["ds"] for row in users_df.select("ds").distinct().collect())
    tables = {name: written(locations.table(dataset.name, name), inputs[name]) for name in inputs["tables"]}
    partly = {day for day in changed if day in made and _knows_the_same(made[day], day, inputs, tables)}
    return Changes(users_df=users_df, samples_df=samples_df, days=tuple(changed), partly=frozenset(partly))


def _knows_the_same(
    commit: Commit, day: str, inputs: Mapping[str, Any], tables: Mapping[str, Written]
) -> bool:
    """Whether this code made a day's rows from deliveries up to the day that are all as they were."""
    of = commit.metadata.get("inputs", {})
    same = ("declaration", "tables")
    if not made_by_this_code(commit) or any(of.get(key) != inputs[key] for key in same):
        return False
    left_out = ({d for d in each["left_out"] if d <= day} for each in (of, inputs))
    if next(left_out) != next(left_out):
        return False
    return all(
        table.version_of(partition) <= of[name]
        for name, table in tables.items()
        for partition in table.partitions
        if partition.partition("=")[2] <= day
    )
