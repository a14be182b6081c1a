"""The empty databases that set-up makes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from scripts.embedded import components, databases
from scripts.embedded.processes import Processes
from scripts.embedded.settings import EmbeddedRunError, EmbeddedSettings


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(databases, "PREPARED", tmp_path / "prepared")
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "var"))
    return tmp_path


def test_a_prepared_database_has_mlflows_tables_and_no_experiment(place: Path) -> None:
    databases.prepare("mlflow")
    assert databases.copy("mlflow", place / "new" / "mlflow.db")
    with sqlite3.connect(place / "new" / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_without_a_prepared_database_the_migrations_run(place: Path) -> None:
    settings, ran = EmbeddedSettings(), []
    processes = Processes({}, place / "logs")
    processes.run = lambda name, command: ran.append((name, command))  # type: ignore[method-assign]
    settings.home.mkdir(parents=True)
    components._migrate(settings, processes)
    assert [name for name, _ in ran] == ["airflow-database"]


def test_a_prepared_database_is_taken_once_and_never_over_one_that_is_there(place: Path) -> None:
    settings, processes = EmbeddedSettings(), Processes({}, place / "logs")
    processes.run = lambda name, command: pytest.fail("it was migrated")  # type: ignore[method-assign]
    source = databases.prepared("apache-airflow-core")
    source.parent.mkdir()
    source.write_text("empty")
    components._migrate(settings, processes)
    assert settings.database.read_text() == "empty"
    settings.database.write_text("runs of three days")
    components._migrate(settings, processes)
    assert settings.database.read_text() == "runs of three days"


def test_a_migration_that_fails_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(databases._MAKERS, "mlflow", ("spark_jobs.session", "--nonsense"))
    with pytest.raises(EmbeddedRunError, match="database of mlflow could not be made"):
        databases.prepare("mlflow")
    assert not list((place / "prepared").iterdir())
