"""The DAGs in a real Airflow with real steps: scheduled, backfilled with broken days, interrupted, submitted.

Every test starts the components as `make` does, in a folder and on ports of its own, and runs the real steps
on a small simulated app. Minutes long: `make test-slow`.
"""

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from scripts.embedded import secrets_store
from scripts.embedded.airflow_api import AirflowApi
from spark_jobs.contract.clock import shift_day
from tests.end_to_end.chain import difference, state_of, without_table_versions
from tests.spark_servers import free_port, standalone_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
DAYS = ["2026-03-01", "2026-03-02", "2026-03-03"]


@pytest.fixture
def environment(tmp_path):
    ports = {name: str(free_port()) for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "SPARK_PORT", "DOCS_PORT")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MTGR_", "SPARK_"))}
    return {**kept, **ports, "MTGR_VAR": str(tmp_path / "var"), "PYTHONPATH": str(ROOT)}


def _python(environment, module, *arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def _simulate(environment, first, last, *options):
    done = _python(environment, "spark_jobs.simulate", "--from", first, "--to", last, *options)
    assert done.returncode == 0, done.stderr


def _raw(environment, ds):
    return sorted(Path(environment["MTGR_VAR"], "lake", "foodlog", "raw").glob(f"*/ds={ds}/*.jsonl.gz"))


def _sample_days(environment):
    code = "import sys; from spark_jobs.lake.log import partition_values as v; print(v(sys.argv[1], 'ds'))"
    table = f"{environment['MTGR_VAR']}/lake/foodlog/samples"
    done = subprocess.run(
        [sys.executable, "-c", code, table], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(json.loads(done.stdout.replace("'", '"')))


def test_a_backfill_with_an_empty_day_and_a_failing_gate(environment):
    _simulate(environment, DAYS[0], DAYS[-1])
    whole = {path: path.read_bytes() for path in _raw(environment, DAYS[2])}
    for path in _raw(environment, DAYS[1]):
        path.write_bytes(gzip.compress(b""))
    for path in whole:  # the delivery breaks off in the morning
        lines = gzip.decompress(whole[path]).splitlines(keepends=True)
        if path.parts[-3] in ("impressions", "clicks", "orders"):
            path.write_bytes(gzip.compress(b"".join(lines[: len(lines) // 4])))
    window = {"FROM": DAYS[0], "TO": DAYS[-1]}

    done = _python(environment, "scripts.backfill", **window)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"of {DAYS[1]}" in done.stderr
    assert f"samples_daily.gate_events of {DAYS[2]}" in done.stderr
    assert _sample_days(environment) == [DAYS[0]]
    assert not Path(environment["MTGR_VAR"], "runs").exists()
    report = Path(environment["MTGR_VAR"], "data_docs", "reports", "foodlog", f"{DAYS[2]}.html")
    assert "Stopped by a gate: gate_events." in report.read_text()

    for path, content in whole.items():
        path.write_bytes(content)
    done = _python(environment, "scripts.backfill", **window, REPROCESS="failed")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{DAYS[0]}  samples_daily     has a run already" in done.stdout
    assert DAYS[2] not in done.stderr
    assert _sample_days(environment) == [DAYS[0], DAYS[2]]
    record = Path(environment["MTGR_VAR"], "runs", "foodlog", "tiny", DAYS[2], "train.json")
    assert list(json.loads(record.read_text())["seen_days"]) == [DAYS[0]]

    done = _python(environment, "scripts.backfill", **window, REPROCESS="none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("has a run already") == 3


def _wait_for(condition, what, seconds=1800):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(2)
    raise AssertionError(f"{what}: not within {seconds} s")


def _ended(api, dag_id, run_type):
    runs = [run for run in api.runs(dag_id, datetime(2026, 1, 1, tzinfo=UTC)) if run["run_type"] == run_type]
    return next((run for run in runs if run["state"] in ("success", "failed")), None)


def test_a_scheduled_run_and_a_run_without_a_day(environment, tmp_path):
    tick = (datetime.now(UTC) + timedelta(minutes=4)).replace(second=0)
    day = shift_day(tick.date().isoformat(), -1)
    _simulate(environment, day, day, "--first-day", shift_day(day, -1))
    settings = {"MTGR_SCHEDULE": f"{tick.minute} {tick.hour} * * *"}
    with (tmp_path / "ui.log").open("w") as log:
        ui = subprocess.Popen(
            [sys.executable, "-m", "scripts.ui"],
            cwd=ROOT,
            env={**environment, **settings},
            stdout=log,
            stderr=log,
        )
    try:
        home = Path(environment["MTGR_VAR"], "airflow")
        _wait_for((home / "secrets" / "passwords.json").exists, "secrets")
        url = f"http://127.0.0.1:{environment['AIRFLOW_PORT']}"
        api = AirflowApi(url, secrets_store.USER, secrets_store.password(home))
        _wait_for(lambda: api.is_healthy("scheduler"), "scheduler")
        _wait_for(lambda: api.has_dag("samples_daily"), "DAGs")

        # Airflow accepts a run without a day; its first task refuses it: it never becomes today's run.
        run_id = api.call("POST", "/dags/samples_daily/dagRuns", {"logical_date": None})["dag_run_id"]
        _wait_for(lambda: api.run("samples_daily", run_id)["state"] == "failed", "failure")
        assert any("no partition key" in line for line in api.log("samples_daily", run_id, "ingest", 1))

        # Its deadline is still to come: the task can be cleared all the same, and fails once more.
        body = {"dag_run_id": run_id, "task_ids": ["ingest"], "dry_run": False, "only_failed": False}
        api.call("POST", "/dags/samples_daily/clearTaskInstances", {**body, "reset_dag_runs": True})
        again = [("ingest", "failed", 2)]
        _wait_for(
            lambda: (
                [
                    (task["task_id"], task["state"], task["try_number"])
                    for task in api.tasks("samples_daily", run_id)
                    if task["task_id"] == "ingest"
                ]
                == again
            ),
            "second failure",
        )

        run = _wait_for(lambda: _ended(api, "samples_daily", "scheduled"), "scheduled run")
        assert (run["state"], run["partition_key"]) == ("success", day)
        assert _sample_days(environment) == [day]
        follower = _wait_for(lambda: _ended(api, "retraining_daily", "asset_triggered"), "retraining")
        assert (follower["state"], follower["partition_key"]) == ("success", day)
        tasks = api.tasks("retraining_daily", follower["dag_run_id"])
        assert {task["task_id"]: task["state"] for task in tasks}[
            "train"
        ] == "skipped"  # nothing before the day
        started = psutil.Process(ui.pid).children(recursive=True)
    finally:
        ui.send_signal(signal.SIGTERM)
        assert ui.wait(timeout=600) == 0
    assert [process.pid for process in started if process.is_running()] == []


def _make(environment, said, *arguments):
    """Starts `make` as a terminal does: the leader of a process group of its own."""
    return subprocess.Popen(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )


def _of_folder(var):
    """Processes whose environment names the folder: components, steps, and what they have started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get("MTGR_VAR") == str(var):
                found.append(" ".join(process.cmdline()))
    return found


def test_an_interrupted_run_ends_in_the_state_of_an_undisturbed_backfill(environment, tmp_path):
    window = [f"FROM={DAYS[0]}", f"TO={DAYS[1]}"]
    var = Path(environment["MTGR_VAR"])
    with (tmp_path / "backfill").open("w+") as said:
        code = _make(environment, said, "backfill", "SIMULATE=1", *window).wait()
        assert code == 0, (tmp_path / "backfill").read_text()
    undisturbed = state_of(var, without_table_versions)
    var.rename(tmp_path / "undisturbed")  # the same place again: quarantine and registry hold paths
    moments = [f"{DAYS[0]}  samples_daily +gate_events", f"{DAYS[1]}  samples_daily +gate_samples"]
    for number, moment in enumerate(f"{moment} +success" for moment in moments):
        path = tmp_path / f"run{number}"
        with path.open("w") as said:
            run = _make(environment, said, "run", *window)
            _wait_for(lambda path=path, moment=moment: re.search(moment, path.read_text()), moment)
            if number == 0:
                second = _python(environment, "scripts.run", FROM=DAYS[0], TO=DAYS[1])
                assert second.returncode == 1
                assert f"already runs on {var}/airflow: wait for it, stop it" in second.stderr
            time.sleep(3)  # into the step that follows: build_samples, then train
            os.killpg(run.pid, signal.SIGINT)
            assert run.wait(timeout=600) != 0
        assert "interrupted: all components are stopped; run it again to go on" in path.read_text()
        assert _of_folder(var) == []
    with (tmp_path / "run").open("w") as said:
        assert _make(environment, said, "run", *window).wait() == 0, (tmp_path / "run").read_text()
    assert _of_folder(var) == []
    assert difference(undisturbed, state_of(var, without_table_versions)) == []


def test_spark_steps_are_submitted_to_the_cluster_that_the_connection_names(environment, tmp_path):
    (tmp_path / "work").mkdir()
    with standalone_cluster(tmp_path / "work") as master:
        done = _python(
            environment,
            "scripts.run",
            AIRFLOW_CONN_SPARK_DEFAULT=master,
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            DAYS="1",
            SPARK_CONF="spark.executor.memory=512m;spark.cores.max=2;spark.sql.shuffle.partitions=4",
        )
        applications = sorted((tmp_path / "work").glob("app-*"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines() if " samples_daily " in line] == [
        "ingest",
        "gate_events",
        "build_samples",
        "gate_samples",
    ]
    assert _sample_days(environment) == [DAYS[0]]
    assert len(applications) == 4  # one a step, each with executors on the workers
