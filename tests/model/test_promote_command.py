"""Promotion and rollback on a real registry: once, whole, by one at a time, never of the wrong model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from model import promote, rollback
from model.registry import versions as registry
from model.registry.store import client
from model.registry.versions import CHAMPION, RegistryError, Version
from model.reports import page
from model.runs.files import RunError
from model.runs.store import load_run
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake.verdicts import NotPassedError
from tests.model.conftest import pass_gate

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05")
Make = Callable[..., tuple[Any, Version]]
PHASES = ("decided", "file_written", "annotated", "before_alias", "after_alias")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def champion_number() -> int | None:
    found = registry.aliased("foodlog", CHAMPION)
    return None if found is None else found.version


def as_champion(version: Version) -> dict[str, Any]:
    """How an evaluation names the champion that it compared with."""
    return {"version": version.version, "digest": version.digest}


def decided(run: Any) -> dict[str, Any]:
    """What `promote` says of one run."""
    return promote.promote(FOODLOG, [run])[str(run.record["preset"])]


@pytest.fixture
def first(make_version: Make) -> tuple[Any, Version]:
    """A champion, promoted by the rules."""
    run, version = make_version(DAYS[1], DAYS[:1])
    assert decided(run)["promoted"]
    return run, registry.numbered("foodlog", version.version)


def better(make_version: Make, champion: Version, place: int = 2, **more: Any) -> tuple[Any, Version]:
    """A version of a later day that the rules promote over `champion`."""
    candidate = {"ctr_auc": 0.71, **more.pop("candidate", {})}
    return make_version(
        DAYS[place], DAYS[:place], candidate=candidate, champion=as_champion(champion), **more
    )


def beside(run: Any, **metrics: Any) -> dict[str, Any]:
    """How an evaluation names the other preset of the day, over which it wins."""
    win = {"ctcvr_gauc": {"gain": 0.02, "low": 0.01, "high": 0.03, "users": 500}}
    return {"digest": run.digest, "seen_days": sorted(run.seen_days), "paired": win, **metrics}


def challenger(make_version: Make, champion: Version, own: Any) -> tuple[Any, Version]:
    """A version of another preset, made for the day of `own`, that wins over it and over the champion."""
    win = beside(own)
    named = {**as_champion(champion), "preset": "tiny", "paired": win["paired"]}
    return make_version(
        DAYS[2], DAYS[:2], preset="user_tower", champion=named, beside={"tiny": win},
        candidate={"ctcvr_gauc": 0.69},
    )  # fmt: skip


def test_a_promotion_is_written_down_in_words_and_once(first: tuple[Any, Version]) -> None:
    run, version = first
    assert champion_number() == version.version
    entry = client().get_model_version(version.model, str(version.version))
    expected = "**Promoted to champion**: ctcvr_gauc 0.6700, with no champion to beat; ctr_gauc 0.6200"
    assert entry.description.startswith(expected)
    assert json.loads((run.path / "promotion.json").read_text())["promoted"] is True
    assert "tiny (version 1) was promoted to champion." in page.path_of("foodlog", run.ds).read_text()
    (shown,) = [entry for entry in client().list_artifacts(version.run_id) if entry.path == page.REPORT]
    assert shown.file_size == page.path_of("foodlog", run.ds).stat().st_size
    before = entry.last_updated_timestamp
    again = decided(run)
    assert (again["promoted"], again["changed"]) == (True, False)
    assert client().get_model_version(version.model, str(version.version)).last_updated_timestamp == before


def test_a_candidate_that_is_worse_stays_out_and_the_page_says_why(
    first: tuple[Any, Version], make_version: Make
) -> None:
    run, version = better(make_version, first[1], candidate={"ctcvr_gauc": 0.64})
    answer = decided(run)
    assert (answer["promoted"], answer["alarm"], answer["champion"]) == (False, False, first[1].version)
    assert answer["reasons"] == ["ctcvr_gauc 0.6400 against 0.6700 of version 1 (-0.0300, least -0.01)"]
    entry = client().get_model_version(version.model, str(version.version))
    assert entry.description.startswith("**Not promoted**: ctcvr_gauc 0.6400 against 0.6700")
    assert entry.tags["decision"] == "rejected"
    assert decided(run)["changed"] is False


def test_a_leak_is_an_alarm_with_exit_code_1(
    first: tuple[Any, Version], make_version: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = better(make_version, first[1], candidate={"ctr_auc": 0.83})
    arguments = ["--dataset", "foodlog", "--ds", run.ds, "--preset", "tiny"]
    assert promote.main(arguments) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["alarm"] is True
    assert any("ctr_auc 0.8300, that of the true probabilities 0.8000" in r for r in answer["reasons"])
    assert champion_number() == first[1].version


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_phase_and_run_again_it_ends_the_same(
    first: tuple[Any, Version], make_version: Make, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    run, version = better(make_version, first[1])

    def reach(name: str) -> None:
        if name == f"promote:{phase}":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(promote, "reach", reach)
        with pytest.raises(Killed):
            decided(run)
    assert decided(run)["promoted"]
    assert champion_number() == version.version
    assert client().get_registered_model("mtgr-foodlog").tags["champion"] == str(version.version)
    assert len(registry.versions("foodlog")) == 2


def test_of_two_promotions_at_once_exactly_one_wins(first: tuple[Any, Version], make_version: Make) -> None:
    own, _ = better(make_version, first[1])
    runs = [own, challenger(make_version, first[1], own)[0]]
    answers: list[Any] = []

    def work(run: Any) -> None:
        answers.append(decided(run))

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [answer for answer in answers if answer["promoted"]]
    losers = [answer for answer in answers if not answer["promoted"]]
    assert (len(winners), len(losers)) == (1, 1)
    assert champion_number() == winners[0]["version"]
    assert losers[0]["alarm"]
    assert not losers[0]["decided"]  # it is evaluated again, beside the new champion, and decided then
    assert any("compared with" in reason for reason in losers[0]["reasons"])


def test_a_decision_of_yesterday_is_not_carried_out_today(
    first: tuple[Any, Version], make_version: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, old_version = better(make_version, first[1], place=2)
    newer, new_version = better(make_version, first[1], place=3)

    def reach(name: str) -> None:
        if name == "promote:before_alias":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(promote, "reach", reach)
        with pytest.raises(Killed):
            decided(older)
    assert decided(newer)["promoted"]
    answer = decided(older)
    assert (answer["promoted"], answer["champion"]) == (False, new_version.version)
    assert old_version.version != new_version.version


def evaluated_again(run: Any, **changes: Any) -> None:
    """A further evaluation of a run beside its first."""
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    (run.path / "evaluation-2.json").write_text(json.dumps({**evaluation, **changes, "repeat": 2}))
    pass_gate(run)


def test_a_past_day_that_is_run_again_leaves_its_decision_and_adds_a_labelled_record(
    first: tuple[Any, Version], make_version: Make
) -> None:
    run, version = better(make_version, first[1], place=2)
    assert decided(run)["promoted"]
    newer, newest = better(make_version, version, place=3)
    assert decided(newer)["promoted"]
    before = (run.path / "promotion.json").read_bytes()
    weak = {**json.loads((run.path / "evaluation.json").read_text())["candidate"], "ctcvr_gauc": 0.5}
    evaluated_again(run, candidate=weak)
    answer = decided(run)
    assert (answer["changed"], answer["decided"], answer["champion"]) == (True, True, newest.version)
    assert not answer["alarm"]
    assert registry.numbered("foodlog", version.version).tags["decision"] == "promoted"
    assert (run.path / "promotion.json").read_bytes() == before
    again = json.loads((run.path / "promotion-2.json").read_text())
    assert (again["promoted"], again["repeat"], again["counts"]) == (False, 2, "promotion.json: promoted")
    assert decided(run)["changed"] is False
    assert not (run.path / "promotion-3.json").exists()


def test_a_candidate_whose_champion_changed_is_evaluated_again_and_then_decided(
    first: tuple[Any, Version], make_version: Make
) -> None:
    run, version = better(make_version, first[1], place=2)
    other, _ = better(make_version, first[1], place=3)
    assert decided(run)["promoted"]
    assert decided(other)["decided"] is False
    evaluation = json.loads((other.path / "evaluation.json").read_text())
    evaluated_again(other, champion={**evaluation["champion"], **as_champion(version)})
    assert decided(other)["promoted"]


@pytest.mark.parametrize("phase", ["", *PHASES])
def test_the_presets_of_a_day_are_decided_together_wherever_it_is_killed(
    first: tuple[Any, Version], make_version: Make, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    own, _ = better(make_version, first[1])
    other, version = challenger(make_version, first[1], own)

    def reach(name: str) -> None:
        if name == f"promote:{phase}":
            raise Killed

    if phase:
        with monkeypatch.context() as patch:
            patch.setattr(promote, "reach", reach)
            with pytest.raises(Killed):
                promote.promote(FOODLOG, [own, other])
    answers = promote.promote(FOODLOG, [own, other])
    assert [answers[preset]["promoted"] for preset in ("tiny", "user_tower")] == [False, True]
    assert answers["tiny"]["reasons"] == ["ctcvr_gauc 0.6700, that of user_tower, the day's choice, 0.6900"]
    assert champion_number() == version.version
    assert not any(answer["alarm"] for answer in answers.values())
    again = promote.promote(FOODLOG, [own, other])
    assert not any(answer["changed"] for answer in again.values())


def test_a_backfilled_older_day_leaves_champion_and_candidate(
    first: tuple[Any, Version], make_version: Make
) -> None:
    run, newest = better(make_version, first[1], place=4)
    assert decided(run)["promoted"]
    with registry.exclusive("foodlog", "test"):
        assert registry.advance_candidate("foodlog", newest)
    old, version = better(make_version, newest, place=2)
    answer = decided(old)
    assert (answer["promoted"], answer["alarm"], answer["champion"]) == (False, False, newest.version)
    assert any("has seen 2 days up to 2026-03-02, the champion 4 days" in r for r in answer["reasons"])
    with registry.exclusive("foodlog", "test"):
        assert not registry.advance_candidate("foodlog", version)
    found = registry.aliased("foodlog", registry.CANDIDATE)
    assert found is not None
    assert found.version == newest.version


def test_a_damaged_or_replaced_run_is_refused(make_version: Make) -> None:
    run, _ = make_version(DAYS[1], DAYS[:1])
    (run.path / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(RunError, match="is damaged"):
        decided(run)
    assert champion_number() is None


def test_an_evaluation_of_another_model_is_refused(make_version: Make) -> None:
    run, _ = make_version(DAYS[1], DAYS[:1])
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    evaluation["candidate"]["digest"] = "0" * 64
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(RunError, match=r"is of the digest 000.*evaluate it: python -m model.evaluate"):
        decided(run)


def test_a_run_that_is_not_registered_is_refused(make_run: Callable[..., Any]) -> None:
    run = make_run(DAYS[1], DAYS[:1])
    with pytest.raises(RunError, match=r"there is no .*evaluation.json; evaluate it"):
        decided(run)
    (run.path / "evaluation.json").write_text(json.dumps({"candidate": {"digest": run.digest}}))
    with pytest.raises(NotPassedError, match="no gate has judged"):
        decided(run)
    pass_gate(run)
    with pytest.raises(RegistryError, match=r"is not registered: python -m model.register"):
        decided(run)


def test_a_deleted_champion_raises_the_alarm_and_is_replaced_by_name(
    first: tuple[Any, Version], make_version: Make
) -> None:
    run, version = better(make_version, first[1])
    decided(run)
    client().delete_model_version(version.model, str(version.version))
    with pytest.raises(RegistryError, match="has lost its champion: the alias named version 2"):
        registry.champion("foodlog")
    with pytest.raises(RegistryError, match="has lost its champion"):
        rollback.rollback("foodlog")
    assert rollback.rollback("foodlog", 1)["champion"] == 1
    assert champion_number() == 1


def test_rollback_restores_the_champion_before_and_says_its_data(
    first: tuple[Any, Version], make_version: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run, version = better(make_version, first[1])
    decided(run)
    assert rollback.main(["--dataset", "foodlog"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["champion"], answer["was"]) == (1, version.version)
    assert (answer["samples_version"], answer["seen_days"]) == (7, {"2026-03-01": 7})
    assert rollback.main(["--dataset", "foodlog"]) == 1  # a second one has to be named
    assert champion_number() == 1
    again = decided(run)
    assert again["promoted"] is False
    assert again["reasons"] == ["the version was rolled back (to version 1) and stays so"]
    assert rollback.rollback("foodlog", version.version)["champion"] == version.version


def test_rollback_to_a_version_with_damaged_files_moves_nothing(
    first: tuple[Any, Version], make_version: Make
) -> None:
    run, version = better(make_version, first[1])
    decided(run)
    place = client().get_logged_model(first[1].model_id).artifact_location
    from pathlib import Path

    Path(place.removeprefix("file://"), "artifacts", "weights.safetensors").write_bytes(b"half")
    with pytest.raises(RegistryError, match="do not give the digest"):
        rollback.rollback("foodlog")
    assert champion_number() == version.version


@pytest.mark.usefixtures("var")
def test_rollback_without_a_champion_or_of_an_unknown_version_is_refused(make_version: Make) -> None:
    with pytest.raises(RegistryError, match="has no champion to roll back"):
        rollback.rollback("foodlog")
    make_version(DAYS[1], DAYS[:1])
    with pytest.raises(RegistryError, match="has no version 9"):
        rollback.rollback("foodlog", 9)


@pytest.mark.usefixtures("var")
@pytest.mark.parametrize("command", [promote.main, rollback.main])
def test_unknown_names_are_wrong_usage(command: Callable[..., int]) -> None:
    more = ["--ds", "2026-03-04"] if command is promote.main else []
    assert command(["--dataset", "../nosuch", *more]) == 2


def test_a_missing_run_names_the_command_that_makes_it(var: Any) -> None:
    with pytest.raises(RunError, match=r"train it: python -m model.train"):
        load_run("foodlog", "tiny", "2026-03-04")
    assert promote.main(["--dataset", "foodlog", "--ds", "2026-03-04"]) == 1
