"""The connection to MLflow: bounded in time, without pickle or telemetry, with errors that name the remedy.

Where MLflow is comes from `MLFLOW_TRACKING_URI` (`spark_jobs/contract/locations.py`): the SQLite file by
default, a server or another database by setting. A store that does not answer is reported within a minute,
not after the seven minutes of MLflow's own retries. A fresh SQLite file is initialised by one process at a
time.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from model.config.environment import configure_mlflow
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}
# Bounds on a server that does not answer; and neither pickle nor telemetry.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_ORIGINS = ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "psycopg")
_DRIVERS = ("psycopg", "psycopg2", "MySQLdb", "pymysql", "pyodbc", "pymssql")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class TrackingError(CommandError):
    """MLflow is not reachable or refuses; the message names its URI, the reason and what to do."""


def configure() -> None:
    """Sets MLflow's environment for this process; call it before MLflow is imported."""
    configure_mlflow(_ENVIRONMENT)


def artifacts_root() -> Path:
    """Folder of artifacts when there is no server elsewhere to keep them."""
    return locations.var() / "mlflow" / "artifacts"


def safe_uri(uri: str) -> str:
    """A URI as messages may show it: without a password."""
    return re.sub(r"(://[^:/@]+):[^@/]+@", r"\1:***@", uri)


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Turns MLflow's and the network's errors into `TrackingError`."""
    try:
        yield
    except Exception as error:
        origin = type(error).__module__.split(".")[0]
        if origin not in _ORIGINS and not _is_missing_driver(error):
            raise
        text = _cause(error)
        raise TrackingError(
            f"MLflow at {safe_uri(locations.tracking_uri())}: {text}{_remedy(text)}"
        ) from error


def _is_missing_driver(error: Exception) -> bool:
    """Whether SQLAlchemy found no driver for the database that the URI names."""
    return isinstance(error, ModuleNotFoundError) and error.name in _DRIVERS


def _cause(error: Exception) -> str:
    """The line of an error that says what went wrong; SQLAlchemy may put a note on its session before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if not line.startswith("(raised as a result of Query-invoked autoflush")
    ]
    return (telling or lines or [type(error).__name__])[0]


def _remedy(text: str) -> str:
    if "No module named" in text:
        return "; install the database's driver (Postgres's is in requirements.txt: make setup)"
    if "value too long" in text or "exceeds" in text:
        return "; a value is longer than its column: shorten the name or path that it holds"
    if "authentication failed" in text or ("role " in text and "does not exist" in text):
        return "; correct user and password in MLFLOW_TRACKING_URI"
    if "database is locked" in text:
        return "; SQLite serves one host and few writers: run again, or use a server or Postgres"
    if "out-of-date database schema" in text:
        return "; back the database up, then: python -m model.tracking prepare"
    if "unable to open database" in text or "readonly database" in text:
        return "; see that the folder exists and can be written, or set MLFLOW_TRACKING_URI"
    if "Connection" in text or "Max retries" in text or "timed out" in text:
        return "; start it (python -m model.tracking serve) or correct MLFLOW_TRACKING_URI"
    return ""


def with_named_errors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a function with `named_errors`."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with named_errors():
            return function(*args, **kwargs)

    return wrapped


def client() -> MlflowClient:
    """A client of the tracking store and registry, once the store is known to answer.

    Raises:
        TrackingError: It does not; the message names the URI and the remedy.
    """
    return _client(locations.tracking_uri())


@functools.lru_cache(maxsize=4)
def _client(uri: str) -> MlflowClient:
    configure()
    _require_answer(uri)
    with named_errors(), initialising(uri):
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        made = mlflow.MlflowClient(uri)
        made.search_experiments(max_results=1)
        return made


def _require_answer(uri: str) -> None:
    parts = urllib.parse.urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind == "sqlite":
        folder = Path(uri.split(":///", 1)[1].split("?")[0]).absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingError(f"MLflow at {uri}: {folder} cannot be made ({error})") from error
        return
    if kind not in _PORTS or not parts.hostname:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {safe_uri(uri)!r}; use sqlite:///<file>, http(s)://<host>:<port> or a "
            "database URI such as postgresql://<user>@<host>/<database>"
        )
    try:
        with socket.create_connection((parts.hostname, parts.port or _PORTS[kind]), timeout=10):
            pass
    except OSError as error:
        raise TrackingError(
            f"MLflow at {safe_uri(uri)} does not answer ({error}); start it (python -m model.tracking serve) "
            "or correct MLFLOW_TRACKING_URI"
        ) from error


@contextlib.contextmanager
def initialising(uri: str) -> Iterator[None]:
    """One process at a time on this host, as the first use of a fresh SQLite file creates its tables."""
    if not uri.startswith("sqlite:"):
        yield
        return
    database = Path(uri.split(":///", 1)[1].split("?")[0]).absolute()
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(uri: str) -> None:
    """Creates the database's tables, or migrates them to this MLflow's; harmless when there is nothing to do.

    Args:
        uri: A database URI; with the URI of a server only its answer is checked.

    Raises:
        TrackingError: It cannot be reached or migrated.
    """
    configure()
    _require_answer(uri)
    if uri.startswith("http"):
        _get_health(uri)
        return
    with named_errors(), initialising(uri):
        from mlflow.db import upgrade

        upgrade.callback(url=uri)


def _get_health(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=30) as answer:
            answer.read()
    except (OSError, urllib.error.URLError) as error:
        raise TrackingError(f"MLflow at {safe_uri(uri)} does not answer /health: {error}") from error
