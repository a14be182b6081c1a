"""Every rule for events has a row, or a delivery, that breaks it and only it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from expectations.event_rules import events_suite
from expectations.facts import KnownTables, event_joins, measure
from expectations.rules import schema_differences
from spark_jobs.contract import event_columns
from tests.expectations.mini import (
    DS,
    HOUR,
    LIMITS,
    MINI,
    MINUTE,
    START,
    broken_by,
    event,
    valid_events,
)

SUITE = events_suite(MINI, LIMITS)
SCHEMA = ", ".join(f"{name} {kind}" for name, kind in event_columns(MINI))
NAMES = [name for name, _ in event_columns(MINI)]
NOON = START + 12 * HOUR
# Rule -> what is different in the delivery's last impression.
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("event_id_present", {"event_id": None}),
    ("user_id_present", {"user_id": None}),
    ("item_id_present", {"item_id": None}),
    ("time_ms_present", {"time_ms": None}),
    ("impression_id_present", {"impression_id": None}),
    ("request_id_present", {"request_id": None}),
    ("event_type_known", {"event_type": "view"}),
    ("event_type_known", {"event_type": None}),
    ("time_in_ds", {"ds": "2026-03-01"}),
    ("time_in_ds", {"time_ms": START - 1}),
    ("time_in_ds", {"time_ms": START + 24 * HOUR}),
    ("time_in_ds", {"time_ms": 2**63 - 1}),
    ("ds_of_delivery", {"ds": "2026-02-26", "time_ms": START - 4 * 24 * HOUR}),
    ("ds_of_delivery", {"ds": "2026-03-04", "time_ms": START + 48 * HOUR}),
    ("ds_of_delivery", {"ds": "1970-01-21", "time_ms": NOON // 1000}),  # seconds
    ("action_values", {"action": 3}),
    ("action_values", {"action": -1}),
    ("weather_values", {"weather": 4}),
    ("distance_values", {"distance": math.nan}),
    ("distance_values", {"distance": -0.5}),
    ("distance_values", {"distance": math.inf}),
]
FINE: list[dict[str, Any]] = [
    {},
    {"weather": None, "distance": None},
    {"ds": "2026-02-27", "time_ms": START - 2 * 24 * HOUR - MINUTE},
    {"ds": "2026-03-03", "time_ms": START + 24 * HOUR},
    {"event_type": "feedback", "impression_id": None, "request_id": None},
]


def delivery(**change: Any) -> list[dict[str, Any]]:
    return [*valid_events()[:-1], valid_events()[-1] | change]


def frame(spark: Any, rows: list[dict[str, Any]]) -> Any:
    return spark.createDataFrame([tuple(row[name] for name in NAMES) for row in rows], SCHEMA).coalesce(1)


@pytest.fixture(scope="module")
def counts(spark: Any) -> dict[str, dict[str, Any]]:
    """Facts of valid deliveries and of every broken one, measured in one pass."""
    cases = {f"fine {index}": delivery(**change) for index, change in enumerate(FINE)}
    cases |= {f"row {index}": delivery(**change) for index, (_, change) in enumerate(ROWS)}
    data = [(case, *(row[name] for name in NAMES)) for case, rows in cases.items() for row in rows]
    return measure(spark.createDataFrame(data, f"case string, {SCHEMA}").coalesce(1), SUITE, "case")


def broken_rows_of(facts: dict[str, Any]) -> set[str]:
    return broken_by(SUITE, {rule.name: facts[rule.name] for rule in SUITE.row_rules})


@pytest.mark.parametrize("index", range(len(FINE)))
def test_a_valid_row_breaks_no_rule(counts: dict[str, dict[str, Any]], index: int) -> None:
    assert broken_rows_of(counts[f"fine {index}"]) == set()


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(ROWS)])
def test_a_row_breaks_its_rule_and_no_other(counts: dict[str, dict[str, Any]], index: int) -> None:
    assert broken_rows_of(counts[f"row {index}"]) == {ROWS[index][0]}


def test_every_row_rule_has_a_row_that_breaks_it() -> None:
    assert {rule for rule, _ in ROWS} == {rule.name for rule in SUITE.row_rules}


def test_facts_of_a_valid_delivery(counts: dict[str, dict[str, Any]]) -> None:
    facts = counts["fine 0"]
    expected = {
        "rows": 6,
        "impressions": 3,
        "users": 2,
        "clicks": 1,
        "conversions": 1,
        "late_rows": 0,
        "hours": 2,
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["idle_hours"] == 10
    assert facts["last_time_ms"] == START + 15 * HOUR + 30 * MINUTE
    assert facts["distance_quantiles"] == [2.5] * 19


@pytest.mark.parametrize(
    ("change", "fact", "value"),
    [
        ({"weather": None}, "weather_null_share", 1 / 3),
        ({"weather": 0}, "weather_null_share", 1 / 3),
        ({"distance": None}, "distance_null_share", 1 / 3),
    ],
)
def test_absent_values_are_counted(spark: Any, change: dict[str, Any], fact: str, value: float) -> None:
    facts = measure(frame(spark, delivery(**change)), SUITE, "delivery_ds")[DS]
    assert facts[fact] == pytest.approx(value)


TYPES = {"impression_id": "string", "reason": "string", "user_id": "bigint", "item_id": "bigint"}


def keys(spark: Any, name: str, *values: Any) -> Any:
    return spark.createDataFrame([(value,) for value in values], f"{name} {TYPES[name]}")


JOINED: list[tuple[set[str], list[dict[str, Any]], dict[str, list[Any]]]] = [
    (set(), valid_events(), {}),
    ({"event_id_unique"}, [*valid_events(), event("a", "impression", 13 * 60, "a")], {}),
    ({"user_known"}, valid_events(), {"user_id": [1]}),
    ({"item_known"}, valid_events(), {"item_id": [10]}),
    ({"label_has_impression"}, [*valid_events(), event("z-c", "click", 13 * 60, "z")], {}),
    (
        set(),
        [*valid_events(), event("z-c", "click", -5, "z", ds="2026-03-01")],
        {},
    ),  # late: its impression is gone
    ({"labels_mature"}, [*valid_events()[:3], event("c", "impression", 13 * 60 + 9, "c")], {}),
    ({"quarantined"}, valid_events(), {"reason": ["no user_id"] * 3}),
]


@pytest.mark.parametrize("index", range(len(JOINED)))
def test_keys_references_and_maturity(spark: Any, index: int) -> None:
    broken, rows, changed = JOINED[index]
    known = {"user_id": [1, 2], "item_id": [10, 11], "impression_id": ["a", "b", "c"], "reason": []} | changed
    tables = KnownTables(
        impressions_df=keys(spark, "impression_id", *known["impression_id"]),
        users_df=keys(spark, "user_id", *known["user_id"]),
        items_df=keys(spark, "item_id", *known["item_id"]),
        quarantined_df=keys(spark, "reason", *known["reason"]),
    )
    last_time_ms = max(row["time_ms"] for row in rows) + HOUR
    facts = event_joins(frame(spark, rows), tables, MINI, DS, last_time_ms)
    values = {rule.name: facts.get(rule.fact) for rule in SUITE.rules if rule.fact in facts}
    assert len(values) == 6
    assert broken_by(SUITE, values) == broken


@pytest.mark.parametrize(
    ("facts", "broken"),
    [
        ({"rows": 5, "impressions": 3, "hours": 2, "idle_hours": 12.0}, set()),
        ({"rows": 0}, {"rows_present"}),
        ({"rows": 5, "impressions": 0}, {"impressions_present"}),
        ({"hours": 1}, {"hours_covered"}),
        ({"idle_hours": 12.5}, {"fresh"}),
        ({"idle_hours": None}, {"fresh"}),
        ({"schema_missing": 1}, {"schema_missing"}),
        ({"schema_retyped": 1}, {"schema_retyped"}),
        ({"schema_unexpected": 1}, {"schema_unexpected"}),
    ],
)
def test_levels(facts: dict[str, float | None], broken: set[str]) -> None:
    values = {rule.name: facts[rule.fact] for rule in SUITE.rules if rule.fact in facts and not rule.trailing}
    assert broken_by(SUITE, values) == broken


def test_schema_differences_name_the_columns() -> None:
    actual = dict(event_columns(MINI)) | {"weather": "bigint", "device": "string"}
    del actual["distance"]
    assert schema_differences(event_columns(MINI), actual) == {
        "schema_missing": ["distance float"],
        "schema_retyped": ["weather is bigint instead of int"],
        "schema_unexpected": ["device string"],
    }


def test_a_rule_about_a_missing_column_is_not_measured(spark: Any) -> None:
    facts = measure(frame(spark, valid_events()).drop("distance"), SUITE, "delivery_ds")[DS]
    assert "distance_values" not in facts
    assert facts["weather_values"] == 0
