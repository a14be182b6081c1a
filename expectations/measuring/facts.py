"""Measuring a partition with Spark: one pass for all SQL facts, one more job for joins and keys.

A fact whose columns the table lacks is left out, so that its rule fails as "not measured" beside the schema
rule that names the column. What is returned is small: numbers and lists of quantiles, never a row of data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from expectations.rules import sql
from expectations.rules.rule import Suite
from expectations.rules.samples import RATES
from spark_jobs.contract.features import Dataset, EventType

Facts = dict[str, Any]
_LABELS = (EventType.CLICK, EventType.CONVERSION)


@dataclass(frozen=True, kw_only=True)
class KnownTables:
    """What a delivery refers to.

    Args:
        impressions_df: Impressions that its clicks and conversions may belong to, `impression_id`.
        users_df: Users known on the day, `user_id`.
        items_df: Items known on the day, `item_id`.
        quarantined_df: What ingest could not take of the delivery.
    """

    impressions_df: DataFrame
    users_df: DataFrame
    items_df: DataFrame
    quarantined_df: DataFrame


def measure(partitions_df: DataFrame, suite: Suite, day_column: str) -> dict[str, Facts]:
    """Measures all SQL facts of a suite in one aggregation.

    Args:
        partitions_df: Rows of one or more partitions.
        suite: What to measure.
        day_column: Column that tells the partitions apart.

    Returns:
        Day to facts; a day without rows is absent.
    """
    columns = {
        column.name: F.expr(column.sql)
        for column in suite.columns
        if set(partitions_df.columns).issuperset(column.needs)
    }
    partitions_df = partitions_df.withColumns(columns) if columns else partitions_df
    there = set(partitions_df.columns)
    measures = [fact for fact in suite.measures() if there.issuperset(fact.needs)]
    aggregates = [F.expr(fact.sql).alias(fact.name) for fact in measures]
    rows = partitions_df.groupBy(F.col(day_column).alias("_day")).agg(*aggregates).collect()
    return {row["_day"]: {fact.name: row[fact.name] for fact in measures} for row in rows}


def event_joins(delivery_df: DataFrame, known: KnownTables, ds: str) -> Facts:
    """Facts of delivery `ds` that need keys or other tables.

    Args:
        delivery_df: Its events.
        known: What the delivery refers to.
        ds: The delivery.

    Returns:
        duplicate_events, known_users, known_items, labelled_impressions, quarantined_share, and those of
        `_of_users`: users, users_error, impressions_error, effective_users.
    """
    is_impression = F.col("event_type") == str(EventType.IMPRESSION)
    impressions_df = delivery_df.where(is_impression & (F.col("ds") == ds))
    is_label = F.col("event_type").isin([str(kind) for kind in _LABELS])
    labels_df = delivery_df.where(is_label & (F.col("ds") >= ds))
    quarantined_df = (
        known.quarantined_df.agg(F.count("*").alias("broken"))
        .crossJoin(delivery_df.agg(F.count("*").alias("rows")))
        .select((F.col("broken").cast("double") / (F.col("broken") + F.col("rows"))).alias("value"))
    )
    by_user_df = impressions_df.groupBy("user_id").agg(F.count("*").alias("impressions"))
    return _collected(
        _of_users(by_user_df, "impressions"),
        duplicate_events=_surplus(delivery_df.where("event_id IS NOT NULL"), "event_type", "event_id"),
        known_users=_known_share(impressions_df, known.users_df, "user_id"),
        known_items=_known_share(impressions_df, known.items_df, "item_id"),
        labelled_impressions=_known_share(labels_df, known.impressions_df, "impression_id"),
        quarantined_share=quarantined_df,
    )


def immature_share(delivery_df: DataFrame, dataset: Dataset, ds: str, last_time_ms: int) -> Facts:
    """`immature_share`: of delivery `ds`, impressions whose attribution window was open when it closed.

    Args:
        delivery_df: Its events.
        dataset: Declares the attribution window.
        ds: The delivery.
        last_time_ms: Until when it reaches: what had become known when it closed.
    """
    is_open = F.col("time_ms") > last_time_ms - dataset.attribution_ms
    of_day = (F.col("event_type") == str(EventType.IMPRESSION)) & (F.col("ds") == ds)
    row = delivery_df.where(of_day).agg(F.avg(is_open.cast("double")).alias("value")).first()
    assert row is not None
    return {"immature_share": row["value"]}


def sample_joins(
    samples_df: DataFrame, impressions_df: DataFrame, quarantined_df: DataFrame, dataset: Dataset
) -> Facts:
    """Facts of one day of samples that need keys or the day's events.

    Args:
        samples_df: The day's samples.
        impressions_df: The day's impressions in events, whatever delivery brought them, see `at_requests`.
        quarantined_df: What ingest could not take of the day's delivery, and is an impression or may be one.
        dataset: Declares from how many impressions on a user is taken for a bot.

    Returns:
        window_overlaps, duplicate_candidates, built_share, left_out_share, outrun_share, and what `_of_users`
        makes of rows, candidates, clicks and conversions.
    """
    by_user = Window.partitionBy("user_id").orderBy("window_start_ms", "window_end_ms")
    overlaps_df = samples_df.select(
        (F.lead("window_start_ms").over(by_user) < F.col("window_end_ms")).alias("overlaps")
    )
    candidates_df = samples_df.select(F.explode("candidate_impression_id").alias("impression_id"))
    is_person = F.col("count") <= dataset.max_impressions_a_day
    shown_df = (
        impressions_df.groupBy("impression_id")
        .agg(F.min("user_id").alias("user_id"))
        .groupBy("user_id")
        .count()
        .agg(
            F.sum(F.when(is_person, F.col("count")).otherwise(0)).alias("expected"),
            F.sum("count").alias("all"),
        )
        .crossJoin(quarantined_df.agg(F.count("*").alias("broken")))
        .crossJoin(samples_df.agg(F.sum(F.size("candidate_impression_id")).alias("built")))
    )
    sizes = {"rows": "1", "candidates": "size(candidate_time_ms)", "stand_for": sql.stands_for(dataset)}
    sizes |= {name: sql.ones(label, dataset) for name, label in RATES.items()}
    by_user_df = samples_df.groupBy("user_id").agg(
        *(F.expr(f"CAST(sum({size}) AS DOUBLE)").alias(name) for name, size in sizes.items())
    )
    return _collected(
        _of_users(by_user_df, "rows", "candidates", rates=tuple(RATES), of="stand_for"),
        window_overlaps=overlaps_df.agg(F.count_if("overlaps").alias("value")),
        duplicate_candidates=_surplus(candidates_df, "impression_id"),
        built_share=shown_df.select(F.expr("built / nullif(expected, 0)").alias("value")),
        left_out_share=shown_df.select(F.expr("1 - built / nullif(`all` + broken, 0)").alias("value")),
        outrun_share=_outrun_share(samples_df, impressions_df),
    )


def _outrun_share(samples_df: DataFrame, impressions_df: DataFrame) -> DataFrame:
    """Share of the candidates that were shown after a behaviour which their request cannot have seen."""
    later_df = impressions_df.where("shown_ms > time_ms").select("impression_id", "shown_ms").distinct()
    candidate = F.explode(F.arrays_zip("candidate_impression_id", "candidate_time_ms")).alias("c")
    asked_df = samples_df.select("realtime_time_ms", "window_end_ms", candidate).select(
        "realtime_time_ms",
        "window_end_ms",
        F.col("c.candidate_impression_id").alias("impression_id"),
        F.col("c.candidate_time_ms").alias("asked_ms"),
    )
    is_outrun = F.expr("exists(realtime_time_ms, t -> t >= asked_ms AND t < shown_ms)")
    outrun_df = asked_df.join(later_df, "impression_id").where(is_outrun | F.expr("shown_ms > window_end_ms"))
    return (
        outrun_df.agg(F.count("*").alias("outrun"))
        .crossJoin(samples_df.agg(F.sum(F.size("candidate_time_ms")).alias("all")))
        .select((F.col("outrun") / F.col("all")).alias("value"))
    )


def broken_rows(
    partition_df: DataFrame, suite: Suite, counts: Mapping[str, Any], key: Sequence[str]
) -> DataFrame:
    """The rows that break row rules, for quarantine.

    Args:
        partition_df: The partition.
        suite: Its suite.
        counts: Rule name to the number of rows that break it; rules with none are not looked at again.
        key: Columns that order the rows.

    Returns:
        `partition_df` with `reasons` (array of rule names), broken rows only, in the order of the key.
    """
    rules = [rule for rule in suite.row_rules if counts.get(rule.name)]
    reasons = F.array(*(_when_broken(rule.name, rule.broken) for rule in rules)).cast("array<string>")
    reasons = F.array_compact(reasons)
    return partition_df.withColumn("reasons", reasons).where(F.size("reasons") > 0).orderBy(*key)


def _when_broken(name: str, broken: str) -> Column:
    return F.when(F.expr(f"coalesce({broken}, true)"), F.lit(name))


def _known_share(df: DataFrame, known_df: DataFrame, key: str) -> DataFrame:
    """Share of the rows of `df` whose key is in `known_df`; counted by key first, against skew."""
    counted_df = df.groupBy(key).count()
    keys_df = known_df.select(key).distinct().withColumn("known", F.lit(1))
    joined_df = counted_df.join(keys_df, key, "left")
    known = F.sum(F.when(F.col("known").isNotNull(), F.col("count")).otherwise(0))
    return joined_df.agg((known.cast("double") / F.sum("count")).alias("value"))


def _surplus(df: DataFrame, *key: str) -> DataFrame:
    """How many rows repeat a key that an earlier row has."""
    return (
        df.groupBy(*key)
        .count()
        .agg(F.coalesce(F.sum(F.col("count") - 1), F.lit(0)).cast("double").alias("value"))
    )


def _of_users(by_user_df: DataFrame, *sizes: str, rates: Sequence[str] = (), of: str = "") -> DataFrame:
    """Users, exactly, and standard errors of sums and rates over users who come and go independently.

    What one user does is one draw, however many rows it has: of a sum over users n the variance is the sum of
    n^2; of a rate r = sum(x) / sum(n) it is the sum of (x - r n)^2, over sum(n)^2.

    Args:
        by_user_df: One row a user.
        sizes: Columns whose sums are facts.
        rates: Columns of what is counted for the rates.
        of: Column whose sum rates are of.

    Returns:
        (fact, value): users, users_error, `<size>_error`, `<rate>_error`, and effective_users: as many users
        of equal size would say as much (Kish).
    """
    n = f"`{of}`"
    values = {
        "users": "count(*)",
        "users_error": "sqrt(count(*))",
        "effective_users": f"pow(sum(`{sizes[0]}`), 2) / sum(pow(`{sizes[0]}`, 2))",
        **{f"{size}_error": f"sqrt(sum(pow(`{size}`, 2)))" for size in sizes},
        **{
            f"{x}_error": f"sqrt(greatest(sum(pow(`{x}`, 2)) - 2 * sum(`{x}`) / sum({n}) * sum(`{x}` * {n})"
            f" + pow(sum(`{x}`) / sum({n}), 2) * sum(pow({n}, 2)), 0)) / sum({n})"
            for x in rates
        },
    }
    wide_df = by_user_df.agg(
        *(F.expr(f"CAST({value} AS DOUBLE)").alias(name) for name, value in values.items())
    )
    pairs = ", ".join(f"'{name}', {name}" for name in values)
    return wide_df.select(F.expr(f"stack({len(values)}, {pairs}) AS (fact, value)"))


def _collected(facts_df: DataFrame, **values: DataFrame) -> Facts:
    """Facts of frames with one row and the column `value`, beside those of `facts_df`; one job for all."""
    named_dfs = [facts_df] + [
        value_df.select(F.lit(name).alias("fact"), F.col("value").cast("double").alias("value"))
        for name, value_df in values.items()
    ]
    return {row["fact"]: row["value"] for row in reduce(DataFrame.unionAll, named_dfs).collect()}
