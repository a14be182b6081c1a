"""How a step runs: its day, its command, its exit code, its result, and the Spark that it is given."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

# As the steps print them, see their docstrings.
RESULTS = {
    "spark_jobs.ingest": {
        "ds": "2026-03-03", "records": 21996, "events": 21785, "duplicates": 193, "quarantined": 28,
        "late_days": ["2026-03-01", "2026-03-02"],
    },
    "spark_jobs.build_samples": {
        "ds": "2026-03-03", "rebuilt": ["2026-03-02"], "stale": [], "samples_version": 6, "unchanged": False,
        "rows": 571, "candidates": 16321, "empty": False,
    },
    "expectations.gate": {
        "suite": "events", "verdicts": {"2026-03-03": True}, "rules": [33, 33], "allowed": {},
        "page": "validations/foodlog_events/2026-03-03/x/page.html",
    },
    "spark_jobs.maintain": {
        "tables": {"events": {"before": 18, "after": 4}, "samples": {"before": 6, "after": 3}},
        "freed": 1200, "left": 5000, "dry_run": True,
    },
    "model.prune": {"deleted": [1, 3], "deleted_runs": ["tiny/x"], "freed": 66, "left": 31, "dry_run": False},
    "model.train": {
        "mlflow_run_id": "f2de",
        "presets": {
            "tiny": {"changed": True, "base": "2026-03-02", "loss_by_day": {"2026-03-02": 0.35014}},
            "user_tower": {"changed": False, "base": None, "loss_by_day": {}},
        },
    },
    "model.evaluate": {
        "presets": {
            "tiny": {
                "ctr_gauc": 0.72059, "ctcvr_gauc": 0.75451,
                "champion": {"version": 2, "ctr_gauc": 0.66671, "ctcvr_gauc": 0.69489},
            },
            "user_tower": {"ctr_gauc": 0.7, "ctcvr_gauc": 0.8},
        }
    },
    "model.register": {
        "model": "mtgr-foodlog", "version": 3,
        "presets": {"tiny": {"version": 3, "new": True}, "user_tower": {"version": 4, "new": False}},
    },
    "model.promote": {
        "dataset": "foodlog", "ds": "2026-03-03", "version": 4, "champion": 4,
        "presets": {
            "tiny": {"promoted": False, "version": 3, "reasons": ["ctcvr_gauc 0.71 against 0.73"]},
            "user_tower": {"promoted": True, "version": 4, "reasons": ["ctcvr_gauc 0.73", "ctr_gauc 0.65"]},
        },
    },
    "model.publish": {"version": 4, "before": 2, "changed": True},
    "spark_jobs.build_lookups": {"ds": "2026-03-04", "rows": {"user": 759, "item": 1069}},
}  # fmt: skip
LINES = {
    "spark_jobs.ingest": (
        "2026-03-03: 21785 events of 21996 records, 193 duplicates, 28 in quarantine; "
        "late ones of 2026-03-01, 2026-03-02"
    ),
    "spark_jobs.build_samples": (
        "2026-03-03: 571 rows with 16321 candidates, version 6; made again, as records came late: 2026-03-02"
    ),
    "expectations.gate": "events of 2026-03-03: 33 of 33 rules hold",
    "model.train": (
        "tiny learned 2026-03-02 at a loss of 0.3501, from the run of 2026-03-02. "
        "user_tower had learned all before"
    ),
    "model.evaluate": (
        "tiny CTR GAUC 0.7206, CTCVR GAUC 0.7545 (champion, version 2: 0.6667, 0.6949). "
        "user_tower CTR GAUC 0.7000, CTCVR GAUC 0.8000"
    ),
    "spark_jobs.maintain": (
        "1200 bytes would be freed, 5000 are left: events 18 files, now 4, samples 6 files, now 3"
    ),
    "model.prune": "2 versions and 1 runs are gone, 66 bytes, 31 are left",
    "model.register": "mtgr-foodlog: tiny is version 3. user_tower is version 4, as before",
    "model.promote": (
        "version 3 (tiny) not promoted: ctcvr_gauc 0.71 against 0.73. "
        "version 4 (user_tower) promoted: ctcvr_gauc 0.73; ctr_gauc 0.65. Champion: version 4"
    ),
    "model.publish": "version 4 serves instead of version 2",
    "spark_jobs.build_lookups": "lookups of 2026-03-04: 759 of user, 1069 of item",
}

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

    operator = _operator(tmp_path, """echo "{\\"told\\": \\"$PWD $PYTHONPATH $*\\"}\"""")
    arguments = "-m a.module --dataset foodlog --ds 2026-03-01"
    assert operator.execute({}) == {"told": f"{REPOSITORY} {REPOSITORY} {arguments}"}


@pytest.mark.parametrize("code", [1, 2, 99, 137])
def test_any_exit_code_but_0_fails_the_task(tmp_path, code):
    from airflow.sdk.exceptions import AirflowException

    with pytest.raises(AirflowException, match=rf"failed with exit code {code}; its last line: none"):
        _operator(tmp_path, f"exit {code}").execute({})


