"""What a backfill would do is said from what is there, and nothing is changed by saying it."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from deltalake import write_deltalake

from model.config.presets import preset_named
from model.registry import versions as registry
from model.runs.store import write_config
from scripts.embedded import databases, plan
from scripts.embedded.settings import EmbeddedSettings
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.lake import verdicts
from tests.spark_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
FOODLOG = dataset_named("foodlog")
DAYS = [f"2026-03-0{number}" for number in (1, 2, 3, 4)]
SETTINGS = EmbeddedSettings(presets=("tiny",))


@pytest.fixture
def var(tmp_path, monkeypatch):
    """Two days done, a third whose gate failed, none of the fourth."""
    for name in ("MTGR_LAKE", "MTGR_RUNS", "MLFLOW_TRACKING_URI", "MTGR_FOODLOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "var"))
    var = tmp_path / "var"
    for name, column in (("events", "delivery_ds"), ("samples", "ds")):
        for number, day in enumerate(DAYS[:3]):
            rows = pyarrow.table({column: [day] * (number + 2), "x": range(number + 2)})
            write_deltalake(var / "lake/foodlog" / name, rows, partition_by=[column], mode="append")
        verdicts.allow("foodlog", name, DAYS[:2], "a test")
    verdicts.allow("foodlog", "events", DAYS[2:3], "a test")
    verdicts.allow("foodlog", "samples", DAYS[2:3], "")
    _run(var, "tiny", DAYS[1], DAYS[:1])
    _airflow(
        var / "airflow/airflow.db",
        [
            ("samples_daily", DAYS[0], "success", 60),
            ("samples_daily", DAYS[1], "success", 70),
            ("samples_daily", DAYS[2], "success", 1),  # an older run of the day
            ("samples_daily", DAYS[2], "failed", 40),
            ("retraining_daily", DAYS[0], "success", 2),
            ("retraining_daily", DAYS[1], "success", 20),
        ],
    )
    return var


def _run(var, preset, day, seen):
    folder = var / "runs/foodlog" / preset / day
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps({"ds": day, "seen_days": dict.fromkeys(seen, 1)}))
    write_config(folder, FOODLOG, preset_named(preset))


def _airflow(path, runs):
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE dag_run (dag_id, run_id, partition_key, state, start_date, end_date)"
        )
        connection.execute("CREATE TABLE task_instance (dag_id, run_id, task_id, state)")
        for number, (dag, day, state, seconds) in enumerate(runs):
            times = (
                f"2026-03-05 0{number}:00:00.000000",
                f"2026-03-05 0{number}:{seconds // 60:02}:{seconds % 60:02}",
            )
            connection.execute(
                "INSERT INTO dag_run VALUES (?, ?, ?, ?, ?, ?)", (dag, str(number), day, state, *times)
            )
            if state == "failed":
                connection.execute(
                    "INSERT INTO task_instance VALUES (?, ?, 'gate_samples', ?)", (dag, str(number), state)
                )
    connection.close()


def _plan(reprocess, settings=SETTINGS):
    return {day.ds: day for day in plan.plan(settings, DAYS, reprocess)[0]}


@pytest.mark.usefixtures("var")
@pytest.mark.parametrize(
    ("reprocess", "runs"), [("none", DAYS[3:]), ("failed", DAYS[2:]), ("completed", DAYS)]
)
def test_which_days_run_and_in_which_order(reprocess, runs):
    planned = _plan(reprocess)
    assert {day.ds: day.place for day in planned.values() if day.place} == {
        d: n for n, d in enumerate(runs, 1)
    }
    assert [planned[day].row()[-2] for day in DAYS if day not in runs] == ["left alone"] * (4 - len(runs))


@pytest.mark.usefixtures("var")
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


@pytest.mark.usefixtures("var")
def test_a_day_is_learned_once_it_has_passed_and_a_mended_day_takes_the_chain_back():
    left_out = _plan("none")[DAYS[3]].trains["tiny"]
    assert left_out == [DAYS[1]]  # the third day has failed its gate
    mended = _plan("failed")
    assert mended[DAYS[2]].trains["tiny"] == [DAYS[1]]
    assert mended[DAYS[3]].trains["tiny"] == [DAYS[2]]  # goes on from the run that the plan has made
    assert _plan("completed")[DAYS[0]].trains == {}  # nothing lies before the first day
    assert _plan("completed")[DAYS[1]].trains["tiny"] == []  # made already


def test_a_run_that_lacks_a_day_before_its_last_is_made_again(var):
    _run(var, "tiny", DAYS[3], [DAYS[0], DAYS[2]])
    day = _plan("none")[DAYS[3]]
    assert day.trains["tiny"] == [DAYS[1]]
    assert day.row()[-2:] == ("tiny", f"{DAYS[1]} (tiny)")


def test_the_champion_is_trained_beside_its_challengers(var, monkeypatch):
    (var / "mlflow").mkdir()
    (var / "mlflow/mlflow.db").touch()
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


def test_a_plan_changes_nothing(var):
    assert databases.copy("mlflow", var / "mlflow/mlflow.db")
    before = _tree(var)
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
    assert _tree(var) == before


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
