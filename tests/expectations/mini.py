"""A tiny dataset with one valid delivery and one valid day of samples, to be broken one value at a time."""

from __future__ import annotations

from typing import Any

from expectations.rules.rule import Rule, Suite
from spark_jobs.contract.features import Dataset, FeatureSpec, Kind, Owner
from spark_jobs.contract.limits import Limits
from spark_jobs.contract.tables import sample_columns

DS = "2026-03-02"
OFFSET_HOURS = 5.75  # Nepal


LIMITS = Limits(
    hours=1,
    idle_hours=12.0,
    quarantined_share=0.3,
    known_users=0.9,
    known_items=0.9,
    labelled_impressions=0.9,
    immature_share=0.7,
    ctr=(0.1, 0.9),
    ctcvr=(0.1, 0.9),
)


def _feature(name: str, owner: Owner, kind: Kind, **values: Any) -> FeatureSpec:
    return FeatureSpec(name=name, owner=owner, kind=kind, description=f"the {name}", **values)


MINI = Dataset(
    name="mini",
    actions=("click", "order"),
    conversion="an order",
    utc_offset_hours=OFFSET_HOURS,
    history_days=30,
    max_impressions_a_day=4,
    features=(
        _feature("user_id", Owner.PROFILE, Kind.ID),
        _feature("age", Owner.PROFILE, Kind.NUMBER, high=120.0),
        _feature("member", Owner.PROFILE, Kind.CATEGORY, cardinality=3),
        _feature("item_id", Owner.ITEM, Kind.ID),
        _feature("price", Owner.ITEM, Kind.NUMBER, high=1000.0),
        _feature("hour", Owner.CONTEXT, Kind.CATEGORY, cardinality=24),
        _feature("weekday", Owner.CONTEXT, Kind.CATEGORY, cardinality=7),
        _feature("weather", Owner.CONTEXT, Kind.CATEGORY, cardinality=4),
        _feature("distance", Owner.CONTEXT, Kind.NUMBER, high=100.0),
        _feature("action", Owner.ACTION, Kind.CATEGORY, cardinality=3),
    ),
    limits=LIMITS,
)
START = MINI.day_start_ms(DS)
MINUTE = 60_000
HOUR = 60 * MINUTE


def event(event_id: str, event_type: str, minutes: float, impression: str, **values: Any) -> dict[str, Any]:
    """An event of the valid delivery, `minutes` after the start of the day."""
    return {
        "event_id": event_id,
        "event_type": event_type,
        "user_id": 1,
        "item_id": 10,
        "request_id": "r1",
        "impression_id": impression,
        "time_ms": START + int(minutes * MINUTE),
        "action": {"click": 1, "conversion": 2}.get(event_type),
        "ds": DS,
        "delivery_ds": DS,
        "weather": 1,
        "distance": 2.5,
        **values,
    }


def valid_events() -> list[dict[str, Any]]:
    """Three impressions in two hours after noon, one with a click and an order; closed at half past three."""
    return [
        event("a", "impression", 13 * 60, "a"),
        event("b", "impression", 13 * 60, "b", item_id=11),
        event("a-c", "click", 13 * 60 + 1, "a"),
        event("a-o", "conversion", 13 * 60 + 9, "a"),
        *(event(f"{of}-f", "feedback", 15 * 60 + 30, of) for of in "abc"),
        event("c", "impression", 14 * 60, "c", user_id=2, request_id="r2", weather=2),
    ]


def sample(**values: Any) -> dict[str, Any]:
    """A valid sample: two static tokens, two real-time tokens at one time, three candidates around them."""
    noon = START + 12 * HOUR
    row: dict[str, Any] = {
        "user_id": 1,
        "ds": DS,
        "window_start_ms": START,
        "window_end_ms": START + 24 * HOUR,
        "static_time_ms": [START - 2 * HOUR, START - HOUR],
        "realtime_time_ms": [noon, noon],
        "realtime_visible": [0, 0],
        "candidate_time_ms": [noon, noon + MINUTE, noon + 2 * MINUTE],
        "candidate_visible": [0, 2, 2],
        "candidate_request_id": ["r1", "r1", "r1"],
        "candidate_impression_id": ["a", "b", "c"],
        "label_click": [1, 1, 0],
        "label_conversion": [1, 0, 0],
        "profile_user_id": 1,
        "profile_age": 30.0,
        "profile_member": 1,
    }
    common = {
        "item_id": 10,
        "price": 9.5,
        "hour": 12,
        "weekday": 0,
        "weather": 1,
        "distance": 2.5,
        "action": 1,
    }
    for group, length in (("static", 2), ("realtime", 2), ("candidate", 3)):
        for name, value in common.items():
            if group != "candidate" or name != "action":
                row[f"{group}_{name}"] = [value] * length
    assert set(row) == {name for name, _ in sample_columns(MINI)}
    return row | values


def broken_by(suite: Suite, values: dict[str, float | None]) -> set[str]:
    """Names of the rules that the values break; what Great Expectations makes of them has its own test."""
    return {rule.name for rule in suite.rules if rule.name in values and not _allows(rule, values[rule.name])}


def _allows(rule: Rule, value: float | None) -> bool:
    if value is None or value != value:
        return False
    return (rule.low is None or value >= rule.low) and (rule.high is None or value <= rule.high)
