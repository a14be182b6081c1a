"""What doctor finds, and that each finding says what to do."""

import importlib.metadata
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import doctor
from scripts.embedded import deployment, secrets_store
from scripts.embedded.diagnosis import Diagnosis, Level, address_of
from scripts.embedded.settings import EmbeddedSettings
from tests.spark_servers import free_port


def _only(findings) -> Diagnosis:
    found = list(findings)
    assert len(found) == 1
    return found[0]


def test_no_java_blocks(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    finding = _only(doctor.check_java())
    assert finding.level is Level.BLOCKS
    assert "openjdk-17-jre-headless" in finding.fix


def test_a_full_disk_blocks(tmp_path):
    finding = _only(doctor.check_disk(tmp_path / "var", need_gb=1e9))
    assert finding.level is Level.BLOCKS
    assert str(tmp_path) in finding.text
    assert "MTGR_VAR" in finding.fix


def test_a_folder_that_is_a_file_blocks(tmp_path):
    (tmp_path / "var").write_text("")
    finding = _only(doctor.check_disk(tmp_path / "var"))
    assert finding.level is Level.BLOCKS
    assert "cannot be written" in finding.text


def test_a_taken_port_names_its_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = list(doctor.check_ports(EmbeddedSettings(airflow_port=port, spark_port=port + 1)))
    finding = next(finding for finding in found if str(port) in finding.text)
    assert finding.level is Level.BLOCKS
    assert f"AIRFLOW_PORT={port + 1}" in finding.fix


def test_open_secrets_block(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    settings = EmbeddedSettings()
    assert _only(doctor.check_secrets(settings)).level is Level.OK
    secrets_store.generate(settings.home)
    assert _only(doctor.check_secrets(settings)).level is Level.OK
    (settings.home / "secrets" / "fernet_key").chmod(0o640)
    finding = _only(doctor.check_secrets(settings))
    assert finding.level is Level.BLOCKS
    assert finding.fix.startswith("chmod 600 ")


def test_an_mlflow_server_that_does_not_answer_blocks(monkeypatch):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("AIRFLOW_CONN_SPARK_DEFAULT", raising=False)
    finding = _only(doctor.check_services(EmbeddedSettings()))
    assert (finding.level, finding.subject) == (Level.BLOCKS, "MLFLOW_TRACKING_URI")
    assert f"127.0.0.1:{port}" in finding.text


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("spark://master:7077", ("master", 7077)),
        ("spark://spark%3A%2F%2Fone:7077,two:7077", ("one", 7077)),
        ("spark-connect://server", ("server", 15002)),
        ("k8s://https%3A%2F%2Fcluster", ("cluster", 443)),
        ('{"conn_type": "spark", "host": "spark://master", "port": 7077}', ("master", 7077)),
        ("postgresql+psycopg2://user:secret@database/mlflow", ("database", 5432)),
        ("spark://local%5B2%5D", None),
        ("spark://yarn", None),
        ("sqlite:////var/mlflow.db", None),
    ],
)
def test_the_address_of_a_service(uri, address):
    assert address_of(uri) == address


