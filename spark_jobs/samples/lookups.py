"""What serving looks up on a day: all that samples of the day say of users and items, by key.

A request brings what is of the moment; profiles, static behaviours, items and statistics of the days before
hang on keys and are known when the day starts. Every row is a key of one kind:

| kind | key | `ids` | `numbers` |
|---|---|---|---|
| `user` | user | ids and categories of the profile but for the user | its numbers that are no statistics |
| `static` | user | of its behaviours: column after column, then times | column after column |
| `item` | item | ids and categories of an item but for the item | its numbers |
| `statistic:<keys>` | their values | | the statistics by these keys |

all in declared order. A row without a key holds what is unknown. Values come from the functions that samples
are built by, over every key instead of those of the day's impressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.features import MAX_STATIC, Dataset, FeatureSpec, Group, Kind, Owner
from spark_jobs.samples.build import Past, known_before, static_behaviours
from spark_jobs.samples.events import known, with_context, with_items, with_weights
from spark_jobs.samples.statistics import by_keys, slot

COLUMNS: tuple[tuple[str, str], ...] = (
    ("kind", "string"),
    ("key", "array<bigint>"),
    ("ids", "array<bigint>"),
    ("numbers", "array<float>"),
    ("ds", "string"),
)


def lookups(
    events_df: DataFrame,
    users_df: DataFrame,
    items_df: DataFrame,
    dataset: Dataset,
    ds: str,
    keep: Callable[[DataFrame], DataFrame] = lambda df: df,
) -> DataFrame:
    """What serving looks up on a day; arguments as of `build`.

    Returns:
        Exactly `COLUMNS`; each kind and key once.
    """
    items_df = keep(items_df)
    past_df = keep(
        known_before(events_df.transform(with_weights, dataset), dataset, [ds])
        .transform(with_context, dataset)
        .transform(with_items, items_df, dataset)
    )
    active_df = keep(past_df.select("user_id", "day").distinct())
    past = Past.of(past_df, active_df, dataset, keep)
    history_df = static_behaviours(past_df, active_df, dataset, MAX_STATIC)
    parts = [
        _dimensions(users_df, dataset, Owner.PROFILE, "user", "user_id", ds),
        _dimensions(items_df, dataset, Owner.ITEM, "item", "item_id", ds),
        history_df.select(*_row("static", ["user_id"], *_behaviours(dataset))),
    ]
    for keys, features in by_keys(dataset.features, today=False).items():
        keyed_df = past_df.select("day", *keys).distinct()
        keyed_df = _with_unknown(keyed_df, keys, ds).transform(past.joined, features)
        values = [F.col(slot(feature))[feature.name] for feature in features]
        parts.append(keyed_df.select(*_row(f"statistic:{','.join(keys)}", keys, [], [values])))
    return reduce(DataFrame.unionByName, parts).withColumn("ds", F.lit(ds))


def _with_unknown(df: DataFrame, keys: Sequence[str], ds: str) -> DataFrame:
    """The rows, and one whose keys are null: nothing joins it, so that it has what stands for nothing."""
    nobody = df.sparkSession.range(1).select(
        F.lit(ds).alias("day"), *(F.lit(None).cast(df.schema[key].dataType).alias(key) for key in keys)
    )
    return df.unionByName(nobody)


def _dimensions(df: DataFrame, dataset: Dataset, owner: Owner, kind: str, key: str, ds: str) -> DataFrame:
    features = [f for f in dataset.of(owner) if f.statistic is None and f.name != key]
    columns = [key, "day", *(f.name for f in features)]
    df = df.select(*columns).transform(_with_unknown_dimension, key, features, ds)
    ids = [known(f) for f in features if f.kind is not Kind.NUMBER]
    return df.select(*_row(kind, [key], [ids], [[known(f) for f in features if f.kind is Kind.NUMBER]]))


def _with_unknown_dimension(df: DataFrame, key: str, features: Iterable[FeatureSpec], ds: str) -> DataFrame:
    nulls = (
        F.lit(None).cast(df.schema[name].dataType).alias(name) for name in (key, *(f.name for f in features))
    )
    return df.unionByName(df.sparkSession.range(1).select(F.lit(ds).alias("day"), *nulls))


def _behaviours(dataset: Dataset) -> tuple[list[Column], list[Column]]:
    """Ids and numbers of `history`, column after column."""
    history = F.col("history")

    def column(feature: FeatureSpec) -> Column:
        if feature.owner is Owner.ACTION:
            return history["action"]
        return history["known"][feature.name]

    features = dataset.in_group(Group.STATIC)
    ids = [column(f) for f in features if f.kind is not Kind.NUMBER]
    return [*ids, history["time_ms"]], [column(f) for f in features if f.kind is Kind.NUMBER]


def _row(
    kind: str,
    keys: Sequence[str],
    ids: Sequence[Column | list[Column]],
    numbers: Sequence[Column | list[Column]],
) -> list[Column]:
    """The columns of a row: lists laid end to end."""
    key = F.array(*(F.col(name).cast("bigint") for name in keys))
    return [
        F.lit(kind).alias("kind"),
        F.when(F.col(keys[0]).isNull(), F.array().cast("array<bigint>")).otherwise(key).alias("key"),
        _flat(ids, "bigint").alias("ids"),
        _flat(numbers, "float").alias("numbers"),
    ]


def _flat(parts: Sequence[Column | list[Column]], kind: str) -> Column:
    lists = [F.array(*part) if isinstance(part, list) else part for part in parts]
    lists = [part.cast(f"array<{kind}>") for part in lists]
    return F.concat(*lists) if lists else F.array().cast(f"array<{kind}>")
