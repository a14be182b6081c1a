"""Earlier days that a delivery changes: those whose samples hold other candidates or labels than events say.

After its own delivery nothing else of a day changes: what features and sequences know of was there by then.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.features import Dataset, EventType, Owner
from spark_jobs.samples.build import by_user, outcomes, with_labels
from spark_jobs.samples.events import at_requests, is_event, with_context


def changed_days(
    people_df: DataFrame, samples_df: DataFrame, dataset: Dataset, days: Sequence[str]
) -> list[str]:
    """Those of `days` whose samples hold other candidates or labels than the events say, ascending.

    Both sides are compared by the sum of their rows' hashes, in one job.

    Args:
        people_df: Events from the day before the first of `days` to `days_after` the last, every event once,
            without bots.
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
        df.select("ds", F.lit(sign).alias("sign"), (row.cast("decimal(20,0)") * sign).alias("hash"))
        for sign, df in ((1, said_df), (-1, held_df))
    ]
    sums_df = (
        sides[0]
        .unionByName(sides[1])
        .groupBy("ds")
        .agg(F.sum("sign").alias("more"), F.sum("hash").alias("other"))
    )
    return sorted(row["ds"] for row in sums_df.where("more <> 0 OR other <> 0").collect())
