"""Events of many days become the samples of one day: one row a user and window (`contract.sample_columns`).

The plan: the day's events and all that is looked up for them are spread by user once; counts "so far today"
are running sums there, statistics of user x something are joined there without another shuffle, those of
items are broadcast; then one grouping by user makes the lists, and all cutting is done on lists. Nothing is
collected, nothing runs in Python, and time grows with the number of events.

What a value may know: statistics and the static sequence, events before the day that a delivery before the
day brought; real-time behaviours and statistics of today, on-time events of the day strictly earlier than the
token; labels, every event that has arrived. So a sample is a function of the deliveries alone, whatever order
the days are built in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import (
    KEY_COLUMNS,
    MAX_REALTIME,
    MAX_STATIC,
    Dataset,
    EventType,
    FeatureSpec,
    Group,
    Owner,
    sample_columns,
    shift_day,
)
from spark_jobs.events import is_event, known, with_context, with_items
from spark_jobs.statistics import (
    base_counts,
    by_keys,
    day_counts,
    global_rates,
    rates,
    value,
    with_today_counts,
)
from spark_jobs.windows import day_windows

_OUTCOMES = (EventType.CLICK, EventType.CONVERSION)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Greatest lengths of the two sequences; the paper's, smaller ones in tests."""

    static: int = MAX_STATIC
    realtime: int = MAX_REALTIME


def build(
    events_df: DataFrame,
    users_df: DataFrame,
    items_df: DataFrame,
    dataset: Dataset,
    ds: str,
    limits: Limits | None = None,
    keep: Callable[[DataFrame], DataFrame] = lambda df: df,
) -> DataFrame:
    """The samples of day `ds`.

    Args:
        events_df: Events of the days `ds - history_days` to `ds + 1`, every event once, without bots.
        users_df: The users as of the day, one row a user.
        items_df: The items as of the day, one row an item.
        dataset: Dataset.
        ds: The day.
        limits: Lengths of the sequences.
        keep: Called with what several steps read, may persist it; the caller lets it go after use.

    Returns:
        Exactly `sample_columns(dataset)`, sorted by user and window within partitions.
    """
    limits = limits or Limits()
    items_df = keep(items_df)
    past_df = (
        known_before(events_df, dataset, ds)
        .transform(with_context, dataset)
        .transform(with_items, items_df, dataset)
    )
    is_shown = (F.col("ds") == ds) & is_event(EventType.IMPRESSION)
    active_df = keep(events_df.where(is_shown).transform(by_user).select("user_id").distinct())
    counts = Counts.of(past_df, active_df, dataset, ds, keep)
    today_df = (
        events_df.where(F.col("ds") == ds)
        .withColumn("is_on_time", F.col("delivery_ds") <= ds)
        .transform(with_context, dataset)
        .transform(with_items, items_df, dataset)
        .transform(by_user)
    )
    listed_df = (
        today_df.transform(with_today_counts, dataset.features)
        .transform(with_earlier_behaviours)
        .where(is_event(EventType.IMPRESSION) | is_behaviour())
        .transform(with_labels, outcomes(events_df, ds), dataset)
        .transform(counts.joined, [f for f in dataset.in_group(Group.CANDIDATE) if f.statistic])
        .transform(as_lists, dataset)
    )
    history_df = past_df.transform(static_behaviours, active_df, dataset, limits.static)
    return (
        listed_df.join(history_df.hint("shuffle_hash"), "user_id", "left")
        .join(users_df, "user_id", "left")
        .transform(counts.joined, dataset.of(Owner.PROFILE))
        .transform(as_windows, dataset, ds, limits)
        .transform(as_samples, dataset, ds, limits)
        .sortWithinPartitions("user_id", "window_start_ms")
    )


