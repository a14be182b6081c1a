"""What an event and a sample are: the one place that every stage takes its columns from.

Standard library only, so that Airflow, Spark, the gates, training and serving can all import it.
A dataset declares its features once (`FeatureSpec`); tables, gates, tokens and serving follow from the
declaration. Each dataset is a file of this folder; what its fields are: `docs/declaration.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from spark_jobs.contract import checks
from spark_jobs.contract.clock import DAY_MS, HOUR_MS, parse_day
from spark_jobs.contract.limits import Limits

MAX_STATIC = 1000  # paper: |S| <= 1000
MAX_REALTIME = 100  # paper: |R| <= 100; a busier day becomes several windows
# What systems write where there is no id: all that lack one would share a row of an embedding table. Any
# other 64-bit integer is an id; ingest, the gates, training and serving ask here.
NO_IDS = (-1, 2**63 - 1)
NO_ID = "-1 or 2^63 - 1, which stand for none"  # for messages


class EventType(StrEnum):
    """Kinds of rows in the `events` table."""

    IMPRESSION = "impression"
    CLICK = "click"
    CONVERSION = "conversion"
    FEEDBACK = "feedback"  # the end of a view with its outcome: a behaviour, never a label


class Group(StrEnum):
    """Token groups of a sample, in the order in which a row lays its tokens out."""

    PROFILE = "profile"
    STATIC = "static"
    REALTIME = "realtime"
    CANDIDATE = "candidate"


class Owner(StrEnum):
    """Whom a feature describes; this fixes the groups that carry it and when its value is known."""

    PROFILE = "profile"  # the user, before the window
    ITEM = "item"  # the item, from the catalogue of the day: side info of behaviours, too
    ITEM_STATISTIC = "item_statistic"  # the item's past, before the day
    CROSS = "cross"  # user x item (merchant, cuisine, hour), before the day
    CONTEXT = "context"  # the request; a behaviour keeps the context it happened in
    ACTION = "action"  # what the user did in a behaviour
    REALTIME_STATISTIC = "realtime_statistic"  # user x item so far today, zero while the state is frozen

    @property
    def groups(self) -> tuple[Group, ...]:
        """Token groups that carry a feature of this owner."""
        return _GROUPS_OF[self]

    @property
    def is_computed(self) -> bool:
        """Whether its values are statistics, which no table brings."""
        return self in (Owner.ITEM_STATISTIC, Owner.CROSS, Owner.REALTIME_STATISTIC)


_BEHAVIOUR = (Group.STATIC, Group.REALTIME)
_GROUPS_OF: dict[Owner, tuple[Group, ...]] = {
    Owner.PROFILE: (Group.PROFILE,),
    Owner.ITEM: (*_BEHAVIOUR, Group.CANDIDATE),
    Owner.ITEM_STATISTIC: (Group.CANDIDATE,),
    Owner.CROSS: (Group.CANDIDATE,),
    Owner.CONTEXT: (*_BEHAVIOUR, Group.CANDIDATE),
    Owner.ACTION: _BEHAVIOUR,
    Owner.REALTIME_STATISTIC: (Group.CANDIDATE,),
}


class Kind(StrEnum):
    """How a feature's values are to be read."""

    ID = "id"  # any 64-bit integer but those of NO_IDS
    CATEGORY = "category"  # an integer in [0, cardinality)
    NUMBER = "number"  # a finite float32 in [low, high]


class Measure(StrEnum):
    """What a statistic counts."""

    IMPRESSIONS = "impressions"
    CLICKS = "clicks"
    CONVERSIONS = "conversions"
    CTR = "ctr"  # clicks / impressions, smoothed
    CTCVR = "ctcvr"  # conversions / impressions, smoothed
    ACTIONS = "actions"  # behaviours with an action, whether or not an impression was shown before
    DAYS_SINCE = "days_since"  # days from the last behaviour with an action to the day

    @property
    def is_rate(self) -> bool:
        """Whether the measure is a smoothed rate rather than a count."""
        return self in (Measure.CTR, Measure.CTCVR)

    @property
    def is_recency(self) -> bool:
        """Whether the measure is a time rather than a count or rate."""
        return self is Measure.DAYS_SINCE

    @property
    def is_of_action(self) -> bool:
        """Whether the measure looks at behaviours with one action."""
        return self in (Measure.ACTIONS, Measure.DAYS_SINCE)


SMOOTHING = 20  # impressions at the rate of all users that a rate begins with
EVENT_OF = {
    Measure.IMPRESSIONS: EventType.IMPRESSION,
    Measure.CLICKS: EventType.CLICK,
    Measure.CONVERSIONS: EventType.CONVERSION,
}
COUNTED_BY = {Measure.CTR: Measure.CLICKS, Measure.CTCVR: Measure.CONVERSIONS}


