"""Each promotion rule has an evaluation that breaks it and only it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from expectations.rules.suites import suite_of
from model.judging.decision import Case, Contender
from model.judging.rules import decide, decide_day
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.limits import Limits

DS = "2026-03-04"
METRICS = {
    "ctr_auc": 0.70, "ctr_gauc": 0.62, "ctr_gauc_request": 0.66, "ctr_log_loss": 0.30, "ctr_copc": 1.0,
    "ctr_calibration_error": 0.01, "ctr_gauc_users": 500.0,
    "ctcvr_auc": 0.75, "ctcvr_gauc": 0.67, "ctcvr_gauc_request": 0.71, "ctcvr_log_loss": 0.20,
    "ctcvr_copc": 1.0, "ctcvr_calibration_error": 0.005, "ctcvr_gauc_users": 300.0,
}  # fmt: skip
ITEM_MEAN = {name: value + (0.05 if name.endswith("log_loss") else -0.05) for name, value in METRICS.items()}
WIN = {"ctcvr_gauc": {"gain": 0.02, "low": 0.004, "high": 0.036, "users": 300}}
TIE = {"ctcvr_gauc": {"gain": 0.02, "low": -0.001, "high": 0.041, "users": 300}}
SEGMENT = {"ctr_gauc": 0.6, "ctr_gauc_users": 200.0, "ctcvr_gauc": 0.65, "ctcvr_gauc_users": 150.0}
EVALUATION: dict[str, Any] = {
    "ds": DS,
    "samples_version": 7,
    "day_version": 5,
    "click_rate": 0.1,
    "conversion_rate": 0.03,
    "candidate": {"digest": "c" * 64, **METRICS, "ctr_auc": 0.701},
    "champion": {"digest": "d" * 64, "version": 3, "preset": "tiny", **METRICS, "paired": WIN},
    "best": None,
    "beside": {},
    "baselines": {"oracle": {"ctr_auc": 0.78, "ctcvr_auc": 0.80}, "item_mean": ITEM_MEAN},
    "segments": {"candidate": {"history_none": SEGMENT}, "champion": {"history_none": SEGMENT}},
}
CANDIDATE = Contender(
    version=4, preset="tiny", digest="c" * 64, seen_days=frozenset({"2026-03-01", "2026-03-02", "2026-03-03"})
)
CHAMPION = Contender(
    version=3, preset="tiny", digest="d" * 64, seen_days=frozenset({"2026-03-01", "2026-03-02"})
)


def case(
    changes: dict[str, Any] | None = None,
    candidate: Contender = CANDIDATE,
    champion: Contender | None = CHAMPION,
    **settings: Any,
) -> Case:
    """The good case with values changed by their path, e.g. `candidate.ctr_gauc`."""
    evaluation = copy.deepcopy(EVALUATION)
    if champion is None:
        evaluation["champion"] = None
    for path, value in (changes or {}).items():
        *folders, name = path.split(".")
        place = evaluation
        for folder in folders:
            place = place[folder]
        place[name] = value
    return Case(
        evaluation=evaluation, ds=DS, candidate=candidate, champion=champion,
        settings=Limits(**settings),
    )  # fmt: skip


def broken(given: Case) -> set[str]:
    return {finding.rule for finding in decide(given).findings if not finding.holds}


def other(contender: Contender, **changes: Any) -> Contender:
    return dataclasses.replace(contender, **changes)


def test_a_candidate_that_is_as_good_with_newer_data_is_promoted() -> None:
    decision = decide(case())
    assert decision.promoted
    assert not decision.is_alarm
    assert any("ctcvr_gauc 0.6700 against 0.6700 of version 3" in reason for reason in decision.reasons())


def test_without_a_champion_the_absolute_rules_decide() -> None:
    assert decide(case(champion=None)).promoted
    assert broken(case({"candidate.ctr_copc": 34.6}, champion=None)) == {"ctr_copc"}


@pytest.mark.parametrize(
    ("changes", "rules", "is_alarm"),
    [
        ({"ds": "2026-03-03"}, {"same_day"}, True),
        ({"samples_version": None}, {"samples_version"}, True),
        ({"candidate.digest": "e" * 64}, {"candidate_digest"}, True),
        ({"champion.digest": "f" * 64}, {"champion_digest"}, True),
        ({"candidate.ctr_auc": 0.70}, {"two_models"}, True),
        ({"candidate.ctcvr_gauc": 0.659}, {"ctcvr_gauc"}, False),
        ({"candidate.ctr_gauc": 0.609}, {"ctr_gauc"}, False),
        ({"candidate.ctr_copc": 0.5}, {"ctr_copc"}, False),
        ({"candidate.ctcvr_copc": 34.6}, {"ctcvr_copc"}, False),
        ({"candidate.ctcvr_gauc_users": 19.0}, {"ctcvr_users"}, False),
        ({"candidate.ctr_auc": 0.689}, {"ctr_auc_served"}, False),
        ({"candidate.ctcvr_gauc_request": 0.689}, {"ctcvr_gauc_request_served"}, False),
        ({"candidate.ctcvr_gauc_request": None},
         {"ctcvr_gauc_request_served", "item_mean_ctcvr_gauc_request"}, False),
        ({"candidate.ctr_log_loss": 0.316}, {"ctr_log_loss_served"}, False),
        ({"candidate.ctr_calibration_error": 0.031}, {"ctr_calibration_error_served"}, False),
        ({"candidate.ctcvr_calibration_error": 0.012}, {"ctcvr_calibration_error_served"}, False),
        ({"click_rate": None}, {"ctr_calibration_error_served"}, False),
        ({"candidate.ctcvr_gauc": 0.78}, {"ctcvr_gauc_gain"}, True),
        ({"baselines.oracle.ctr_auc": 0.68}, {"ctr_oracle"}, True),
        ({"segments.candidate.history_none": {**SEGMENT, "ctr_gauc": 0.5}},
         {"segment_history_none_ctr_gauc"}, False),
        ({"segments.candidate": {}},
         {"segment_history_none_ctr_gauc", "segment_history_none_ctcvr_gauc"}, False),
    ],
)  # fmt: skip
def test_one_broken_rule_keeps_the_champion(changes: dict[str, Any], rules: set[str], is_alarm: bool) -> None:
    assert broken(case(changes)) == rules
    assert decide(case(changes)).promoted is False
    assert decide(case(changes)).is_alarm is is_alarm


@pytest.mark.parametrize(("days", "rules"), [(1, set()), (6, set()), (7, {"ctcvr_gauc_gain"})])
def test_a_young_champion_may_be_beaten_by_far(days: int, rules: set[str]) -> None:
    assert broken(case({"candidate.ctcvr_gauc": 0.78, "champion.days_seen": days})) == rules


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.7", True])
@pytest.mark.parametrize("name", ["ctr_auc", "ctr_gauc", "ctcvr_gauc", "ctr_copc", "ctcvr_log_loss"])
def test_a_metric_that_is_no_finite_number_fails_closed(name: str, value: object) -> None:
    decision = decide(case({f"candidate.{name}": value}))
    assert not decision.promoted
    assert decision.is_alarm
    assert f"candidate_{name}" in {finding.rule for finding in decision.findings if not finding.holds}


def test_a_metric_that_is_missing_fails_closed() -> None:
    given = case()
    del given.evaluation["candidate"]["ctcvr_gauc"]  # type: ignore[attr-defined]
    assert not decide(given).promoted


def test_the_champions_metric_must_be_there_too() -> None:
    assert not decide(case({"champion.ctcvr_gauc": None})).promoted


def test_a_gauc_that_counts_no_user_is_a_normal_day_without_promotion() -> None:
    none = {"candidate.ctcvr_gauc": None, "candidate.ctcvr_gauc_users": 0.0}
    decision = decide(case(none))
    assert not decision.promoted
    assert not decision.is_alarm


def test_a_version_that_is_not_ready_is_never_promoted() -> None:
    assert broken(case(candidate=other(CANDIDATE, status="FAILED_REGISTRATION"))) == {"ready"}


SERVED = {
    f"{who}.{task}_{kind}": value
    for who, values in (
        ("candidate", {"auc": 0.56, "gauc_request": 0.52, "log_loss": 0.6}),
        ("champion", {"auc": 0.73, "gauc_request": 0.79, "log_loss": 0.3}),
    )
    for kind, value in values.items()
    for task in ("ctr", "ctcvr")
}  # fmt: skip


def test_a_model_that_ranks_well_frozen_and_breaks_as_it_is_served_is_an_alarm() -> None:
    decision = decide(case(SERVED))
    assert not decision.promoted
    assert decision.is_alarm
    alarms = {finding.rule for finding in decision.findings if finding.is_alarm and not finding.holds}
    kinds = ("auc", "gauc_request", "log_loss")
    assert alarms == {f"{task}_{kind}_served" for task in ("ctr", "ctcvr") for kind in kinds}


def test_a_poor_challenger_is_no_alarm() -> None:
    decision = decide(challenger(SERVED))
    assert not decision.promoted
    assert not decision.is_alarm


@pytest.mark.parametrize("champion", [None, CHAMPION], ids=["first", "later"])
@pytest.mark.parametrize(
    "name",
    ["ctcvr_gauc", "ctr_gauc", "ctr_auc", "ctcvr_auc", "ctr_gauc_request", "ctcvr_log_loss"],
)
def test_the_item_mean_is_a_floor_for_every_model(champion: Contender | None, name: str) -> None:
    beyond = METRICS[name] * (0.9 if name.endswith("log_loss") else 1.1)
    found = broken(case({f"baselines.item_mean.{name}": beyond}, champion=champion))
    assert found == {f"item_mean_{name}"}
    assert not decide(case({f"baselines.item_mean.{name}": beyond}, champion=champion)).is_alarm


def test_where_no_rate_by_item_is_declared_there_is_no_floor_and_the_decision_says_so() -> None:
    given = case()
    del given.evaluation["baselines"]["item_mean"]
    decision = decide(given)
    assert decision.promoted
    assert any("there is no floor" in finding.reason for finding in decision.findings)


def challenger(changes: dict[str, Any] | None = None, **more: Any) -> Case:
    """Another preset than the champion's, which wins over the champion and over its preset of the day."""
    days = sorted(CANDIDATE.seen_days)
    beside = {"digest": "e" * 64, "seen_days": days, **METRICS, "paired": WIN}
    return case(
        {"beside": {"tiny": beside}, **(changes or {})}, candidate=other(CANDIDATE, preset="small"), **more
    )


