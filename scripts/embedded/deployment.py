"""What a deployment's settings have to be, checked where they hold: on a scheduler, a worker, in an image.

See docs/operations.md, on a deployment. Looks at environment variables, also at those that a setting of
Airflow's may be given by (`..._CMD`, `..._SECRET`), and at whether services answer; opens no login.
"""

from __future__ import annotations

import email.utils
import fcntl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from scripts.embedded.diagnosis import Diagnosis, Level, check_answers
from scripts.embedded.settings import REPOSITORY, spark_connection
from spark_jobs.contract import locations
from spark_jobs.contract.environment import text

OK, WARNING, BLOCKS = Level.OK, Level.WARNING, Level.BLOCKS
_DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
_SKEW_S = 10  # Airflow's default for how far a token's time may lie in the future of who checks it
_SHARED_SECRETS = {
    "AIRFLOW__CORE__FERNET_KEY": "connections cannot be read by the others",
    "AIRFLOW__API_AUTH__JWT_SECRET": "every task fails while all looks healthy",
    "AIRFLOW__API__SECRET_KEY": "logs and sessions are refused",
}


def check_code() -> Iterator[Diagnosis]:
    """The repository, where Airflow looks for code and DAGs."""
    paths = [Path(path).resolve() for path in text("PYTHONPATH").split(":") if path]
    if REPOSITORY not in paths:
        fix = f"PYTHONPATH={REPOSITORY} on every scheduler, DAG processor, triggerer and worker"
        yield Diagnosis(BLOCKS, "PYTHONPATH", f"does not name {REPOSITORY}: DAGs cannot import", fix)
    folder = text("AIRFLOW__CORE__DAGS_FOLDER")
    if folder and Path(folder).resolve() != REPOSITORY / "dags":
        fix = f"AIRFLOW__CORE__DAGS_FOLDER={REPOSITORY / 'dags'}, or a bundle of it"
        yield Diagnosis(WARNING, "AIRFLOW__CORE__DAGS_FOLDER", f"{folder} is not this repository's", fix)


