"""Events of many days become the samples of a few: one row a user and window (`contract.sample_columns`).

The plan: the days' events get what is known of their items, then they and all that is looked up for them are
spread by user once; counts "so far today" are running sums there, statistics of user x something are joined
there without another shuffle; then one grouping by user and day makes the lists, and all cutting is done on
lists. Nothing is collected, nothing runs in Python, and time grows with the number of events. A small day
costs little more than its plan, so the days that a run makes share one: `day` is the day that a row is for.

What a value may know: statistics and the static sequence, events before the day that a delivery before the
day brought; real-time behaviours and statistics of today, on-time events of the day strictly earlier than the
token; labels, every event that has arrived. So a sample is a function of the deliveries alone, whatever order
the days are built in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import DAY_MS, shift_day
from spark_jobs.contract.features import (
    MAX_REALTIME,
    MAX_STATIC,
    Dataset,
    EventType,
    FeatureSpec,
    Group,
    Owner,
)
from spark_jobs.contract.tables import sample_columns, structure_columns
from spark_jobs.lake.session import at_once
from spark_jobs.samples.events import (
    around,
    at_requests,
    is_event,
    known,
    with_context,
    with_items,
    with_weights,
)
from spark_jobs.samples.statistics import (
    Keys,
    by_keys,
    countable,
    day_counts,
    global_column,
    global_rates,
    rates,
    slot,
    with_today,
    with_values,
)
from spark_jobs.samples.windows import day_windows

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
    days: Sequence[str],
    limits: Limits | None = None,
    keep: Callable[[DataFrame], DataFrame] = lambda df: df,
) -> DataFrame:
    """The samples of `days`.

    Args:
        events_df: Events of `reach_days` before the days to `days_after` them, each once, without bots.
        users_df: The users as of each `day`, one row a day and user.
        items_df: The items as of each `day`, one row a day and item.
        dataset: Dataset.
        days: The days, ascending.
        limits: Lengths of the sequences.
        keep: Called with what several steps read, may persist it; the caller lets it go after use.

    Returns:
        Exactly `sample_columns(dataset)`, sorted by day, user and window within partitions.
    """
    limits = limits or Limits()
    items_df = keep(items_df)
    events_df = events_df.transform(with_weights, dataset)
    past_df = (
        known_before(events_df, dataset, days)
        .transform(with_context, dataset)
        .transform(with_items, items_df, dataset)
    )
    today_df = (
        around(events_df, dataset, days)
        .transform(by_user)
        .transform(at_requests, dataset)
        .where(F.col("ds").isin(*days))
        .withColumn("day", F.col("ds"))
    )
    active_df = keep(today_df.where(is_event(EventType.IMPRESSION)).select("user_id", "day").distinct())
    past = Past.of(past_df, active_df, dataset, keep)
    statistics = [f for f in dataset.in_group(Group.CANDIDATE) if f.statistic and f.statistic.days]
    of_users = [f for f in statistics if f.statistic and f.statistic.is_by_user]
    of_items = [f for f in statistics if f not in of_users]
    listed_df = (
        today_df.withColumn("is_on_time", F.col("delivery_ds") <= F.col("day"))
        .transform(with_context, dataset)
        .transform(with_items, items_df, dataset)
        .transform(past.joined, of_items)
        .transform(with_known, dataset)
        .transform(by_user)
        .transform(with_earlier_behaviours)
        .transform(with_today, dataset)
        .where(is_event(EventType.IMPRESSION) | is_behaviour())
        .transform(past.joined, of_users)
        .transform(with_labels, outcomes(events_df.where(F.col("ds") >= days[0])), dataset)
        .transform(as_lists, dataset)
    )
    history_df = past_df.transform(static_behaviours, active_df, dataset, limits.static)
    return (
        listed_df.join(history_df.hint("shuffle_hash"), ["user_id", "day"], "left")
        .join(users_df, ["user_id", "day"], "left")
        .transform(past.joined, [f for f in dataset.of(Owner.PROFILE) if f.statistic])
        .transform(as_windows, dataset, limits)
        .transform(as_samples, dataset)
        .sortWithinPartitions("ds", "user_id", "window_start_ms")
    )


def by_user(df: DataFrame) -> DataFrame:
    """Spreads rows by user, always into the same parts: joins and groups by user x anything stay there."""
    parts = int(df.sparkSession.conf.get("spark.sql.shuffle.partitions") or 200)
    return df.repartition(parts, "user_id")


@dataclass(frozen=True, kw_only=True)
class Past:
    """What is counted over the days before.

    Args:
        of_users_df: `countable` events of each day's users; they lie by user.
        counts: Counts that are not by user, one row a day and key; under no keys, those of all events.
        is_weighted: Whether rates are of weights.
    """

    of_users_df: DataFrame
    counts: Mapping[Keys, DataFrame]
    is_weighted: bool

    @classmethod
    def of(
        cls,
        past_df: DataFrame,
        active_df: DataFrame,
        dataset: Dataset,
        keep: Callable[[DataFrame], DataFrame],
    ) -> Past:
        """Counts what the dataset's features need.

        What is not by user is counted at once: only then does Spark know how little it is, and brings it to
        the day's events instead of spreading them by every key.
        """
        keyed = by_keys(dataset.features, today=False)
        columns = dict.fromkeys(["user_id", *(key for keys in keyed for key in keys)])
        is_active_df = active_df.withColumn("is_active", F.lit(True)).hint("shuffle_hash")
        countable_df = past_df.transform(countable, columns, dataset).transform(by_user)
        events_df = keep(countable_df.join(is_active_df, ["user_id", "day"], "left"))
        counts: dict[Keys, DataFrame] = {}
        for keys, features in {(): rates(dataset.features), **keyed}.items():
            if features and "user_id" not in keys:
                counts[keys] = keep(day_counts(events_df, keys, features, dataset.has_weights))
        events_df.count()  # the counts, side by side, are not the first to read it
        at_once(*(counts_df.count for counts_df in counts.values()))
        return cls(of_users_df=events_df.where("is_active"), counts=counts, is_weighted=dataset.has_weights)

    def joined(self, df: DataFrame, features: Iterable[FeatureSpec]) -> DataFrame:
        """Adds statistics over days; what nothing was counted of has those of zero events."""
        features = list(features)
        if with_prior := rates(features):
            df = df.join(
                F.broadcast(global_rates(self.counts[()], with_prior, self.is_weighted)), "day", "left"
            )
        for keys, of_keys in by_keys(features, today=False).items():
            counts_df = self.counts.get(keys)
            if counts_df is None:
                counts_df = day_counts(self.of_users_df, keys, of_keys, self.is_weighted)
                counts_df = counts_df.hint("shuffle_hash")
            df = df.join(counts_df, ["day", *keys], "left").transform(with_values, of_keys, self.is_weighted)
        priors = {(f.statistic.measure, f.statistic.days) for f in with_prior if f.statistic}
        return df.drop(*(global_column(measure, days) for measure, days in priors))


def known_before(events_df: DataFrame, dataset: Dataset, days: Sequence[str]) -> DataFrame:
    """Events before each `day` that were delivered before it, as far back as the longest window goes.

    One row an event and day that knows of it.
    """
    oldest = [shift_day(day, -dataset.reach_days) for day in days]
    known_df = events_df.where(
        (F.col("ds") >= oldest[0]) & (F.col("ds") < days[-1]) & (F.col("delivery_ds") < days[-1])
    )
    if len(days) == 1:
        return known_df.withColumn("day", F.lit(days[0]))
    spans = F.array(
        *(
            F.struct(F.lit(a).alias("oldest"), F.lit(b).alias("day"))
            for a, b in zip(oldest, days, strict=True)
        )
    )
    knowing = F.filter(
        spans,
        lambda s: (F.col("ds") >= s["oldest"]) & (F.col("ds") < s["day"]) & (F.col("delivery_ds") < s["day"]),
    )
    return known_df.withColumn("day", F.explode(knowing["day"]))


def with_known(events_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Packs the features of item and context into `known`, see `slot`; keys of statistics stay beside it."""
    features = dataset.of(Owner.ITEM, Owner.CONTEXT)
    statistics = (f.statistic for f in dataset.features if f.statistic)
    keys = {key for s in statistics if s.is_by_user for key in s.keys}
    packed = events_df.withColumn("known", F.struct(*(f.name for f in features)))
    return packed.drop(*(f.name for f in features if f.name not in keys))


