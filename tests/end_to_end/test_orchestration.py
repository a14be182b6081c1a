"""What Airflow does with the DAGs, whatever the steps do: order, backlog, retries, gates, alerts, Ctrl-C.

A real Airflow with the real DAG files; the steps are replaced by a program that notes what it was asked to do
and ends as the test says (`MTGR_LAUNCHER`), so that this takes minutes and no Spark. `make test-slow`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.spark_servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
# Called as `<step> -m <module> --dataset foodlog [...] --ds <day> ...`. A file `<module>.<day>` in the folder
# holds the exit codes of its next calls; `hangs` is a call that does not end.
STEP = """#!{python}
import json, os, sys, time
from pathlib import Path
words = sys.argv[1:]
module, ds = words[1], words[words.index("--ds") + 1]
suite = words[words.index("--suite") + 1] if "--suite" in words else ""
name = ".".join(part for part in (module.split(".")[-1], suite, ds) if part)
folder = Path({folder!r})
with (folder / "calls").open("a") as file:
    file.write(name + "\\n")
codes = (folder / name).read_text().split() if (folder / name).exists() else []
if codes:
    (folder / name).write_text(" ".join(codes[1:]))
    if codes[0] == "hangs":
        time.sleep(3600)
    if codes[0] != "0":
        print("refused on purpose")
        sys.exit(int(codes[0]))
empty = (folder / f"empty.{{ds}}").exists()
if module.endswith("build_samples") and not empty:
    import pyarrow
    from deltalake import write_deltalake
    table = os.environ["MTGR_VAR"] + "/lake/foodlog/samples"
    write_deltalake(table, pyarrow.table({{"user_id": [1], "ds": [ds]}}), partition_by=["ds"], mode="append")
