"""Every rule for samples, of every dataset, has a row, or a day, that breaks it and only it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from expectations.judging.baseline import compared
from expectations.measuring.facts import measure, sample_joins
from expectations.rules.rule import Rule, Suite, Trailing, schema_differences
from expectations.rules.samples import samples_suite
from expectations.rules.suites import suite_of
from model.data.encoder import arrow_schema
from spark_jobs.contract.features import MAX_REALTIME, MAX_STATIC, NO_IDS, Dataset, FeatureSpec, Group, Kind
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from spark_jobs.contract.tables import sample_columns
from tests.expectations.mini import DS, HOUR, LIMITS, MINI, MINUTE, START, broken_by, sample
from tests.frames import frame

MINI_SUITE = samples_suite(MINI, LIMITS)
LOG = [("log", "string")]
DATASETS = (FOODLOG, KUAIRAND)
NOON = START + 12 * HOUR
NAN, INF = math.nan, math.inf
# One broken row of 21 moves no quantile from 5 % to 95 %, no rate and no volume: drift is for whole days.
ROWS = 21
Row = dict[str, Any]
Change = Callable[[int, Row], Row]


def value(feature: FeatureSpec, number: int, share: float = 0.3) -> Any:
    """A valid value of a feature in row `number`; numbers lie from `share` of their range on."""
    if feature.kind is Kind.NUMBER:
        span = min(feature.high, 1000.0) - feature.low
        return feature.low + span * (share + 0.01 * number)
    return 10 + number if feature.kind is Kind.ID else {"hour": 12}.get(feature.name, 1)


def row_of(dataset: Dataset, number: int) -> Row:
    """A valid row: two static tokens, two real-time tokens at one time, three candidates around them."""
    start = dataset.day_start_ms(DS)
    noon = start + 12 * HOUR
    row: Row = {
        "user_id": number + 1,
        "ds": DS,
        "window_start_ms": start,
        "window_end_ms": start + 24 * HOUR,
        "static_time_ms": [start - 2 * HOUR, start - HOUR],
        "realtime_time_ms": [noon, noon],
        "realtime_visible": [0, 0],
        "candidate_time_ms": [noon, noon + MINUTE, noon + 2 * MINUTE],
        "candidate_visible": [0, 2, 2],
        "candidate_request_id": [f"r{number}"] * 3,
        "candidate_impression_id": [f"{number}{place}" for place in "abc"],
        "label_click": [1, 0, 0],
        "label_conversion": [int(number < 9), 0, 0],
    }
    lengths = {Group.STATIC: 2, Group.REALTIME: 2, Group.CANDIDATE: 3}
    for group in Group:
        for feature in dataset.in_group(group):
            one = 0 if feature.name == "weekday" else value(feature, number)  # DS is a Monday
            row[f"{group}_{feature.name}"] = [one] * lengths[group] if group in lengths else one
    return row


def row_cases(dataset: Dataset) -> list[tuple[str, Row]]:
    """(rule, what is different in one row): all that holds for every dataset's rows, then their values."""
    start = dataset.day_start_ms(DS)
    noon = start + 12 * HOUR
    valid = row_of(dataset, 0)

    def lists(group: str, length: int) -> Row:
        return {name: values[:1] * length for name, values in valid.items() if name.startswith(group)}

    none = {**lists("candidate", 0), "label_click": [], "label_conversion": []}
    many = {**lists("realtime", MAX_REALTIME + 1), "realtime_time_ms": [noon - HOUR] * (MAX_REALTIME + 1)}
    cases: list[tuple[str, Row]] = [
        *(("user_id_present", {"user_id": one}) for one in (None, *NO_IDS)),
        ("window_in_day", {"window_end_ms": start + 24 * HOUR + 1}),
        ("window_in_day", {"window_start_ms": start - 1, "static_time_ms": [start - 5, start - 2]}),
        ("window_in_day", {"window_start_ms": None}),
        ("static_lengths", {"static_item_id": [10]}),
        ("static_lengths", {"static_time_ms": None}),
        ("realtime_lengths", {"realtime_action": [1, 1, 1]}),
        ("candidate_lengths", {"candidate_item_id": None}),
        ("candidate_lengths", {"label_click": [1, 1, 0, 0]}),
        (
            "static_limit",
            {**lists("static", MAX_STATIC + 1), "static_time_ms": [start - HOUR] * (MAX_STATIC + 1)},
        ),
        ("realtime_limit", {**many, "candidate_visible": [MAX_REALTIME + 1] * 3}),
        ("candidate_present", none),
        ("static_ascending", {"static_time_ms": [start - HOUR, start - 2 * HOUR]}),
        ("realtime_ascending", {"realtime_time_ms": [noon, noon - 1]}),
        ("candidate_ascending", {"candidate_time_ms": [noon, noon + 2 * MINUTE, noon + MINUTE]}),
        ("static_before_window", {"static_time_ms": [start - HOUR, start]}),
        (
            "static_horizon",
            {"static_time_ms": [start - (dataset.history_days + 1) * 24 * HOUR, start - HOUR]},
        ),
        (
            "realtime_in_window",
            {
                "realtime_time_ms": [start - 1, noon],
                "realtime_visible": [0, 1],
                "candidate_visible": [1, 2, 2],
            },
        ),
        ("candidate_in_window", {"window_end_ms": noon + 2 * MINUTE}),
        ("realtime_visible_recount", {"realtime_visible": [0, 1]}),
        *(
            ("candidate_visible_recount", {"candidate_visible": counts})
            for counts in ([0, 2, 1], [2, 2, 2], [0, 2, 3], [0, -1, 2])
        ),
        ("static_time_ms_present", {"static_time_ms": [None, start - HOUR]}),
        ("realtime_time_ms_present", {"realtime_time_ms": [None, noon]}),
        ("realtime_visible_present", {"realtime_visible": [0, None]}),
        (
            "candidate_time_ms_present",
            {"candidate_time_ms": [None, noon, noon], "candidate_visible": [0, 0, 0]},
        ),
        ("candidate_visible_present", {"candidate_visible": [0, None, 2]}),
        ("candidate_request_id_present", {"candidate_request_id": ["r1", None, "r1"]}),
        ("candidate_impression_id_present", {"candidate_impression_id": ["a", None, "c"]}),
        ("label_click_values", {"label_click": [1, 2, 0]}),
        ("label_click_values", {"label_click": [1, None, 0]}),
        ("label_conversion_values", {"label_conversion": [-1, 0, 0]}),
        ("conversion_implies_click", {"label_click": [0, 1, 0]}),
        # 4 is the hour in UTC of a dataset whose day starts 8 hours before
        ("candidate_hour_clock", {"candidate_hour": [12, 4, 12]}),
        ("candidate_weekday_clock", {"candidate_weekday": [0, 0, 1]}),
    ]
    for group in Group:
        for feature in dataset.in_group(group):
            cases += value_cases(group, feature, valid)
    return cases


