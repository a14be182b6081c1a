"""One way to a Spark session, wherever a job runs.

| where | how it is chosen |
|---|---|
| under `spark-submit`, or inside a session | the active session |
| Spark Connect | `SPARK_REMOTE`, e.g. `sc://127.0.0.1:15002` |
| a master, or this process | `SPARK_MASTER`, e.g. `spark://host:7077`; default `local[2]` |

Settings come from `spark_jobs/spark-defaults.conf`; `SPARK_CONF` adds to it (`key=value;key=value`), for
example `spark.driver.memory=4g`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_jobs.contract import environment, machine
from spark_jobs.contract.command import CommandError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)
_AT_ONCE = 4  # jobs of one step side by side
DEFAULTS = Path(__file__).resolve().parents[1] / "spark-defaults.conf"
# For one small machine: few partitions, no concurrent collector. A cluster's own settings replace them.
SMALL = {
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -Duser.timezone=UTC",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}
# What a cluster may have set that loses rows, or values, without a word: overruled in every session.
OVERRULED = {
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.files.ignoreInvalidPartitionPaths": "false",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.storeAssignmentPolicy": "ANSI",
    "spark.databricks.delta.replaceWhere.constraintCheck.enabled": "true",
    "spark.databricks.delta.replaceWhere.dataColumns.enabled": "true",
    "spark.databricks.delta.schema.autoMerge.enabled": "false",
}


class SparkUnavailableError(CommandError):
    """Spark cannot be started or reached; the message names what is missing and the remedy."""


def settings(*, local: bool) -> dict[str, str]:
    """Spark properties, later ones win.

    The committed defaults, those of a small machine when `local`, the object store's, then `SPARK_CONF`.
    """
    conf: dict[str, str] = {}
    for line in DEFAULTS.read_text(encoding="ascii").splitlines():
        if line.strip() and not line.startswith("#"):
            key, value = line.split(None, 1)
            conf[key] = value.strip()
    if local:
        conf |= SMALL
    conf |= object_store()
    for pair in filter(None, environment.spark_conf().split(";")):
        key, separator, value = pair.partition("=")
        if not separator:
            raise SparkUnavailableError(f"SPARK_CONF: {pair!r} is not written key=value")
        conf[key.strip()] = value.strip()
    return conf | delta_jars()


def object_store() -> dict[str, str]:
    """Properties that lead s3a to the store that deltalake reads, by the same variables.

    A store of one's own is called by path, as deltalake does. Credentials are taken over by Spark itself.
    """
    endpoint, region = environment.text("AWS_ENDPOINT_URL"), environment.text("AWS_REGION")
    conf = {"spark.hadoop.fs.s3a.endpoint.region": region} if region else {}
    if endpoint:
        conf |= {"spark.hadoop.fs.s3a.endpoint": endpoint, "spark.hadoop.fs.s3a.path.style.access": "true"}
    return conf


def delta_jars() -> dict[str, str]:
    """The property that brings Delta's jars: those that Ivy has fetched already, else their Maven coordinate.

    Resolving the coordinate costs seconds a process and needs the network; `SPARK_JARS` names other jars.
    """
    if environment.spark_jars():
        return {"spark.jars": environment.spark_jars()}
    from importlib.metadata import version

    artifact, release = (
        f"delta-spark_{'.'.join(version('pyspark').split('.')[:2])}_2.13",
        version("delta-spark"),
    )
    for folder in sorted(Path.home().glob(".ivy2*/jars")):
        if (folder / f"io.delta_{artifact}-{release}.jar").exists():
            names = ("io.delta_*", "io.unitycatalog_*", "org.locationtech.jts_*")
            jars = [str(jar) for name in names for jar in sorted(folder.glob(f"{name}.jar"))]
            return {"spark.jars": ",".join(jars)}
    return {"spark.jars.packages": f"io.delta:{artifact}:{release}"}


def spark_session(name: str) -> Any:
    """The session to work in, with days and times in UTC.

    Args:
        name: Name of the job, as the cluster shows it.

    Raises:
        SparkUnavailableError: There is no Java, or the remote or master cannot be reached.
    """
    from pyspark.sql import SparkSession

    remote = environment.spark_remote()
    if remote:
        spark = _remote_session(remote)
    else:
        spark = SparkSession.getActiveSession() or _classic_session(name)
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    # Also where another configuration started the session: the plans of build_samples rely on it.
    spark.conf.set("spark.sql.requireAllClusterKeysForCoPartition", "false")
    for key, value in OVERRULED.items():
        before = spark.conf.get(key, value)
        if before.lower() != value.lower():
            logger.warning("%s is %s here; this session sets it to %s: it loses data", key, before, value)
            spark.conf.set(key, value)
    return spark


@contextlib.contextmanager
def keeping() -> Iterator[Callable[[DataFrame], DataFrame]]:
    """A function that persists a DataFrame which several jobs read; at the end all of them are let go."""
    kept: list[DataFrame] = []

    def keep(df: DataFrame) -> DataFrame:
        kept.append(df.persist())
        return kept[-1]

    try:
        yield keep
    finally:
        for df in kept:
            df.unpersist()


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Runs jobs of one session side by side: while one is planned, others compute.

    What they read of kept frames has been read before: where one job is the first to read a kept frame, and
    another the first to read one that was made from it, Spark locks up for ever when the first fails.

    Args:
        jobs: What does not depend on each other.

    Returns:
        Their results, in order. All jobs have ended by then; of several errors, the first job's is raised.
    """
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="spark-job") as pool:
        futures = [pool.submit(job) for job in jobs]
    return [future.result() for future in futures]


