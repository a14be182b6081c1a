"""What training and evaluation take: days that their gate has passed, and those that an operator allows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from model.judging.contest import Contest, evaluate
from model.runs.files import RunError
from model.runs.store import load_run
from model.training import loop as training
from spark_jobs.lake import verdicts
from spark_jobs.lake.verdicts import NotPassedError
from tests.model import test_training as base

D1, D2, D3, D4 = (*base.DAYS, "2026-03-04")
lake = base.lake


def judge(ds: str, success: bool, allowed: str = "") -> None:
    """The verdict of a gate on the day as it is now."""
    verdicts.allow(base.DATASET.name, "samples", [ds], allowed)
    path = verdicts.path_of(base.DATASET.name, "samples", ds)
    verdicts.write(path, {**(verdicts.read(path) or {}), "success": success})


def build(ds: str, seed: int, *, keep: bool = False) -> None:
    """Builds a day again; what the others were judged for stands, as with every build of ours.

    Its own verdict is of the rows before it, with `keep`, or gone.
    """
    path = verdicts.path_of("foodlog", "samples", ds)
    own = verdicts.read(path)
    before = {day: verdicts.standings("foodlog", "samples", [day]) for day in base.DAYS}
    base.add_day(ds, seed)
    for day, stands in before.items():
        judge(day, success=day not in stands.failed, allowed=stands.reasons.get(day, ""))
    path.unlink()
    if keep:
        verdicts.write(path, own or {})


def train(ds: str) -> dict[str, Any]:
    return training.train(base.DATASET, base.config(), ds, base.CPU, base.unlogged)


def seen(ds: str) -> set[str]:
    return set(load_run(base.DATASET.name, "tiny", ds).seen_days)


@pytest.fixture(autouse=True)
def _passed(lake: Path) -> None:
    for day in base.DAYS:
        judge(day, success=True)


def test_a_day_that_failed_its_gate_is_not_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    judge(D2, success=False)
    assert train(D3)["trained_days"] == [D1]
    assert f"did not pass their gate: {D2}" in caplog.text
    assert train(D4)["trained_days"] == [D3]
    assert seen(D4) == {D1, D3}


def test_a_day_that_no_gate_has_judged_is_refused_by_the_gate_to_run() -> None:
    build(D2, 7)
    with pytest.raises(NotPassedError, match=f"samples of {D2} as they are now.*--suite samples --ds {D2}"):
        train(D3)
    assert train(D2)["trained_days"] == [D1]  # it is not among the days of this one


def test_a_day_that_is_built_again_is_read_as_it_passed_until_its_gate_has_seen_it() -> None:
    judged = verdicts.read(verdicts.path_of("foodlog", "samples", D2)) or {}
    build(D2, 7, keep=True)
    train(D2)
    contest = Contest(run=load_run(base.DATASET.name, "tiny", D2))
    scored = evaluate(base.DATASET, [contest])["tiny"].evaluation
    assert scored["samples_version"] == judged["version"]
    train(D3)
    run = load_run(base.DATASET.name, "tiny", D3)
    assert run.seen_days[D2] == judged["version"]
    judge(D2, success=True)
    newest = evaluate(base.DATASET, [contest])["tiny"].evaluation
    assert newest["samples_version"] > judged["version"]


def test_a_day_that_is_mended_is_learned_in_its_place() -> None:
    judge(D2, success=False)
    train(D2)
    train(D4)
    build(D2, 7)
    judge(D2, success=True)
    mended = train(D4)
    assert (mended["base"], mended["trained_days"]) == (D2, [D2, D3])
    assert seen(D4) == {D1, D2, D3}


def test_only_failed_days_are_said_to_have_failed() -> None:
    judge(D1, success=False)
    with pytest.raises(RunError, match=rf"before {D2} that passed its gate \(failed: {D1}\)"):
        train(D2)


def test_what_an_operator_allows_is_learned_and_the_run_says_why() -> None:
    judge(D1, success=False, allowed="a holiday")
    train(D3)
    (link,) = load_run(base.DATASET.name, "tiny", D3).record["lineage"]
    assert link["samples_allowed"] == {D1: "a holiday"}


def test_a_run_that_has_learned_what_failed_since_is_no_base(caplog: pytest.LogCaptureFixture) -> None:
    train(D2)
    train(D3)
    judge(D2, success=False)  # judged again by a stricter rule, or what was allowed is taken back
    with caplog.at_level(logging.WARNING):
        result = train(D4)
    assert (result["base"], result["trained_days"]) == (D2, [D3])
    assert f"it has seen {D2}, which has failed its gate since" in caplog.text


@pytest.mark.parametrize("judged", [True, False])
def test_a_run_that_has_seen_a_day_before_late_records_made_it_fail_is_a_base(judged: bool) -> None:
    train(D3)
    build(D1, 8)
    if judged:
        judge(D1, success=False)
    result = train(D4)
    assert (result["base"], result["trained_days"]) == (D3, [D3])


def test_a_day_is_scored_once_its_gate_has_passed_it() -> None:
    train(D2)
    run = load_run(base.DATASET.name, "tiny", D2)
    judge(D2, success=False)
    with pytest.raises(NotPassedError, match=rf"samples of {D2} did not pass their gate.*--allow"):
        evaluate(base.DATASET, [Contest(run=run)])
    build(D2, 7)
    with pytest.raises(NotPassedError, match="no gate has judged samples"):
        evaluate(base.DATASET, [Contest(run=run)])
    judge(D2, success=False, allowed="a holiday")
    assert evaluate(base.DATASET, [Contest(run=run)])["tiny"].evaluation["samples_allowed"] == "a holiday"
    judge(D2, success=True)
    assert evaluate(base.DATASET, [Contest(run=run)])["tiny"].evaluation["samples_allowed"] == ""