def value_cases(group: Group, feature: FeatureSpec, valid: Row) -> list[tuple[str, Row]]:
    """Values that a column may not have, one a row; each kind of wrong value in some column."""
    column = f"{group}_{feature.name}"
    wrong: list[Any] = [None, *NO_IDS]
    if feature.kind is Kind.CATEGORY:
        wrong = [None, feature.cardinality] if len(column) % 2 else [-1, feature.cardinality]
    if column in ("candidate_hour", "candidate_weekday"):  # any other number breaks the clock's rule, too
        wrong = [None]
    if feature.kind is Kind.NUMBER:
        wrong = [NAN, feature.high * 1.001] if len(column) % 2 else [None, INF, feature.low - 0.001]
    if group is not Group.PROFILE:
        wrong = [[*valid[column][:-1], one] for one in wrong]
    return [(f"{column}_values", {column: one}) for one in wrong]


def day_cases(dataset: Dataset, suite: Suite) -> list[tuple[str, Change]]:
    """(rule, change of every row): for rules about label rates and drift."""
    cases: list[tuple[str, Change]] = [
        ("ctr_level", lambda number, row: {"label_click": [1, 1, 1]}),
        ("ctcvr_level", lambda number, row: {"label_conversion": [0, 0, 0]}),
        ("ctr_drift", lambda number, row: {"label_click": [int(number < 9), 0, 0]}),
        ("ctcvr_drift", lambda number, row: {"label_conversion": [int(number < 4), 0, 0]}),
    ]
    for group in (Group.PROFILE, Group.CANDIDATE):
        for feature in dataset.in_group(group):
            column = f"{group}_{feature.name}"
            if f"{column}_drift" in {rule.name for rule in suite.rules}:
                cases.append((f"{column}_drift", _everywhere(column, lambda n, f=feature: value(f, n, 0.7))))
            if f"{column}_unknown_drift" in {rule.name for rule in suite.rules}:
                cases.append((f"{column}_unknown_drift", _everywhere(column, lambda n: 0)))
    return cases