def is_behaviour() -> Column:
    """Whether an event of the day makes a real-time token: it has an action and was on time."""
    return F.col("action").isNotNull() & F.col("is_on_time")


def with_earlier_behaviours(today_df: DataFrame) -> DataFrame:
    """Adds `earlier`: the user's behaviours of the day strictly before each row."""
    before = (
        Window.partitionBy("user_id", "day").orderBy("time_ms").rangeBetween(Window.unboundedPreceding, -1)
    )
    earlier = F.coalesce(F.sum(is_behaviour().cast("int")).over(before), F.lit(0))
    return today_df.withColumn("earlier", earlier.cast("int"))


def outcomes(events_df: DataFrame) -> DataFrame:
    """One row an impression that something followed: (user_id, impression_id, click_ms, conversion_ms)."""
    kinds = F.col("event_type").isin(*(kind.value for kind in _OUTCOMES))
    times = [
        F.collect_list(F.when(is_event(kind), F.col("time_ms"))).alias(f"{kind}_ms") for kind in _OUTCOMES
    ]
    return events_df.where(kinds).transform(by_user).groupBy("user_id", "impression_id").agg(*times)


def with_labels(today_df: DataFrame, labels_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Adds `label_click` and `label_conversion`: what followed within the attribution window.

    It begins when the impression was shown (`shown_ms`), not with its request. A conversion counts with its
    click only (CTCVR is click and conversion).
    """

    def followed(kind: EventType) -> Column:
        shown, end = F.col("shown_ms"), F.col("shown_ms") + F.lit(dataset.attribution_ms)
        return F.coalesce(F.exists(f"{kind}_ms", lambda time: time.between(shown, end)), F.lit(False))

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
    """One row a user and day with its `candidates` and `behaviours` as lists of structs, oldest first."""
    candidate = F.struct(
        "time_ms",
        "event_id",
        "earlier",
        "request_id",
        "impression_id",
        "label_click",
        "label_conversion",
        *(["weight"] if dataset.has_weights else []),
        *dict.fromkeys(slot(f) for f in dataset.in_group(Group.CANDIDATE)),
    )
    is_candidate = is_event(EventType.IMPRESSION)
    return (
        today_df.groupBy("user_id", "day")
        .agg(
            F.sort_array(F.collect_list(F.when(is_candidate, candidate))).alias("candidates"),
            F.sort_array(F.collect_list(F.when(is_behaviour(), _behaviour()))).alias("behaviours"),
        )
        .where(F.size("candidates") > 0)
    )


def static_behaviours(past_df: DataFrame, active_df: DataFrame, dataset: Dataset, limit: int) -> DataFrame:
    """One row a user and day with `history`: the latest `limit` behaviours before the day, oldest first.

    They reach back `history_days`, however long the windows of statistics are.
    """
    age = F.datediff(F.col("day").cast("date"), F.col("ds").cast("date"))
    history_df = (
        past_df.where(F.col("action").isNotNull() & (age <= dataset.history_days))
        .withColumn("earlier", F.lit(0))
        .transform(with_known, dataset)
        .select("user_id", "day", _behaviour().alias("behaviour"))
        .transform(by_user)
        .join(active_df.hint("shuffle_hash"), ["user_id", "day"], "left_semi")
    )
    return (
        history_df.groupBy("user_id", "day")
        .agg(F.sort_array(F.collect_list("behaviour")).alias("history"))
        .withColumn("history", _latest(F.col("history"), limit))
    )


def as_windows(listed_df: DataFrame, dataset: Dataset, limits: Limits) -> DataFrame:
    """One row a user and window with candidates, and its `static`, `realtime` and `candidate` lists.

    Adds `offset`: how many of the day's behaviours lie before the first one of `realtime`.
    """
    times = F.col("behaviours")["time_ms"]
    epoch = F.lit(dataset.day_start_ms("1970-01-01"))
    day_start = F.unix_date(F.col("day").cast("date")).cast("bigint") * DAY_MS + epoch
    day_end = day_start + F.lit(DAY_MS)
    cut = day_windows(times, day_start, day_end, limits.realtime)
    first, count = F.col("window")["first"], F.col("window")["count"]
    history = F.coalesce("history", F.slice("behaviours", 1, 0))
    windows_df = listed_df.withColumn("history", history).withColumn("window", F.explode(cut))
    # A window that could not be cut (more behaviours of one millisecond than fit) keeps the last of them;
    # those before are in no list: they are of the window's first millisecond, and static ends before it.
    windows_df = windows_df.withColumn("offset", first + F.greatest(count - limits.realtime, F.lit(0)))
    start, end = F.col("window")["start_ms"], F.col("window")["end_ms"]
    # What the windows before held has become history. The whole history was cut to `limits.static` before the
    # join; appending and cutting again is the same as cutting the whole once, since only the end is kept.
    moved = F.concat("history", F.slice("behaviours", F.lit(1), first))
    # By time, not by place: a candidate belongs to the window that its request's first time lies in.
    within = F.filter("candidates", lambda c: (c["time_ms"] >= start) & (c["time_ms"] < end))
    # Nearly every day is one window: its lists are taken as they are, without a copy of each.
    is_whole = (first == 0) & (end == day_end)
    columns = {
        "static": F.when(first == 0, F.col("history")).otherwise(_latest(moved, limits.static)),
        "realtime": F.when(is_whole & (F.col("offset") == 0), F.col("behaviours")).otherwise(
            F.slice("behaviours", F.col("offset") + 1, F.least(count, F.lit(limits.realtime)))
        ),
        "candidate": F.when(is_whole, F.col("candidates")).otherwise(within),
    }
    return windows_df.withColumns(columns).where(F.size("candidate") > 0)


def as_samples(windows_df: DataFrame, dataset: Dataset) -> DataFrame:
    """Takes the lists of structs apart: exactly `sample_columns(dataset)`."""
    made: dict[str, Column] = {
        "user_id": F.col("user_id"),
        "ds": F.col("day"),
        "window_start_ms": F.col("window")["start_ms"],
        "window_end_ms": F.col("window")["end_ms"],
        "realtime_visible": _visible(F.col("realtime")["earlier"]),
        "candidate_visible": _visible(F.col("candidate")["earlier"]),
        "label_click": F.col("candidate")["label_click"],
        "label_conversion": F.col("candidate")["label_conversion"],
    }
    for feature in dataset.of(Owner.PROFILE):
        own = F.col(slot(feature))[feature.name] if feature.statistic else known(feature)
        made[f"profile_{feature.name}"] = F.col("user_id") if feature.name == "user_id" else own
    for feature in dataset.features:
        for group, name in feature.columns():
            own = F.col(group) if feature.owner is Owner.ACTION else F.col(group)[slot(feature)]
            made.setdefault(name, own[feature.name])
    for group, name, _ in structure_columns(dataset):
        made.setdefault(name, F.col(group)[name.removeprefix(f"{group}_")])
    return windows_df.select(*(made[name].cast(kind).alias(name) for name, kind in sample_columns(dataset)))


def _behaviour() -> Column:
    return F.struct("time_ms", "event_id", "earlier", "action", "known")


def _latest(list_: Column, limit: int) -> Column:
    """The last `limit` elements; slices count from 1, and a start before it is an error."""
    return F.slice(list_, F.greatest(F.size(list_) - (limit - 1), F.lit(1)), F.lit(limit))


def _visible(earlier: Column) -> Column:
    """Real-time tokens of the window before each token, from the behaviours of the day before it.

    A running count over the day is cheap and says how many tokens lie before; `offset` of them lie in earlier
    windows, or were cut from this one: not below 0, for a token may come before all that were kept.
    """
    offset = F.col("offset")
    moved = F.transform(earlier, lambda n: F.greatest(n - offset, F.lit(0)))
    return F.when(offset == 0, earlier).otherwise(moved)