def test_another_preset_has_to_win_by_its_whole_interval() -> None:
    assert decide(challenger()).promoted
    assert broken(challenger({"champion.paired": TIE})) == {"wins_over_champion"}
    # A day newer than the champion, it beats it, but not the champion's own preset of the same days.
    assert broken(challenger({"beside.tiny.paired": TIE})) == {"wins_over_champions_preset"}
    assert broken(challenger({"beside.tiny.paired": {}})) == {"wins_over_champions_preset"}
    assert broken(challenger({"beside": {}})) == {"beside_champions_preset"}
    assert broken(challenger({"beside.tiny.seen_days": ["2026-03-01"]})) == {"same_seen_days"}


def test_of_the_presets_of_a_day_one_is_chosen() -> None:
    own = case()
    assert chosen({"tiny": own, "small": challenger()}) == "small"
    assert chosen({"tiny": own, "small": challenger({"beside.tiny.paired": TIE})}) == "tiny"
    better = challenger({"candidate.ctcvr_gauc": 0.7})
    better = dataclasses.replace(better, candidate=other(better.candidate, preset="user_tower"))
    assert chosen({"tiny": own, "small": challenger(), "user_tower": better}) == "user_tower"
    assert chosen({"tiny": case({"candidate.ctcvr_gauc": 0.64})}) is None