def _everywhere(column: str, new: Callable[[int], Any]) -> Change:
    def change(number: int, row: Row) -> Row:
        return {column: [new(number)] * len(row[column]) if isinstance(row[column], list) else new(number)}

    return change


VALID = "valid"
LEVELS = ("ctr_level", "ctcvr_level")  # so on the trailing days, too
VOLUMES = ("rows_volume", "users_volume", "candidates_volume")  # the trailing days had three times as much
# See test_keys_and_completeness.
JOINED = (
    "impressions_built",
    "impressions_left_out",
    "candidate_unique",
    "windows_disjoint",
    "requests_at_once",
)
ALIKE = ("features_vary", "statistics_vary", "features_differ")  # see test_alike.py
OTHERS = ("rows_present", "schema_missing", "schema_retyped", "schema_unexpected")


@pytest.fixture(scope="module", params=DATASETS, ids=lambda dataset: dataset.name)
def measured(request: pytest.FixtureRequest, spark: Any) -> tuple[Dataset, Suite, list[str], dict[str, Any]]:
    """Dataset, suite, the rule of each case, and the facts of each case's day, measured in one pass."""
    dataset = request.param
    suite = suite_of(dataset, "samples")
    valid = [row_of(dataset, number) for number in range(ROWS)]
    one, whole = row_cases(dataset), day_cases(dataset, suite)
    days = {VALID: valid}
    for at, (_, change) in enumerate(one):
        days[f"{at}"] = [valid[0] | change, *valid[1:]]
    for at, (_, of_row) in enumerate(whole, len(one)):
        days[f"{at}"] = [row | of_row(number, row) for number, row in enumerate(valid)]
    rows = [{"case": case, **row} for case, day in days.items() for row in day]
    table = pa.Table.from_pylist(rows, schema=arrow_schema(dataset).insert(0, pa.field("case", pa.string())))
    measured = measure(spark.createDataFrame(table), suite, "case")
    for case, day in days.items():
        measured[case]["users"] = len({row["user_id"] for row in day})
    return dataset, suite, [rule for rule, _ in (*one, *whole)], measured


def values_of(suite: Suite, facts: Row, trailing: Row) -> dict[str, float | None]:
    """The value of every rule whose fact one pass measures."""

    def of(rule: Rule) -> float | None:
        if rule.trailing is not None:
            return compared(rule, facts[rule.fact], [trailing[rule.fact]])
        return facts[rule.name if rule.is_row_rule else rule.fact]

    left_out = {*JOINED, *OTHERS, *ALIKE}
    return {rule.name: of(rule) for rule in suite.rules if rule.name not in left_out}


def test_a_valid_day_breaks_no_rule(measured: Any) -> None:
    _, suite, _, days = measured
    assert broken_by(suite, values_of(suite, days[VALID], days[VALID])) == set()


def test_a_row_or_a_day_breaks_its_rule_and_no_other(measured: Any) -> None:
    _, suite, rules, days = measured
    wrong = {}
    for at, rule in enumerate(rules):
        facts = days[f"{at}"]
        found = broken_by(suite, values_of(suite, facts, facts if rule in LEVELS else days[VALID]))
        if found != {rule}:
            wrong[f"{at} {rule}"] = found
    assert wrong == {}


def test_a_volume_breaks_its_rule_and_no_other(measured: Any) -> None:
    _, suite, _, days = measured
    for rule in VOLUMES:
        fact = rule.removesuffix("_volume")
        trailing = days[VALID] | {fact: days[VALID][fact] * 3}
        assert broken_by(suite, values_of(suite, days[VALID], trailing)) == {rule}