class Snapshot(StrEnum):
    """When the snapshots of users and items are taken that come with the delivery of a day."""

    BEFORE_DAY = "before_day"  # at the day's start: what serving had on the day, so the day's features
    AFTER_DAY = "after_day"  # at its end, or at any time during it: features of the next day, not of its own


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A count or rate per key, over whole days before the sample's day or, with `days=0`, so far today.

    Args:
        keys: Event or item columns that group the events, e.g. `("user_id", "merchant_id")`.
        measure: What is counted.
        days: Length of the window [ds - days, ds - 1] in days, at most 365; 0 means the sample's own day,
            strictly before the candidate's time.
        action: For `ACTIONS` and `DAYS_SINCE`: which of `Dataset.actions`. Days since the last are 1 for
            yesterday, and `days + 1` when the window has none.

    Raises:
        ValueError: A field is wrong, or two contradict each other.
    """

    keys: tuple[str, ...]
    measure: Measure
    days: int
    action: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", checks.names(self.keys, "keys of a statistic"))
        object.__setattr__(self, "measure", checks.one_of(Measure, self.measure, f"measure by {self.keys}"))
        checks.check_statistic(self)

    @property
    def is_by_user(self) -> bool:
        """Whether each user has counts of their own."""
        return "user_id" in self.keys

    @property
    def greatest(self) -> float:
        """What a feature of it has to allow: a count may end at the feature's own bound."""
        if self.measure.is_recency:
            return self.days + 1.0
        return 1.0


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One feature of a dataset.

    Args:
        name: Column name without its group: `price` becomes `static_price`, `candidate_price`, ...
        owner: Whom it describes; decides the groups.
        kind: How its values are read.
        description: For people: data docs and error messages.
        cardinality: Number of values of a category; 0 for others (buckets and widths are the model's).
        table: What an id or category is one of; features that name the same share an embedding table.
            Default: the feature's name.
        low: Least allowed value of a number.
        high: Greatest allowed value of a number.
        statistic: How the sample builder computes it; None when the event or a dimension table brings it.

    Raises:
        ValueError: A field is wrong, or two contradict each other; the message says what to do.
    """

    name: str
    owner: Owner
    kind: Kind
    description: str
    cardinality: int = 0
    table: str = ""
    low: float = 0.0
    high: float = 1e9
    statistic: Statistic | None = None

    def __post_init__(self) -> None:
        thing = f"feature {self.name!r}"
        object.__setattr__(self, "owner", checks.one_of(Owner, self.owner, f"{thing}, owner"))
        object.__setattr__(self, "kind", checks.one_of(Kind, self.kind, f"{thing}, kind"))
        checks.check_feature(self)
        object.__setattr__(self, "table", self.table or self.name)

    @property
    def unknown(self) -> float:
        """What stands for "nothing known": 0, or the allowed number nearest to 0."""
        return min(max(0.0, self.low), self.high) if self.kind is Kind.NUMBER else 0.0

    def columns(self) -> Iterator[tuple[Group, str]]:
        """Yields (group, column name in `samples`) for every group that carries the feature."""
        for group in self.owner.groups:
            yield group, f"{group}_{self.name}"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset: its features, its clock and what its labels mean.

    Args:
        name: Name of the folder in the lake, of the MLflow experiment (`mtgr-<name>`) and of the commands.
        features: All features, in token order.
        actions: Action names; an event's `action` is 1 + its index here (0 is "unknown").
        conversion: What a conversion is, for people.
        utc_offset_hours: Offset of the dataset's days and hours from UTC, in quarters: 5.75 for Nepal.
        attribution_ms: A click or conversion counts for an impression if it follows within this time.
        history_days: How many days before the sample's day the static sequence may reach back.
        late_days: A record that arrives more days after its event than this is quarantined.
        max_impressions_a_day: A user with more impressions on a day is taken for a bot and left out.
        has_requests: Whether a request shows several candidates, so that `*_gauc_request` has a meaning.
        has_weights: Whether candidates were sampled from more: events then have a column `weight`, how many
            impressions an impression stands for (1 where absent); an outcome has that of its impression.
        snapshot: When the snapshots of users and items are taken: no feature is younger than the day's start.
        limits: Thresholds of its gates and of promotion; they are no part of what a sample is.

    Raises:
        ValueError: A field is wrong, or two contradict each other; the message says what to do.
    """

    name: str
    features: tuple[FeatureSpec, ...]
    actions: tuple[str, ...]
    conversion: str
    utc_offset_hours: float = 0
    attribution_ms: int = 2 * HOUR_MS
    history_days: int = 90
    late_days: int = 3
    max_impressions_a_day: int = 2000
    has_requests: bool = True
    has_weights: bool = False
    snapshot: Snapshot = Snapshot.BEFORE_DAY
    limits: Limits = field(default_factory=Limits, repr=False)

    def __post_init__(self) -> None:
        actions = checks.names(self.actions, f"dataset {self.name!r}, actions")
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "features", tuple(self.features))
        snapshot = checks.one_of(Snapshot, self.snapshot, f"dataset {self.name!r}, snapshot")
        object.__setattr__(self, "snapshot", snapshot)
        checks.check_dataset(self)
        if float(self.utc_offset_hours).is_integer():  # 8 and 8.0 are one declaration
            object.__setattr__(self, "utc_offset_hours", int(self.utc_offset_hours))

    @property
    def reach_days(self) -> int:
        """How many days before a day its samples depend on: the static sequence's, or a longer window's."""
        return max([self.history_days, *(f.statistic.days for f in self.features if f.statistic)])

    def of(self, *owners: Owner) -> tuple[FeatureSpec, ...]:
        """Features with one of the given owners, in declared order."""
        return tuple(feature for feature in self.features if feature.owner in owners)

    def in_group(self, group: Group) -> tuple[FeatureSpec, ...]:
        """Features carried by a token group, in declared order."""
        return tuple(feature for feature in self.features if group in feature.owner.groups)

    @property
    def utc_offset_ms(self) -> int:
        """What its clock is ahead of UTC, milliseconds."""
        return int(self.utc_offset_hours * HOUR_MS)

    def day_start_ms(self, ds: str) -> int:
        """First millisecond of day `ds` (inclusive), UTC epoch milliseconds."""
        midnight = datetime.combine(parse_day(ds), datetime.min.time(), tzinfo=UTC)
        return int(midnight.timestamp()) * 1000 - self.utc_offset_ms

    def day_end_ms(self, ds: str) -> int:
        """First millisecond after day `ds`: every day has exactly 24 hours, as offsets are fixed."""
        return self.day_start_ms(ds) + DAY_MS
