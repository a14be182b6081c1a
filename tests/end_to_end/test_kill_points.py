"""A part of the kill points, in a small world; and the table in the documentation is the record's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.chain import difference
from tests.end_to_end.kill_points import STAGES, table

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "kill_points.json"


@pytest.mark.timeout(1800)  # a minute, unless the machine is loaded
def test_a_part_of_the_kill_points_holds(tmp_path):
    points = ["simulate:clicks_moved#3", "ingest_users:before_commit#1"]
    points += ["ingest:before_commit#1", "ingest:after_commit#1"]
    command = [sys.executable, "-m", "tests.end_to_end.kill_points", "--stages", "simulate", "ingest"]
    command += ["--options", "users=60", "impressions-a-day=600", "--points", *points]
    out = tmp_path / "points.json"
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["points"]
    assert [(point["point"], point["holds"], point["difference"]) for point in found] == [
        (point, True, []) for point in points
    ]


def test_the_record_holds_and_is_what_the_documentation_shows():
    record = json.loads(RECORD.read_text())
    assert {point["stage"] for point in record["points"]} == set(STAGES)
    assert all(point["holds"] for point in record["points"])
    assert len(record["points"]) >= 30
    assert table(record) in (ROOT / "docs" / "faults.md").read_text()


def test_a_difference_is_seen():
    state = {"table samples": "3 rows 1", "version m/1": ["READY", ["champion"], []]}
    assert difference(state, dict(state)) == []
    assert difference(state, {**state, "table samples": "4 rows 2"}) == [
        "table samples: expected 3 rows 1, found 4 rows 2"
    ]
    (missing,) = difference({**state, "version m/2": ["READY", [], []]}, state)
    assert missing == "version m/2: expected ['READY', [], []], found None"