def test_every_rule_has_a_row_or_a_day_that_breaks_it(measured: Any) -> None:
    dataset, suite, rules, _ = measured
    assert {*rules, *VOLUMES, *JOINED, *OTHERS, *ALIKE} == {rule.name for rule in suite.rules}
    declared = dict(sample_columns(dataset))
    lost, *kept = declared.items()
    other = {**dict(kept), "extra": "int", kept[0][0]: "binary"}
    assert {name: len(found) for name, found in schema_differences(declared.items(), other).items()} == {
        "schema_missing": 1,
        "schema_retyped": 1,
        "schema_unexpected": 1,
    }
    assert lost[0] not in other
    for name in OTHERS:
        assert broken_by(suite, {name: 0 if name == "rows_present" else 1}) == {name}
    assert {rule.trailing for rule in suite.rules if rule.trailing} == {
        Trailing.RATIO,
        Trailing.INCREASE,
        Trailing.SHIFT,
        Trailing.NAMES,
    }


def test_facts_of_a_valid_row(spark: Any) -> None:
    names = [name for name, _ in sample_columns(MINI)]
    rows = {
        "valid": sample(),
        "empty lists": sample()
        | {name: [] for name in names if name.startswith(("static", "realtime"))}
        | {"candidate_visible": [0, 0, 0]},
    }
    data = [{"case": case, **row} for case, row in rows.items()]
    columns = [("case", "string"), *sample_columns(MINI)]
    measured = measure(frame(spark, data, columns).coalesce(1), MINI_SUITE, "case")
    for facts in measured.values():
        assert broken_by(MINI_SUITE, {rule.name: facts[rule.name] for rule in MINI_SUITE.row_rules}) == set()
    facts = measured["valid"]
    assert {name: facts[name] for name in ("rows", "candidates", "static_tokens", "realtime_tokens")} == {
        "rows": 1,
        "candidates": 3,
        "static_tokens": 2,
        "realtime_tokens": 2,
    }
    assert facts["ctr"] == pytest.approx(2 / 3)
    assert facts["ctcvr"] == pytest.approx(1 / 3)
    assert facts["candidate_price_quantiles"] == [9.5] * 19
    assert facts["profile_member_unknown_share"] == 0


def windows(spark: Any, *rows: dict[str, Any]) -> Any:
    return frame(spark, rows, sample_columns(MINI)).coalesce(1)


def impressions(spark: Any, *rows: tuple[str, int] | tuple[str, int, int]) -> Any:
    """(impression, user) and, where it was shown after its request came, when it was shown."""
    names = ("impression_id", "user_id", "time_ms", "shown_ms")
    shown = [dict(zip(names, (*row[:2], 0, *(row[2:] or (0,))), strict=True)) for row in rows]
    return frame(spark, shown, [(names[0], "string"), *((name, "bigint") for name in names[1:])]).coalesce(1)


SHOWN = (("a", 1), ("b", 1), ("c", 1))
EARLIER = sample(window_end_ms=NOON, candidate_impression_id=["x", "y", "z"])
LATER = sample(window_start_ms=NOON)