def _remote_session(remote: str) -> Any:
    from pyspark.sql import SparkSession

    host, _, port = remote.removeprefix("sc://").split("/")[0].partition(":")
    _require_port("SPARK_REMOTE", remote, host, port or "15002", "`python -m spark_jobs.session serve`")
    # PySpark's default keeps the session of a step that has ended in the server's memory for an hour.
    environment.set_defaults({"SPARK_CONNECT_RELEASE_SESSION_ON_EXIT": "true"})
    return SparkSession.builder.remote(remote).getOrCreate()


def _classic_session(name: str) -> Any:
    from pyspark.sql import SparkSession

    require_machine()
    master = environment.spark_master()
    if master.startswith("spark://"):
        host, _, port = master.removeprefix("spark://").split(",")[0].partition(":")
        _require_port("SPARK_MASTER", master, host, port or "7077", "the cluster's master")
    if master.startswith("local"):
        # Our log settings: Spark's own print the stacks of an error before the command says what it is.
        environment.set_defaults({"SPARK_CONF_DIR": str(DEFAULTS.parent)})
    builder = SparkSession.builder.appName(name).master(master)
    for key, value in settings(local=master.startswith("local")).items():
        builder = builder.config(key, value)
    try:
        return builder.getOrCreate()
    except Exception as error:
        raise SparkUnavailableError(f"Spark did not start on SPARK_MASTER={master}: {error}") from error


def require_machine() -> None:
    """Checks that Spark can start here: a Java of the right version, a user with a name, the lock's PySpark.

    Also sets `SPARK_HOME` to an installation of this PySpark's version, for this process and its children.

    Raises:
        SparkUnavailableError: Something of it is missing; the message names it and the remedy.
    """
    try:
        machine.java()
        machine.require_user()
    except machine.MachineError as error:
        raise SparkUnavailableError(str(error)) from error
    environment.override({"SPARK_HOME": str(spark_home())})


def spark_home() -> Path:
    """The Spark to start: PySpark's own, or `SPARK_HOME` where that is the same version.

    Raises:
        SparkUnavailableError: The PySpark that is imported is not the installed one.
    """
    from importlib.metadata import version

    import pyspark

    locked, home = version("pyspark"), Path(pyspark.__file__).parent
    if pyspark.__version__ != locked:
        raise SparkUnavailableError(
            f"PySpark {pyspark.__version__} at {home} hides the installed {locked}: take it out of PYTHONPATH"
        )
    named = environment.spark_home()
    if not named or Path(named).resolve() == home.resolve():
        return home
    if any(Path(named, "jars").glob(f"spark-core_*-{locked}.jar")):
        return Path(named)
    logger.warning("SPARK_HOME=%s holds no Spark %s: %s is used", named, locked, home)
    return home


def _require_port(setting: str, value: str, host: str, port: str, remedy: str) -> None:
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise SparkUnavailableError(
            f"{setting}={value}: {host}:{port} is no host and port; correct {setting}"
        )
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    except OSError as error:
        raise SparkUnavailableError(
            f"{setting}={value}: no answer from {host}:{port} ({error}); start {remedy} or correct {setting}"
        ) from error
