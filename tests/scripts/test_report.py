"""The table of `make run`: all presets of a day, what failed and by which rule, who is champion and why."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.registry import versions as registry
from model.registry.versions import Version
from scripts.embedded import report, watch
from scripts.embedded.settings import EmbeddedSettings
from scripts.embedded.watch import CONSUMER, PRODUCER

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
SETTINGS = EmbeddedSettings()
METRICS = dict.fromkeys(report.METRICS, 0.7)


def version(number: int, preset: str, ds: str, **tags: str) -> Version:
    return Version(
        model="mtgr-foodlog", version=number, preset=preset, ds=ds, samples_version=1, seen_days=(),
        digest=f"{preset} {ds}", status="READY", run_id="", model_id="", tags=tags,
    )  # fmt: skip


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two presets judged on the third day; the second day's gate of samples failed."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_RUNS", "MTGR_LAKE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    reason = "ctcvr_gauc 0.7900 against 0.7700 of version 1 (+0.0200, least -0.01)"
    for preset in ("tiny", "user_tower"):
        evaluation = {"preset": preset, "candidate": {"digest": f"{preset} {DAYS[2]}", **METRICS}}
        write(tmp_path / "runs/foodlog" / preset / DAYS[2] / "evaluation.json", evaluation)
        reasons = ["the candidate has seen 2 days", reason, "ctr_gauc 0.7200 against 0.7000"]
        write(tmp_path / "runs/foodlog" / preset / DAYS[2] / "promotion.json", {"reasons": reasons})
    findings = [{"rule": "ctr_level", "success": False}, {"rule": "rows", "success": True}]
    write(tmp_path / "gates/foodlog/samples" / f"{DAYS[1]}.json", {"findings": findings})
    made = [
        version(2, "tiny", DAYS[2], decision="rejected"),
        version(3, "user_tower", DAYS[2], decision="promoted"),
    ]
    monkeypatch.setattr(registry, "versions", lambda dataset: made)
    monkeypatch.setattr(registry, "aliased", lambda dataset, alias: made[1])
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.usefixtures("var")
def test_a_day_shows_all_presets_and_a_failed_day_says_which_gate() -> None:
    outcomes = {DAYS[0]: watch.NO_HISTORY, DAYS[1]: "gate_samples failed"}
    lines = report.rows(SETTINGS, dict.fromkeys(DAYS, 60.0), outcomes)
    nothing, figures = ("-",) * 6, ("0.7000",) * 4
    assert lines == [
        (DAYS[0], *nothing, "no model: nothing to learn from yet", "60"),
        (DAYS[1], *nothing, "gate_samples failed: ctr_level", "60"),
        (DAYS[2], "tiny", "2", *figures, "rejected", "60"),
        ("", "user_tower", "3", *figures, "champion", ""),
    ]
    assert "user_tower" in report.table(report.HEADINGS, lines)


@pytest.mark.usefixtures("var")
def test_a_day_that_failed_after_it_was_judged_shows_both() -> None:
    lines = report.rows(SETTINGS, {DAYS[2]: 60.0}, {DAYS[2]: "promote failed"})
    assert [line[-2] for line in lines] == ["rejected", "champion", "promote failed"]


@pytest.mark.usefixtures("var")
def test_one_line_says_who_is_champion_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    line = report.where(SETTINGS).splitlines()[0]
    assert line == (
        "champion   mtgr-foodlog version 3 (user_tower of 2026-03-03): "
        "ctcvr_gauc 0.7900 against 0.7700 of version 1 (+0.0200, least -0.01)"
    )
    monkeypatch.setattr(registry, "aliased", lambda dataset, alias: None)
    line = report.where(SETTINGS).splitlines()[0]
    assert line.startswith(
        "champion   none yet; mtgr-foodlog version 3 (user_tower of 2026-03-03): the candidate"
    )
    monkeypatch.setattr(registry, "versions", lambda dataset: [])
    assert report.where(SETTINGS).splitlines()[0] == "champion   none yet"


def test_a_watch_tells_a_failed_day_from_one_with_nothing_to_learn_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {
        DAYS[0]: {"has_history": "success", "train": "skipped", "promote": "skipped"},
        DAYS[1]: {"build_samples": "success", "gate_samples": "skipped"},
        DAYS[2]: {"ingest": "success", "gate_events": "failed", "build_samples": "upstream_failed"},
    }

    class Api:
        def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
            return [
                {"task_id": name, "state": state, "end_date": "", "try_number": 1, "duration": 1.0}
                for name, state in states[run_id].items()
            ]

        def log(self, *arguments: Any) -> list[str]:
            return ["refused"]

    seen = watch.Watch(
        api=Api(), processes=None, settings=SETTINGS, producers={}, since=None  # type: ignore[arg-type]
    )  # fmt: skip
    for day in DAYS:
        seen._tell(day, {"dag_id": "samples_daily", "dag_run_id": day, "state": "failed"})
    assert seen.outcomes == {
        DAYS[0]: watch.NO_HISTORY,
        DAYS[1]: watch.EMPTY,
        DAYS[2]: "gate_events failed",
    }


def test_what_waits_for_the_last_training_is_called_once_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = {PRODUCER: {DAYS[0]: 1, DAYS[1]: 3}, CONSUMER: {DAYS[0]: 2, DAYS[1]: 5}}  # at which look
    looks = 0
    told: list[int] = []

    class Api:
        def runs(self, dag_id: str, since: Any) -> list[dict[str, Any]]:
            return [
                {
                    "dag_id": dag_id, "dag_run_id": day, "partition_key": day,
                    "state": "success" if looks >= end else "running",
                    "start_date": "2026-03-02T00:00:00Z", "end_date": "2026-03-02T00:01:00Z",
                }
                for day, end in ends[dag_id].items()
            ]  # fmt: skip

        def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
            state = "success" if looks >= ends[dag_id][run_id] else "running"
            times = {"start_date": "2026-03-02T00:00:00Z", "end_date": "", "duration": 1.0}
            return [{"task_id": watch.PUBLISHES, "state": state, "try_number": 1, **times}]

    def look() -> None:
        nonlocal looks
        looks += 1

    seen = watch.Watch(
        api=Api(), processes=SimpleNamespace(check=look), settings=SETTINGS,  # type: ignore[arg-type]
        producers={day: day for day in DAYS[:2]}, since=None,  # type: ignore[arg-type]
    )  # fmt: skip
    for name in ("_POLL_S", "_POLL_LAST_S"):
        monkeypatch.setattr(watch, name, 0)
    assert seen.wait(lambda: told.append(looks)) == dict.fromkeys(DAYS[:2], 120.0)
    assert told == [3]
    assert looks == 5
