"""Every rule for evaluations, of every dataset, has an evaluation that breaks it and only it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expectations.judging.baseline import compared
from expectations.measuring.evaluations import EvaluationUnavailableError, inspect_evaluation
from expectations.rules.rule import Suite
from expectations.rules.suites import suite_of
from model.judging.metrics import auc
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from tests.expectations.mini import DS, MINI, broken_by

SUITES = [suite_of(dataset, "evaluation") for dataset in (FOODLOG, KUAIRAND)]
DATASETS = {dataset.name: dataset for dataset in (FOODLOG, KUAIRAND)}
ROWS = 60
Change = Callable[[dict[str, Any], dict[str, dict[str, Any]]], None]


def valid() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """An evaluation and its two score files: calibrated, and the candidate a little better."""
    rng = np.random.default_rng(0)
    labels = {"label_click": np.arange(ROWS) % 3 == 0, "label_conversion": np.arange(ROWS) % 6 == 0}
    scores: dict[str, dict[str, Any]] = {}
    metrics: dict[str, dict[str, Any]] = {}
    for ranker, skill in (("candidate", 0.05), ("champion", 0.04)):
        frame: dict[str, Any] = {
            "user_id": np.arange(ROWS) // 3,
            "window_start_ms": np.zeros(ROWS, np.int64),
            "impression_id": [f"i{row}" for row in range(ROWS)],
            **{name: label.astype(np.int8) for name, label in labels.items()},
        }
        metrics[ranker] = {"digest": ranker}
        for task, label in zip(("ctr", "ctcvr"), labels.values(), strict=True):
            score = rng.uniform(0.2, 0.4, ROWS) + skill * label
            score *= label.sum() / score.sum()
            frame |= {f"{task}_frozen": score, f"{task}_live": score}
            metrics[ranker] |= {f"{task}_{name}": 0.6 for name in ("gauc", "gauc_mean", "log_loss")}
            metrics[ranker] |= {f"{task}_auc": auc(label, score), f"{task}_gauc_users": 20.0}
        scores[ranker] = frame
    evaluation = {
        "dataset": "mini",
        "preset": "tiny",
        "ds": DS,
        "samples_version": 4,
        **metrics,
        "baselines": {"oracle": {"ctr_auc": 0.9, "ctcvr_auc": 0.9}},
    }
    return evaluation, scores


def metric(ranker: str, name: str, value: Any) -> Change:
    return lambda evaluation, scores: evaluation[ranker].update({name: value})


def field(name: str, value: Any) -> Change:
    return lambda evaluation, scores: evaluation.update({name: value})


def score(ranker: str, name: str, change: Callable[[Any], Any]) -> Change:
    return lambda evaluation, scores: scores[ranker].update({name: change(scores[ranker][name])})


def first(value: float) -> Callable[[Any], Any]:
    return lambda values: np.r_[value, values[1:]]


def oracle(name: str) -> Change:
    return lambda evaluation, scores: evaluation["baselines"]["oracle"].update({name: 0.5})


CASES: list[tuple[str, Change]] = [
    ("own_day", field("ds", "2026-03-01")),
    ("own_day", field("preset", "small")),
    ("same_rows", score("champion", "impression_id", lambda ids: ["other", *ids[1:]])),
    ("candidate_metrics_defined", metric("candidate", "ctr_gauc_mean", None)),
    ("champion_metrics_defined", metric("champion", "ctcvr_log_loss", None)),
    ("ctr_users_counted", metric("candidate", "ctr_gauc_users", 19.0)),
    ("ctcvr_users_counted", metric("candidate", "ctcvr_gauc_users", None)),
    (
        "ctr_gauc_believable",
        lambda e, s: [metric(r, "ctr_gauc", 0.96)(e, s) for r in ("candidate", "champion")] and None,
    ),
    (
        "ctcvr_gauc_believable",
        lambda e, s: [metric(r, "ctcvr_gauc", 0.98)(e, s) for r in ("candidate", "champion")] and None,
    ),
    ("ctr_gauc_gain_believable", metric("champion", "ctr_gauc", 0.49)),
    ("ctcvr_gauc_gain_believable", metric("champion", "ctcvr_gauc", 0.49)),
    ("ctr_auc_below_oracle", oracle("ctr_auc")),
    ("ctcvr_auc_below_oracle", oracle("ctcvr_auc")),
    ("champion_ctr_auc_recount", lambda e, s: e["champion"].update(ctr_auc=e["champion"]["ctr_auc"] + 0.001)),
    (
        "champion_ctcvr_auc_recount",
        lambda e, s: e["champion"].update(ctcvr_auc=e["champion"]["ctcvr_auc"] - 0.001),
    ),
    (
        "candidate_ctr_auc_recount",
        lambda e, s: e["candidate"].update(ctr_auc=e["candidate"]["ctr_auc"] - 0.001),
    ),
    (
        "candidate_ctcvr_auc_recount",
        lambda e, s: e["candidate"].update(ctcvr_auc=e["candidate"]["ctcvr_auc"] + 0.001),
    ),
    (
        "candidate_ctr_drift",
        score("candidate", "ctr_live", lambda values: 0.5 + (values - values.mean()) / 9),
    ),
    ("candidate_ctcvr_drift", score("candidate", "ctcvr_live", lambda values: values + 0.095)),
    ("candidate_ctr_calibrated", score("candidate", "ctr_live", lambda values: values / 2.5)),
    ("candidate_ctcvr_calibrated", score("candidate", "ctcvr_live", lambda values: values * 2.5)),
    *(
        (f"{ranker}_{name}_values", score(ranker, name, first(value)))
        for ranker in ("candidate", "champion")
        for name, value in (("ctr_frozen", math.nan), ("ctcvr_frozen", 0.0))
    ),
    *(
        (f"{ranker}_{name}_spread", score(ranker, name, lambda values: np.full(ROWS, 0.3)))
        for ranker in ("candidate", "champion")
        for name in ("ctr_frozen", "ctcvr_frozen")
    ),
]
# Wrong already on the day before, so that the scores do not drift.
LASTING = ("candidate_ctr_calibrated", "candidate_ctcvr_calibrated")
# An AUC follows from the live scores: what breaks these rules changes the AUC, too.
TOGETHER: list[tuple[set[str], Change]] = [
    *(
        (
            {f"{ranker}_{task}_live_values", f"{ranker}_{task}_auc_recount"},
            score(ranker, f"{task}_live", first(math.inf)),
        )
        for ranker in ("candidate", "champion")
        for task in ("ctr", "ctcvr")
    ),
    *(
        (
            {f"{ranker}_{task}_live_spread", f"{ranker}_{task}_auc_recount"},
            score(ranker, f"{task}_live", lambda values: np.full(ROWS, values.mean())),
        )
        for ranker in ("candidate", "champion")
        for task in ("ctr", "ctcvr")
    ),
    *(
        (
            {
                f"{task}_auc_believable",
                f"{task}_auc_gain_believable",
                f"{task}_auc_below_oracle",
                f"candidate_{task}_auc_recount",
            },
            metric("candidate", f"{task}_auc", 0.99),
        )
        for task in ("ctr", "ctcvr")
    ),
]


Inspected = Callable[..., set[str]]


def measured(suite: Suite, folder: Path, change: Change | None) -> tuple[dict[str, Any], frozenset[str]]:
    """Facts of a changed evaluation, and what there is to compare with."""
    evaluation, scores = valid()
    evaluation["dataset"] = suite.dataset
    if change:
        change(evaluation, scores)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for ranker, frame in scores.items():
        pq.write_table(pa.table(frame), folder / f"scores_{ranker}.parquet")
    facts, _, there, version, _ = inspect_evaluation(DATASETS[suite.dataset], "tiny", DS)
    assert version == 4
    return facts, there


@pytest.fixture(params=SUITES, ids=lambda suite: suite.dataset)
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.param


@pytest.fixture
def inspected(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inspected:
    """Says which rules a changed evaluation breaks, after a day whose scores were the valid ones."""
    monkeypatch.setenv("MTGR_RUNS", str(tmp_path))
    folder = tmp_path / suite.dataset / "tiny" / DS

    def run(change: Change | None, lasting: bool = False) -> set[str]:
        before, _ = measured(suite, folder, change if lasting else None)
        facts, there = measured(suite, folder, change)
        values = {
            rule.name: compared(rule, facts.get(rule.fact), [before[rule.fact]])
            if rule.trailing
            else facts.get(rule.fact)
            for rule in suite.rules
            if not rule.requires or rule.requires in there
        }
        return broken_by(suite, values)

    return run


def test_a_valid_evaluation_breaks_no_rule(inspected: Inspected) -> None:
    assert inspected(None) == set()


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(CASES)])
def test_an_evaluation_breaks_its_rule_and_no_other(suite: Suite, inspected: Inspected, index: int) -> None:
    rule, change = CASES[index]
    known = {rule.name for rule in suite.rules}
    assert inspected(change, lasting=rule in LASTING) == {rule} & known


@pytest.mark.parametrize("index", range(len(TOGETHER)))
def test_rules_that_break_together(suite: Suite, inspected: Inspected, index: int) -> None:
    known = {rule.name for rule in suite.rules}
    assert inspected(TOGETHER[index][1]) == TOGETHER[index][0] & known


def test_every_rule_has_an_evaluation_that_breaks_it(suite: Suite) -> None:
    covered = {rule for rule, _ in CASES}.union(*(rules for rules, _ in TOGETHER), {"rows_present"})
    known = {rule.name for rule in suite.rules}
    assert covered & known == known
    assert {rule for rule in covered - known if not rule.endswith("_below_oracle")} == set()


def test_an_evaluation_without_rows_breaks_the_rule_about_rows(suite: Suite) -> None:
    assert broken_by(suite, {"rows_present": 0}) == {"rows_present"}


def test_without_champion_and_oracle_their_rules_are_left_out(inspected: Inspected) -> None:
    def alone(evaluation: dict[str, Any], scores: dict[str, dict[str, Any]]) -> None:
        evaluation |= {"champion": None, "baselines": {}}
        del scores["champion"]

    assert inspected(alone) == set()


def test_a_missing_or_damaged_evaluation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGR_RUNS", str(tmp_path))
    with pytest.raises(EvaluationUnavailableError, match=r"no evaluation at .*run python -m model\.evaluate"):
        inspect_evaluation(MINI, "tiny", DS)
    path = tmp_path / "mini" / "tiny" / DS / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"ds": "2026')
    with pytest.raises(EvaluationUnavailableError, match="is damaged"):
        inspect_evaluation(MINI, "tiny", DS)
    path.write_text(json.dumps(valid()[0]))
    with pytest.raises(EvaluationUnavailableError, match="scores_candidate"):
        inspect_evaluation(MINI, "tiny", DS)


def test_a_jump_over_a_young_champion_is_no_sign_of_a_leak(inspected: Inspected) -> None:
    def jump(days: int) -> Change:
        return lambda e, s: e["champion"].update(ctr_gauc=0.49, days_seen=days)

    assert inspected(jump(6)) == set()
    assert inspected(jump(7)) == {"ctr_gauc_gain_believable"}


def test_calibration_counts_what_a_candidate_stands_for(inspected: Inspected) -> None:
    def sampled(evaluation: dict[str, Any], scores: dict[str, Any]) -> None:
        labels = np.asarray(scores["candidate"]["label_click"])
        for frame in scores.values():  # of the candidates without a click one in three was kept
            frame["weight"] = np.where(labels > 0, 1.0, 3.0)

    assert inspected(sampled) == {"candidate_ctr_calibrated", "candidate_ctcvr_calibrated"}

    def thinned(evaluation: dict[str, Any], scores: dict[str, Any]) -> None:
        for frame in scores.values():  # of all candidates one in three was kept: labels are as rare as before
            frame["weight"] = np.full(ROWS, 3.0)

    assert inspected(thinned) == set()
