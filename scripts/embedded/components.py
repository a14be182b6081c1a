"""The components of the embedded run: Spark Connect, MLflow's store, Airflow's four processes.

They start overlapped, because start-up is most of what a small run pays: Spark and MLflow's database while
Airflow's database is made, then the API server, and when that answers scheduler, DAG processor and triggerer.
Used by `scripts.run`, `scripts.backfill` and `scripts.ui`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from scripts import doctor
from scripts.embedded import databases, ports, secrets_store
from scripts.embedded.airflow_api import AirflowApi
from scripts.embedded.clock import clock
from scripts.embedded.processes import Processes, exclusive
from scripts.embedded.settings import PREPARED, EmbeddedRunError, EmbeddedSettings
from spark_jobs.contract import locations

logger = logging.getLogger(__name__)
DAGS = ("samples_daily", "retraining_daily")
_READY_S = 180.0


def python(module: str, *arguments: str) -> list[str]:
    """Command line of a module in this environment."""
    return [sys.executable, "-m", module, *arguments]


@contextlib.contextmanager
def embedded(
    settings: EmbeddedSettings,
    what: str,
    *,
    ui: bool = False,
    afresh: bool = False,
    meanwhile: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[Processes, AirflowApi]]:
    """Starts all components and stops them at the end, also when interrupted.

    Args:
        settings: Of the run.
        what: Who starts them, for the message to a second one.
        ui: Start the servers for people, too: MLflow and the data docs.
        afresh: End what an interrupted run has left queued or running, so that it does not go on by itself.
        meanwhile: Commands by name that run to their end while the components come up.

    Raises:
        EmbeddedRunError: Something is in the way, or a component did not come up.
    """
    environment = settings.environment(scheduled=ui)
    logs = settings.home / "logs" / "components"
    for handler in logging.getLogger().handlers:
        handler.addFilter(clock)
    logger.info("starting %s; each logs to %s", _names(settings, ui=ui), logs)
    with exclusive(settings.home / "running", what), Processes(environment, logs) as processes:
        problems = doctor.blocking(settings)
        if problems:
            raise EmbeddedRunError("\n".join(problems))
        _require_free_ports(settings, ui=ui)
        secrets_store.generate(settings.home)
        started = time.monotonic()
        processes.expected = 3 + 2 * ui + settings.has_own_spark
        if settings.has_own_spark:
            port, classes = str(settings.spark_port), str(PREPARED / "classes")
            processes.start(
                "spark", python("spark_jobs.session", "serve", "--port", port, "--classes", classes)
            )
        commands = {**_store_commands(), **(meanwhile or {})}
        running = {name: processes.start(name, command) for name, command in commands.items()}
        _migrate(settings, processes)
        api = _start_airflow(settings, processes, afresh=afresh)
        for name, process in running.items():
            processes.finish(name, process)
        _store_stamp().parent.mkdir(parents=True, exist_ok=True)
        _store_stamp().write_text(_store_version())
        if ui:
            _start_servers(settings, processes)
        if settings.has_own_spark:
            _wait(processes, "spark", lambda: ports.listens(settings.spark_port))
        if settings.forks_steps:  # last: what it loads, the first steps do not wait for
            processes.start("fork-server", python("scripts.launchers.fork_server", str(settings.step_socket)))
        logger.info("components are up after %.0f s", time.monotonic() - started)
        yield processes, api
        logger.info("stopping")


def _names(settings: EmbeddedSettings, *, ui: bool) -> str:
    """What is started, for a person who waits."""
    return ", ".join(
        name
        for name, is_started in (("Spark", settings.has_own_spark), ("Airflow", True), ("MLflow", ui))
        if is_started
    )


def _store_stamp() -> Path:
    """Says for which store and version of MLflow the store was prepared."""
    return locations.var() / "mlflow" / "prepared"


def _store_version() -> str:
    store = hashlib.sha256(locations.tracking_uri().encode()).hexdigest()
    return f"{importlib.metadata.version('mlflow')} {store}"


def _store_commands() -> dict[str, list[str]]:
    """Prepares MLflow's store, once for a version of MLflow: asking costs ten seconds of a core."""
    scheme, _, path = locations.tracking_uri().partition(":///")
    database = Path(path)
    stamp = _store_stamp()
    if scheme == "sqlite" and not database.exists() and databases.copy("mlflow", database):
        return {}
    if database.is_file() and stamp.exists() and stamp.read_text() == _store_version():
        return {}
    return {"mlflow-store": python("model.tracking", "prepare")}