def test_a_spark_that_does_not_answer_blocks(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", f"spark://127.0.0.1:{free_port()}")
    (problem,) = doctor.blocking(EmbeddedSettings())
    assert problem.startswith("AIRFLOW_CONN_SPARK_DEFAULT: no answer from 127.0.0.1:")
    assert "correct AIRFLOW_CONN_SPARK_DEFAULT" in problem


def test_other_versions_than_the_locks_block(monkeypatch):
    assert [f.subject for f in doctor.check_python()] == ["python", "packages"]
    found = importlib.metadata.version
    other = {"mlflow": "2.0.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: other.get(name) or found(name))
    finding = list(doctor.check_python())[-1]
    assert (finding.level, finding.fix) == (Level.BLOCKS, "make setup")
    assert finding.text.startswith("mlflow 2.0.0, not ")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "torch missing, not " in list(doctor.check_python())[-1].text
    monkeypatch.setattr(doctor.sys, "version_info", SimpleNamespace(major=3, minor=10))
    finding = _only(doctor.check_python())
    assert (finding.level, finding.text) == (Level.BLOCKS, "3.10")
    assert "install Python 3.11 or 3.12" in finding.fix


@pytest.mark.parametrize(
    ("nvidia_smi", "is_gpu_lock", "level", "fix"),
    [
        (None, False, Level.OK, ""),
        ("echo 'driver mismatch' >&2; exit 9", True, Level.WARNING, "repair the driver: driver mismatch"),
        ("echo 'H100, 580.1, 81559 MiB'", False, Level.WARNING, "GPU=1 make setup"),
        ("echo 'H100, 580.1, 81559 MiB'", True, Level.OK, ""),
    ],
)
def test_the_gpu_and_the_environment_have_to_fit(monkeypatch, tmp_path, nvidia_smi, is_gpu_lock, level, fix):
    if nvidia_smi:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if nvidia_smi else str(tmp_path))

    def version(name):
        assert name == "fbgemm-gpu"
        if not is_gpu_lock:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.6.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = _only(doctor.check_gpu())
    assert (finding.level, finding.fix) == (level, fix)


def test_little_memory_is_a_warning_with_a_setting(monkeypatch):
    monkeypatch.setattr(doctor, "MEMORY_GB", 1e6)
    finding = _only(doctor.check_memory())
    assert finding.level is Level.WARNING
    assert "SPARK_CONF=spark.driver.memory=1g" in finding.fix


@pytest.mark.parametrize(
    "uri", ["postgresql://user:canary@127.0.0.1:1/db", "http://user:1canary@host:canary/"]
)
def test_no_secret_is_printed(monkeypatch, tmp_path, capsys, uri):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "password": "canary", "host": ')
    home = EmbeddedSettings().home
    secrets_store.generate(home)
    secret = [path.read_text() for path in (home / "secrets").iterdir()]
    assert doctor.main([]) == 1
    printed = "".join(capsys.readouterr())
    assert "canary" not in printed
    assert not [one for one in secret if one in printed]
    assert "MLFLOW_TRACKING_URI" in printed
    assert "AIRFLOW_CONN_SPARK_DEFAULT is no address that can be read" in " ".join(printed.split())
    assert printed.count("BLOCKS") <= printed.count("fix: ")


def test_every_finding_that_is_not_ok_has_a_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for finding in doctor.findings(EmbeddedSettings()):
        assert bool(finding.fix) == (finding.level is not Level.OK), finding


def test_it_runs_without_the_packages_of_the_lock():
    text = (Path(doctor.__file__)).read_text()
    assert "import airflow" not in text
    assert "import psutil" not in text


class _Service(BaseHTTPRequestHandler):
    """Answers, and says the time by a clock of its own."""

    ahead_s = 0

    def do_GET(self):
        self.send_response(403)
        self.end_headers()

    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + self.ahead_s)

    def log_message(self, *args):
        pass