def by_user(df: DataFrame) -> DataFrame:
    """Spreads rows by user, always into the same parts: joins and groups by user x anything stay there."""
    parts = int(df.sparkSession.conf.get("spark.sql.shuffle.partitions") or 200)
    return df.repartition(parts, "user_id")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts over the days before: one pass for everything by user, one for everything else.

    Args:
        of_users_df: `base_counts` of the day's users by user and all that is counted with it; lies by user.
        of_all_df: `base_counts` of all users by all other keys.
    """

    of_users_df: DataFrame
    of_all_df: DataFrame

    @classmethod
    def of(
        cls,
        past_df: DataFrame,
        active_df: DataFrame,
        dataset: Dataset,
        ds: str,
        keep: Callable[[DataFrame], DataFrame],
    ) -> Counts:
        """Counts what the dataset's features need."""
        keyed = by_keys(dataset.features, today=False)
        columns = {True: {"user_id": None}, False: {}}
        needed: dict[bool, list[FeatureSpec]] = {True: [], False: rates(dataset.features)}
        for keys, features in keyed.items():
            columns["user_id" in keys].update(dict.fromkeys(keys))
            needed["user_id" in keys] += features
        of_active_df = past_df.transform(by_user).join(active_df.hint("shuffle_hash"), "user_id", "left_semi")
        return cls(
            of_users_df=keep(base_counts(of_active_df, tuple(columns[True]), needed[True], ds)),
            of_all_df=keep(base_counts(past_df, tuple(columns[False]), needed[False], ds)),
        )

    def joined(self, df: DataFrame, features: Iterable[FeatureSpec]) -> DataFrame:
        """Joins the counts of every key set (null where a key has none) and the rates of all users.

        Counts by user stay where their user is; those by item or context are few beside the events, and Spark
        sends them to everyone.
        """
        features = list(features)
        for keys, of_keys in by_keys(features, today=False).items():
            if "user_id" in keys:
                counts_df = day_counts(self.of_users_df.transform(by_user), keys, of_keys).hint(
                    "shuffle_hash"
                )
            else:
                counts_df = day_counts(self.of_all_df, keys, of_keys)
            df = df.join(counts_df, list(keys), "left")
        with_prior = rates(features)
        if not with_prior:
            return df
        return df.crossJoin(F.broadcast(global_rates(self.of_all_df, with_prior)))


def known_before(events_df: DataFrame, dataset: Dataset, ds: str) -> DataFrame:
    """Events before day `ds` that were delivered before it, as far back as the history goes."""
    oldest = shift_day(ds, -dataset.history_days)
    return events_df.where((F.col("ds") >= oldest) & (F.col("ds") < ds) & (F.col("delivery_ds") < ds))


def is_behaviour() -> Column:
    """Whether an event of the day makes a real-time token: it has an action and was on time."""
    return F.col("action").isNotNull() & F.col("is_on_time")


def with_earlier_behaviours(today_df: DataFrame) -> DataFrame:
    """Adds `earlier`: the user's behaviours of the day strictly before each row."""
    before = Window.partitionBy("user_id").orderBy("time_ms").rangeBetween(Window.unboundedPreceding, -1)
    earlier = F.coalesce(F.sum(is_behaviour().cast("int")).over(before), F.lit(0))
    return today_df.withColumn("earlier", earlier.cast("int"))


def outcomes(events_df: DataFrame, ds: str) -> DataFrame:
    """One row an impression that something followed: (user_id, impression_id, click_ms, conversion_ms)."""
    kinds = F.col("event_type").isin(*(kind.value for kind in _OUTCOMES))
    times = [
        F.collect_list(F.when(is_event(kind), F.col("time_ms"))).alias(f"{kind}_ms") for kind in _OUTCOMES
    ]
    return (
        events_df.where(F.col("ds").isin(ds, shift_day(ds, 1)) & kinds)
        .transform(by_user)
        .groupBy("user_id", "impression_id")
        .agg(*times)
    )