def test_the_first_champion_is_the_best_of_the_day_that_the_rules_pass() -> None:
    first = {"tiny": case(champion=None), "small": case({"candidate.ctcvr_gauc": 0.68}, champion=None)}
    assert chosen(first) == "small"
    weak = case({"candidate.ctcvr_gauc": 0.68, "candidate.ctr_copc": 3.0}, champion=None)
    assert chosen({**first, "small": weak}) == "tiny"
    reasons = decide_day(first)["tiny"].reasons()
    assert reasons == ["ctcvr_gauc 0.6700, that of small, the day's choice, 0.6800"]


def test_presets_that_were_scored_on_different_samples_are_not_compared() -> None:
    decisions = decide_day({"tiny": case(), "small": challenger({"day_version": 6})})
    assert [decision.promoted for decision in decisions.values()] == [False, False]
    assert all(decision.is_alarm for decision in decisions.values())


def chosen(cases: dict[str, Case]) -> str | None:
    promoted = [preset for preset, decision in decide_day(cases).items() if decision.promoted]
    assert len(promoted) <= 1
    return promoted[0] if promoted else None


def test_losses_that_are_small_each_day_do_not_add_up() -> None:
    """Ten days, each .0099 worse than the day before: the first passes, the second is a second loss."""
    level, champions = 0.67, [0.67]
    for _ in range(10):
        level -= 0.0099
        measured = {
            "candidate.ctcvr_gauc": level,
            "champion.ctcvr_gauc": champions[-1],
            "best": {"digest": "b" * 64, "version": 1, "preset": "tiny", **METRICS,
                     "ctcvr_gauc": max(champions)},
        }  # fmt: skip
        if decide(case(measured)).promoted:
            champions.append(level)
    assert champions == [0.67, pytest.approx(0.6601)]


