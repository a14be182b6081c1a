"""The trailing days: which they are, and what each comparison finds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from expectations.judging import judge as judge_module
from expectations.judging.baseline import compared, quantile_shift, standard_error, trailing_facts
from expectations.judging.validation import Judgement
from expectations.judging.verdict import Finding, Verdict, keep
from expectations.rules.rule import Rule, Suite, Trailing, widened
from expectations.rules.suites import SUITES
from spark_jobs.lake.verdicts import path_of, read
from tests.expectations.mini import LIMITS, MINI, broken_by

EVENTS, SAMPLES = (SUITES[name](MINI, LIMITS) for name in ("events", "samples"))
PRICES = [10.0 + step for step in range(19)]


@pytest.fixture(autouse=True)
def _var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))


def rule(trailing: Trailing) -> Rule:
    return Rule(name="r", column="c", description="d", fact="f", low=0, trailing=trailing)


@pytest.mark.parametrize(
    ("trailing", "value", "before", "expected"),
    [
        (Trailing.RATIO, 50, [100, 90, 1000], 0.5),
        (Trailing.RATIO, 0, [0, 0], 1.0),
        (Trailing.RATIO, 3, [0], math.inf),
        (Trailing.RATIO, None, [1], None),
        (Trailing.RATIO, math.nan, [1], None),
        (Trailing.INCREASE, 0.9, [0.1, 0.2, 0.3], 0.7),
        (Trailing.SHIFT, PRICES, [PRICES, PRICES], 0.0),
        (Trailing.SHIFT, [price * 100 for price in PRICES], [PRICES], 99 * 19 / 18),
        (Trailing.SCORES, [price * 100 for price in PRICES], [PRICES], 99 * 19 / 1800),
        (Trailing.SCORES, PRICES, [[19 + (price - 19) / 100 for price in PRICES]], 0.99 * 90 / 19 / 18),
    ],
)
def test_comparisons(trailing: Trailing, value: Any, before: list[Any], expected: float | None) -> None:
    found = compared(rule(trailing), value, before)
    assert found == (None if expected is None else pytest.approx(expected))


def test_quantile_shift_of_a_constant() -> None:
    assert quantile_shift([5.0] * 3, [[5.0] * 3]) == 0
    assert quantile_shift([500.0] * 3, [[5.0] * 3]) == 99
    assert quantile_shift([0.5] * 3, [[0.0] * 3]) == 0.5


NORMAL: dict[str, dict[str, Any]] = {
    "events": {
        "impressions": 100,
        "users": 50,
        "weather_null_share": 0.01,
        "distance_null_share": 0.0,
        "distance_quantiles": PRICES,
    },
    "samples": {
        "rows": 50,
        "users": 50,
        "candidates": 100,
        "ctr": 0.3,
        "ctcvr": 0.2,
        "constant_statistics": ["sparse"],
        "profile_age_quantiles": PRICES,
        "candidate_price_quantiles": PRICES,
        "candidate_distance_quantiles": PRICES,
        **{
            f"{column}_unknown_share": 0.01
            for column in ("profile_user_id", "profile_member", "candidate_item_id", "candidate_weather")
        },
    },
}


def moved(value: Any) -> Any:
    """The fact of a day on which something went wrong: far fewer, far more unknown, other units."""
    if value == ["sparse"]:
        return ["sparse", "lost"]
    if isinstance(value, list):
        return [part / 7 for part in value]
    return value / 10 if value > 0.1 else value + 0.5


@pytest.mark.parametrize(
    ("suite", "name"),
    [(suite, rule.name) for suite in (EVENTS, SAMPLES) for rule in suite.rules if rule.trailing],
)
def test_each_rule_alone_sees_its_fact_move(suite: Suite, name: str) -> None:
    normal = NORMAL[suite.name]
    rules = {rule.name: rule for rule in suite.rules if rule.trailing}
    facts = normal | {rules[name].fact: moved(normal[rules[name].fact])}
    values = {n: compared(r, facts[r.fact], [normal[r.fact]] * 3) for n, r in rules.items()}
    assert broken_by(suite, values) == {name}
    same = {n: compared(r, normal[r.fact], [normal[r.fact]] * 3) for n, r in rules.items()}
    assert broken_by(suite, same) == set()


def verdict(ds: str, success: bool = True, **facts: Any) -> Verdict:
    finding = Finding(rule="r", column="c", description="d", bounds="b", observed=1.0, success=success)
    return Verdict(dataset="mini", suite="events", ds=ds, success=success, facts=facts, findings=(finding,))


def test_trailing_days_are_the_last_seven_earlier_days_that_passed() -> None:
    for day in range(1, 12):
        keep(verdict(f"2026-03-{day:02d}", success=day != 8, impressions=day))
    found = trailing_facts("mini", "events", "2026-03-10")
    assert list(found) == [f"2026-03-{day:02d}" for day in (2, 3, 4, 5, 6, 7, 9)]
    assert found["2026-03-09"] == {"impressions": 9}
    assert trailing_facts("mini", "events", "2026-03-01") == {}


def test_a_verdict_is_written_whole_and_the_same_again() -> None:
    path = keep(verdict("2026-03-01", share=math.nan, worst=math.inf, levels=[1.0, 2.0]))
    first = path.read_bytes()
    assert path == path_of("mini", "events", "2026-03-01")
    assert (read(path) or {})["facts"] == {"share": "nan", "worst": "inf", "levels": [1.0, 2.0]}
    assert keep(verdict("2026-03-01", share=math.nan, worst=math.inf, levels=[1.0, 2.0])) == path
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["2026-03-01.json"]


def test_a_damaged_verdict_is_named() -> None:
    path = keep(verdict("2026-03-01"))
    path.write_text(path.read_text()[:30])
    with pytest.raises(ValueError, match=r"2026-03-01\.json is no verdict"):
        trailing_facts("mini", "events", "2026-03-02")


def test_a_day_without_rows_is_judged_for_presence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        judge_module,
        "validate",
        lambda suite, rules, values, run: {
            rule.name: Judgement(rule.name.startswith("schema")) for rule in rules
        },
    )
    facts = {"schema_missing": 0, "schema_retyped": 0, "schema_unexpected": 0, "rows": 0}
    found = judge_module.judge(EVENTS, "2026-03-02", facts)
    assert found.failed == ["rows_present"]
    assert "upstream day 2026-03-02 absent" in found.findings[-1].message("mini", "events", "2026-03-02")
    assert set(found.left_out.values()) == {"there are no rows"}


def test_rules_without_trailing_days_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        judge_module,
        "validate",
        lambda suite, rules, values, run: {rule.name: Judgement(True) for rule in rules},
    )
    found = judge_module.judge(EVENTS, "2026-03-02", {"rows": 5, **NORMAL["events"]})
    assert set(found.left_out) == {rule.name for rule in EVENTS.rules if rule.trailing}
    keep(verdict("2026-03-01", **NORMAL["events"]))
    found = judge_module.judge(EVENTS, "2026-03-02", {"rows": 5, **NORMAL["events"]})
    assert not found.left_out
    assert found.baseline_days == ("2026-03-01",)


LIMIT = 0.1


def share_rule(errors: float = 3.0) -> Rule:
    return Rule(
        name="r", column="c", description="d", fact="share", high=LIMIT,
        trailing=Trailing.INCREASE, errors=errors, users="users",
    )  # fmt: skip


def test_a_good_day_of_few_users_is_no_drift_and_a_lost_column_is() -> None:
    """78 users: 50 % without a value where it was 36 % before is chance; 100 % is not."""
    day, before = {"share": 0.5, "users": 78}, {"share": 0.36, "users": 78}
    error = standard_error(share_rule(), day, [before])
    assert error == pytest.approx(math.hypot(0.0566, 0.0543), abs=1e-3)
    bounds = widened(share_rule(), error)
    moved = compared(share_rule(), day["share"], [before["share"]])
    assert moved is not None
    assert bounds.high is not None
    assert LIMIT < moved < bounds.high
    lost = {"share": 1.0, "users": 78}
    bounds = widened(share_rule(), standard_error(share_rule(), lost, [before]))
    assert bounds.high is not None
    assert (compared(share_rule(), 1.0, [0.36]) or 0) > bounds.high


def test_bounds_say_what_they_allow_for() -> None:
    assert share_rule().bounds == "at most 0.1 beyond the trailing days, and 3 standard errors"
    included = "at most 0.25 beyond the trailing days, 3 standard errors of 0.05 included"
    assert widened(share_rule(), 0.05).bounds == included
    assert widened(share_rule(errors=0.0), 0.05).high == LIMIT


def test_an_error_of_many_days_is_smaller_and_an_unknown_one_widens_nothing() -> None:
    day = {"share": 0.5, "users": 100}
    one, many = (standard_error(share_rule(), day, [day] * number) for number in (1, 7))
    assert one == pytest.approx(0.05 * 2**0.5)
    assert many == pytest.approx(0.05 * math.hypot(1, 1.2533 / 7**0.5))
    assert standard_error(share_rule(), {"share": 0.5}, [day]) == 0
    assert standard_error(share_rule(), day, [{"share": 0.5}]) == pytest.approx(one)  # an older verdict


def test_a_ratio_has_the_relative_error_of_both() -> None:
    volume = Rule(
        name="r", column="c", description="d", fact="impressions", low=0.5, trailing=Trailing.RATIO, errors=3
    )
    day, before = (
        {"impressions": 60, "impressions_error": 8.0},
        {"impressions": 100, "impressions_error": 6.0},
    )
    assert standard_error(volume, day, [before]) == pytest.approx(0.1)
    assert widened(volume, 0.1).low == pytest.approx(0.2)


def test_three_standard_errors_cover_what_users_show_by_chance() -> None:
    """Days of the same users' kind, with rows of one user alike: hardly one in a hundred drifts."""
    import numpy as np

    rng = np.random.default_rng(1)
    levels = np.arange(0.05, 0.96, 0.05)
    shares, shifts = 0, 0
    shift = Rule(
        name="r", column="c", description="d", fact="quantiles", high=0.0,
        trailing=Trailing.SHIFT, errors=3.0, users="users",
    )  # fmt: skip
    for _ in range(400):
        days = []
        for _ in range(2):
            has, values = rng.random(78) < 0.4, rng.lognormal(0, 0.7, 78)
            share = float(np.average(has, weights=np.full(78, 5)))
            days.append({"share": share, "quantiles": np.quantile(values, levels).tolist(), "users": 78})
        day, before = days
        moved = compared(share_rule(), day["share"], [before["share"]]) or 0.0
        shares += moved > 3 * standard_error(share_rule(), day, [before])
        moved = compared(shift, day["quantiles"], [before["quantiles"]]) or 0.0
        shifts += moved > 3 * standard_error(shift, day, [before])
    assert shares <= 4
    assert shifts <= 4