def with_labels(today_df: DataFrame, labels_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Adds `label_click` and `label_conversion`: what followed within the attribution window.

    A conversion counts with its click only (CTCVR is click and conversion).
    """

    def followed(kind: EventType) -> Column:
        end = F.col("time_ms") + F.lit(dataset.attribution_ms)
        return F.coalesce(
            F.exists(f"{kind}_ms", lambda time: time.between(F.col("time_ms"), end)), F.lit(False)
        )

    joined_df = today_df.join(labels_df.hint("shuffle_hash"), ["user_id", "impression_id"], "left")
    return (
        joined_df.withColumn("label_click", followed(EventType.CLICK).cast("tinyint"))
        .withColumn(
            "label_conversion",
            (followed(EventType.CONVERSION) & (F.col("label_click") == 1)).cast("tinyint"),
        )
        .drop("click_ms", "conversion_ms")
    )


def as_lists(today_df: DataFrame, dataset: Dataset) -> DataFrame:
    """One row a user with `candidates` and `behaviours` of the day as lists of structs, oldest first."""
    candidate = F.struct(
        "time_ms",
        "event_id",
        "earlier",
        "request_id",
        "impression_id",
        "label_click",
        "label_conversion",
        *(value(f) if f.statistic else F.col(f.name) for f in dataset.in_group(Group.CANDIDATE)),
    )
    is_candidate = is_event(EventType.IMPRESSION)
    return (
        today_df.groupBy("user_id")
        .agg(
            F.sort_array(F.collect_list(F.when(is_candidate, candidate))).alias("candidates"),
            F.sort_array(F.collect_list(F.when(is_behaviour(), _behaviour(dataset)))).alias("behaviours"),
        )
        .where(F.size("candidates") > 0)
    )


def static_behaviours(past_df: DataFrame, active_df: DataFrame, dataset: Dataset, limit: int) -> DataFrame:
    """One row a user with `history`: the latest `limit` behaviours before the day, oldest first."""
    history_df = (
        past_df.where(F.col("action").isNotNull())
        .withColumn("earlier", F.lit(0))
        .transform(by_user)
        .join(active_df.hint("shuffle_hash"), "user_id", "left_semi")
    )
    return (
        history_df.groupBy("user_id")
        .agg(F.sort_array(F.collect_list(_behaviour(dataset))).alias("history"))
        .withColumn("history", _latest(F.col("history"), limit))
    )


def as_windows(listed_df: DataFrame, dataset: Dataset, ds: str, limits: Limits) -> DataFrame:
    """One row a user and window with candidates, and its `static`, `realtime` and `candidate` lists.

    Adds `offset`: how many of the day's behaviours lie before the first one of `realtime`.
    """
    times = F.col("behaviours")["time_ms"]
    cut = day_windows(times, dataset.day_start_ms(ds), dataset.day_end_ms(ds), limits.realtime)
    first, count = F.col("window")["first"], F.col("window")["count"]
    history = F.coalesce("history", F.slice("behaviours", 1, 0))
    windows_df = listed_df.withColumn("history", history).withColumn("window", F.explode(cut))
    windows_df = windows_df.withColumn("offset", first + F.greatest(count - limits.realtime, F.lit(0)))
    start, end = F.col("window")["start_ms"], F.col("window")["end_ms"]
    moved = F.concat("history", F.slice("behaviours", F.lit(1), first))
    within = F.filter("candidates", lambda c: (c["time_ms"] >= start) & (c["time_ms"] < end))
    is_whole = (first == 0) & (end == F.lit(dataset.day_end_ms(ds)))
    columns = {
        "static": F.when(first == 0, F.col("history")).otherwise(_latest(moved, limits.static)),
        "realtime": F.when(is_whole & (F.col("offset") == 0), F.col("behaviours")).otherwise(
            F.slice("behaviours", F.col("offset") + 1, F.least(count, F.lit(limits.realtime)))
        ),
        "candidate": F.when(is_whole, F.col("candidates")).otherwise(within),
    }
    return windows_df.withColumns(columns).where(F.size("candidate") > 0)


def as_samples(windows_df: DataFrame, dataset: Dataset, ds: str, limits: Limits) -> DataFrame:
    """Takes the lists of structs apart: exactly `sample_columns(dataset)`."""
    made: dict[str, Column] = {
        "user_id": F.col("user_id"),
        "ds": F.lit(ds),
        "window_start_ms": F.col("window")["start_ms"],
        "window_end_ms": F.col("window")["end_ms"],
        "realtime_visible": _visible(F.col("realtime")["earlier"]),
        "candidate_visible": _visible(F.col("candidate")["earlier"]),
        "label_click": F.col("candidate")["label_click"],
        "label_conversion": F.col("candidate")["label_conversion"],
    }
    for feature in dataset.of(Owner.PROFILE):
        own = value(feature) if feature.statistic else known(feature)
        made[f"profile_{feature.name}"] = F.col("user_id") if feature.name == "user_id" else own
    names = [name for name, _ in sample_columns(dataset)]
    for name in names[len(KEY_COLUMNS) :]:
        if name not in made:
            group, _, field = name.partition("_")
            made[name] = F.col(group)[field]
    return windows_df.select(*(made[name].cast(kind).alias(name) for name, kind in sample_columns(dataset)))


def _behaviour(dataset: Dataset) -> Column:
    features = dataset.in_group(Group.STATIC)
    return F.struct("time_ms", "event_id", "earlier", *(F.col(f.name) for f in features))


def _latest(list_: Column, limit: int) -> Column:
    return F.slice(list_, F.greatest(F.size(list_) - (limit - 1), F.lit(1)), F.lit(limit))


def _visible(earlier: Column) -> Column:
    """Real-time tokens of the window before each token, from the behaviours of the day before it."""
    offset = F.col("offset")
    moved = F.transform(earlier, lambda n: F.greatest(n - offset, F.lit(0)))
    return F.when(offset == 0, earlier).otherwise(moved)
