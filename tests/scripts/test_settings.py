"""Wrong settings are refused by name, before anything starts."""

import shlex
import sys

import pytest

from scripts.embedded.days import days_from_environment
from scripts.embedded.settings import REPOSITORY, UsageError, settings_from_environment

VARIABLES = ("DATASET", "DATA", "PRESET", "FROM", "TO", "DAYS", "MTGR_KUAIRAND", "AIRFLOW_PORT", "SPARK_PORT")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"DATASET": "foodlogg"}, "DATASET: unknown dataset 'foodlogg'; known: foodlog, kuairand"),
        ({"DATASET": "kuairand"}, "needs DATA=<folder"),
        ({"DATASET": "kuairand", "DATA": "/nowhere"}, "DATA=/nowhere is not a folder"),
        ({"PRESET": "huge"}, "PRESET: .*huge"),
        ({"AIRFLOW_PORT": "80"}, "AIRFLOW_PORT=80 is not a port"),
        ({"AIRFLOW_PORT": "http"}, "AIRFLOW_PORT=http is not a port"),
        ({"AIRFLOW_PORT": "15002"}, "two of the ports are equal"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        settings_from_environment()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"FROM": "2026-02-30"}, "FROM: '2026-02-30' is not a day"),
        ({"FROM": "2026-03-02", "TO": "2026-03-01"}, "FROM=2026-03-02 lies after TO=2026-03-01"),
        ({"DAYS": "0"}, "DAYS=0 is not a number of days"),
        ({"DAYS": "2", "TO": "2026-03-02"}, "TO or DAYS, not both"),
    ],
)
def test_wrong_days_are_named(monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        days_from_environment("foodlog")


def test_days(monkeypatch):
    monkeypatch.setenv("FROM", "2028-02-28")
    monkeypatch.setenv("DAYS", "3")
    assert days_from_environment("foodlog") == ["2028-02-28", "2028-02-29", "2028-03-01"]


def test_a_backfill_has_to_be_told_its_days(monkeypatch):
    with pytest.raises(UsageError, match="give the days: FROM="):
        days_from_environment("foodlog", required=True)


def test_components_listen_on_loopback_and_share_one_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    environment = settings_from_environment().environment()
    assert environment["AIRFLOW_HOME"] == f"{tmp_path}/airflow"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"
    assert environment["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark-connect://127.0.0.1:15002"


def test_a_connection_of_ones_own_is_kept(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://cluster:7077")
    settings = settings_from_environment()
    assert not settings.has_own_spark
    assert settings.environment()["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://cluster:7077"


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_steps_are_forks_unless_there_is_a_gpu_or_a_launcher_of_ones_own(monkeypatch):
    for name in ("MTGR_LAUNCHER", "MTGR_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    settings = settings_from_environment()
    launcher = shlex.split(settings.environment()["MTGR_LAUNCHER"])
    assert launcher[0] == sys.executable
    assert launcher[-2:] == [
        str(REPOSITORY / "scripts" / "launchers" / "forked.py"),
        str(settings.step_socket),
    ]
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    assert not settings.forks_steps
    assert "MTGR_LAUNCHER" not in settings.environment()  # then MTGR_PYTHON runs them (dags/steps.py)
    assert settings.environment()["MTGR_PYTHON"] == sys.executable
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("MTGR_PYTHON", "/opt/other/python")
    assert not settings.forks_steps
    assert "MTGR_LAUNCHER" not in settings.environment()
    assert settings.environment()["MTGR_PYTHON"] == "/opt/other/python"
    monkeypatch.setenv("MTGR_LAUNCHER", "nice python")
    assert not settings.forks_steps
    assert settings.environment()["MTGR_LAUNCHER"] == "nice python"