@pytest.mark.parametrize(
    "change",
    [{"ctr_gauc": 0.631}, {"ctr_auc": 0.72}, {"ctcvr_log_loss": 0.19}, {"ctcvr_gauc_request": 0.731}],
)
def test_the_best_of_the_last_days_bounds_all_that_the_champion_bounds(change: dict[str, float]) -> None:
    best = {"digest": "b" * 64, "version": 1, "preset": "tiny", **METRICS, **change}
    (name,) = change
    found = broken(case({"best": best}))
    assert {rule.removesuffix("_served") for rule in found} == {f"best_{name}"}


def test_a_backfilled_model_of_older_or_fewer_days_does_not_replace_the_champion() -> None:
    newer = other(CHAMPION, seen_days=frozenset({"2026-03-01", "2026-03-02", "2026-03-03", "2026-03-05"}))
    assert broken(case(champion=newer)) == {"newer_data"}
    knows = other(CHAMPION, seen_days=frozenset({"2026-03-03", DS}))
    assert broken(case(champion=knows)) == {"newer_data", "fair_day"}
    # Judged beside the champion of then, or without one: no alarm, and no promotion.
    assert broken(case({"champion": None}, champion=knows)) == {"newer_data", "fair_day"}
    fewer = other(CANDIDATE, seen_days=frozenset({"2026-03-03"}))
    assert broken(case(candidate=fewer)) == {"newer_data"}


def test_a_champion_that_changed_since_the_evaluation_is_an_alarm() -> None:
    assert broken(case({"champion": None})) == {"champion_digest"}
    given = case(champion=None)
    assert broken(dataclasses.replace(given, evaluation=case().evaluation)) == {"champion_digest"}


def test_a_candidate_that_has_seen_the_day_is_an_alarm() -> None:
    seen = other(CANDIDATE, seen_days=frozenset({*CANDIDATE.seen_days, DS}))
    assert broken(case(candidate=seen)) == {"unseen_day"}
    assert decide(case(candidate=seen)).is_alarm


def test_small_segments_are_not_judged() -> None:
    few = {"segments.champion.history_none": {**SEGMENT, "ctr_gauc_users": 99.0, "ctcvr_gauc_users": 99.0}}
    assert decide(case({**few, "segments.candidate": {}})).promoted


@pytest.mark.parametrize("dataset", ["foodlog", "kuairand"])
def test_the_gate_and_promotion_bound_leaks_and_calibration_alike(dataset: str) -> None:
    limits = dataset_named(dataset).limits
    gate = {rule.name: rule for rule in suite_of(dataset_named(dataset), "evaluation").rules}
    for task in ("ctr", "ctcvr"):
        calibrated = gate[f"candidate_{task}_calibrated"]
        for copc in (calibrated.low, calibrated.high):
            assert f"{task}_copc" not in broken(limited(limits, {f"candidate.{task}_copc": copc}))
        assert f"{task}_copc" in broken(limited(limits, {f"candidate.{task}_copc": calibrated.low - 0.01}))
        assert f"{task}_copc" in broken(limited(limits, {f"candidate.{task}_copc": calibrated.high + 0.01}))
        for metric in (f"{task}_auc", f"{task}_gauc"):
            most = gate[f"{metric}_believable"].high
            assert f"{metric}_ceiling" not in broken(limited(limits, {f"candidate.{metric}": most}))
            assert f"{metric}_ceiling" in broken(limited(limits, {f"candidate.{metric}": most + 0.001}))
            gain = gate[f"{metric}_gain_believable"].high
            values = {f"champion.{metric}": 0.5, f"candidate.{metric}": 0.5 + gain + 0.001}
            assert f"{metric}_gain" in broken(limited(limits, values))


def limited(limits: Limits, changes: dict[str, Any]) -> Case:
    return dataclasses.replace(case(changes), settings=limits)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"known_users": 98}, "known_users is 98"),
        ({"copc": (1.7, 0.6)}, "copc is"),
        ({"hours": 25}, "hours is 25"),
        ({"ceilings": {"ctr_acu": 0.9}}, "ceilings is of ctr_acu"),
        ({"quantile_shift": float("nan")}, "quantile_shift is nan"),
    ],
)
def test_limits_that_bound_nothing_sensible_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Limits(**wrong)


def test_kuairands_ceilings_are_the_known_limits_of_the_log() -> None:
    ceilings = dataset_named("kuairand").limits.ceilings
    assert (ceilings["ctr_gauc"], ceilings["ctcvr_gauc"], ceilings["ctr_auc"]) == (0.65, 0.67, 0.765)


def test_rules_are_on_by_default() -> None:
    settings = Limits()
    assert settings.max_loss < 0.02
    assert settings.min_users > 0
    assert settings.ceilings
