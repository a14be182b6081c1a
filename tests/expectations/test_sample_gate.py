"""Every rule for samples has a row, or a day, that breaks it and only it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from expectations.facts import measure, sample_joins
from expectations.sample_rules import samples_suite
from spark_jobs.contract import sample_columns
from tests.expectations.mini import DS, HOUR, LIMITS, MINI, MINUTE, START, broken_by, sample

SUITE = samples_suite(MINI, LIMITS)
NOON = START + 12 * HOUR
SCHEMA = ", ".join(f"{name} {kind}" for name, kind in sample_columns(MINI))
NAN, INF = math.nan, math.inf
LONG = [START - HOUR] * 1001
MANY = [NOON - HOUR] * 101


def lists(group: str, length: int) -> dict[str, list[Any]]:
    """All lists of a group at another length, so that only the rule about the length breaks."""
    return {name: values[:1] * length for name, values in sample().items() if name.startswith(group)}


NO_CANDIDATE: dict[str, Any] = {**lists("candidate", 0), "label_click": [], "label_conversion": []}
# Rule -> what is different in the row that breaks it.
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("user_id_present", {"user_id": None}),
    ("window_in_day", {"window_end_ms": START + 24 * HOUR + 1}),
    ("window_in_day", {"window_start_ms": START - 1, "static_time_ms": [START - 5, START - 2]}),
    ("window_in_day", {"window_start_ms": None}),
    ("static_lengths", {"static_price": [9.5]}),
    ("static_lengths", {"static_time_ms": None}),
    ("realtime_lengths", {"realtime_action": [1, 1, 1]}),
    ("candidate_lengths", {"candidate_distance": None}),
    ("candidate_lengths", {"label_click": [1, 1, 0, 0]}),
    ("static_limit", {**lists("static", 1001), "static_time_ms": LONG}),
    ("realtime_limit", {**lists("realtime", 101), "realtime_time_ms": MANY, "candidate_visible": [101] * 3}),
    ("candidate_present", NO_CANDIDATE),
    ("static_ascending", {"static_time_ms": [START - HOUR, START - 2 * HOUR]}),
    (
        "realtime_ascending",
        {"realtime_time_ms": [NOON, NOON - 1], "realtime_visible": [0, 0], "candidate_visible": [0, 2, 2]},
    ),
    (
        "candidate_ascending",
        {"candidate_time_ms": [NOON, NOON + 2 * MINUTE, NOON + MINUTE]},
    ),
    ("static_before_window", {"static_time_ms": [START - HOUR, START]}),
    ("static_horizon", {"static_time_ms": [START - 31 * 24 * HOUR, START - HOUR]}),
    (
        "realtime_in_window",
        {"realtime_time_ms": [START - 1, NOON], "realtime_visible": [0, 1], "candidate_visible": [1, 2, 2]},
    ),
    ("candidate_in_window", {"window_end_ms": NOON + 2 * MINUTE}),
    ("realtime_visible_recount", {"realtime_visible": [0, 1]}),
    ("candidate_visible_recount", {"candidate_visible": [0, 2, 1]}),
    ("candidate_visible_recount", {"candidate_visible": [2, 2, 2]}),
    ("candidate_visible_recount", {"candidate_visible": [0, 2, 3]}),
    ("candidate_visible_recount", {"candidate_visible": [0, -1, 2]}),
    ("static_time_ms_present", {"static_time_ms": [None, START - HOUR]}),
    (
        "realtime_time_ms_present",
        {"realtime_time_ms": [None, NOON], "realtime_visible": [0, 0], "candidate_visible": [0, 2, 2]},
    ),
    ("candidate_request_id_present", {"candidate_request_id": ["r1", None, "r1"]}),
    ("candidate_impression_id_present", {"candidate_impression_id": ["a", None, "c"]}),
    ("label_click_values", {"label_click": [1, 2, 0]}),
    ("label_click_values", {"label_click": [1, None, 0]}),
    ("label_conversion_values", {"label_conversion": [-1, 0, 0]}),
    ("conversion_implies_click", {"label_click": [0, 1, 0]}),
    ("profile_user_id_values", {"profile_user_id": None}),
    ("profile_age_values", {"profile_age": NAN}),
    ("profile_age_values", {"profile_age": None}),
    ("profile_age_values", {"profile_age": INF}),
    ("profile_member_values", {"profile_member": 3}),
    ("static_item_id_values", {"static_item_id": [10, None]}),
    ("static_price_values", {"static_price": [9.5, NAN]}),
    ("static_hour_values", {"static_hour": [12, 24]}),
    ("static_weekday_values", {"static_weekday": [None, 0]}),
    ("static_weather_values", {"static_weather": [-1, 1]}),
    ("static_distance_values", {"static_distance": [2.5, -INF]}),
    ("static_action_values", {"static_action": [1, 3]}),
    ("realtime_item_id_values", {"realtime_item_id": [None, 10]}),
    ("realtime_price_values", {"realtime_price": [9.5, None]}),
    ("realtime_hour_values", {"realtime_hour": [12, -1]}),
    ("realtime_weekday_values", {"realtime_weekday": [7, 0]}),
    ("realtime_weather_values", {"realtime_weather": [1, None]}),
    ("realtime_distance_values", {"realtime_distance": [2.5, 100.1]}),
    ("realtime_action_values", {"realtime_action": [None, 1]}),
    ("candidate_item_id_values", {"candidate_item_id": [10, None, 10]}),
    ("candidate_price_values", {"candidate_price": [9.5, INF, 9.5]}),
    ("candidate_weather_values", {"candidate_weather": [1, 1, 4]}),
    ("candidate_distance_values", {"candidate_distance": [NAN, 2.5, 2.5]}),
    ("candidate_hour_clock", {"candidate_hour": [12, 4, 12]}),  # 4 is the hour in UTC
    ("candidate_weekday_clock", {"candidate_weekday": [0, 0, 1]}),
    ("candidate_hour_values", {"candidate_hour": [12, None, 12]}),
    ("candidate_weekday_values", {"candidate_weekday": [0, None, 0]}),
    ("realtime_visible_present", {"realtime_visible": [0, None]}),
    ("candidate_visible_present", {"candidate_visible": [0, None, 2]}),
    ("candidate_time_ms_present", {"candidate_time_ms": [None, NOON, NOON], "candidate_visible": [0, 0, 0]}),
]


@pytest.fixture(scope="module")
def counts(spark: Any) -> dict[str, dict[str, Any]]:
    """Facts of a valid row and of every broken row, each a partition of its own, measured in one pass."""
    rows = {
        "valid": sample(),
        "empty lists": sample(**lists("static", 0), **lists("realtime", 0), candidate_visible=[0, 0, 0]),
    }
    rows |= {f"one {index}": sample(**change) for index, (_, change) in enumerate(ROWS)}
    names = [name for name, _ in sample_columns(MINI)]
    data = [(case, *(row[name] for name in names)) for case, row in rows.items()]
    df = spark.createDataFrame(data, f"case string, {SCHEMA}").coalesce(1)
    return measure(df, SUITE, "case")


def broken_rows_of(facts: dict[str, Any]) -> set[str]:
    return broken_by(SUITE, {rule.name: facts[rule.name] for rule in SUITE.row_rules})


@pytest.mark.parametrize("case", ["valid", "empty lists"])
def test_a_valid_row_breaks_no_rule(counts: dict[str, dict[str, Any]], case: str) -> None:
    assert broken_rows_of(counts[case]) == set()


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(ROWS)])
def test_a_row_breaks_its_rule_and_no_other(counts: dict[str, dict[str, Any]], index: int) -> None:
    assert broken_rows_of(counts[f"one {index}"]) == {ROWS[index][0]}


def test_every_row_rule_has_a_row_that_breaks_it() -> None:
    assert {rule for rule, _ in ROWS} == {rule.name for rule in SUITE.row_rules}


def test_facts_of_a_valid_row(counts: dict[str, dict[str, Any]]) -> None:
    facts = counts["valid"]
    assert {
        name: facts[name] for name in ("rows", "users", "candidates", "static_tokens", "realtime_tokens")
    } == {
        "rows": 1,
        "users": 1,
        "candidates": 3,
        "static_tokens": 2,
        "realtime_tokens": 2,
    }
    assert facts["ctr"] == pytest.approx(2 / 3)
    assert facts["ctcvr"] == pytest.approx(1 / 3)
    assert facts["candidate_price_quantiles"] == [9.5] * 19
    assert facts["profile_member_unknown_share"] == 0


def windows(spark: Any, *rows: dict[str, Any]) -> Any:
    names = [name for name, _ in sample_columns(MINI)]
    return spark.createDataFrame([tuple(row[name] for name in names) for row in rows], SCHEMA).coalesce(1)


def impressions(spark: Any, *rows: tuple[str, int]) -> Any:
    return spark.createDataFrame(list(rows), "impression_id string, user_id bigint").coalesce(1)


SHOWN = (("a", 1), ("b", 1), ("c", 1))
EARLIER = sample(window_end_ms=NOON, candidate_impression_id=["x", "y", "z"])
LATER = sample(window_start_ms=NOON)


@pytest.mark.parametrize(
    ("rows", "shown", "broken"),
    [
        ([sample()], SHOWN, set()),
        ([EARLIER, LATER], (*SHOWN, ("x", 2), ("y", 2), ("z", 2)), set()),
        ([sample()], (*SHOWN, *((f"bot{i}", 9) for i in range(5))), set()),  # five a day: a bot here
        ([sample()], (*SHOWN, ("a", 1)), set()),  # delivered twice
        ([sample()], (*SHOWN, ("lost", 2)), {"impressions_built"}),
        ([sample()], SHOWN[:2], {"impressions_built"}),
        ([sample(candidate_impression_id=["a", "b", "b"])], SHOWN, {"candidate_unique"}),
        (
            [EARLIER | {"window_end_ms": NOON + 1}, LATER],
            (*SHOWN, ("x", 2), ("y", 2), ("z", 2)),
            {"windows_disjoint"},
        ),
        (
            [EARLIER, EARLIER | {"candidate_impression_id": ["a", "b", "c"]}],
            (*SHOWN, ("x", 2), ("y", 2), ("z", 2)),
            {"windows_disjoint"},
        ),
    ],
)
def test_keys_and_completeness(
    spark: Any, rows: list[dict[str, Any]], shown: tuple[tuple[str, int], ...], broken: set[str]
) -> None:
    facts = sample_joins(windows(spark, *rows), impressions(spark, *shown), MINI)
    values = {rule.name: facts.get(rule.fact) for rule in SUITE.rules if rule.fact in facts}
    assert len(values) == 3
    assert broken_by(SUITE, values) == broken


@pytest.mark.parametrize(
    ("facts", "broken"),
    [
        ({"ctr": 0.3, "ctcvr": 0.2}, set()),
        ({"ctr": 0.95, "ctcvr": 0.2}, {"ctr_level"}),
        ({"ctr": 0.3, "ctcvr": 0.05}, {"ctcvr_level"}),
        ({"ctr": None, "ctcvr": 0.2}, {"ctr_level"}),
        ({"rows": 0}, {"rows_present"}),
        ({"schema_missing": 1}, {"schema_missing"}),
        ({"schema_retyped": 1}, {"schema_retyped"}),
        ({"schema_unexpected": 1}, {"schema_unexpected"}),
    ],
)
def test_levels(facts: dict[str, float | None], broken: set[str]) -> None:
    values = {rule.name: facts[rule.fact] for rule in SUITE.rules if rule.fact in facts and not rule.trailing}
    assert broken_by(SUITE, values) == broken


def test_the_day_of_a_sample_is_the_datasets_day() -> None:
    assert MINI.day_start_ms(DS) == 1772380800000  # 2026-03-01 16:00 UTC
