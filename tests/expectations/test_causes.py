"""One cause is one message: what follows from another rule that does not hold."""

from __future__ import annotations

from typing import Any

import pytest

from expectations.judging import judge as judge_module
from expectations.judging.causes import causes
from expectations.judging.validation import Judgement
from expectations.rules.rule import Suite
from expectations.rules.suites import SUITES, suite_of
from spark_jobs.contract.foodlog import FOODLOG
from tests.expectations.mini import LIMITS, MINI

KM = "distance_km"
EVENTS, SAMPLES, EVALUATION = (suite_of(FOODLOG, name) for name in ("events", "samples", "evaluation"))


def roots(suite: Suite, *names: str, unmeasured: tuple[str, ...] = ()) -> set[str]:
    """The rules that are reported when these do not hold."""
    broken = [rule for rule in suite.rules if rule.name in (*names, *unmeasured)]
    assert len(broken) == len(names) + len(unmeasured)
    found = causes(broken, {rule.name: None if rule.name in unmeasured else 9.0 for rule in broken})
    assert not set(found.values()) & set(found), "a cause follows from nothing"
    return {rule.name for rule in broken} - set(found)


@pytest.mark.parametrize(
    ("suite", "names", "unmeasured", "expected"),
    [
        (EVENTS, ("schema_missing",), (f"{KM}_values", f"{KM}_drift"), {"schema_missing"}),
        (EVENTS, ("schema_retyped", "user_known"), ("fresh",), {"schema_retyped", "user_known"}),
        (
            EVENTS,
            (f"{KM}_values", f"{KM}_null_drift", f"{KM}_drift"),
            (),
            {f"{KM}_values"},
        ),
        (
            EVENTS,
            ("hours_covered", "fresh", "impressions_volume", "users_volume", "labels_mature"),
            (),
            {"hours_covered"},
        ),
        (EVENTS, ("impressions_volume", "users_volume"), (), {"impressions_volume"}),
        (
            EVENTS,
            ("weather_null_drift", f"{KM}_drift"),
            (),
            {"weather_null_drift", f"{KM}_drift"},
        ),
        (
            SAMPLES,
            (
                "static_price_values",
                "realtime_price_values",
                "candidate_price_values",
                "candidate_price_drift",
            ),
            (),
            {"static_price_values"},
        ),
        (SAMPLES, ("ctr_level", "ctr_drift", "ctcvr_level", "ctcvr_drift"), (), {"ctr_level"}),
        (SAMPLES, ("static_ascending", "realtime_ascending"), (), {"static_ascending", "realtime_ascending"}),
        (SAMPLES, ("features_vary", "features_differ"), (), {"features_vary", "features_differ"}),
        (
            EVALUATION,
            ("candidate_ctr_live_values", "candidate_ctr_auc_recount", "candidate_ctr_calibrated"),
            (),
            {"candidate_ctr_live_values"},
        ),
    ],
)
def test_one_cause_is_reported_once(
    suite: Suite, names: tuple[str, ...], unmeasured: tuple[str, ...], expected: set[str]
) -> None:
    assert roots(suite, *names, unmeasured=unmeasured) == expected


def test_what_follows_is_marked_and_named_behind_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from expectations import gate

    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    broken = {"distance_values", "distance_null_drift", "hours_covered"}
    monkeypatch.setattr(
        judge_module,
        "validate",
        lambda suite, rules, values, run: {rule.name: Judgement(rule.name not in broken) for rule in rules},
    )
    suite = SUITES["events"](MINI, LIMITS)
    facts = {"rows": 9, "hours": 0, "distance_values": 2}
    verdict = gate._conclude(judge_module.judge(suite, "2026-03-02", facts), suite, None)
    assert verdict.failed == ["hours_covered", "distance_values"]
    assert "column time_ms: 0, allowed: at least 1 (Limits.hours)" in caplog.text
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 2
    left_out = set(verdict.left_out)
    assert "distance_null_drift" in left_out  # no trailing day