@pytest.fixture
def deployed(monkeypatch, tmp_path):
    """A deployment whose settings are right, its services being one that listens."""
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 64)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Service) as service:
        threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
        at = f"127.0.0.1:{service.server_port}"
        for name, value in {
            "PYTHONPATH": str(doctor.REPOSITORY),
            "AIRFLOW__CORE__DAGS_FOLDER": str(doctor.REPOSITORY / "dags"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://user:canary@{at}/airflow",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": f"redis://:canary@{at}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql://user:canary@{at}/airflow",
            "AIRFLOW__CORE__FERNET_KEY": "canary",
            "AIRFLOW__API_AUTH__JWT_SECRET_CMD": "cat secret",
            "AIRFLOW__API__SECRET_KEY_SECRET": "airflow/secret",
            "MTGR_LAKE": "s3a://bucket/lake",
            "AWS_ACCESS_KEY_ID": "canary",
            "AWS_SECRET_ACCESS_KEY": "canary",
            "AWS_ENDPOINT_URL": f"http://{at}",
            "AWS_ALLOW_HTTP": "true",
            "MTGR_VAR": str(tmp_path),
            "MLFLOW_TRACKING_URI": f"http://{at}",
            "AIRFLOW_CONN_SPARK_DEFAULT": f"spark://{at}",
            "MTGR_ALERT_WEBHOOK": f"http://{at}/canary",
            "MTGR_DOCS_URL": f"http://{at}",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MTGR_RUNS", raising=False)
        yield at
        service.shutdown()


def _of_deployment():
    return [finding for check in deployment.CHECKS for finding in check()]


@pytest.mark.usefixtures("deployed")
def test_a_deployment_whose_settings_are_right_has_nothing_to_mend(capsys):
    assert {finding.level for finding in _of_deployment()} == {Level.OK}
    doctor.main(["--deployment"])
    assert "canary" not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    ("setting", "value", "level", "fix"),
    [
        ("PYTHONPATH", "/elsewhere", Level.BLOCKS, "PYTHONPATH=/"),
        ("AIRFLOW__CORE__DAGS_FOLDER", "/elsewhere", Level.WARNING, "AIRFLOW__CORE__DAGS_FOLDER=/"),
        ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////airflow.db", Level.BLOCKS, "Postgres"),
        ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "", Level.WARNING, "airflow.cfg"),
        ("AIRFLOW__CORE__EXECUTOR", "", Level.WARNING, "CeleryExecutor or KubernetesExecutor"),
        ("AIRFLOW__CELERY__BROKER_URL", "", Level.BLOCKS, "set AIRFLOW__CELERY__BROKER_URL"),
        ("AIRFLOW__CORE__FERNET_KEY", "", Level.BLOCKS, "alike for all components"),
        ("AIRFLOW__API_AUTH__JWT_SECRET_CMD", "", Level.BLOCKS, "alike for all components"),
        ("MTGR_LAKE", "s3://bucket/lake", Level.BLOCKS, "MTGR_LAKE=s3a://bucket/lake"),
        ("MTGR_LAKE", "/var/lake", Level.WARNING, "MTGR_LAKE=s3a://"),
        ("AWS_SECRET_ACCESS_KEY", "", Level.WARNING, "the host's role"),
        ("AWS_ALLOW_HTTP", "", Level.BLOCKS, "AWS_ALLOW_HTTP=true"),
        ("MTGR_RUNS", "s3a://bucket/runs", Level.BLOCKS, "correct MTGR_RUNS"),
        ("MTGR_VAR", "/dev/null", Level.BLOCKS, "a file system with locks"),
        ("MTGR_VAR", "", Level.BLOCKS, "MTGR_VAR=<a folder"),
        ("MLFLOW_TRACKING_URI", "", Level.BLOCKS, "MLFLOW_TRACKING_URI=https://"),
        ("AIRFLOW_CONN_SPARK_DEFAULT", "", Level.WARNING, "the connection spark_default"),
        ("MTGR_ALERT_WEBHOOK", "", Level.WARNING, "set MTGR_ALERT_WEBHOOK"),
        ("MTGR_DOCS_URL", "", Level.WARNING, "set MTGR_DOCS_URL"),
    ],
)
def test_each_wrong_setting_of_a_deployment_is_the_one_that_is_named(monkeypatch, setting, value, level, fix):
    monkeypatch.setenv(setting, value)
    finding = _only(finding for finding in _of_deployment() if finding.level is not Level.OK)
    assert finding.level is level
    assert finding.subject in (setting.removesuffix("_CMD"), "AWS_ACCESS_KEY_ID")
    assert fix in finding.fix


@pytest.mark.parametrize(
    "setting",
    [
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "AIRFLOW__CELERY__BROKER_URL",
        "AIRFLOW__CELERY__RESULT_BACKEND",
        "AWS_ENDPOINT_URL",
        "MLFLOW_TRACKING_URI",
        "AIRFLOW_CONN_SPARK_DEFAULT",
        "MTGR_ALERT_WEBHOOK",
    ],
)
def test_a_service_of_a_deployment_that_does_not_answer_blocks(monkeypatch, deployed, setting):
    monkeypatch.setenv(setting, os.environ[setting].replace(deployed, f"127.0.0.1:{free_port()}"))
    finding = _only(finding for finding in _of_deployment() if finding.level is not Level.OK)
    assert (finding.level, finding.subject) == (Level.BLOCKS, setting)


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    ("ahead_s", "named"), [(3, ""), (40, r"(39|40|41) s behind"), (-40, r"(39|40|41) s ahead of")]
)
def test_a_clock_that_differs_from_those_of_services_is_named(monkeypatch, ahead_s, named):
    monkeypatch.setattr(_Service, "ahead_s", ahead_s)
    told = [finding for finding in _of_deployment() if finding.level is not Level.OK]
    assert [finding.subject for finding in told] == ["AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"][
        : 2 * bool(named)
    ]
    assert all(re.search(named, finding.text) and "NTP" in finding.fix for finding in told)


@pytest.mark.usefixtures("deployed")
def test_a_deployment_that_would_fail_is_exit_code_1_and_says_what(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////mlflow.db")
    assert doctor.main(["--deployment"]) == 1
    assert "the deployment would fail: see " in caplog.text
    assert "MLFLOW_TRACKING_URI" in caplog.text
    monkeypatch.setenv("MTGR_RETRIES", "many")
    assert doctor.main(["--deployment"]) == 2
