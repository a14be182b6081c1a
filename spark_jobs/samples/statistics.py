"""Counts and rates per key, point in time: over whole days before the day, and so far on the day itself.

A dataset declares what it wants (`contract.Statistic`); nothing here knows a feature by name. All windows
and measures of one key set come out of one aggregation. Actions are counted over all behaviours, shown before
or not; days since the last of them are 1 for the day before, and the window's length and one more where it
has none. With n impressions and x clicks or conversions of a key in a window, a rate is
`(x + 20 g) / (n + 20)`, at most 1, where g is the rate of all users over the same window, and 0 over "today":
before the day nothing of it is known, and a state that is frozen there has all of it at zero. Where
candidates have weights, n and x are sums of weights, added as decimals so that no order of rows changes a
value; plain counts stay counts of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.features import (
    COUNTED_BY,
    EVENT_OF,
    SMOOTHING,
    Dataset,
    FeatureSpec,
    Measure,
    Statistic,
)
from spark_jobs.samples.events import is_event

_EXACT = "decimal(28,9)"
Keys = tuple[str, ...]


class Count(NamedTuple):
    """What is counted: a kind of event, or behaviours with an action; of days since, the youngest's age."""

    measure: Measure
    action: str = ""
    is_weighted: bool = False

    @property
    def flag(self) -> str:
        """Column that says whether an event is one; no declared column starts with an underscore."""
        return f"_did_{self.action}" if self.action else f"_is_{EVENT_OF[self.measure]}"


def by_keys(features: Iterable[FeatureSpec], *, today: bool) -> dict[Keys, list[FeatureSpec]]:
    """Statistic features by their key set, those of the day itself or those of the days before."""
    grouped: dict[Keys, list[FeatureSpec]] = {}
    for feature in features:
        if feature.statistic and (feature.statistic.days == 0) == today:
            grouped.setdefault(feature.statistic.keys, []).append(feature)
    return grouped


def counts(statistic: Statistic, is_weighted: bool = False) -> tuple[Count, ...]:
    """The counts that a statistic is computed from: of a rate, sums of weights where candidates have them."""
    if statistic.measure.is_rate:
        parts = (COUNTED_BY[statistic.measure], Measure.IMPRESSIONS)
        return tuple(Count(measure, is_weighted=is_weighted) for measure in parts)
    return (Count(statistic.measure, statistic.action),)


def count_column(keys: Keys, count: Count, days: int) -> str:
    """Name of the column that holds a plain count."""
    what = [count.measure, *([count.action] if count.action else []), *(["w"] if count.is_weighted else [])]
    return f"_{'_'.join([*keys, *what])}_{days}"


def is_counted(counts: Iterable[Count], actions: Sequence[str]) -> dict[str, Column]:
    """By `Count.flag`, whether an event is counted.

    Args:
        counts: What is counted.
        actions: `Dataset.actions`.
    """
    return {
        count.flag: F.coalesce(F.col("action") == 1 + actions.index(count.action), F.lit(False))
        if count.action
        else is_event(EVENT_OF[count.measure])
        for count in counts
    }


def countable(past_df: DataFrame, keys: Iterable[str], dataset: Dataset) -> DataFrame:
    """What `day_counts` needs of events before their `day`: keys, `_age`, `_weight`, a flag a `Count`."""
    flags = is_counted((count for count, _ in _wanted(dataset.features, False)), dataset.actions)
    columns = {"_age": F.datediff(F.col("day").cast("date"), F.col("ds").cast("date")), **flags}
    if dataset.has_weights:
        columns["_weight"] = F.col("weight")
    return past_df.select("day", *keys, *(column.alias(name) for name, column in columns.items()))


def day_counts(
    events_df: DataFrame, keys: Keys, features: Iterable[FeatureSpec], is_weighted: bool = False
) -> DataFrame:
    """Counts over every window that the features need: one row a day and key, or a day for no keys.

    Args:
        events_df: `countable` events with the key columns.
        keys: Columns to group by.
        features: Statistics over days with these keys (whatever their keys, when `keys` is empty).
        is_weighted: Whether rates are of weights.

    Returns:
        `day`, the keys and one `count_column(keys, count, days)` a count and window.
    """
    wanted = _wanted(features, is_weighted)
    counted = []
    for count, days in wanted:
        is_one = F.col(count.flag) & (F.col("_age") <= days)
        if count.is_weighted:
            value = F.sum(F.when(is_one, F.col("_weight").cast(_EXACT))).cast("double")
        else:
            age = F.when(is_one, F.col("_age"))
            value = F.min(age) if count.measure.is_recency else F.count(age)
        counted.append(value.alias(count_column(keys, count, days)))
    longest = max((days for _, days in wanted), default=0)
    return events_df.where(F.col("_age") <= longest).groupBy("day", *keys).agg(*counted)


