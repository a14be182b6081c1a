"""Counts and rates per key, point in time: over whole days before the day, and so far on the day itself.

A dataset declares what it wants (`contract.Statistic`); nothing here knows a feature by name. All windows
and measures of one key set come out of one aggregation. With n impressions and x clicks or conversions of a
key in a window, a rate is `(x + 20 g) / (n + 20)`, at most 1, where g is the rate of all users over the same
window, and 0 over "today": before the day nothing of it is known, and a state that is frozen there has all of
it at zero.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.features import EventType, FeatureSpec, Measure, Statistic
from spark_jobs.samples.events import is_event

SMOOTHING = 20
_EVENT_OF = {
    Measure.IMPRESSIONS: EventType.IMPRESSION,
    Measure.CLICKS: EventType.CLICK,
    Measure.CONVERSIONS: EventType.CONVERSION,
}
_COUNTED_BY = {Measure.CTR: Measure.CLICKS, Measure.CTCVR: Measure.CONVERSIONS}
Keys = tuple[str, ...]


def by_keys(features: Iterable[FeatureSpec], *, today: bool) -> dict[Keys, list[FeatureSpec]]:
    """Statistic features by their key set, those of the day itself or those of the days before."""
    grouped: dict[Keys, list[FeatureSpec]] = {}
    for feature in features:
        if feature.statistic and (feature.statistic.days == 0) == today:
            grouped.setdefault(feature.statistic.keys, []).append(feature)
    return grouped


def counts(statistic: Statistic) -> tuple[Measure, ...]:
    """The plain counts that a statistic is computed from."""
    if statistic.measure.is_rate:
        return (_COUNTED_BY[statistic.measure], Measure.IMPRESSIONS)
    return (statistic.measure,)


def count_column(keys: Keys, measure: Measure, days: int) -> str:
    """Name of the column that holds a plain count."""
    return f"_{'_'.join(keys)}_{measure}_{days}"


def countable(past_df: DataFrame, keys: Iterable[str], ds: str) -> DataFrame:
    """What `day_counts` needs of events before day `ds`: keys, `age` in days, and a flag a kind of event."""
    flags = {f"is_{kind}": is_event(kind) for kind in _EVENT_OF.values()}
    age = F.datediff(F.lit(ds).cast("date"), F.col("ds").cast("date"))
    return past_df.select(*keys, age.alias("age"), *(flag.alias(name) for name, flag in flags.items()))


def day_counts(events_df: DataFrame, keys: Keys, features: Iterable[FeatureSpec]) -> DataFrame:
    """Counts over every window that the features need: one row a key, or one of everything for no keys.

    Args:
        events_df: `countable` events with the key columns.
        keys: Columns to group by.
        features: Statistics over days with these keys (whatever their keys, when `keys` is empty).

    Returns:
        The keys and one `count_column(keys, measure, days)` a count and window.
    """
    wanted = _wanted(features)
    counted = [
        F.count(F.when(F.col(f"is_{_EVENT_OF[measure]}") & (F.col("age") <= days), 1)).alias(
            count_column(keys, measure, days)
        )
        for measure, days in wanted
    ]
    longest = max((days for _, days in wanted), default=0)
    return events_df.where(F.col("age") <= longest).groupBy(*keys).agg(*counted)


def _wanted(features: Iterable[FeatureSpec]) -> list[tuple[Measure, int]]:
    return sorted({(m, f.statistic.days) for f in features if f.statistic for m in counts(f.statistic)})


def rates(features: Iterable[FeatureSpec]) -> list[FeatureSpec]:
    """The features that are rates over days."""
    return [f for f in features if f.statistic and f.statistic.days and f.statistic.measure.is_rate]


def global_rates(counts_df: DataFrame, features: Iterable[FeatureSpec]) -> DataFrame:
    """One row with the rates of all users, a `global_column` a rate.

    Args:
        counts_df: `day_counts` by nothing.
        features: The features that need them, see `rates`.
    """
    wanted = sorted({(f.statistic.measure, f.statistic.days) for f in features if f.statistic})
    return counts_df.select(
        *(
            F.coalesce(
                F.try_divide(
                    F.col(count_column((), _COUNTED_BY[measure], days)),
                    F.col(count_column((), Measure.IMPRESSIONS, days)),
                ),
                F.lit(0.0),
            ).alias(global_column(measure, days))
            for measure, days in wanted
        )
    )


def global_column(measure: Measure, days: int) -> str:
    """Name of the column with the rate of all users."""
    return f"_global_{measure}_{days}"


def with_values(df: DataFrame, features: Iterable[FeatureSpec]) -> DataFrame:
    """Replaces the counts of statistics by their values: a struct `slot(feature)` that holds them by name."""
    features = list(features)
    used = {column for f in features for column in _columns(f)}
    slots: dict[str, list[Column]] = {}
    for feature in features:
        slots.setdefault(slot(feature), []).append(_value(feature).alias(feature.name))
    return df.withColumns({name: F.struct(*values) for name, values in slots.items()}).drop(*used)


def slot(feature: FeatureSpec) -> str:
    """Column that holds the feature until the sample is written.

    A row of the day has some sixty values on its way through a dozen sorts, windows and joins; packed by what
    they hang on, each of these copies a few blocks of bytes instead.
    """
    if feature.statistic is None:
        return "known"
    when = "past" if feature.statistic.days else "today"
    return f"{'_'.join(feature.statistic.keys)}_{when}"


def _columns(feature: FeatureSpec) -> list[str]:
    statistic = feature.statistic
    if statistic is None:
        raise ValueError(f"feature {feature.name!r} is no statistic")
    return [count_column(statistic.keys, measure, statistic.days) for measure in counts(statistic)]


def _value(feature: FeatureSpec) -> Column:
    """The feature from its counts (null: nothing counted) and, for a rate over days, all users' rate."""
    found = [F.coalesce(F.col(column), F.lit(0)) for column in _columns(feature)]
    statistic = feature.statistic
    assert statistic is not None
    if not statistic.measure.is_rate:
        return F.least(found[0].cast("double"), F.lit(feature.high)).cast("float")
    prior = F.col(global_column(statistic.measure, statistic.days)) if statistic.days else F.lit(0.0)
    rate = (found[0] + SMOOTHING * prior) / (found[1] + SMOOTHING)
    return F.least(rate, F.lit(1.0)).cast("float")


def with_today(today_df: DataFrame, features: Iterable[FeatureSpec]) -> DataFrame:
    """Adds the statistics of today: of the day's on-time events strictly before each row, per key set.

    Args:
        today_df: Events of the day with `is_on_time` and the key columns.
        features: Statistics with `days=0`; their keys hold `user_id`, so that no key gathers everybody's day.

    Raises:
        ValueError: A key set lacks `user_id`.
    """
    for keys, of_keys in by_keys(features, today=True).items():
        if "user_id" not in keys:
            raise ValueError(
                f"feature {of_keys[0].name!r}: a statistic of today needs user_id among its keys"
            )
        measures = sorted({m for f in of_keys if f.statistic for m in counts(f.statistic)})
        earlier = Window.partitionBy(*keys).orderBy("time_ms").rangeBetween(Window.unboundedPreceding, -1)
        today_df = today_df.withColumns(
            {
                count_column(keys, measure, 0): F.sum(
                    (F.col("is_on_time") & is_event(_EVENT_OF[measure])).cast("int")
                ).over(earlier)
                for measure in measures
            }
        ).transform(with_values, of_keys)
    return today_df
