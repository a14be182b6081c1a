"""MLflow runs: one a key, finite metrics once, and stores that do not answer named within seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.registry import tracking
from model.registry.store import TrackingError, client, prepare, safe_uri

TAGS = {"digest": "abc", "samples_version": "7"}
PARAMS = {"model": {"d_model": 64}, "seed": 1}


def start(digest: str = "abc") -> str:
    return tracking.start_run("foodlog", "tiny", "2026-03-04", PARAMS, {**TAGS, "digest": digest})


@pytest.mark.usefixtures("var")
def test_a_run_is_found_again_by_its_key() -> None:
    run_id = start()
    tracking.finish_run(run_id, "FAILED")
    assert start() == run_id
    assert start("other") != run_id
    run = client().get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"model.d_model": "64", "seed": "1"}
    assert run.data.tags["samples_version"] == "7"
    assert run.data.tags["run_key"] == "tiny/2026-03-04/abc"


def test_artifacts_lie_under_var(var: Path) -> None:
    run_id = start()
    tracking.log_json(run_id, "evaluation", {"a": 1})
    tracking.log_table(run_id, "days", [{"ds": "2026-03-01", "loss": 0.5}])
    tracking.log_table(run_id, "days", [{"ds": "2026-03-01", "loss": 0.5}])
    place = var / "mlflow" / "artifacts" / "mtgr-foodlog" / run_id / "artifacts"
    assert (place / "evaluation.json").exists()
    assert (place / "tables" / "days.csv").read_text() == "ds,loss\n2026-03-01,0.5\n"


@pytest.mark.usefixtures("var")
def test_metrics_are_logged_once_and_a_changed_value_replaces() -> None:
    run_id = start()
    history = {"loss": [(1, 0.5), (2, 0.4)]}
    tracking.log_history(run_id, history)
    tracking.log_history(run_id, history)
    tracking.log_metrics(run_id, {"loss": 0.3}, step=2)
    found = [(m.step, m.value) for m in client().get_metric_history(run_id, "loss")]
    assert sorted(found) == [(1, 0.5), (2, 0.3), (2, 0.4)]
    assert client().get_run(run_id).data.metrics["loss"] == 0.3


@pytest.mark.usefixtures("var")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_and_nothing_is_logged(value: float) -> None:
    run_id = start()
    with pytest.raises(ValueError, match="metric ctr_auc at step 0 is"):
        tracking.log_metrics(run_id, {"ctr_gauc": 0.6, "ctr_auc": value})
    assert client().get_run(run_id).data.metrics == {}


@pytest.mark.usefixtures("var")
@pytest.mark.parametrize("digest", ["", "a'b", "a/b", "x" * 200])
def test_names_that_could_break_a_query_are_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        start(digest)


@pytest.mark.usefixtures("var")
def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown dataset 'nosuch'"):
        tracking.start_run("nosuch", "tiny", "2026-03-04", {}, TAGS)
    with pytest.raises(ValueError, match="not a day"):
        tracking.start_run("foodlog", "tiny", "2026-3-4", {}, TAGS)
    with pytest.raises(ValueError, match="status 'DONE'"):
        tracking.finish_run(start(), "DONE")


def test_no_server_is_said_within_seconds(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError, match=f"{uri} does not answer.*python -m model.tracking serve"):
            start()


def test_an_unknown_store_is_refused(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://host/place")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI is 'ftp://host/place'; use sqlite"):
        start()


def test_a_folder_that_cannot_be_made_is_named(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (var / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{var}/file/mlflow.db")
    with pytest.raises(TrackingError, match="file cannot be made"):
        start()


def test_a_locked_database_names_the_remedy(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def locked(*_: object, **__: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database is locked")

    run_id = start()
    monkeypatch.setattr(type(client()), "set_terminated", locked)
    with pytest.raises(TrackingError, match=r"database is locked; SQLite serves one host.*Postgres"):
        tracking.finish_run(run_id)


def test_messages_show_no_password() -> None:
    assert safe_uri("postgresql://user:secret@host/db") == "postgresql://user:***@host/db"


def test_pickle_is_off_in_our_processes(var: Path) -> None:
    client()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


@pytest.mark.usefixtures("var")
def test_threads_that_start_one_run_at_once_see_whole_runs() -> None:
    experiment = tracking.experiment_id("foodlog")
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(start, [f"d{i}" for i in range(8)]))
    assert len(ids) == 8
    assert len(client().search_runs([experiment])) == 8


@pytest.mark.slow
def test_processes_that_meet_at_a_fresh_database_all_succeed(tmp_path: Path) -> None:
    environment = os.environ | {"MTGR_VAR": str(tmp_path)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    code = "from model.registry import tracking; print(tracking.experiment_id('foodlog'))"
    commands = [[sys.executable, "-c", code]] * 3 + [[sys.executable, "-m", "model.tracking", "prepare"]]
    started = [
        subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    answers = [(process.communicate(), process.returncode) for process in started]
    assert [code for _, code in answers] == [0, 0, 0, 0], [err for (_, err), _ in answers]
    assert len({out for (out, _), _ in answers[:3]}) == 1


@pytest.mark.slow
def test_the_server_says_when_it_is_ready_and_stops_with_its_children(var: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "model.tracking", "serve", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
        prepare(f"http://127.0.0.1:{port}")
        code = (
            "from model.registry import tracking as t\n"
            "run = t.start_run('foodlog', 'tiny', '2026-03-04', {}, {'digest': 'abc'})\n"
            "t.log_json(run, 'evaluation', {'a': 1})\n"
        )
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        assert list((var / "mlflow" / "artifacts").rglob("evaluation.json"))
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert again.returncode == 1
        assert f"port {port} of 127.0.0.1 is taken" in again.stderr
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) == 0
    time.sleep(0.5)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_prepare_again_changes_nothing(prepared_database: Path) -> None:
    before = prepared_database.read_bytes()
    prepare(f"sqlite:///{prepared_database}")
    assert prepared_database.read_bytes() == before
