"""What a backfill would do is said from what is there, and nothing is changed by saying it."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from model.registry import versions as registry
from scripts.embedded import databases, plan
from scripts.embedded.settings import EmbeddedSettings
from tests.scripts.past_days import DAYS, write_run
from tests.spark_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = EmbeddedSettings(presets=("tiny",))


def _plan(reprocess, settings=SETTINGS):
    return {day.ds: day for day in plan.plan(settings, DAYS, reprocess)[0]}


@pytest.mark.usefixtures("past_days")
@pytest.mark.parametrize(
    ("reprocess", "runs"), [("none", DAYS[3:]), ("failed", DAYS[2:]), ("completed", DAYS)]
)
def test_which_days_run_and_in_which_order(reprocess, runs):
    planned = _plan(reprocess)
    assert {day.ds: day.place for day in planned.values() if day.place} == {
        d: n for n, d in enumerate(runs, 1)
    }
    assert [planned[day].row()[-2] for day in DAYS if day not in runs] == ["left alone"] * (4 - len(runs))


@pytest.mark.usefixtures("past_days")
def test_what_exists_is_replaced_and_how_long_it_took():
    planned, usual = plan.plan(SETTINGS, DAYS, "completed")
    assert [day.row()[2:8] for day in planned] == [
        ("success", "62 s", "2 allowed", "2 allowed", "-", "events, samples"),
        ("success", "90 s", "3 allowed", "3 allowed", "tiny", "events, samples"),
        ("failed (gate_samples)", "40 s", "4 allowed", "4 failed", "-", "events, samples"),
        ("none", "-", "-", "-", "-", "nothing"),
    ]
    told = plan.told(SETTINGS, planned, usual, "completed", False)
    assert "about 254 s" in told  # 62 + 90 + 40, and the median for the day that never ran
    assert "1 never ran to the end, which takes 62 s (the median)" in told


@pytest.mark.usefixtures("past_days")
def test_a_day_is_learned_once_it_has_passed_and_a_mended_day_takes_the_chain_back():
    left_out = _plan("none")[DAYS[3]].trains["tiny"]
    assert left_out == [DAYS[1]]  # the third day has failed its gate
    mended = _plan("failed")
    assert mended[DAYS[2]].trains["tiny"] == [DAYS[1]]
    assert mended[DAYS[3]].trains["tiny"] == [DAYS[2]]  # goes on from the run that the plan has made
    assert _plan("completed")[DAYS[0]].trains == {}  # nothing lies before the first day
    assert _plan("completed")[DAYS[1]].trains["tiny"] == []  # made already


def test_a_run_that_lacks_a_day_before_its_last_is_made_again(past_days):
    write_run(past_days, "tiny", DAYS[3], [DAYS[0], DAYS[2]])
    day = _plan("none")[DAYS[3]]
    assert day.trains["tiny"] == [DAYS[1]]
    assert day.row()[-2:] == ("tiny", f"{DAYS[1]} (tiny)")


def test_the_champion_is_trained_beside_its_challengers(past_days, monkeypatch):
    (past_days / "mlflow").mkdir()
    (past_days / "mlflow/mlflow.db").touch()
    monkeypatch.setattr(registry, "aliased", lambda *_: type("Version", (), {"preset": "user_tower"}))
    trains = _plan("none")[DAYS[3]].trains
    assert trains == {"tiny": [DAYS[1]], "user_tower": DAYS[:2]}


def test_no_data_yet_is_a_plan_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "none"))
    planned, usual = plan.plan(SETTINGS, DAYS[:2], "none")
    assert [day.row()[0] for day in planned] == ["1", "2"]
    assert planned[1].trains == {"tiny": DAYS[:1]}
    assert "no day has run to its end here" in plan.told(SETTINGS, planned, usual, "none", True)
    assert not (tmp_path / "none").exists()


def _tree(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def test_a_plan_changes_nothing(past_days):
    assert databases.copy("mlflow", past_days / "mlflow/mlflow.db")
    before = _tree(past_days)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "SPARK_"))}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.backfill"],
        cwd=ROOT,
        env={**kept, "PLAN": "1", "FROM": DAYS[0], "TO": DAYS[3], "AIRFLOW_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "runs 1 of 4 days" in done.stdout
    assert _tree(past_days) == before


def test_a_database_that_is_in_use_is_read_as_committed(tmp_path):
    database, copies = tmp_path / "airflow.db", tmp_path / "copies"
    copies.mkdir()
    writer = sqlite3.connect(database)
    writer.execute("PRAGMA journal_mode = wal")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    writer.execute("INSERT INTO t VALUES (2)")
    copied = databases.snapshot(database, copies)
    with sqlite3.connect(copied) as reader:
        assert reader.execute("SELECT x FROM t").fetchall() == [(1,)]
    reader.close()
    writer.close()
