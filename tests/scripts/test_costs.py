"""What a run costs is counted in processor seconds, by component and by step."""

import json
import os
import sys
import time

import pytest

from scripts.embedded import costs as costs_module
from scripts.embedded.costs import Costs, processor_seconds
from scripts.embedded.processes import Processes

WORK = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
# A component whose work is done by a child that it has waited for, and one that still runs.
PARENT = f"""
import subprocess, sys, time
subprocess.run([sys.executable, "-c", {WORK.format(0.4)!r}])
subprocess.Popen([sys.executable, "-c", {(WORK.format(0.4) + "time.sleep(30)")!r}])
time.sleep(30)
"""


def test_children_count_that_have_ended_and_that_run(tmp_path):
    with Processes(dict(os.environ), tmp_path) as processes:
        process = processes.start("parent", [sys.executable, "-c", PARENT])
        end = time.monotonic() + 60
        while processor_seconds(process.pid) < 0.8 and time.monotonic() < end:
            time.sleep(0.1)
        assert 0.8 <= processor_seconds(process.pid) < 3


def test_a_component_that_has_ended_still_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(costs_module, "_EVERY_S", 0.05)
    with Processes(dict(os.environ), tmp_path) as processes:
        with Costs(processes) as costs:
            processes.run("work", [sys.executable, "-c", WORK.format(0.5)])
    assert 0.3 <= costs.components()["work"] < 2


@pytest.mark.parametrize(("dag", "spark"), [("samples_daily", 6.0), ("retraining_daily", 0.0)])
def test_a_step_costs_its_own_process_and_what_spark_took_meanwhile(tmp_path, dag, spark):
    costs = Costs(Processes({}, tmp_path))
    start = 1_772_000_000.0
    costs._seen["spark"] = [(start - 10, 1.0), (start, 2.0), (start + 10, 8.0), (start + 20, 20.0)]
    log = tmp_path / "fork-server.log"
    lines = [
        {"step": ["-m", "x", "--ds", "2026-03-01"], "code": 0, "ended": start + 9, "cpu_seconds": 1.5},
        {"step": ["-m", "x", "--ds", "2026-03-02"], "code": 0, "ended": start + 9, "cpu_seconds": 7.0},
        {"step": ["-m", "x", "--ds", "2026-03-01"], "code": 0, "ended": start + 19, "cpu_seconds": 7.0},
    ]
    log.write_text("Loading\n" + "".join(json.dumps(line) + "\n" for line in lines))
    times = {
        name: time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(at))
        for name, at in (("start_date", start), ("end_date", start + 10))
    }
    task = {"day": "2026-03-01", "dag_id": dag, "task_id": "ingest", **times}
    (told,) = costs.steps([task], log)
    assert told == {
        "day": "2026-03-01", "dag": dag, "step": "ingest", "seconds": 10.0, "cpu_seconds": 1.5 + spark,
    }  # fmt: skip


def test_a_record_is_whole(tmp_path):
    costs_module.write(tmp_path / "bench" / "run.json", {"cpu_seconds": 1.0})
    assert json.loads((tmp_path / "bench" / "run.json").read_text()) == {"cpu_seconds": 1.0}
    assert len(list((tmp_path / "bench").iterdir())) == 1
