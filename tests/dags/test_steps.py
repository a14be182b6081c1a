"""How a step runs: its day, its command, its exit code, its result, and the Spark that it is given."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("airflow_home")


def test_the_day_is_the_partition_key():
    from dags.steps import day

    assert day("2028-02-29") == "2028-02-29"


@pytest.mark.parametrize("key", [None, ""])
def test_a_run_without_a_key_fails_by_name_and_is_not_retried(key):
    from airflow.sdk.exceptions import AirflowFailException

    from dags.steps import day

    with pytest.raises(AirflowFailException, match=r"has no partition key.*e\.g\. 2026-03-01"):
        day(key)


@pytest.mark.parametrize("key", ["2026-02-30", "2026-3-1", "2026-W10", "2026-01-01'; rm -rf /", "yesterday"])
def test_a_key_that_is_no_day_is_refused(key):
    from airflow.sdk.exceptions import AirflowFailException

    from dags.steps import day

    with pytest.raises(AirflowFailException, match="is not a day"):
        day(key)


def _operator(tmp_path, script, **kwargs):
    from dags.steps import StepOperator

    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\n" + script)
    launcher.chmod(0o755)
    return StepOperator(
        task_id="step", module="a.module", arguments="--ds 2026-03-01", launcher=str(launcher), **kwargs
    )


def test_a_step_is_a_command_in_the_repository(tmp_path):
    from dags.steps import REPOSITORY

    operator = _operator(tmp_path, 'echo "$PWD $PYTHONPATH $*"')
    arguments = "-m a.module --dataset foodlog --ds 2026-03-01"
    assert operator.execute({}) == f"{REPOSITORY} {REPOSITORY} {arguments}"


@pytest.mark.parametrize("code", [1, 2, 99, 137])
def test_any_exit_code_but_0_fails_the_task(tmp_path, code):
    from airflow.sdk.exceptions import AirflowException

    with pytest.raises(AirflowException, match=f"non-zero exit code {code}"):
        _operator(tmp_path, f"exit {code}").execute({})


@pytest.mark.parametrize(
    ("script", "is_retried"),
    [
        (
            """echo refused; echo '{"alarm": true, "refused": "ctr_auc 0.83, the oracle 0.80"}'; exit 1""",
            False,
        ),
        ("""echo '{"alarm": true}'; exit 1""", True),
        ("""echo '{"refused": "killed on the way out"}'; exit 137""", True),
        ("echo MLflow does not answer; exit 1", True),
    ],
)
def test_a_step_that_was_refused_is_not_tried_again_and_says_why(tmp_path, script, is_retried):
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    with pytest.raises(AirflowException) as raised:
        _operator(tmp_path, script).execute({})
    assert isinstance(raised.value, AirflowFailException) is not is_retried
    if not is_retried:
        assert str(raised.value) == "a.module refused: ctr_auc 0.83, the oracle 0.80"


def test_the_alert_of_a_step_says_why(tmp_path, monkeypatch):
    from dags import alerts
    from dags.steps import DEFAULT_ARGUMENTS

    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    run = SimpleNamespace(dag_id="retraining_daily", partition_key="2026-03-01", run_id="manual__1")
    error = RuntimeError("model.promote refused: a leak")
    DEFAULT_ARGUMENTS["on_failure_callback"](
        {"dag_run": run, "ti": SimpleNamespace(task_id="promote"), "exception": error}
    )
    kept = json.loads((tmp_path / "alerts.jsonl").read_text())
    expected = "retraining_daily.promote of 2026-03-01: model.promote refused: a leak"
    assert (kept["kind"], kept["text"]) == ("failed", expected)
    assert alerts.task_failed is DEFAULT_ARGUMENTS["on_failure_callback"]


def test_a_result_is_one_json_object():
    from airflow.sdk.exceptions import AirflowException

    from dags.steps import result_of

    assert result_of('{"ds": "2026-03-01", "empty": false}') == {"ds": "2026-03-01", "empty": False}
    for line in ("", "done", "[1]", '{"ds": '):
        with pytest.raises(AirflowException, match="without a JSON result"):
            result_of(line)


@pytest.mark.parametrize(("empty", "skipped"), [(True, True), (False, False)])
def test_an_empty_day_is_skipped_before_anything_is_published(empty, skipped):
    from airflow.sdk.exceptions import AirflowSkipException

    from dags.steps import skip_empty_day

    context = {"ti": SimpleNamespace(xcom_pull=lambda task_ids: {"ds": "2026-03-01", "empty": empty})}
    if skipped:
        with pytest.raises(AirflowSkipException, match="2026-03-01 has no impressions"):
            skip_empty_day(context)
    else:
        skip_empty_day(context)


def _spark_operator(tmp_path, script):
    from dags.steps import SparkStepOperator

    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\n" + script)
    launcher.chmod(0o755)
    return SparkStepOperator(
        task_id="ingest", module="spark_jobs.ingest", arguments="--ds 2026-03-01", launcher=str(launcher)
    )


def test_a_spark_connect_connection_becomes_spark_remote(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark-connect://127.0.0.1:25002")
    operator = _spark_operator(tmp_path, 'echo "{\\"remote\\": \\"$SPARK_REMOTE\\"}"')
    assert operator.execute({}) == {"remote": "sc://127.0.0.1:25002"}


def test_a_spark_connection_submits_the_same_module_to_its_master(tmp_path, monkeypatch):
    from airflow.providers.apache.spark.hooks import spark_submit

    submitted = tmp_path / "submitted"
    binary = tmp_path / "spark-submit"
    result = '{"ds": "2026-03-01"}'
    binary.write_text(
        f"#!/bin/sh\necho \"$@\" > {submitted}\necho INFO start\necho '{result}'\necho INFO shutdown\n"
    )
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(spark_submit, "ALLOWED_SPARK_BINARIES", ["spark-submit"], raising=False)
    monkeypatch.setenv("SPARK_JARS", "/jars/delta.jar")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://spark%3A%2F%2Fmaster:7077")
    assert _spark_operator(tmp_path, "exit 1").execute({}) == {"ds": "2026-03-01"}
    words = submitted.read_text().split()
    assert words[words.index("--master") + 1] == "spark://master:7077"
    assert "spark.jars=/jars/delta.jar" in words
    at = next(i for i, word in enumerate(words) if word.endswith("scripts/launchers/spark_main.py"))
    assert words[at + 1 :] == ["spark_jobs.ingest", "--dataset", "foodlog", "--ds", "2026-03-01"]


def test_an_alert_is_kept_and_posted(tmp_path, monkeypatch):
    from dags import alerts

    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.setenv("MTGR_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
    run = SimpleNamespace(dag_id="samples_daily", partition_key="2026-03-01", run_id="manual__1")
    alerts.run_failed({"dag_run": run, "reason": "task_failure"})
    server.server_close()
    text = "samples_daily of 2026-03-01 (manual__1): task_failure"
    assert posted == [{"text": f"mtgr failed: {text}"}]
    kept = json.loads((tmp_path / "alerts.jsonl").read_text())
    assert (kept["kind"], kept["text"]) == ("failed", text)
