"""A day's contest on real models: the same rows for all, written once, and whom a day is measured against."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from deltalake import CommitProperties, write_deltalake

from model.config.presets import tiny, user_tower
from model.data.synthetic import random_samples
from model.judging.contest import Contest, Measure, evaluate
from model.promote import promote
from model.registry import measures
from model.registry import versions as registry
from model.registry.versions import CHAMPION, Version
from model.runs.files import RunError
from model.runs.store import Run, load_run
from model.training.loop import train
from spark_jobs.contract import locations
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts
from tests.model.conftest import METRICS, evaluation_of, pass_gate

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04")
CPU = torch.device("cpu")


def write_day(ds: str, seed: int) -> None:
    """Samples of a day, with a commit that names it, as the builder's do."""
    named = CommitProperties(custom_metadata={"userMetadata": json.dumps({"partition": f"ds={ds}"})})
    write_deltalake(
        locations.table("foodlog", "samples"),
        random_samples(FOODLOG, 60, seed=seed, ds=ds),
        partition_by=["ds"],
        mode="overwrite",
        predicate=f"ds = '{ds}'",
        commit_properties=named,
    )
    verdicts.allow("foodlog", "samples", [ds], "a test")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """Runs of two presets that have seen the first day, made for the second."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_LAKE", "MTGR_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for seed, ds in enumerate(DAYS[:2]):
        write_day(ds, seed)
    for config in (tiny(), user_tower()):
        train(FOODLOG, config, DAYS[1], CPU, lambda *_: "")
    return {preset: load_run("foodlog", preset, DAYS[1]) for preset in ("tiny", "user_tower")}


def measure(run: Run, **changes: Any) -> Measure:
    """A run as a registered version."""
    values = {"version": 1, "preset": str(run.record["preset"]), "ds": run.ds, "digest": run.digest}
    return Measure(**{**values, "seen_days": frozenset(run.seen_days), "path": run.path, **changes})


def contents(runs: Mapping[str, Run]) -> dict[Path, bytes]:
    """Every file of some runs, those of their checkpoints among them."""
    files = (path for run in runs.values() for path in run.path.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def test_the_presets_of_a_day_score_the_same_rows_and_an_evaluation_is_written_once(
    runs: dict[str, Run],
) -> None:
    contests = [Contest(run=run) for run in runs.values()]
    judged = evaluate(FOODLOG, contests)
    ours, theirs = judged["tiny"].evaluation, judged["user_tower"].evaluation
    assert (ours["samples_version"], ours["day_version"]) == (1, 1)
    assert ours["beside"]["user_tower"]["seen_days"] == [DAYS[0]]
    assert ours["beside"]["user_tower"]["ctr_gauc"] == theirs["candidate"]["ctr_gauc"]
    gain = ours["beside"]["user_tower"]["paired"]["ctr_gauc"]
    assert gain["gain"] == pytest.approx(ours["candidate"]["ctr_gauc"] - theirs["candidate"]["ctr_gauc"])
    assert gain["low"] <= gain["gain"] <= gain["high"]
    first = contents(runs)

    write_day(DAYS[2], 5)  # another day is no other input
    again = evaluate(FOODLOG, [contests[0]])  # nor are fewer presets
    assert not again["tiny"].changed
    assert contents(runs) == first

    write_day(DAYS[1], 7)  # the day is made again
    repeated = evaluate(FOODLOG, contests)["tiny"]
    assert (repeated.path.name, repeated.changed) == ("evaluation-2.json", True)
    assert repeated.evaluation["because"] == ["day_version: 1 -> 3"]
    assert (runs["tiny"].path / "scores_candidate-2.parquet").exists()
    assert {path: path.read_bytes() for path in first} == first


def test_who_has_seen_the_day_is_no_measure_of_it(runs: dict[str, Run]) -> None:
    knows = measure(runs["user_tower"], seen_days=frozenset(DAYS[:2]))
    for contest in (Contest(run=runs["tiny"], champion=knows), Contest(run=runs["tiny"], best=knows)):
        with pytest.raises(RunError, match=f"version 1 has seen {DAYS[1]}: it is no measure of that day"):
            evaluate(FOODLOG, [contest])
    judged = evaluate(FOODLOG, [Contest(run=runs["tiny"], champion=measure(runs["user_tower"]))])["tiny"]
    assert judged.evaluation["champion"]["preset"] == "user_tower"
    assert set(judged.evaluation["segments"]) == {"candidate", "champion"}


Make = Callable[..., tuple[Any, Version]]


def tagged(version: Version, **tags: str) -> Version:
    registry.annotate(version, tags)
    return registry.numbered("foodlog", version.version)


def test_a_past_day_is_measured_against_the_champion_of_then(make_version: Make) -> None:
    _, old = make_version(DAYS[1], DAYS[:1])
    old = tagged(old, decision="promoted")
    run, _ = make_version(DAYS[2], DAYS[:2])
    _, present = make_version(DAYS[3], DAYS[:3])
    registry.set_champion("foodlog", present)
    (contest,) = measures.contests_of("foodlog", [run])
    assert contest.champion is not None
    assert contest.champion.version == old.version
    assert f"has seen {DAYS[2]} and is no measure: measured against mtgr-foodlog version 1" in contest.note
    tagged(old, rolled_back="to nothing")
    (contest,) = measures.contests_of("foodlog", [run])
    assert contest.champion is None
    assert "measured without a champion" in contest.note


def test_a_decided_run_is_measured_against_whom_it_was_decided_against(make_version: Make) -> None:
    _, old = make_version(DAYS[1], DAYS[:1])
    named = {"version": old.version, "digest": old.digest}
    run, version = make_version(DAYS[2], DAYS[:2], champion=named)
    tagged(version, decision="promoted")
    _, other = make_version(DAYS[2], DAYS[:2], preset="user_tower")
    registry.set_champion("foodlog", other)
    (contest,) = measures.contests_of("foodlog", [run])
    assert contest.champion is not None
    assert (contest.champion.version, contest.note) == (old.version, "")


@pytest.mark.usefixtures("var")
def test_the_first_day_has_no_measure(make_version: Make) -> None:
    run, _ = make_version(DAYS[1], DAYS[:1])
    assert registry.aliased("foodlog", CHAMPION) is None
    assert measures.contests_of("foodlog", [run]) == [Contest(run=run)]


def version_of(number: int, ds: str, level: float, num_seen: int = 3, **changes: Any) -> Version:
    tags = {"decision": "promoted", "alarm": "false", measures.LEVEL: str(level), **changes.pop("tags", {})}
    return dataclasses.replace(
        Version(
            model="mtgr-foodlog", version=number, preset="tiny", ds=ds, samples_version=1, digest=f"{number}",
            seen_days=tuple(f"2026-02-{day:02d}" for day in range(1, num_seen + 1)), status="READY",
            run_id="", model_id="", tags=tags,
        ),
        **changes,
    )  # fmt: skip


BEST = version_of(1, "2026-03-05", 0.09)


@pytest.mark.parametrize(
    "other",
    [
        version_of(2, "2026-03-06", 0.08),
        version_of(2, "2026-02-28", 0.2),  # older than 14 days
        version_of(2, "2026-03-06", 0.2, num_seen=9),  # has seen more days than the candidate
        version_of(2, "2026-03-06", 0.2, tags={"alarm": "true"}),  # a leak looks best of all
        version_of(2, "2026-03-06", 0.2, tags={"rolled_back": "to version 1"}),
        version_of(2, "2026-03-06", 0.2, status="FAILED_REGISTRATION"),
        version_of(2, "2026-03-06", 0.2, preset="small", tags={"decision": "rejected"}),
        version_of(2, "2026-03-15", 0.2),  # of the day itself
    ],
)
def test_the_best_of_the_last_days_is_sound_and_has_seen_no_more(other: Version) -> None:
    assert measures.best_of("2026-03-15", 8, [BEST, other], "tiny") == BEST
    assert measures.best_of("2026-03-15", 8, [other, BEST], "tiny") == BEST


def test_a_version_of_the_champions_preset_may_be_best_without_having_served() -> None:
    rejected = version_of(2, "2026-03-06", 0.2, tags={"decision": "rejected"})
    assert measures.best_of("2026-03-15", 8, [BEST, rejected], "tiny") == rejected
    assert measures.best_of("2026-03-15", 8, [BEST, rejected], "small") == BEST


def test_ten_days_that_each_lose_a_little_end_within_one_loss(make_version: Make) -> None:
    """Each day's version is .0099 worse than the day before's, on whatever day both are scored."""
    days = [f"2026-03-{number:02d}" for number in range(1, 13)]
    levels: dict[str, float] = {}

    def metrics(one: Measure | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {**METRICS, "version": one.version, "digest": one.digest, "ctcvr_gauc": levels[one.digest]}

    for place in range(1, 12):
        run, _ = make_version(days[place], tuple(days[:place]))
        levels[run.digest] = 0.67 - 0.0099 * (place - 1)
        (contest,) = measures.contests_of("foodlog", [run])
        more = {"best": metrics(contest.best), "baselines": {"item_mean": {"ctcvr_gauc": 0.5}}}
        candidate = {"ctcvr_gauc": levels[run.digest]}
        evaluation = evaluation_of(run.digest, days[place], candidate, metrics(contest.champion), **more)
        (run.path / "evaluation.json").write_text(json.dumps(evaluation))
        pass_gate(run)
        assert not promote(FOODLOG, [run])["tiny"]["alarm"]
    champion = registry.aliased("foodlog", CHAMPION)
    assert champion is not None
    assert levels[champion.digest] == pytest.approx(0.67 - 0.0099)
    assert champion.ds == days[2]
