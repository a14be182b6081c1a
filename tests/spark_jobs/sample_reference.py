"""A slow, plain-Python builder of samples, written from the rules alone, and a small dataset to try it on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from spark_jobs.contract.clock import days_between, shift_day
from spark_jobs.contract.features import (
    Dataset,
    FeatureSpec,
    Group,
    Kind,
    Measure,
    Owner,
    Snapshot,
    Statistic,
)
from spark_jobs.contract.tables import sample_columns

Row = dict[str, Any]
HOUR_MS = 3_600_000


def _category(name: str, owner: Owner, cardinality: int) -> FeatureSpec:
    return FeatureSpec(name=name, owner=owner, kind=Kind.CATEGORY, cardinality=cardinality, description=name)


def _id(name: str, owner: Owner) -> FeatureSpec:
    return FeatureSpec(name=name, owner=owner, kind=Kind.ID, description=name)


def _statistic(
    owner: Owner, keys: tuple[str, ...], measure: Measure, days: int, action: str = ""
) -> FeatureSpec:
    return FeatureSpec(
        name="_".join([*keys, measure, *([action] if action else []), str(days)]),
        owner=owner,
        kind=Kind.NUMBER,
        high=1.0 if measure.is_rate else days + 1.0 if measure.is_recency else 3.0,
        description="statistic",
        statistic=Statistic(keys=keys, measure=measure, days=days, action=action),
    )


TINY = Dataset(
    name="tiny",
    actions=("click", "order"),
    conversion="an order",
    utc_offset_hours=8,
    history_days=3,  # shorter than the longest window of a statistic
    late_days=3,
    max_impressions_a_day=20,
    features=(
        _id("user_id", Owner.PROFILE),
        _category("city", Owner.PROFILE, 10),
        _statistic(Owner.PROFILE, ("user_id",), Measure.CLICKS, 5),
        _statistic(Owner.PROFILE, ("user_id",), Measure.CTR, 2),
        _statistic(Owner.PROFILE, ("user_id",), Measure.ACTIONS, 2, "click"),
        _id("item_id", Owner.ITEM),
        _id("merchant_id", Owner.ITEM),
        FeatureSpec(name="price", owner=Owner.ITEM, kind=Kind.NUMBER, low=1, high=50, description="price"),
        _statistic(Owner.ITEM_STATISTIC, ("item_id",), Measure.IMPRESSIONS, 1),
        _statistic(Owner.ITEM_STATISTIC, ("item_id",), Measure.CTR, 5),
        _statistic(Owner.ITEM_STATISTIC, ("merchant_id", "hour"), Measure.CTCVR, 5),
        _statistic(Owner.ITEM_STATISTIC, ("merchant_id",), Measure.DAYS_SINCE, 2, "order"),
        _statistic(Owner.CROSS, ("user_id", "item_id"), Measure.CLICKS, 5),
        _statistic(Owner.CROSS, ("user_id", "item_id"), Measure.DAYS_SINCE, 5, "click"),
        _statistic(Owner.CROSS, ("user_id", "merchant_id"), Measure.ACTIONS, 5, "order"),
        _statistic(Owner.CROSS, ("user_id", "merchant_id"), Measure.DAYS_SINCE, 5, "order"),
        _statistic(Owner.CROSS, ("user_id", "merchant_id"), Measure.CTCVR, 2),
        _statistic(Owner.CROSS, ("user_id", "weather"), Measure.CONVERSIONS, 5),
        _category("hour", Owner.CONTEXT, 24),
        _category("weekday", Owner.CONTEXT, 7),
        _category("weather", Owner.CONTEXT, 8),
        _category("action", Owner.ACTION, 3),
        _statistic(Owner.REALTIME_STATISTIC, ("user_id",), Measure.IMPRESSIONS, 0),
        _statistic(Owner.REALTIME_STATISTIC, ("user_id",), Measure.CTR, 0),
        _statistic(Owner.REALTIME_STATISTIC, ("user_id", "merchant_id"), Measure.CLICKS, 0),
        _statistic(Owner.REALTIME_STATISTIC, ("user_id", "merchant_id"), Measure.ACTIONS, 0, "order"),
    ),
)
_COUNTED = {Measure.IMPRESSIONS: "impression", Measure.CLICKS: "click", Measure.CONVERSIONS: "conversion"}
_X = {Measure.CTR: "click", Measure.CTCVR: "conversion"}


def reference_samples(
    events: list[Row],
    users: list[Row],
    items: list[Row],
    dataset: Dataset,
    ds: str,
    max_static: int,
    max_realtime: int,
) -> list[Row]:
    """Samples of a day from rows of events, users and items, one rule after the other, by brute force."""
    events = _without_bots(_first_deliveries(events), dataset)
    item_of = _as_of(items, "item_id", dataset, ds)
    user_of = _as_of(users, "user_id", dataset, ds)
    placed = [_described(event, item_of, dataset) for event in _at_requests(events, dataset)]
    events = [_described(event, item_of, dataset) for event in events]
    past = [e for e in events if _day(ds, -dataset.reach_days) <= e["ds"] < ds and e["delivery_ds"] < ds]
    history = [e for e in past if _day(ds, -dataset.history_days) <= e["ds"]]
    today = [e for e in placed if e["ds"] == ds]
    on_time = [e for e in today if e["delivery_ds"] <= ds]
    samples = []
    for user in sorted({e["user_id"] for e in today if e["event_type"] == "impression"}):
        behaviours = _ordered(e for e in on_time if e["user_id"] == user and e["action"] is not None)
        before_today = _ordered(e for e in history if e["user_id"] == user and e["action"] is not None)
        shown = _ordered(e for e in today if e["user_id"] == user and e["event_type"] == "impression")
        starts = _window_starts(behaviours, dataset.day_start_ms(ds), max_realtime)
        for start, end in zip(starts, [*starts[1:], dataset.day_end_ms(ds)], strict=True):
            candidates = [e for e in shown if start <= e["time_ms"] < end]
            if candidates:
                static = [e for e in [*before_today, *behaviours] if e["time_ms"] < start][-max_static:]
                realtime = [e for e in behaviours if start <= e["time_ms"] < end][-max_realtime:]
                profile = {"user_id": user, **user_of.get(user, {})}
                samples.append(
                    _sample(
                        profile,
                        static,
                        realtime,
                        candidates,
                        (start, end),
                        events,
                        past,
                        on_time,
                        dataset,
                        ds,
                    )
                )
    return samples


def differences(mine: Iterable[Row], reference: Iterable[Row]) -> list[str]:
    """What differs between two lists of samples, in words; empty when they are equal."""

    def keyed(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
        return {(row["ds"], row["user_id"], row["window_start_ms"]): row for row in rows}

    def same(one: Any, other: Any) -> bool:
        if isinstance(other, list):
            return len(one) == len(other) and all(map(same, one, other))
        return math.isclose(one, other, rel_tol=1e-6) if isinstance(other, float) else bool(one == other)

    mine, reference = list(mine), list(reference)
    ours, theirs = keyed(mine), keyed(reference)
    twice = [f"{len(mine)} rows, {len(ours)} keys"] if len(ours) < len(mine) else []
    return [
        *twice,
        *(f"{key}: only one side has it" for key in sorted(ours.keys() ^ theirs.keys())),
        *(
            f"{key} {name}: {ours[key][name]} instead of {value}"
            for key in sorted(ours.keys() & theirs.keys())
            for name, value in theirs[key].items()
            if not same(ours[key][name], value)
        ),
    ]


def _sample(
    profile: Row,
    static: list[Row],
    realtime: list[Row],
    candidates: list[Row],
    window: tuple[int, int],
    events: list[Row],
    past: list[Row],
    on_time: list[Row],
    dataset: Dataset,
    ds: str,
) -> Row:
    def visible(event: Row) -> int:
        return sum(r["time_ms"] < event["time_ms"] for r in realtime)

    def feature(spec: FeatureSpec, event: Row) -> float:
        assert spec.statistic is not None
        if spec.statistic.days:
            return _statistic_value(spec, event, past, dataset, ds, with_prior=True)
        earlier = [e for e in on_time if e["time_ms"] < event["time_ms"]]
        return _statistic_value(spec, event, earlier, dataset, ds, with_prior=False)

    labels = [_labels(candidate, events, dataset) for candidate in candidates]
    row: Row = {
        "user_id": profile["user_id"],
        "ds": ds,
        "window_start_ms": window[0],
        "window_end_ms": window[1],
        "static_time_ms": [e["time_ms"] for e in static],
        "realtime_time_ms": [e["time_ms"] for e in realtime],
        "realtime_visible": [visible(e) for e in realtime],
        "candidate_time_ms": [e["time_ms"] for e in candidates],
        "candidate_visible": [visible(e) for e in candidates],
        "candidate_request_id": [e["request_id"] for e in candidates],
        "candidate_impression_id": [e["impression_id"] for e in candidates],
        "label_click": [click for click, _ in labels],
        "label_conversion": [conversion for _, conversion in labels],
    }
    if dataset.has_weights:
        row["candidate_weight"] = [_weight(e) for e in candidates]
    for spec in dataset.in_group(Group.PROFILE):
        row[f"profile_{spec.name}"] = (
            feature(spec, profile) if spec.statistic else _or_unknown(spec, profile.get(spec.name))
        )
    for group, tokens in ((Group.STATIC, static), (Group.REALTIME, realtime), (Group.CANDIDATE, candidates)):
        for spec in dataset.in_group(group):
            row[f"{group}_{spec.name}"] = [
                feature(spec, e) if spec.statistic else e[spec.name] for e in tokens
            ]
    assert set(row) == {name for name, _ in sample_columns(dataset)}
    return row


def _statistic_value(
    spec: FeatureSpec, of: Row, events: list[Row], dataset: Dataset, ds: str, *, with_prior: bool
) -> float:
    assert spec.statistic is not None
    keys, measure, days = spec.statistic.keys, spec.statistic.measure, spec.statistic.days
    within = [e for e in events if not days or e["ds"] >= _day(ds, -days)]
    mine = [e for e in within if all(e[key] == of[key] for key in keys)]

    def count(rows: list[Row], kind: str) -> int:
        return sum(e["event_type"] == kind for e in rows)

    if measure.is_of_action:
        code = 1 + dataset.actions.index(spec.statistic.action)
        done = [e["ds"] for e in mine if e["action"] == code]
        if measure is Measure.ACTIONS:
            return min(float(len(done)), spec.high)
        return float(len(days_between(max(done), ds)) - 1 if done else days + 1)
    if not measure.is_rate:
        return min(float(count(mine, _COUNTED[measure])), spec.high)

    def total(rows: list[Row], kind: str) -> float:
        return sum(_weight(e) if dataset.has_weights else 1 for e in rows if e["event_type"] == kind)

    shown = total(within, "impression")
    prior = total(within, _X[measure]) / shown if with_prior and shown else 0.0
    return min(1.0, (total(mine, _X[measure]) + 20 * prior) / (total(mine, "impression") + 20))


def _weight(event: Row) -> float:
    return 1.0 if event.get("weight") is None else float(event["weight"])


def _labels(candidate: Row, events: list[Row], dataset: Dataset) -> tuple[int, int]:
    def followed(kind: str) -> bool:
        return any(
            e["event_type"] == kind
            and e["impression_id"] == candidate["impression_id"]
            and e["user_id"] == candidate["user_id"]
            and 0 <= e["time_ms"] - candidate["shown_ms"] <= dataset.attribution_ms
            for e in events
        )

    click = followed("click")
    return int(click), int(click and followed("conversion"))


def _window_starts(behaviours: list[Row], day_start_ms: int, limit: int) -> list[int]:
    """Takes all behaviours of a millisecond together and opens a window where they do not fit any more."""
    starts, held = [day_start_ms], 0
    for time in sorted({e["time_ms"] for e in behaviours}):
        group = sum(e["time_ms"] == time for e in behaviours)
        if held + group > limit and time > starts[-1]:
            starts.append(time)
            held = 0
        held += group
    return starts


def _first_deliveries(events: list[Row]) -> list[Row]:
    """Copies have the same id and the same day."""
    first: dict[tuple[str, str], str] = {}
    for e in events:
        key = e["event_id"], e["ds"]
        first[key] = min(first.get(key, e["delivery_ds"]), e["delivery_ds"])
    return [e for e in events if e["delivery_ds"] == first[e["event_id"], e["ds"]]]


def _without_bots(events: list[Row], dataset: Dataset) -> list[Row]:
    """What arrived by the end of a day decides about the day; a late delivery is judged by itself."""

    def known(e: Row) -> str:
        return max(e["ds"], e["delivery_ds"])

    def too_many(user: int, ds: str, known_ds: str) -> bool:
        mine = [e for e in events if (e["user_id"], e["ds"], known(e)) == (user, ds, known_ds)]
        shown = sum(e["event_type"] == "impression" for e in mine)
        return max(shown, len(mine) - shown) > dataset.max_impressions_a_day

    bots = {key for key in {(e["user_id"], e["ds"], known(e)) for e in events} if too_many(*key)}
    return [e for e in events if not {(e["user_id"], e["ds"], ds) for ds in (e["ds"], known(e))} & bots]


def _at_requests(events: list[Row], dataset: Dataset) -> list[Row]:
    """Impressions at the first time of their request, which may have begun in the hour before midnight."""

    def same(one: Row, other: Row) -> bool:
        return bool((one["user_id"], one["request_id"]) == (other["user_id"], other["request_id"]))

    def began_before(e: Row) -> bool:
        midnight = dataset.day_start_ms(e["ds"])
        evening = [o["time_ms"] for o in shown if same(o, e) and -HOUR_MS <= o["time_ms"] - midnight < 0]
        return bool(evening) and e["time_ms"] < min(evening) + HOUR_MS

    shown = [e for e in events if e["event_type"] == "impression"]
    placed = [e | {"ds": _day(e["ds"], -1)} if began_before(e) else e for e in shown]
    moved = [
        e
        | {
            "shown_ms": e["time_ms"],
            "time_ms": min(o["time_ms"] for o in placed if same(o, e) and o["ds"] == e["ds"]),
        }
        for e in placed
    ]
    return [*moved, *(e for e in events if e["event_type"] != "impression")]


def _described(event: Row, item_of: dict[int, Row], dataset: Dataset) -> Row:
    local = datetime.fromtimestamp(event["time_ms"] // 1000 + int(dataset.utc_offset_hours * 3600), UTC)
    described = {**event, **item_of.get(event["item_id"], {})}
    described |= {"item_id": event["item_id"], "hour": local.hour, "weekday": local.weekday()}
    for spec in dataset.of(Owner.ITEM, Owner.CONTEXT):
        described[spec.name] = _or_unknown(spec, described.get(spec.name))
    return described


def _or_unknown(spec: FeatureSpec, value: Any) -> Any:
    if value is not None:
        return value
    return 0 if spec.kind is not Kind.NUMBER else min(max(0.0, spec.low), spec.high)


def _as_of(rows: list[Row], key: str, dataset: Dataset, ds: str) -> dict[int, Row]:
    last = ds if dataset.snapshot is Snapshot.BEFORE_DAY else _day(ds, -1)
    newest = max((row["ds"] for row in rows if row["ds"] <= last), default=None)
    held = [row for row in rows if row["ds"] == newest]
    return {row[key]: {name: value for name, value in row.items() if name != "ds"} for row in held}


def _ordered(events: Iterable[Row]) -> list[Row]:
    order: Callable[[Row], tuple[int, str]] = lambda e: (e["time_ms"], e["event_id"])  # noqa: E731
    return sorted(events, key=order)


def _day(ds: str, days: int) -> str:
    return shift_day(ds, days)