def check_airflow() -> Iterator[Diagnosis]:
    """Airflow's database, executor and the secrets that its components share."""
    database = text(_DATABASE)
    if not database and not _is_given(_DATABASE):
        yield Diagnosis(WARNING, _DATABASE, "is not set here", "set it, unless airflow.cfg has it")
    elif database.startswith("sqlite"):
        yield Diagnosis(BLOCKS, _DATABASE, "SQLite serves one host", "name a Postgres database")
    elif database:
        yield from check_answers(_DATABASE, database)
    executor = text("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    if executor == "LocalExecutor":
        fix = "AIRFLOW__CORE__EXECUTOR=CeleryExecutor or KubernetesExecutor, unless one host runs all"
        yield Diagnosis(WARNING, "AIRFLOW__CORE__EXECUTOR", f"{executor} runs steps on the scheduler", fix)
    if "Celery" in executor:
        for setting in ("AIRFLOW__CELERY__BROKER_URL", "AIRFLOW__CELERY__RESULT_BACKEND"):
            if text(setting):
                yield from check_answers(setting, text(setting))
            elif not _is_given(setting):
                yield Diagnosis(BLOCKS, setting, "is not set, and the executor is Celery", f"set {setting}")
    for setting, otherwise in _SHARED_SECRETS.items():
        if not _is_given(setting):
            fix = f"set {setting}, or {setting}_CMD or _SECRET, alike for all components"
            yield Diagnosis(BLOCKS, setting, f"each component makes its own: {otherwise}", fix)


def _is_given(setting: str) -> bool:
    return any(text(f"{setting}{form}") for form in ("", "_CMD", "_SECRET"))


def check_storage() -> Iterator[Diagnosis]:
    """The lake, and the folders that workers share."""
    lake = locations.lake()
    scheme = lake.partition("://")[0] if "://" in lake else ""
    if scheme in ("s3", "s3n"):
        yield Diagnosis(
            BLOCKS, "MTGR_LAKE", f"Spark has no {scheme}://", f"MTGR_LAKE=s3a{lake[len(scheme) :]}"
        )
    elif not scheme:
        fix = "MTGR_LAKE=s3a://<bucket>/<path>, or a file system that all hosts mount there"
        yield Diagnosis(WARNING, "MTGR_LAKE", f"{lake} is a folder of this host", fix)
    else:
        yield Diagnosis(OK, "MTGR_LAKE", lake)
    if scheme.startswith("s3") and not (text("AWS_ACCESS_KEY_ID") and text("AWS_SECRET_ACCESS_KEY")):
        fix = "set both for Spark's driver and the workers, unless the host's role has the right"
        yield Diagnosis(WARNING, "AWS_ACCESS_KEY_ID", "and AWS_SECRET_ACCESS_KEY are not set", fix)
    if text("AWS_ENDPOINT_URL"):
        yield from check_answers("AWS_ENDPOINT_URL", text("AWS_ENDPOINT_URL"))
    if text("AWS_ENDPOINT_URL").startswith("http://") and text("AWS_ALLOW_HTTP").lower() != "true":
        fix = "AWS_ALLOW_HTTP=true, or an endpoint with https"
        yield Diagnosis(BLOCKS, "AWS_ALLOW_HTTP", "is not set: deltalake calls no endpoint of http://", fix)
    for setting in ("MTGR_VAR", "MTGR_RUNS"):
        given = text(setting)
        if "://" in given:
            fix = (
                f"a folder that the workers that train share; only MTGR_LAKE may be a URI: correct {setting}"
            )
            yield Diagnosis(BLOCKS, setting, f"{given} is no folder", fix)
        elif setting == "MTGR_VAR" and not given:
            fix = "MTGR_VAR=<a folder that all workers mount>: verdicts, runs and alerts lie there"
            yield Diagnosis(BLOCKS, setting, f"is not set: {locations.var()} lies in this host's code", fix)
        elif given and (why := _why_not_shared(Path(given))):
            fix = "a file system with locks (NFS 4, CephFS, EFS) that Airflow's user may write"
            yield Diagnosis(BLOCKS, setting, f"{given} takes no locked file ({why})", fix)


def _why_not_shared(folder: Path) -> str:
    """Why files of a folder cannot be written and locked, as runs are; empty where they can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return str(error)
    return ""


def check_mlflow_and_spark() -> Iterator[Diagnosis]:
    """MLflow's server, and the Spark that steps run on."""
    uri = locations.tracking_uri()
    if uri.startswith("sqlite"):
        fix = "MLFLOW_TRACKING_URI=https://<server>, with Postgres and object storage behind it"
        yield Diagnosis(BLOCKS, "MLFLOW_TRACKING_URI", "SQLite serves one host", fix)
    else:
        yield from check_answers("MLFLOW_TRACKING_URI", uri)
    if spark_connection():
        yield from check_answers("AIRFLOW_CONN_SPARK_DEFAULT", spark_connection())
    else:
        fix = "make the connection spark_default, in a secrets backend or by this variable"
        yield Diagnosis(WARNING, "AIRFLOW_CONN_SPARK_DEFAULT", "is not set here", fix)


def check_clocks() -> Iterator[Diagnosis]:
    """This host's clock beside those of the services that say theirs."""
    for setting in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"):
        ahead_s = _seconds_ahead(text(setting)) if text(setting).startswith("http") else 0.0
        if abs(ahead_s) > _SKEW_S:
            direction = "ahead of" if ahead_s > 0 else "behind"
            told = f"this host's clock is {abs(ahead_s):.0f} s {direction} that of the service"
            yield Diagnosis(BLOCKS, setting, f"{told}; Airflow's tokens allow {_SKEW_S} s", "run NTP on both")


def _seconds_ahead(url: str) -> float:
    """By how much this host's clock is ahead of a server's; 0 where it does not answer or say its time."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
    except OSError:
        return 0.0
    return time.time() - email.utils.parsedate_to_datetime(date).timestamp() if date else 0.0


def check_people() -> Iterator[Diagnosis]:
    """Where people are told, and where tasks link to."""
    wanted = {
        "MTGR_ALERT_WEBHOOK": "alerts are only logged",
        "MTGR_DOCS_URL": "failed gates link to no page",
    }
    for setting, otherwise in wanted.items():
        if text(setting):
            yield from check_answers(setting, text(setting))
        else:
            yield Diagnosis(WARNING, setting, f"is not set: {otherwise}", f"set {setting}")


CHECKS = (check_code, check_airflow, check_storage, check_mlflow_and_spark, check_clocks, check_people)