def _wanted(features: Iterable[FeatureSpec], is_weighted: bool) -> list[tuple[Count, int]]:
    """What is counted, over which of the windows before the day."""
    statistics = (f.statistic for f in features if f.statistic and f.statistic.days)
    return sorted(
        {(count, statistic.days) for statistic in statistics for count in counts(statistic, is_weighted)}
    )


def rates(features: Iterable[FeatureSpec]) -> list[FeatureSpec]:
    """The features that are rates over days."""
    return [f for f in features if f.statistic and f.statistic.days and f.statistic.measure.is_rate]


def global_rates(
    counts_df: DataFrame, features: Iterable[FeatureSpec], is_weighted: bool = False
) -> DataFrame:
    """One row a day with the rates of all users, a `global_column` a rate; none where nothing was counted.

    Args:
        counts_df: `day_counts` by nothing.
        features: The features that need them, see `rates`.
        is_weighted: Whether rates are of weights.
    """
    wanted = sorted({(f.statistic.measure, f.statistic.days) for f in features if f.statistic})
    return counts_df.select(
        "day",
        *(
            F.coalesce(
                F.try_divide(
                    F.col(count_column((), Count(COUNTED_BY[measure], is_weighted=is_weighted), days)),
                    F.col(count_column((), Count(Measure.IMPRESSIONS, is_weighted=is_weighted), days)),
                ),
                F.lit(0.0),
            ).alias(global_column(measure, days))
            for measure, days in wanted
        ),
    )


def global_column(measure: Measure, days: int) -> str:
    """Name of the column with the rate of all users."""
    return f"_global_{measure}_{days}"


def with_values(df: DataFrame, features: Iterable[FeatureSpec], is_weighted: bool = False) -> DataFrame:
    """Replaces the counts of statistics by their values: a struct `slot(feature)` that holds them by name."""
    features = list(features)
    used = {column for f in features for column in _columns(f, is_weighted)}
    slots: dict[str, list[Column]] = {}
    for feature in features:
        slots.setdefault(slot(feature), []).append(_value(feature, is_weighted).alias(feature.name))
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


def _columns(feature: FeatureSpec, is_weighted: bool) -> list[str]:
    statistic = feature.statistic
    if statistic is None:
        raise ValueError(f"feature {feature.name!r} is no statistic")
    return [count_column(statistic.keys, count, statistic.days) for count in counts(statistic, is_weighted)]


def _value(feature: FeatureSpec, is_weighted: bool) -> Column:
    """The feature from its counts (null: nothing counted) and, for a rate over days, all users' rate."""
    statistic = feature.statistic
    assert statistic is not None
    nothing = statistic.days + 1 if statistic.measure.is_recency else 0
    numbers = [F.coalesce(F.col(column), F.lit(nothing)) for column in _columns(feature, is_weighted)]
    if not statistic.measure.is_rate:
        return F.least(numbers[0].cast("double"), F.lit(feature.high)).cast("float")
    prior = F.lit(0.0)
    if statistic.days:
        prior = F.coalesce(F.col(global_column(statistic.measure, statistic.days)), prior)
    rate = (numbers[0] + SMOOTHING * prior) / (numbers[1] + SMOOTHING)
    return F.least(rate, F.lit(1.0)).cast("float")


def with_today(today_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Adds the statistics of today: of the day's on-time events strictly before each row, per key set.

    Args:
        today_df: Events of their `day` with `is_on_time` and the key columns.
        dataset: Its statistics with `days=0` have `user_id` among their keys, so that none gathers
            everybody's day.
    """
    for keys, of_keys in by_keys(dataset.features, today=True).items():
        is_weighted = dataset.has_weights
        wanted = [count for f in of_keys if f.statistic for count in counts(f.statistic, is_weighted)]
        is_it = is_counted(wanted, dataset.actions)
        of_day = Window.partitionBy("day", *keys).orderBy("time_ms")
        earlier = of_day.rangeBetween(Window.unboundedPreceding, -1)
        today_df = today_df.withColumns(
            {
                count_column(keys, count, 0): F.sum(
                    F.when(
                        F.col("is_on_time") & is_it[count.flag],
                        F.col("weight").cast(_EXACT) if count.is_weighted else F.lit(1),
                    )
                )
                .over(earlier)
                .cast("double" if count.is_weighted else "bigint")
                for count in dict.fromkeys(wanted)
            }
        ).transform(with_values, of_keys, is_weighted)
    return today_df