def test_a_step_that_fails_says_its_error(tmp_path):
    from airflow.sdk.exceptions import AirflowException

    line = "2026-03-03 02:30:00,746 ERROR spark_jobs.contract.command: foodlog 2026-03-03: no delivery"
    with pytest.raises(AirflowException, match=r"^\w+\.\w+ failed: foodlog 2026-03-03: no delivery$"):
        _operator(tmp_path, f"echo start; echo '{line}'; exit 1").execute({})
    with pytest.raises(AirflowException, match=r"failed with exit code 137; its last line: step 12$"):
        _operator(tmp_path, "echo step 12; exit 137").execute({})


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
        assert raised.value.__suppress_context__  # the log ends with why, not with the shell's exit code


def test_the_alert_of_a_step_says_why(tmp_path, monkeypatch):
    from dags import alerts
    from dags.steps import DEFAULT_ARGUMENTS

    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    run = SimpleNamespace(dag_id="retraining_daily", partition_key="2026-03-01", run_id="manual__1")
    error = RuntimeError("model.promote refused: a leak")
    DEFAULT_ARGUMENTS["on_failure_callback"](
        {"dag_run": run, "ti": SimpleNamespace(task_id="promote", try_number=1), "exception": error}
    )
    kept = json.loads((tmp_path / "alerts.jsonl").read_text())
    expected = "retraining_daily.promote of 2026-03-01: model.promote refused: a leak"
    assert (kept["kind"], kept["text"]) == ("failed", expected)
    assert alerts.task_failed is DEFAULT_ARGUMENTS["on_failure_callback"]


def test_a_try_that_airflow_reports_more_than_once_is_told_once(tmp_path, monkeypatch):
    from dags import alerts

    monkeypatch.setenv("MTGR_VAR", str(tmp_path))

    def of(number, day="2026-03-01"):
        run = SimpleNamespace(dag_id="retraining_daily", partition_key=day, run_id=f"manual__{day}")
        return {"dag_run": run, "ti": SimpleNamespace(task_id="train", try_number=number)}

    reports = [(alerts.task_retried, of(1))] * 4  # as the DAG processor has them of a killed worker
    reports += [
        (alerts.task_retried, of(2)),
        (alerts.task_failed, of(2)),
        (alerts.task_retried, of(1, "2026-03-02")),
    ]
    (tmp_path / "alerts.jsonl").write_text('{"kind": "retr\n')  # cut by a crash
    threads = [threading.Thread(target=report, args=(context,)) for report, context in reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()[1:]]
    assert sorted((one["kind"], one["of"]) for one in kept) == [
        ("failed", "retraining_daily.train manual__2026-03-01 try 2"),
        ("retried", "retraining_daily.train manual__2026-03-01 try 1"),
        ("retried", "retraining_daily.train manual__2026-03-01 try 2"),
        ("retried", "retraining_daily.train manual__2026-03-02 try 1"),
    ]
    assert "without saying why" in kept[0]["text"]


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

    from dags.steps import SAMPLES, publish_built

    built = {**RESULTS["spark_jobs.build_samples"], "empty": empty}
    event = SimpleNamespace(extra={})
    context = {"ti": SimpleNamespace(xcom_pull=lambda task_ids: built), "outlet_events": {SAMPLES: event}}
    if skipped:
        with pytest.raises(AirflowSkipException, match="2026-03-03 has no impressions"):
            publish_built(context)
        assert event.extra == {}
    else:
        publish_built(context)
        assert event.extra == {
            "day": "2026-03-03",
            "rows": 571,
            "candidates": 16321,
            "version": 6,
            "days": ["2026-03-02", "2026-03-03"],
        }


