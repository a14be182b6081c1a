"""A part of the kill points, in a small world; and the table in the documentation is the record's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.simulator.settings import SimulationSettings
from tests.end_to_end.chain import difference
from tests.end_to_end.kill_points import STAGES, compared, drawn, table

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "kill_points.json"


@pytest.mark.timeout(1800)  # a minute, unless the machine is loaded
@pytest.mark.parametrize(
    "points",
    [
        ["simulate:clicks_moved#3", "ingest:after_commit#1"],
        pytest.param(
            ["ingest_users:before_commit#1", "ingest:before_commit#1"], marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_a_part_of_the_kill_points_holds(tmp_path, points):
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_drill_kills_what_its_seed_draws_and_says_that_nothing_was_lost(tmp_path):
    seed = next(seed for seed in range(100) if drawn(seed, ["simulate", "ingest"])[0] == "ingest")
    command = [sys.executable, "-m", "tests.end_to_end.kill_points", "--stages", "simulate", "ingest"]
    command += ["--drill", str(seed), "--options", "users=60", "impressions-a-day=600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("ingest of 2026-03-02 was killed at ingest")
    assert "nothing was lost, all is as after an undisturbed run (raw file: 15, table: 5)" in last


def test_the_world_of_a_drill_stays_within_what_gates_allow():
    """One bot of a small app is a large part of a day."""
    (options,) = re.findall(r"--drill .*--options (.*)", (ROOT / "Makefile").read_text())
    given = {name.replace("-", "_"): int(value) for name, value in re.findall(r"([a-z-]+)=(\d+)", options)}
    world = SimulationSettings(**given)
    bots = world.bots * world.bot_impressions
    assert bots > FOODLOG.max_impressions_a_day, "a bot is left out as one"
    assert bots / (bots + world.impressions_a_day) < 0.8 * FOODLOG.limits.left_out_share


def test_every_stage_may_be_drawn_and_a_seed_draws_the_same_again():
    assert {drawn(seed, STAGES)[0] for seed in range(200)} == set(STAGES)
    points = [f"train:{n}" for n in range(9)]
    assert len({drawn(7, STAGES)[1].choice(points) for _ in range(5)}) == 1


def test_what_was_compared_is_counted():
    state = {"table a": 1, "table b": 2, "version m/1": [], "logged models": [], "mlflow run x": []}
    assert compared(state) == "table: 2, version: 1, MLflow run: 1"


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
