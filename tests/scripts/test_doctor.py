"""What doctor finds, and that each finding says what to do."""

import socket
from pathlib import Path

import pytest

from scripts import doctor, secrets_store
from scripts.doctor import Finding, Level
from scripts.settings import Settings
from tests.spark_servers import free_port


def _only(findings) -> Finding:
    found = list(findings)
    assert len(found) == 1
    return found[0]


def test_no_java_blocks(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    finding = _only(doctor.check_java())
    assert finding.level is Level.BLOCKS
    assert "openjdk-17-jre-headless" in finding.fix


@pytest.mark.parametrize(
    ("version", "level"), [("1.8.0_402", Level.BLOCKS), ("17.0.2", Level.OK), ("21", Level.OK)]
)
def test_java_has_to_be_17_or_21(monkeypatch, tmp_path, version, level):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-16' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert _only(doctor.check_java()).level is level


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
        found = list(doctor.check_ports(Settings(airflow_port=port, spark_port=port + 1)))
    finding = next(finding for finding in found if str(port) in finding.text)
    assert finding.level is Level.BLOCKS
    assert f"AIRFLOW_PORT={port + 1}" in finding.fix


def test_open_secrets_block(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    settings = Settings()
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
    finding = _only(doctor.check_services(Settings()))
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
    assert doctor._address(uri) == address


def test_a_spark_that_does_not_answer_blocks(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", f"spark://127.0.0.1:{free_port()}")
    (problem,) = doctor.blocking(Settings())
    assert problem.startswith("AIRFLOW_CONN_SPARK_DEFAULT: no answer from 127.0.0.1:")
    assert "correct AIRFLOW_CONN_SPARK_DEFAULT" in problem


def test_every_finding_that_is_not_ok_has_a_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for finding in doctor.findings(Settings()):
        assert bool(finding.fix) == (finding.level is not Level.OK), finding


def test_it_runs_without_the_packages_of_the_lock():
    text = (Path(doctor.__file__)).read_text()
    assert "import airflow" not in text
    assert "import psutil" not in text