def _spark_operator(tmp_path, script):
    from dags.steps import SparkStepOperator

    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\n" + script)
    launcher.chmod(0o755)
    return SparkStepOperator(
        task_id="ingest", module="a.module", arguments="--ds 2026-03-01", launcher=str(launcher)
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
    assert words[at + 1 :] == ["a.module", "--dataset", "foodlog", "--ds", "2026-03-01"]


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


def _told(tmp_path, module, script, **kwargs):
    """Runs a task whose step is a script; returns the address of each of its buttons, and its error."""
    from airflow.sdk.exceptions import AirflowException

    from dags.steps import StepOperator

    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\n" + script)
    launcher.chmod(0o755)
    task = StepOperator(task_id="step", module=module, arguments="", launcher=str(launcher), **kwargs)
    try:
        task.execute({})
    except AirflowException as error:
        return {link.name: link.get_link(task, ti_key=None) for link in task.operator_extra_links}, str(error)
    return {link.name: link.get_link(task, ti_key=None) for link in task.operator_extra_links}, ""


@pytest.mark.parametrize("module", LINES)
def test_the_log_of_a_step_ends_with_what_it_did(tmp_path, monkeypatch, module):
    from dags.steps import StepOperator

    logged = []
    log = SimpleNamespace(warning=print, debug=print, info=lambda text, *values: logged.append(text % values))
    monkeypatch.setattr(StepOperator, "log", log)
    (tmp_path / "result").write_text(json.dumps(RESULTS[module]))
    _told(tmp_path, module, f"cat {tmp_path}/result")
    assert logged == [LINES[module]]


def test_every_step_of_the_dags_has_a_line(dags):
    modules = {task.module for dag in dags.values() for task in dag.tasks if hasattr(task, "module")}
    assert modules == set(LINES)


@pytest.mark.parametrize(
    ("module", "button", "address"),
    [
        ("expectations.gate", "data docs", "http://docs/validations/foodlog_events/2026-03-03/x/page.html"),
        ("model.train", "MLflow", "http://mlflow/#/runs/f2de"),
        ("model.register", "MLflow", "http://mlflow/#/models/mtgr-foodlog/versions/3"),
        ("spark_jobs.ingest", None, None),
    ],
)
def test_a_task_links_to_the_pages_of_what_it_did(tmp_path, monkeypatch, module, button, address):
    from dags import told

    monkeypatch.setattr(told, "DOCS_URL", "http://docs")
    monkeypatch.setattr(told, "MLFLOW_URL", "http://mlflow")
    (tmp_path / "result").write_text(json.dumps(RESULTS[module]))
    buttons = _told(tmp_path, module, f"cat {tmp_path}/result")[0]
    assert {name: where for name, where in buttons.items() if where} == ({button: address} if button else {})
    monkeypatch.setattr(told, "DOCS_URL", "")
    monkeypatch.setattr(told, "MLFLOW_URL", "")
    assert set(_told(tmp_path, module, f"cat {tmp_path}/result")[0].values()) <= {""}


def test_a_promotion_links_to_its_version_and_to_the_report_that_it_wrote(tmp_path, monkeypatch):
    from dags import told
    from model.reports import page

    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.setattr(told, "DOCS_URL", "http://docs")
    monkeypatch.setattr(told, "MLFLOW_URL", "http://mlflow")
    report = page.path_of("foodlog", "2026-03-03").relative_to(tmp_path / "data_docs")
    assert told.pages_of("model.promote", RESULTS["model.promote"]) == {
        "MLflow": "http://mlflow/#/models/mtgr-foodlog/versions/4",
        "report of the day": f"http://docs/{report}",
    }


def test_a_failed_gate_links_to_its_page_and_its_task_fails_with_its_message(tmp_path, monkeypatch):
    from dags import told
    from dags.steps import StepOperator

    monkeypatch.setattr(told, "DOCS_URL", "http://docs")
    logged = []
    log = SimpleNamespace(
        warning=print, debug=print, error=lambda text, *values: logged.append(text % values)
    )
    monkeypatch.setattr(StepOperator, "log", log)
    why = "gate events of 2026-03-03: ctr is 0.7, allowed: 0.5; table events; and 1 more: rows"
    verdicts = {"2026-03-02": True, "2026-03-03": False}
    result = {**RESULTS["expectations.gate"], "verdicts": verdicts, "refused": why}
    (tmp_path / "result").write_text(json.dumps(result))
    gate = f"cat {tmp_path}/result; exit 1"
    docs = "http://docs/validations/foodlog_events/2026-03-03/x/page.html"
    # The report is written by itself; where it cannot be, the gate's failure is told all the same.
    report = f'case "$*" in *model.report*) echo "$@" > {tmp_path}/reported; echo {{}};; *) {gate};; esac'
    links, error = _told(tmp_path, "expectations.gate", report)
    assert links == {"data docs": docs, "report of the day": "http://docs/reports/foodlog/2026-03-03.html"}
    assert (tmp_path / "reported").read_text() == "-m model.report --dataset foodlog --ds 2026-03-03\n"
    assert error == f"expectations.gate refused: {why}"
    assert _told(tmp_path, "expectations.gate", gate) == ({"data docs": docs, "report of the day": ""}, error)
    assert logged[:3] == [
        "gate events of 2026-03-03: ctr is 0.7, allowed: 0.5",
        "table events",
        "and 1 more: rows",
    ]
    assert any("no report of 2026-03-03" in line for line in logged[3:])


def test_buttons_survive_in_the_dag_as_airflow_stores_it(dags):
    from airflow.serialization.serialized_objects import DagSerialization

    stored = DagSerialization.from_dict(DagSerialization.to_dict(dags["samples_daily"]))
    assert list(stored.get_task("gate_events").extra_links) == ["data docs", "report of the day"]
    assert list(stored.get_task("ingest").extra_links) == []


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://user:secret@mlflow.example:5000/", "https://mlflow.example:5000"),
        ("sqlite:////var/mlflow.db", ""),
        ("postgresql://user:secret@database/mlflow", ""),
    ],
)
def test_the_address_of_mlflow_shows_no_login(uri, address):
    from dags.settings import address_of

    assert address_of(uri) == address
