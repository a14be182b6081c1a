"""One screen says how things stand: each line from data that would be wrong if it were read otherwise."""

import json
from datetime import UTC, datetime

import pyarrow
import pytest
from deltalake import write_deltalake

from scripts import status
from scripts.embedded import databases, ports
from scripts.embedded.processes import exclusive
from scripts.embedded.settings import EmbeddedSettings
from spark_jobs.lake import verdicts
from tests.scripts.past_days import DAYS

SETTINGS = EmbeddedSettings()


def _lines():
    """Heading to its lines."""
    lines, heading = {}, ""
    for line in status.status(SETTINGS).splitlines()[1:]:
        heading = line[:10].strip() or heading
        lines.setdefault(heading, []).append(line[10:])
    return lines


def test_the_last_day_is_the_last_that_passed_and_what_failed_is_named(past_days):
    path = verdicts.path_of("foodlog", "samples", DAYS[2])
    verdict = json.loads(path.read_text())
    findings = [
        {"rule": "ctr_level", "success": False, "follows": ""},
        {"rule": "ctr_quantiles", "success": False, "follows": "ctr_level"},
        {"rule": "rows", "success": True, "follows": ""},
    ]
    verdicts.write(path, {**verdict, "findings": findings})
    lines = _lines()
    age = (datetime.now(UTC).date() - datetime.fromisoformat(DAYS[1]).date()).days
    runs = "samples_daily success, retraining_daily success"
    assert lines["last day"] == [f"{DAYS[1]}, {age} days ago: samples allowed, {runs}"]
    assert lines["gates"] == ["5 allowed, 1 failed", f"FAILED samples of {DAYS[2]}: ctr_level ({path})"]
    assert lines["runs"] == [f"samples_daily of {DAYS[2]} failed (gate_samples)"]
    assert lines["champion"] == ["none yet"]


def test_a_failed_evaluation_is_a_failed_gate(past_days):
    path = verdicts.path_of("foodlog", "evaluation", DAYS[1], "tiny")
    verdicts.write(path, {"success": False, "findings": [{"rule": "ctr_auc", "success": False}]})
    lines = _lines()["gates"]
    assert lines[0] == "5 allowed, 2 failed"
    assert f"FAILED evaluation of tiny {DAYS[1]}: ctr_auc ({path})" in lines
    verdicts.write(path, {"success": False, "allowed": "a launch", "findings": []})
    assert _lines()["gates"][0] == "6 allowed, 1 failed"


def test_days_without_samples_between_the_first_and_the_last_are_missing(past_days):
    assert _lines()["missing"] == [f"none of 3 days from {DAYS[0]} to {DAYS[2]}"]
    late = pyarrow.table({"delivery_ds": ["2026-03-05", "2026-03-06"], "x": [1, 2]})
    write_deltalake(past_days / "lake/foodlog/events", late, partition_by=["delivery_ds"], mode="append")
    assert _lines()["missing"] == [
        f"3 of 6 days from {DAYS[0]} to 2026-03-06: {DAYS[3]} (not delivered), "
        "2026-03-05 (delivered, no samples), 2026-03-06 (delivered, no samples)"
    ]


def test_labels_are_mature_when_no_later_delivery_may_change_them(past_days):
    line = _lines()["labels"][0]
    assert line.startswith(f"not mature: {', '.join(DAYS[:3])}: a delivery brings records up to 3 days late")
    later = pyarrow.table({"delivery_ds": [DAYS[3]], "x": [1]})
    write_deltalake(past_days / "lake/foodlog/events", later, partition_by=["delivery_ds"], mode="append")
    # The delivery of the fourth day was the last that could bring records of the first.
    assert _lines()["labels"][0].startswith(f"not mature: {', '.join(DAYS[1:])}: ")


def test_the_disk_is_told_by_table_with_what_older_versions_keep(past_days):
    table, *rows, folders = _lines()["disk"]
    assert table.split() == ["table", "rows", "days", "version", "files", "MB", "now", "MB", "on", "disk"]
    assert [row.split()[:5] for row in rows] == [
        ["events", "9", "3", "2", "3"],
        ["samples", "9", "3", "2", "3"],
    ]
    (past_days / "runs/big").write_bytes(b"0" * 2_000_000)
    assert "runs 2.0 MB" in _lines()["disk"][-1]
    assert "runs 0.0 MB" in folders


def test_a_status_changes_nothing_and_names_who_runs(past_days):
    assert databases.copy("mlflow", past_days / "mlflow/mlflow.db")
    with exclusive(past_days / "airflow/running", "make ui"):
        before = {path: path.stat().st_mtime_ns for path in past_days.rglob("*")}
        assert "make ui (process " in status.status(SETTINGS).splitlines()[0]
        assert {path: path.stat().st_mtime_ns for path in past_days.rglob("*")} == before
    assert not ports.is_running(SETTINGS)


def test_nothing_at_all_has_a_status(tmp_path, monkeypatch):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "none"))
    lines = _lines()
    assert lines["last day"] == ["none yet: no day's samples have passed their gate"]
    assert lines["missing"] == ["no day has been delivered yet"]
    assert not (tmp_path / "none").exists()


def test_an_unknown_dataset_is_wrong_usage(monkeypatch):
    monkeypatch.setenv("DATASET", "foodlogg")
    with pytest.raises(ValueError, match="DATASET: unknown dataset 'foodlogg'"):
        status._run(None)
