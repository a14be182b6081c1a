"""Every rule for events, of every dataset, has a row, or a delivery, that breaks it and only it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from expectations.judging.baseline import compared
from expectations.measuring.facts import KnownTables, event_joins, immature_share, measure
from expectations.rules.events import events_suite
from expectations.rules.rule import Suite, schema_differences
from expectations.rules.suites import suite_of
from spark_jobs.contract.clock import CLOCK_FEATURES, shift_day
from spark_jobs.contract.features import NO_IDS, Dataset, FeatureSpec, Kind, Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from spark_jobs.contract.tables import event_columns
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
from tests.frames import frame

SUITE = events_suite(MINI, LIMITS)
Row = dict[str, Any]


def context(dataset: Dataset) -> list[FeatureSpec]:
    return [feature for feature in dataset.of(Owner.CONTEXT) if feature.name not in CLOCK_FEATURES]


def day_of_events(dataset: Dataset) -> list[Row]:
    """A valid delivery: two impressions an hour, one with a click and a conversion, and other feedback."""
    rows = []
    for number in range(48):
        start = dataset.day_start_ms(DS) + number // 2 * HOUR
        row: Row = {
            "event_id": f"{number}",
            "event_type": "impression",
            "user_id": number % 8,
            "item_id": number % 5,
            "request_id": f"r{number}",
            "impression_id": f"{number}",
            "time_ms": start + number % 2 * MINUTE,
            "action": None,
            "ds": DS,
            "delivery_ds": DS,
        }
        for feature in context(dataset):
            span = min(feature.high, 1000.0) - feature.low
            is_number = feature.kind is Kind.NUMBER
            row[feature.name] = feature.low + span * (0.3 + 0.005 * number) if is_number else 1
        rows.append(row)
        after = {"event_id": f"{number}+", "request_id": None, "time_ms": row["time_ms"] + MINUTE}
        rows.append(
            row | after | {"event_type": ("click", "conversion", "feedback")[number % 3], "action": 1}
        )
    return rows


def row_cases(dataset: Dataset) -> list[tuple[str, Row]]:
    """(rule, what is different in the delivery's last event, or, with a request, in its last impression)."""
    start = dataset.day_start_ms(DS)
    noon, day = start + 12 * HOUR, 24 * HOUR
    most = len(dataset.actions)
    cases: list[tuple[str, Row]] = [
        ("event_id_present", {"event_id": None}),
        *(("user_id_present", {"user_id": one}) for one in (None, *NO_IDS)),
        *(("item_id_present", {"item_id": one}) for one in (None, *NO_IDS)),
        ("time_ms_present", {"time_ms": None}),
        ("impression_id_present", {"impression_id": None, "request_id": "r"}),
        ("request_id_present", {"request_id": None, "event_type": "impression"}),
        ("event_type_known", {"event_type": "view"}),
        ("event_type_known", {"event_type": None}),
        ("time_in_ds", {"ds": shift_day(DS, -1)}),
        ("time_in_ds", {"time_ms": start - 1}),
        ("time_in_ds", {"time_ms": start + day}),
        ("time_in_ds", {"time_ms": 2**63 - 1}),
        ("ds_of_delivery", {"ds": shift_day(DS, -4), "time_ms": start - 4 * day}),
        ("ds_of_delivery", {"ds": shift_day(DS, 2), "time_ms": start + 2 * day}),
        ("ds_of_delivery", {"ds": "1970-01-21", "time_ms": noon // 1000}),  # seconds
        ("action_values", {"action": most + 1}),
        ("action_values", {"action": -1}),
    ]
    for feature in context(dataset):
        wrong = [feature.cardinality, -1]
        if feature.kind is Kind.NUMBER:
            wrong = [math.nan, feature.low - 0.5, math.inf]
        cases += [(f"{feature.name}_values", {feature.name: one}) for one in wrong]
    return cases


def fine_cases(dataset: Dataset) -> list[Row]:
    start, day = dataset.day_start_ms(DS), 24 * HOUR
    return [
        {},
        {feature.name: None for feature in context(dataset)},
        {"ds": shift_day(DS, -3), "time_ms": start - 2 * day - MINUTE},
        {"ds": shift_day(DS, 1), "time_ms": start + day},
        {"impression_id": None},
    ]


def changed(rows: list[Row], change: Row) -> list[Row]:
    """The delivery with its last event, or its last impression when a request is in question, changed."""
    at = 94 if "request_id" in change else 95
    return [row | change if place == at else row for place, row in enumerate(rows)]


def day_cases(dataset: Dataset) -> list[tuple[str, list[Row]]]:
    """(rule, delivery that breaks it)."""
    rows = day_of_events(dataset)
    hour = {row["event_id"]: (row["time_ms"] - dataset.day_start_ms(DS)) // HOUR for row in rows}
    cases = [
        ("hours_covered", [row for row in rows if not 5 <= hour[row["event_id"]] < 10]),
        ("fresh", [row for row in rows if hour[row["event_id"]] < 20]),
    ]
    for feature in context(dataset):
        name = feature.name
        half = [row | {name: None} if place % 4 == 0 else row for place, row in enumerate(rows)]
        cases.append((f"{name}_null_drift", half))
        if feature.kind is Kind.NUMBER:
            far = 0.4 * (min(feature.high, 1000.0) - feature.low)
            cases.append((f"{name}_drift", [row | {name: row[name] + far} for row in rows]))
    return cases


VALID = "valid"
VOLUMES = ("impressions_volume", "users_volume")  # the trailing days had three times as much
OF_USERS = ("users", "users_error", "impressions_error", "effective_users")
JOINED = tuple(
    fact.name
    for fact in SUITE.facts
    if not fact.sql and not fact.name.startswith("schema") and fact.name not in OF_USERS
)  # their rules: test_keys_references_and_maturity
OTHERS = {"rows_present": 0, "impressions_present": 0} | {
    f"schema_{what}": 1 for what in ("missing", "retyped", "unexpected")
}


@pytest.fixture(scope="module", params=(FOODLOG, KUAIRAND), ids=lambda dataset: dataset.name)
def measured(request: pytest.FixtureRequest, spark: Any) -> tuple[Dataset, Suite, dict[str, Any]]:
    """Dataset, suite, and the facts of each case's delivery, measured in one pass."""
    dataset = request.param
    suite = suite_of(dataset, "events")
    rows = day_of_events(dataset)
    days = {VALID: rows}
    days |= {f"row {at}": changed(rows, change) for at, (_, change) in enumerate(row_cases(dataset))}
    days |= {f"fine {at}": changed(rows, change) for at, change in enumerate(fine_cases(dataset))}
    days |= {f"day {at}": day for at, (_, day) in enumerate(day_cases(dataset))}
    columns = event_columns(dataset)
    data = [{"case": case, **row} for case, day in days.items() for row in day]
    measured = measure(frame(spark, data, [("case", "string"), *columns]), suite, "case")
    users = {case: len({row["user_id"] for row in day if row["ds"] == DS}) for case, day in days.items()}
    return dataset, suite, {case: facts | {"users": users[case]} for case, facts in measured.items()}


def broken_of(suite: Suite, facts: Row, trailing: Row) -> set[str]:
    """The rules that a delivery breaks, of all whose fact one pass measures."""
    values = {}
    for rule in suite.rules:
        if rule.trailing is not None:
            values[rule.name] = compared(rule, facts[rule.fact], [trailing[rule.fact]])
        elif rule.fact not in JOINED and rule.name not in OTHERS:
            values[rule.name] = facts[rule.name if rule.is_row_rule else rule.fact]
    return broken_by(suite, values)


def test_a_valid_delivery_breaks_no_rule(measured: Any) -> None:
    dataset, suite, days = measured
    for case in (VALID, *(f"fine {at}" for at in range(len(fine_cases(dataset))))):
        assert broken_of(suite, days[case], days[VALID]) == set(), case


def test_a_row_or_a_delivery_breaks_its_rule_and_no_other(measured: Any) -> None:
    dataset, suite, days = measured
    cases = {f"row {at}": rule for at, (rule, _) in enumerate(row_cases(dataset))}
    cases |= {f"day {at}": rule for at, (rule, _) in enumerate(day_cases(dataset))}
    found = {case: broken_of(suite, days[case], days[VALID]) for case in cases}
    assert {case: rules for case, rules in found.items() if rules != {cases[case]}} == {}
    for rule in VOLUMES:
        trailing = days[VALID] | {(fact := rule.removesuffix("_volume")): days[VALID][fact] * 3}
        assert broken_of(suite, days[VALID], trailing) == {rule}


def test_every_rule_has_a_row_or_a_delivery_that_breaks_it(measured: Any) -> None:
    dataset, suite, _ = measured
    covered = {rule for rule, _ in (*row_cases(dataset), *day_cases(dataset))}
    joined = {rule.name for rule in suite.rules if rule.fact in JOINED}
    assert joined <= set().union(*(broken for broken, _, _ in JOINED_CASES))
    assert covered | joined | {*VOLUMES, *OTHERS} == {rule.name for rule in suite.rules}
    for name, value in OTHERS.items():
        assert broken_by(suite, {name: value}) == {name}


def delivery(**change: Any) -> list[Row]:
    return [*valid_events()[:-1], valid_events()[-1] | change]


def events(spark: Any, rows: list[Row]) -> Any:
    return frame(spark, rows, event_columns(MINI)).coalesce(1)


def test_facts_of_a_valid_delivery(spark: Any) -> None:
    facts = measure(events(spark, valid_events()), SUITE, "delivery_ds")[DS]
    expected = {
        "rows": 8,
        "impressions": 3,
        "clicks": 1,
        "conversions": 1,
        "late_rows": 0,
        "hours": 1,  # the other has one impression
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["idle_hours"] == 11
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
    facts = measure(events(spark, delivery(**change)), SUITE, "delivery_ds")[DS]
    assert facts[fact] == pytest.approx(value)


TYPES = {"impression_id": "string", "reason": "string", "user_id": "bigint", "item_id": "bigint"}


def keys(spark: Any, name: str, *values: Any) -> Any:
    return frame(spark, [{name: value} for value in values], [(name, TYPES[name])])


JOINED_CASES: list[tuple[set[str], list[Row], dict[str, list[Any]]]] = [
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
    ({"quarantined"}, valid_events(), {"reason": ["no user_id"] * 4}),
]


@pytest.mark.parametrize("index", range(len(JOINED_CASES)))
def test_keys_references_and_maturity(spark: Any, index: int) -> None:
    broken, rows, changed = JOINED_CASES[index]
    known = {"user_id": [1, 2], "item_id": [10, 11], "impression_id": ["a", "b", "c"], "reason": []} | changed
    tables = KnownTables(
        impressions_df=keys(spark, "impression_id", *known["impression_id"]),
        users_df=keys(spark, "user_id", *known["user_id"]),
        items_df=keys(spark, "item_id", *known["item_id"]),
        quarantined_df=keys(spark, "reason", *known["reason"]),
    )
    last_time_ms = max(row["time_ms"] for row in rows) + HOUR
    delivery_df = events(spark, rows)
    facts = event_joins(delivery_df, tables, DS) | immature_share(delivery_df, MINI, DS, last_time_ms)
    assert set(facts) == {*JOINED, *OF_USERS}
    values = {rule.name: facts.get(rule.fact) for rule in SUITE.rules if rule.fact in JOINED}
    assert len(values) == len(JOINED)
    assert broken_by(SUITE, values) == broken


def test_a_day_begins_and_ends_by_the_datasets_clock(spark: Any) -> None:
    """Midnight lies between two hours of UTC: the last moment before it, and those that the day has."""
    eve, right, wrong = shift_day(DS, -1), DS, shift_day(DS, 1)
    days = {START - 1: (eve, DS), START: (DS, eve), START + 24 * HOUR - 1: (DS, shift_day(DS, 1))}
    rows = [
        event(f"{time_ms}", "impression", 0, f"{time_ms}", time_ms=time_ms, ds=ds, delivery_ds=delivery)
        for time_ms, placed in days.items()
        for ds, delivery in zip(placed, (right, wrong), strict=True)
    ]
    facts = measure(events(spark, rows), SUITE, "delivery_ds")
    assert (facts[right]["time_in_ds"], facts[wrong]["time_in_ds"]) == (0, 3)


def test_schema_differences_name_the_columns() -> None:
    actual = dict(event_columns(MINI)) | {"weather": "bigint", "device": "string"}
    del actual["distance"]
    assert schema_differences(event_columns(MINI), actual) == {
        "schema_missing": ["distance float"],
        "schema_retyped": ["weather is bigint instead of int"],
        "schema_unexpected": ["device string"],
    }


def test_a_rule_about_a_missing_column_is_not_measured(spark: Any) -> None:
    facts = measure(events(spark, valid_events()).drop("distance"), SUITE, "delivery_ds")[DS]
    assert "distance_values" not in facts
    assert facts["weather_values"] == 0


def test_one_record_switches_no_rule_off(spark: Any) -> None:
    """A click with a clock 20 hours ahead; an impression at the end of a day that stops at noon."""
    rows = day_of_events(FOODLOG)
    suite = suite_of(FOODLOG, "events")
    end = FOODLOG.day_start_ms(DS) + 24 * HOUR
    cut = [row for row in rows if row["time_ms"] < end - 12 * HOUR]
    stray = {"event_id": "stray", "event_type": "click", "time_ms": end + 19 * HOUR, "ds": shift_day(DS, 1)}
    days = {
        "whole": rows,
        "ahead": [*cut, rows[1] | stray],
        "late": [*cut, rows[0] | {"event_id": "late", "impression_id": "late", "time_ms": end - MINUTE}],
    }
    columns = event_columns(FOODLOG)
    data = [{"case": case, **row} for case, day in days.items() for row in day]
    facts = measure(frame(spark, data, [("case", "string"), *columns]), suite, "case")
    last = {case: (facts[case]["last_time_ms"] - end) / HOUR for case in days}
    assert last["ahead"] == pytest.approx(-12, abs=1)
    assert last["whole"] == pytest.approx(0, abs=1)
    assert [facts[case]["hours"] for case in days] == [24, 12, 12]
    assert [round(facts[case]["idle_hours"]) for case in days] == [1, 13, 13]


def test_users_are_counted_exactly_and_make_the_standard_errors(spark: Any) -> None:
    """Many users, of whom sketches give a number that is near; the first has three impressions."""
    users = [1, 1, 1, *range(2, 78 + 1)]
    rows = [event(f"{n}", "impression", n, f"{n}", user_id=user) for n, user in enumerate(users)]
    known = {"user_id": [1], "item_id": [10], "impression_id": [], "reason": []}
    tables = KnownTables(**{
        name: keys(spark, column, *values) for name, (column, values) in
        zip(("users_df", "items_df", "impressions_df", "quarantined_df"), known.items(), strict=True)
    })  # fmt: skip
    facts = event_joins(events(spark, rows), tables, DS)
    assert (facts["users"], facts["users_error"]) == (78, pytest.approx(78**0.5))
    assert facts["impressions_error"] == pytest.approx(86**0.5)  # 3^2 + 77 * 1^2
    assert facts["effective_users"] == pytest.approx(80**2 / 86)
