"""MLflow runs: one a key, finite metrics once, and stores that do not answer named within seconds."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model.config.presets import preset_named
from model.registry import record, tracking
from model.registry import versions as registry
from model.registry.lineage import as_ranges, days_of, read_lineage
from model.registry.server import server_command
from model.registry.store import TrackingError, client, named_errors, prepare, safe_uri
from spark_jobs.contract import locations
from spark_jobs.contract.clock import shift_day

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


@pytest.mark.usefixtures("var")
def test_the_cause_is_named_not_the_note_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def refused(*_: object, **__: object) -> None:
        raise MlflowException(
            "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)\n"
            "(psycopg.errors.StringDataRightTruncation) value too long for type character varying(8000)\n\n"
            "[SQL: INSERT INTO tags (key, value, run_uuid) VALUES (...)]"
        )

    run_id = start()
    monkeypatch.setattr(type(client()), "set_terminated", refused)
    with pytest.raises(
        TrackingError, match=r"StringDataRightTruncation\) value too long.*; a value is longer"
    ):
        tracking.finish_run(run_id)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(TrackingError, match="No module named 'MySQLdb'; install the database's driver"):
        with named_errors():
            raise ModuleNotFoundError("No module named 'MySQLdb'", name="MySQLdb")
    with pytest.raises(ModuleNotFoundError), named_errors():
        raise ModuleNotFoundError("No module named 'ours'", name="ours")


@pytest.mark.usefixtures("var")
def test_a_tag_that_a_database_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="tag note has 5001 characters, tags take 5000: it begins 'xxx"):
        tracking.start_run("foodlog", "tiny", "2026-03-04", {}, {**TAGS, "note": "x" * 5001})
    assert client().search_runs([tracking.experiment_id("foodlog")]) == []


@pytest.mark.parametrize(
    ("days", "ranges"),
    [
        ([], ""),
        (["2026-03-01"], "2026-03-01"),
        (["2026-03-02", "2026-03-01", "2026-02-28"], "2026-02-28..2026-03-02"),
        (["2026-03-01", "2026-03-03", "2026-03-04"], "2026-03-01 2026-03-03..2026-03-04"),
    ],
)
def test_days_are_told_as_ranges(days: list[str], ranges: str) -> None:
    assert as_ranges(days) == ranges
    assert days_of(ranges) == tuple(sorted(days))


def test_days_as_older_versions_told_them_are_read() -> None:
    assert days_of('{"2026-03-02": 8, "2026-03-01": 7}') == ("2026-03-01", "2026-03-02")


def record_of(days: list[str], losses: int = 3) -> dict[str, Any]:
    """What training says of a run that has seen days."""
    versions = {day: 100_000 + place for place, day in enumerate(days)}
    link = {"ds": "2026-03-01", "days": versions, "git_sha": "a" * 40}
    return {
        "dataset": "foodlog",
        "preset": "tiny",
        "ds": "2026-03-01",
        "samples_version": 100_449,
        "seen_days": versions,
        "git_sha": "a" * 40,
        "lineage": [link],
        "world_size": 1,
        "num_steps": 1000 + losses,
        "losses": [(f"2026-03-01/0/{i}", 0.5) for i in range(losses)],
    }


def long_lineage() -> list[str]:
    return [shift_day("2026-03-01", -back) for back in range(1, 451)]


@pytest.mark.usefixtures("var")
def test_a_lineage_of_450_days_is_a_short_tag_and_a_whole_artifact() -> None:
    days = long_lineage()
    run_id = record.log_training(preset_named("tiny"), record_of(days), "b" * 64)
    tags = client().get_run(run_id).data.tags
    assert tags["seen_days"] == "2024-12-06..2026-02-28"
    assert max(len(value) for value in tags.values()) < 200
    (link,) = read_lineage(run_id)
    assert link["days"] == record_of(days)["seen_days"]


@pytest.mark.usefixtures("var")
def test_the_loss_by_step_is_logged_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    log_batch = type(client()).log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **more: Any) -> Any:
        calls.append(len(metrics))
        return log_batch(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(type(client()), "log_batch", counted)
    run_id = record.log_training(preset_named("tiny"), record_of(["2026-02-28"], losses=2_010), "b" * 64)
    assert [call for call in calls if call] == [
        101 + len([name for name in client().get_run(run_id).data.metrics if "system/" in name])
    ]
    history = client().get_metric_history(run_id, "train_loss")
    assert [metric.step for metric in history] == list(range(1000, 3010, 20))


def postgres_programs() -> Path | None:
    """Folder with `initdb` and `pg_ctl`."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of a database of a fresh Postgres, as docs/registry.md writes it."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("Postgres is not installed: apt-get install postgresql")
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="mtgr-postgres-"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        log = None if program == "pg_ctl" else subprocess.PIPE
        subprocess.run([programs / program, *arguments], check=True, user=user, cwd=folder, stdout=log)

    run("initdb", "-D", str(folder / "data"), "-U", "mtgr", "--auth", "trust")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-o", options, "-w", "start")
    try:
        run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mtgr", "mlflow")
        uri = f"postgresql://mtgr:secret@127.0.0.1:{port}/mlflow"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    finally:
        run("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("var")
def test_mlflow_over_postgres_takes_a_lineage_of_450_days(
    postgres: str, make_version: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(postgres)
    record.log_training(preset_named("tiny"), record_of(long_lineage()), "b" * 64)
    run, version = make_version("2026-03-01", long_lineage())
    assert registry.numbered("foodlog", version.version).seen_days == tuple(sorted(long_lineage()))
    assert read_lineage(version.run_id)[0]["days"] == run.seen_days
    registry.annotate(version, {"decision": "rejected"}, "why not: " + "because " * 1_000)
    page = client().get_model_version(version.model, str(version.version)).description
    assert page.startswith("why not: because")
    assert page.endswith("promotion.json)")
    experiment = client().get_experiment(tracking.experiment_id("foodlog"))
    assert experiment.artifact_location.startswith(f"file://{locations.var()}")  # not the working directory
    with registry.exclusive("foodlog", "test"):
        registry.set_champion("foodlog", version)
    assert registry.champion("foodlog") is not None
    # What it does not take is named by its cause.
    monkeypatch.setattr(tracking, "_LONGEST_TAG", 100_000)
    with pytest.raises(TrackingError, match=r"mtgr:\*\*\*@.*(value too long|exceeds)"):
        tracking.start_run("foodlog", "tiny", "2026-03-04", {}, {**TAGS, "note": "x" * 9_000})


@pytest.mark.usefixtures("var")
def test_the_server_keeps_artifacts_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user@host/mlflow")

    def destination(artifacts: str | None) -> str:
        command = server_command("127.0.0.1", 5000, None, artifacts)
        return command[command.index("--artifacts-destination") + 1]

    assert destination("s3://bucket/mlflow") == "s3://bucket/mlflow"
    assert destination(None) == (locations.var() / "mlflow" / "artifacts").as_uri()


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