of_preset = {{"changed": True, "base": None, "loss_by_day": {{}}, "ctr_gauc": 0.7, "ctcvr_gauc": 0.7}}
of_preset |= {{"new": True, "version": 1, "promoted": True, "reasons": [], "mlflow_run_id": ""}}
print(json.dumps({{
    **of_preset, "dataset": "foodlog", "ds": ds, "rebuilt": [], "stale": [], "empty": empty, "rows": 1,
    "unchanged": False, "samples_version": 1, "candidates": 1, "events": 1, "records": 1, "duplicates": 0,
    "quarantined": 0, "late_days": [], "suite": suite, "verdicts": {{ds: True}}, "allowed": {{}},
    "rules": [1, 1], "page": "index.html", "model": "mtgr-foodlog", "champion": 1, "before": None,
    "presets": {{"tiny": of_preset}},
}}))
"""


@pytest.fixture
def folder(tmp_path):
    step = tmp_path / "step"
    step.write_text(STEP.format(python=sys.executable, folder=str(tmp_path)))
    step.chmod(0o755)
    with socket.socket() as spark:  # no Spark, but something that answers at its address
        spark.bind(("127.0.0.1", 0))
        spark.listen()
        (tmp_path / "spark").write_text("spark-connect://{}:{}".format(*spark.getsockname()))
        yield tmp_path


def _environment(folder, **settings):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MTGR_", "SPARK_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "MTGR_VAR": str(folder / "var"),
        "MTGR_LAUNCHER": str(folder / "step"),
        "MTGR_RETRY_SECONDS": "1",
        "AIRFLOW_PORT": str(free_port()),
        "AIRFLOW_CONN_SPARK_DEFAULT": (folder / "spark").read_text(),
        "SIMULATE": "0",
        **settings,
    }


def _call(folder, module, **settings):
    return subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=_environment(folder, **settings),
        capture_output=True,
        text=True,
        check=False,
    )


def _calls(folder):
    path = folder / "calls"
    calls = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return calls


def _samples_of(ds):
    return [f"ingest.{ds}", f"gate.events.{ds}", f"build_samples.{ds}", f"gate.samples.{ds}"]


def _training_of(ds):
    return [
        *(f"{name}.{ds}" for name in ("train", "evaluate")),
        f"gate.evaluation.{ds}",
        *(f"{name}.{ds}" for name in ("register", "promote", "publish")),
    ]


def test_days_in_order_a_retry_an_empty_day_and_a_failed_gate(folder):
    first, empty, bad, last = (f"2026-03-0{number}" for number in (1, 2, 3, 4))
    (folder / f"empty.{empty}").write_text("")
    (folder / f"gate.samples.{bad}").write_text("99")  # Airflow's code for "skipped"
    (folder / f"ingest.{last}").write_text("1")

    done = _call(folder, "scripts.run", FROM=first, TO=last)

    assert done.returncode == 1, done.stdout + done.stderr
    calls = _calls(folder)
    data = [
        call for call in calls if call in {c for ds in (first, empty, bad, last) for c in _samples_of(ds)}
    ]
    assert data == [
        *_samples_of(first),
        *_samples_of(empty)[:3],
        *_samples_of(bad),
        f"ingest.{last}",
        *_samples_of(last),
    ]
    # The first day has no history; the empty and the bad day published nothing.
    assert [call for call in calls if call not in data] == _training_of(last)
    assert f"samples_daily.gate_samples of {bad}" in done.stderr
    assert "refused on purpose" in done.stdout
    alerts = [json.loads(line) for line in (folder / "var" / "alerts.jsonl").read_text().splitlines()]
    assert [(a["kind"], last in a["text"], bad in a["text"]) for a in alerts if a["kind"] == "retried"] == [
        ("retried", True, False)
    ]
    assert any(a["kind"] == "failed" and bad in a["text"] for a in alerts)


def test_a_backfill_repeats_what_it_is_asked_to(folder):
    days = ["2026-03-01", "2026-03-02"]
    window = {"FROM": days[0], "TO": days[1]}
    (folder / f"ingest.{days[1]}").write_text("1 1")  # its retry fails, too
    done = _call(folder, "scripts.backfill", **window)
    assert done.returncode == 1, done.stdout + done.stderr
    assert _calls(folder) == [*_samples_of(days[0]), f"ingest.{days[1]}", f"ingest.{days[1]}"]

    done = _call(folder, "scripts.backfill", **window, REPROCESS="failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{days[0]}  samples_daily     has a run already" in done.stdout
    assert _calls(folder) == [*_samples_of(days[1]), *_training_of(days[1])]

    done = _call(folder, "scripts.backfill", **window, REPROCESS="none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _calls(folder) == []

    # The plan reads the database that a real Airflow has left.
    for reprocess, number in (("none", 0), ("failed", 0), ("completed", 2)):
        plan = _call(folder, "scripts.backfill", **window, REPROCESS=reprocess, PLAN="1")
        assert plan.returncode == 0, plan.stdout + plan.stderr
        assert f"runs {number} of 2 days" in plan.stdout

    done = _call(folder, "scripts.backfill", **window, REPROCESS="completed")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = _calls(folder)
    assert [call for call in calls if call.split(".")[0] == "ingest"] == [f"ingest.{ds}" for ds in days]
    assert f"promote.{days[1]}" in calls


def _left_behind(folder):
    """Processes whose environment names the folder: components, steps, and what they have started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MTGR_VAR") == str(folder / "var"):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _interrupt_when(folder, is_there, module, **settings):
    """Starts a command, presses Ctrl-C when `is_there`; returns its exit code and what it said."""
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=_environment(folder, **settings),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        end = time.monotonic() + 900
        while not is_there():
            assert process.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < end, (folder / "said").read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
        code = process.wait(timeout=600)
    return code, (folder / "said").read_text()


@pytest.mark.parametrize("module", ["scripts.run", "scripts.backfill"])
def test_an_interrupted_run_stops_everything_and_is_done_by_the_next(folder, module):
    days = ["2026-03-01", "2026-03-02"]
    window = {"FROM": days[0], "TO": days[1]}
    (folder / f"build_samples.{days[0]}").write_text("hangs")
    (folder / f"train.{days[1]}").write_text("hangs")
    calls = folder / "calls"

    def is_called(name):
        return lambda: calls.exists() and name in calls.read_text().split()

    airflow = folder / "var" / "airflow"
    moments = [
        (airflow / "secrets").exists,  # components are starting
        is_called(f"build_samples.{days[0]}"),
        is_called(f"train.{days[1]}"),
    ]
    for moment in moments:
        code, said = _interrupt_when(folder, moment, module, **window, REPROCESS="completed")
        assert code == 130, said
        assert "interrupted: all components are stopped; run it again to go on" in said
        assert "Traceback" not in said
        assert _left_behind(folder) == []
    assert _calls(folder)[-1] == f"train.{days[1]}"

    done = _call(folder, module, **window, REPROCESS="completed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _left_behind(folder) == []
    made = _calls(folder)
    assert [call for call in made if call in {c for ds in days for c in _samples_of(ds)}] == [
        call for ds in days for call in _samples_of(ds)
    ]
    assert [call for call in made if call in _training_of(days[1])] == _training_of(days[1])
