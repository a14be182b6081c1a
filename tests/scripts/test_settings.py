"""Wrong settings are refused by name, before anything starts."""

import dataclasses
import shlex
import sys

import pytest

from model.config.presets import PRESETS, tiny
from model.embeddings.sizes import TableSize
from scripts.embedded.days import days_from_environment, simulation
from scripts.embedded.settings import (
    REPOSITORY,
    UsageError,
    settings_from_environment,
    simulation_asked_for,
)
from spark_jobs.contract import datasets
from spark_jobs.contract.foodlog import FOODLOG

VARIABLES = (
    "DATASET",
    "DATA",
    "CHALLENGERS",
    "PRESET",
    "FROM",
    "TO",
    "DAYS",
    "MTGR_KUAIRAND",
    "MTGR_FOODLOG",
    "MTGR_SHOP",
    "AIRFLOW_PORT",
    "SPARK_PORT",
)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"DATASET": "foodlogg"}, "DATASET: unknown dataset 'foodlogg'; known: foodlog, journey, kuairand"),
        ({"DATASET": "kuairand"}, "needs DATA=<folder"),
        ({"DATASET": "kuairand", "DATA": "/nowhere"}, "DATA=/nowhere is not a folder"),
        ({"PRESET": "huge"}, "PRESET: .*huge"),
        ({"CHALLENGERS": "tiny huge"}, "CHALLENGERS: .*huge"),
        ({"CHALLENGERS": "tiny", "PRESET": "tiny"}, "give one of the two"),
        ({"AIRFLOW_PORT": "80"}, "AIRFLOW_PORT=80 is not a port"),
        ({"AIRFLOW_PORT": "http"}, "AIRFLOW_PORT=http is not a port"),
        ({"AIRFLOW_PORT": "15002"}, "two of the ports are equal"),
        ({"MTGR_RETRIES": "two"}, "MTGR_RETRIES=two is not a whole number from 0 to 100"),
        ({"MTGR_RETRIES": "1.5"}, "MTGR_RETRIES=1.5 is not a whole number"),
        ({"MTGR_RETRY_SECONDS": "soon"}, "MTGR_RETRY_SECONDS=soon is not a number from 0 to 86400"),
        ({"MTGR_RETRY_SECONDS": "1e300"}, r"MTGR_RETRY_SECONDS=1e300 is not a number"),
        ({"MTGR_RETRY_SECONDS": "nan"}, "MTGR_RETRY_SECONDS=nan is not a number"),
        ({"MTGR_SCHEDULED": "yes"}, "MTGR_SCHEDULED=yes is not a whole number from 0 to 1"),
        ({"MTGR_THREADS": "0"}, "MTGR_THREADS=0 is not a whole number from 1"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        settings_from_environment()


@pytest.mark.parametrize("name", ["USERS", "IMPRESSIONS"])
@pytest.mark.parametrize("value", ["many", "0", "-1", "1e3", "2.0"])
def test_a_size_that_is_no_number_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name}={value} is not a whole number from 1"):
        simulation_asked_for()
    monkeypatch.setenv("SIMULATE", "no")
    with pytest.raises(UsageError, match="SIMULATE=no is not a whole number from 0 to 1"):
        simulation_asked_for()


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


def test_from_and_days_are_enough_wherever_days_have_to_be_given(monkeypatch):
    monkeypatch.setenv("FROM", "2028-02-28")
    monkeypatch.setenv("DAYS", "3")
    expected = ["2028-02-28", "2028-02-29", "2028-03-01"]
    assert days_from_environment("foodlog", required=True) == expected  # make backfill
    assert days_from_environment("shop") == expected  # make run of a dataset without days of its own
    monkeypatch.delenv("FROM")
    for dataset, required in (("foodlog", True), ("shop", False)):
        with pytest.raises(UsageError, match=r"give the days: .* or FROM=2026-03-01 DAYS=7"):
            days_from_environment(dataset, required=required)


@pytest.mark.parametrize("dataset", ["foodlog", "kuairand", "shop"])
def test_data_is_the_folder_of_the_dataset_that_is_run(monkeypatch, tmp_path, dataset):
    declared = dataclasses.replace(FOODLOG, name="shop")
    monkeypatch.setitem(datasets.DATASETS, "shop", declared)
    monkeypatch.setattr("scripts.embedded.settings.require_source", lambda _: None)
    monkeypatch.setenv("DATASET", dataset)
    monkeypatch.setenv("DATA", str(tmp_path))
    environment = settings_from_environment().environment()
    assert environment[f"MTGR_{dataset.upper()}"] == str(tmp_path)
    others = {"MTGR_FOODLOG", "MTGR_KUAIRAND", "MTGR_SHOP"} - {f"MTGR_{dataset.upper()}"}
    assert not others & environment.keys()
    monkeypatch.delenv("DATA")
    monkeypatch.setenv(f"MTGR_{dataset.upper()}", str(tmp_path))
    assert settings_from_environment().data == tmp_path


def test_nothing_is_simulated_beside_raw_logs_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.delenv("SIMULATE", raising=False)
    assert list(simulation(settings_from_environment(), ["2026-03-01"])) == ["simulate"]
    monkeypatch.setenv("DATASET", "journey")
    (written,) = simulation(settings_from_environment(), ["2017-11-20", "2017-11-21"]).values()
    assert written[-3:] == ["spark_jobs.journey", "--first-day", "2017-11-20"]
    for dataset in ("journey", "foodlog"):
        monkeypatch.setenv("DATASET", dataset)
        monkeypatch.setenv("DATA", str(tmp_path))
        assert simulation(settings_from_environment(), ["2026-03-01"]) == {}
    monkeypatch.setenv("SIMULATE", "1")
    with pytest.raises(UsageError, match=r"DATA=.* holds raw logs and SIMULATE=1 would write others"):
        simulation(settings_from_environment(), ["2026-03-01"])


def test_a_dataset_without_a_source_is_named_at_once(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "shop", dataclasses.replace(FOODLOG, name="shop"))
    monkeypatch.setenv("DATASET", "shop")
    with pytest.raises(
        UsageError, match=r"DATASET: dataset 'shop' has no source: write spark_jobs/sources/shop"
    ):
        settings_from_environment()


def test_tables_that_a_dataset_has_not_are_named_at_once(monkeypatch):
    tables = {"brand": TableSize(rows=9, width=4)}
    model = dataclasses.replace(tiny().model, tables=tables)
    monkeypatch.setitem(PRESETS, "wide", lambda: dataclasses.replace(tiny(), model=model))
    monkeypatch.setenv("PRESET", "wide")
    with pytest.raises(UsageError, match="PRESET: dataset 'foodlog' has no embedding table 'brand'"):
        settings_from_environment()


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