@pytest.mark.parametrize(
    ("rows", "shown", "broken"),
    [
        ([sample()], SHOWN, set()),
        ([EARLIER, LATER], (*SHOWN, ("x", 2), ("y", 2), ("z", 2)), set()),
        ([sample()], (*SHOWN, *((f"bot{i}", 9) for i in range(5))), {"impressions_left_out"}),  # a bot here
        ([sample()], (*SHOWN, ("a", 1)), set()),  # delivered twice
        ([sample()], (*SHOWN, ("lost", 2)), {"impressions_built"}),  # one in four may be left out
        ([sample()], SHOWN[:2], {"impressions_built"}),
        ([sample(candidate_impression_id=["a", "b", "b"])], SHOWN, {"candidate_unique"}),
        ([sample()], (("a", 1, NOON), ("b", 1, NOON + MINUTE), ("c", 1, NOON + HOUR)), set()),  # saw all
        ([sample()], (("a", 1, NOON + 1), *SHOWN[1:]), {"requests_at_once"}),  # after a behaviour
        (
            [sample(window_end_ms=NOON + HOUR)],
            (*SHOWN[:2], ("c", 1, NOON + HOUR + 1)),  # after the one that opens the next window
            {"requests_at_once"},
        ),
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
    spark: Any, rows: list[dict[str, Any]], shown: tuple[Any, ...], broken: set[str]
) -> None:
    none_df = frame(spark, [], LOG)
    facts = sample_joins(windows(spark, *rows), impressions(spark, *shown), none_df, MINI)
    values = {rule.name: facts.get(rule.fact) for rule in MINI_SUITE.rules if rule.name in JOINED}
    assert len(values) == len(JOINED)
    assert broken_by(MINI_SUITE, values) == broken


def test_impressions_left_out_count_whatever_the_reason(spark: Any) -> None:
    """Guests who share one user id, and records that ingest could not take."""
    guests = [(f"g{n}", 0) for n in range(MINI.max_impressions_a_day + 1)]
    broken_df = frame(spark, [{"log": "impressions"}] * 2, LOG)
    facts = sample_joins(windows(spark, sample()), impressions(spark, *SHOWN, *guests), broken_df, MINI)
    assert facts["built_share"] == 1
    assert facts["left_out_share"] == pytest.approx(1 - 3 / (3 + 5 + 2))


def test_standard_errors_are_of_users_not_of_rows(spark: Any) -> None:
    rows = [
        sample(user_id=user, label_click=clicks, label_conversion=[0, 0, 0])
        for user, clicks in ((1, [1, 1, 1]), (2, [0, 0, 0]), (3, [1, 0, 0]))
    ]
    rows.append(rows[0] | {"window_start_ms": START + HOUR})
    none_df = frame(spark, [], LOG)
    facts = sample_joins(windows(spark, *rows), impressions(spark, *SHOWN), none_df, MINI)
    shown, clicked = [6, 3, 3], [6, 0, 1]
    rate = sum(clicked) / sum(shown)
    expected = sum((x - rate * n) ** 2 for x, n in zip(clicked, shown, strict=True)) ** 0.5 / sum(shown)
    assert (facts["users"], facts["ctr_error"]) == (3, pytest.approx(expected))
    assert facts["candidates_error"] == pytest.approx((36 + 9 + 9) ** 0.5)
    assert facts["effective_users"] == pytest.approx(16 / 6)


def test_label_rates_are_of_weights_where_candidates_have_them(spark: Any) -> None:
    """Clicks that were sampled whole, other impressions one in ten: the rate is that of all impressions."""
    dataset = replace(MINI, has_weights=True)
    suite = samples_suite(dataset, LIMITS)
    clicks = {1: [1, 0, 0], 2: [0, 1, 1], 3: [0, 0, 0]}
    weights = {user: [1.0 if one else 10.0 for one in ones] for user, ones in clicks.items()}
    columns = sample_columns(dataset)
    rows = [
        sample(user_id=user, label_click=ones, label_conversion=ones, candidate_weight=weights[user])
        for user, ones in clicks.items()
    ]
    samples_df = frame(spark, rows, columns)
    facts = measure(samples_df, suite, "ds")[DS]
    none_df = frame(spark, [], LOG)
    facts |= sample_joins(samples_df, impressions(spark, *SHOWN), none_df, dataset)
    shown, clicked = [21, 12, 30], [1, 2, 0]
    rate = sum(clicked) / sum(shown)
    assert (facts["ctr"], facts["ctcvr"]) == (pytest.approx(rate), pytest.approx(rate))
    error = sum((x - rate * n) ** 2 for x, n in zip(clicked, shown, strict=True)) ** 0.5 / sum(shown)
    assert facts["ctr_error"] == pytest.approx(error)
    assert facts["candidates_error"] == pytest.approx(27**0.5)
    level = next(rule for rule in suite.rules if rule.name == "ctr_level")
    assert broken_by(suite, {level.name: facts[level.fact]}) == {"ctr_level"}  # .33 of the sample is within


def test_the_day_of_a_sample_is_the_datasets_day() -> None:
    assert MINI.day_start_ms(DS) == 1772388900000  # 2026-03-01 18:15 UTC
