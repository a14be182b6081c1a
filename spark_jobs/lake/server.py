"""The Spark Connect server: of the embedded run, or in front of a cluster.

Start-up is what a small job pays: one server for all steps turns half a minute a step into seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from spark_jobs.contract import environment, machine
from spark_jobs.lake.session import DEFAULTS, SparkUnavailableError, require_machine, settings, spark_home

logger = logging.getLogger(__name__)


def serve(port: int, master: str, classes: Path | None = None, host: str = "127.0.0.1") -> int:
    """Runs the Spark Connect server in the foreground until SIGTERM or SIGINT.

    Args:
        port: Port to listen on.
        master: Master URL that the server works on.
        classes: Folder for archives of the loaded classes (the JVM's class data sharing), which save a third
            of the processor time of a first job. Where there is none of this Java and these jars, it is made
            when the server is told to stop.
        host: Address to listen on. Whoever reaches it runs code in Spark: nobody but the steps may.

    Returns:
        0 when it was told to stop; 1 when it ended by itself.
    """
    require_machine()
    conf = settings(local=master.startswith("local")) | {
        "spark.connect.grpc.binding.address": host,
        "spark.connect.grpc.binding.port": str(port),
    }
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SparkUnavailableError(
                f"port {port} is taken ({error}); choose another with --port"
            ) from error
    variables = environment.child({"TZ": "UTC"}, without=("SPARK_REMOTE", "PYTHONPATH"))
    with _class_archive(classes, conf, variables):
        server = subprocess.Popen(
            _server_command(master, conf), env=variables, stdout=sys.stderr, start_new_session=True
        )
        return _until_stopped(server, host, port)


def _server_command(master: str, conf: Mapping[str, str]) -> list[str]:
    command = [str(spark_home() / "bin" / "spark-submit"), "--master", master, "--name", "mtgr-connect"]
    for key, value in conf.items():
        command += ["--conf", f"{key}={value}"]
    return [*command, "--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]


@contextlib.contextmanager
def _class_archive(folder: Path | None, conf: dict[str, str], variables: dict[str, str]) -> Iterator[None]:
    """Has the server that is started within use the archive of its classes, or make one at its end.

    The JVM refuses a class path with a folder that is not empty: our settings of the log, which Spark finds
    there, are named to it instead; with other settings in `SPARK_CONF_DIR` there is no archive.
    """
    ours = str(DEFAULTS.parent)
    if folder is None or variables.get("SPARK_CONF_DIR", ours) != ours:
        yield
        return
    variables.pop("SPARK_CONF_DIR", None)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"spark-{_classes_digest(conf)}.jsa"
    made = archive.with_suffix(f".{os.getpid()}")
    is_there = archive.exists()
    options = f"-XX:SharedArchiveFile={archive}" if is_there else f"-XX:ArchiveClassesAtExit={made}"
    key = "spark.driver.extraJavaOptions"
    log = f"-Dlog4j2.configurationFile={DEFAULTS.with_name('log4j2.properties').as_uri()}"
    conf[key] = f"{conf.get(key, '')} {log} -Xshare:auto {options}".strip()
    try:
        yield
        if made.exists():
            made.replace(archive)
            logger.info("archived the loaded classes in %s", archive)
    finally:
        made.unlink(missing_ok=True)


def _classes_digest(conf: Mapping[str, str]) -> str:
    """Of what the classes come from: Java, Spark's and Delta's jars, and the JVM's options."""
    jars = sorted((spark_home() / "jars").glob("*.jar"))
    jars += [Path(jar) for jar in conf.get("spark.jars", "").split(",") if jar]
    files = [f"{jar} {jar.stat().st_size} {jar.stat().st_ino}" for jar in jars]
    options = conf.get("spark.driver.extraJavaOptions", "")
    java = Path(machine.java().path).resolve()
    text = "\n".join([f"{java} {java.stat().st_ino}", options, *files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _until_stopped(server: subprocess.Popen[bytes], host: str, port: int) -> int:
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        with contextlib.suppress(ProcessLookupError):
            server.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    _announce(server, host, port)
    code = server.wait()
    logger.info("Spark Connect on port %d has ended (%d)", port, code)
    return 0 if stopped else 1


def _announce(server: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Waits until the server takes connections, then says where on stdout."""
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            sys.stdout.write(f"ready sc://{host}:{port}\n")
            sys.stdout.flush()
            return
        time.sleep(0.2)
