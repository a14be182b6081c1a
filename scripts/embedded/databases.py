"""The empty databases of Airflow and MLflow, made once: `python -m scripts.embedded.databases`.

Their migrations, from the first schema to the last, take 20 s of a core: set-up runs them, and an embedded
run that has no database yet starts from a copy. Nothing else is in them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.embedded.settings import PREPARED, REPOSITORY, EmbeddedRunError, child
from spark_jobs.contract import command, environment, locations

logger = logging.getLogger(__name__)
_MAKERS = {
    "apache-airflow-core": ("airflow", "db", "migrate"),
    "mlflow": ("model.tracking", "prepare"),
}


def prepared(distribution: str) -> Path:
    """Where the empty database of `apache-airflow-core` or `mlflow`, in the installed version, is kept."""
    return PREPARED / f"{distribution}-{importlib.metadata.version(distribution)}.db"


def copy(distribution: str, database: Path) -> bool:
    """Makes `database` from the empty one that set-up prepared; whether there was one."""
    source = prepared(distribution)
    if not source.exists():
        return False
    database.parent.mkdir(parents=True, exist_ok=True)
    part = database.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(database)
    return True


def prepare(distribution: str) -> None:
    """Makes the empty database if it is not there.

    Raises:
        EmbeddedRunError: It cannot be made; the message has the end of what its program said.
    """
    target = prepared(distribution)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "empty.db")
        variables = {
            "AIRFLOW_HOME": folder,
            "AIRFLOW_CONFIG": str(REPOSITORY / "airflow.cfg"),
            "AIRFLOW__CORE__DAGS_FOLDER": folder,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
            "MTGR_VAR": folder,
            "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run(
            [sys.executable, "-m", *_MAKERS[distribution]],
            env=child(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or not database.exists():
            tail = "\n".join(done.stdout.splitlines()[-15:])
            raise EmbeddedRunError(f"the database of {distribution} could not be made:\n{tail}")
        part = target.with_suffix(".part")
        shutil.copyfile(database, part)
        part.replace(target)


def snapshot(database: Path, folder: Path) -> Path:
    """A copy of an SQLite file as it is now, made without changing it or what lies beside it."""
    target = folder / database.name
    if not database.with_name(f"{database.name}-wal").exists():
        shutil.copyfile(database, target)
        return target
    # Somebody has it open, or was killed: what is committed is partly in the log beside it.
    with (
        contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as source,
        contextlib.closing(sqlite3.connect(target)) as copied,
    ):
        source.backup(copied)
    return target


@contextlib.contextmanager
def only_read(airflow: Path) -> Iterator[tuple[Path | None, bool]]:
    """Lets this process read Airflow's and MLflow's databases from copies, so that it changes nothing.

    Args:
        airflow: Airflow's SQLite file.

    Yields:
        The copy of Airflow's, None where there is none; whether there is a store of MLflow.
    """
    uri = locations.tracking_uri()
    scheme, _, path = uri.partition(":///")
    with tempfile.TemporaryDirectory(prefix="mtgr-read-") as folder:
        runs = snapshot(airflow, Path(folder)) if airflow.exists() else None
        if scheme != "sqlite":
            yield runs, True
            return
        if not Path(path).exists():
            yield runs, False
            return
        copied = snapshot(Path(path).absolute(), Path(folder))
        environment.override({"MLFLOW_TRACKING_URI": f"sqlite:///{copied}"})
        try:
            yield runs, True
        finally:
            environment.override({"MLFLOW_TRACKING_URI": uri})


def _run(arguments: object) -> None:
    for distribution in _MAKERS:
        prepare(distribution)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes both; see `command.run` for the exit codes."""
    return command.run(command.parser("scripts.embedded.databases", __doc__), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
