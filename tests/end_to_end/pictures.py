"""Pictures of Airflow's own pages on a day that fails, and of the day mended: `make pictures`.

    python -m tests.end_to_end.pictures docs/pictures

Real steps in a real Airflow, as `make ui` starts it, on a small app. The day's delivery is late, so that
`ingest` is tried again; what comes then ends at nine in the morning, so that its gate stops the day; its
deadline passes. Then the whole delivery comes and `ingest` is cleared with what follows. The deadline, of
four hours, is brought forward in Airflow's database: that is all that is not as on such a day.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scripts.embedded import secrets_store
from scripts.embedded.airflow_api import AirflowApi
from tests.end_to_end.browser import Page, browser
from tests.spark_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
DAG, DAY, BEFORE = "samples_daily", "2026-03-03", "2026-03-02"
RUN = f"delivered_{DAY}"
WIDTH, HEIGHT = 1336, 860
TOP = 420  # of the page of a run
_NINE = datetime.fromisoformat(f"{DAY}T09:00:00+00:00").timestamp() * 1000


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 900) -> Any:
    """Waits until a condition holds and returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


@contextlib.contextmanager
def user_interface(var: Path) -> Iterator[AirflowApi]:
    """`make ui` over a folder, on ports of its own."""
    ports = {name: str(free_port()) for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "SPARK_PORT", "DOCS_PORT")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MTGR_", "SPARK_"))}
    given = {"MTGR_VAR": str(var), "MTGR_SCHEDULED": "0", "MTGR_RETRY_SECONDS": "20", "PYTHONPATH": str(ROOT)}
    environment = {**kept, **ports, **given}
    command = [sys.executable, "-m", "spark_jobs.simulate", "--from", DAY, "--to", DAY, "--first-day", BEFORE]
    subprocess.run([*command, "--users", "400"], cwd=ROOT, env=environment, check=True, capture_output=True)
    with (var / "ui.log").open("w") as log:
        ui = subprocess.Popen(
            [sys.executable, "-m", "scripts.ui"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        home = var / "airflow"
        wait_for((home / "secrets" / "passwords.json").exists, "secrets")
        url = f"http://127.0.0.1:{ports['AIRFLOW_PORT']}"
        api = AirflowApi(url, secrets_store.USER, secrets_store.password(home))
        wait_for(lambda: api.is_healthy("scheduler", "dag_processor", "triggerer"), "Airflow")
        wait_for(lambda: api.has_dag(DAG), "the DAG")
        yield api
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(timeout=600)


def _until_nine(content: bytes) -> bytes:
    lines = [line for line in gzip.decompress(content).splitlines() if _is_before_nine(line)]
    return gzip.compress(b"\n".join(lines))


def _is_before_nine(line: bytes) -> bool:
    try:
        return bool(json.loads(line).get("time_ms", 0) < _NINE)
    except (ValueError, TypeError):
        return True  # a malformed line


def _bring_deadline_forward(database: Path) -> None:
    passed = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        changed = connection.execute("UPDATE deadline SET deadline_time = ?", (passed,)).rowcount
    assert changed == 1, changed


def _alerts(var: Path) -> list[dict[str, str]]:
    path = var / "alerts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _fail(api: AirflowApi, var: Path, whole: dict[Path, bytes]) -> None:
    """The day until its gate has stopped it and its deadline has passed."""
    for folder in {path.parent for path in whole}:
        shutil.rmtree(folder)
    api.call("POST", f"/dags/{DAG}/dagRuns", {"dag_run_id": RUN, "logical_date": None, "partition_key": DAY})
    wait_for(lambda: any(one["kind"] == "retried" for one in _alerts(var)), "a retry")
    for path, content in whole.items():
        path.parent.mkdir(exist_ok=True)
        is_log = path.parts[-3] in ("impressions", "clicks", "orders")
        path.write_bytes(_until_nine(content) if is_log else content)
    _bring_deadline_forward(var / "airflow" / "airflow.db")
    wait_for(lambda: api.run(DAG, RUN)["state"] == "failed", "the gate")
    wait_for(lambda: {one["kind"] for one in _alerts(var)} == {"retried", "late", "failed"}, "the alerts")


def _mend(api: AirflowApi, whole: dict[Path, bytes]) -> None:
    for path, content in whole.items():
        path.write_bytes(content)
    body = {"dag_run_id": RUN, "task_ids": ["ingest"], "include_downstream": True, "only_failed": False}
    api.call("POST", f"/dags/{DAG}/clearTaskInstances", {**body, "dry_run": False, "reset_dag_runs": True})
    wait_for(lambda: api.run(DAG, RUN)["state"] == "success", "the mended day")


def _look(page: Page, api: AirflowApi, *texts: str, task: str = "") -> str:
    """Opens the page of the run, or of a task of it, logged in."""
    api.call("GET", "/version")
    page.call("Network.setCookie", name="_token", value=api._token, url=api.url)
    place = f"/dags/{DAG}/runs/{RUN}" + (f"/tasks/{task}" if task else "")
    return page.open(api.url + place, *texts)


def take(folder: Path) -> dict[str, str]:
    """Writes the pictures and the alerts; returns what stands on the pages."""
    said: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mtgr-pictures-") as place:
        var = Path(place, "var")
        var.mkdir()
        with user_interface(var) as api, browser(Path(place, "chromium"), WIDTH, HEIGHT) as page:
            raw = var / "lake" / "foodlog" / "raw"
            whole = {path: path.read_bytes() for path in raw.glob(f"*/ds={DAY}/*") if path.is_file()}
            _fail(api, var, whole)
            said["failed_run"] = _look(page, api, "Missed", "Failed", "gate_events")
            page.picture(folder / "failed_run.png", WIDTH, TOP)
            said["retried_task"] = _look(page, api, f"no delivery of {DAY}", task="ingest?try_number=1")
            page.picture(folder / "retried_task.png", WIDTH, 770)
            said["failed_day"] = _look(page, api, "hours_covered is", task="gate_events")
            page.picture(folder / "failed_day.png", WIDTH, 830)
            alerts = _alerts(var)
            _mend(api, whole)
            said["mended_day"] = _look(page, api, "Success", "gate_events")
            page.picture(folder / "mended_day.png", WIDTH, TOP)
    (folder / "failed_day.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in alerts))
    return said


if __name__ == "__main__":
    take(Path(sys.argv[1]))