def _migrate(settings: EmbeddedSettings, processes: Processes) -> None:
    """Makes or migrates Airflow's database, once for a version of Airflow."""
    version = importlib.metadata.version("apache-airflow-core")
    stamp = settings.database.with_suffix(".version")
    if not settings.database.exists() and databases.copy("apache-airflow-core", settings.database):
        stamp.write_text(version)
        return
    if settings.database.exists() and stamp.exists() and stamp.read_text() == version:
        return
    processes.run("airflow-database", python("airflow", "db", "migrate"))
    stamp.write_text(version)


def _start_airflow(settings: EmbeddedSettings, processes: Processes, *, afresh: bool) -> AirflowApi:
    api = AirflowApi(settings.airflow_url, secrets_store.USER, secrets_store.password(settings.home))
    # It says that it has ended at once, and then takes four seconds of a core to give its memory back.
    processes.start("airflow-api-server", python("airflow", "api-server"), grace=1.5)
    processes.start("airflow-dag-processor", python("airflow", "dag-processor"))
    _wait(processes, "airflow-api-server", api.is_healthy)
    if afresh:
        for dag_id, run_id in api.end_unfinished(DAGS):
            logger.info("ended %s %s, left by an interrupted run", dag_id, run_id)
    processes.start("airflow-scheduler", python("airflow", "scheduler", "--skip-serve-logs"))
    # It may wait ten seconds for a runner that has ended. What it has to do is in the database.
    processes.start("airflow-triggerer", python("airflow", "triggerer", "--skip-serve-logs"), grace=2.0)
    # One slot: a machine trains one model at a time; an operator may make it larger.
    api.make_pool("training", 1, "one slot a device that trains")
    _wait(processes, "airflow-scheduler", lambda: api.is_healthy("metadatabase", "scheduler"))
    _wait(processes, "airflow-dag-processor", lambda: _has_dags(api))
    return api


def _has_dags(api: AirflowApi) -> bool:
    errors = api.import_errors()
    if errors:
        raise EmbeddedRunError("Airflow cannot read the DAGs:\n  " + "\n  ".join(errors))
    return all(api.has_dag(dag_id) for dag_id in DAGS)


def _start_servers(settings: EmbeddedSettings, processes: Processes) -> None:
    processes.start("mlflow", python("model.tracking", "serve", "--port", str(settings.mlflow_port)))
    docs = locations.var() / "data_docs"
    docs.mkdir(parents=True, exist_ok=True)
    address = ("--bind", "127.0.0.1", "--directory", str(docs), str(settings.docs_port))
    processes.start("data-docs", python("http.server", *address))
    _wait(processes, "mlflow", lambda: ports.listens(settings.mlflow_port))
    _wait(processes, "data-docs", lambda: ports.listens(settings.docs_port))


def _wait(processes: Processes, name: str, is_ready: Callable[[], bool]) -> None:
    """Waits until a component is ready.

    Raises:
        EmbeddedRunError: It, or another, has ended, or it takes too long.
    """
    waiting = processes.waiting(name)
    while not is_ready():
        processes.check()
        if waiting() > _READY_S:
            raise EmbeddedRunError(f"{name} is not ready after {_READY_S:.0f} s:\n{processes.tail(name)}")
        time.sleep(0.2)
    processes.is_up(name)


def _require_free_ports(settings: EmbeddedSettings, *, ui: bool) -> None:
    for name, port in ports.needed(settings, ui=ui).items():
        if not ports.is_free(port):
            raise EmbeddedRunError(
                f"port {port} is taken by another program: stop it, or choose: {name}={port + 1}"
            )
