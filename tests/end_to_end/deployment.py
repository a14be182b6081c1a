"""`deploy/compose.yaml` without containers: its commands with its variables, as processes on loopback.

Host names become loopback ports, paths in the image folders of the test; programs that images of others
bring (Postgres, Redis, the object store) are this machine's. So what is tested is what the file says.
`deploy/fetch.sh` brings what the lock does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from scripts.embedded.airflow_api import AirflowApi
from scripts.embedded.ports import listens
from tests.spark_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
PORTS = {
    "postgres": 5432,
    "redis": 6379,
    "objects": 7070,
    "spark-master": 7077,
    "spark-connect": 15002,
    "mlflow": 5000,
    "airflow": 8080,
}
AIRFLOW = ("scheduler-1", "scheduler-2", "dag-processor", "triggerer", "worker", "worker-training")
_BUCKET = "mtgr"
_SECRETS = {
    "AWS_ACCESS_KEY_ID": "mtgr",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AIRFLOW_FERNET_KEY": "bm90IGEgc2VjcmV0LCAzMiBieXRlcyBsb25nIDogLSk=",
    "AIRFLOW_API_SECRET_KEY": "not a secret",
    "AIRFLOW_JWT_SECRET": "not a secret, but long enough for what HMAC wants of a key of SHA-512: 64 bytes",
    "POSTGRES_PASSWORD": "not-a-secret",
}
# One small machine runs all of it: little heaps, one executor's core a worker, short pauses, one thread.
SMALL = {
    "SPARK_CONF": "spark.driver.memory=1g;spark.executor.memory=640m;spark.sql.shuffle.partitions=2;"
    "spark.databricks.delta.snapshotPartitions=1;spark.driver.host=127.0.0.1;"
    "spark.driver.bindAddress=127.0.0.1;spark.ui.enabled=false;"
    "spark.driver.extraJavaOptions=-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m;"
    "spark.executor.extraJavaOptions=-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    "SPARK_LOCAL_IP": "127.0.0.1",
    "MTGR_RETRY_SECONDS": "20",
    "MTGR_SCHEDULED": "0",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "false",  # two schedulers on one host have one port for it
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "OMP_NUM_THREADS": "1",
}
# Seconds by which hosts' clocks are wrong. Steps read none; schedulers sign what the API server reads.
CLOCKS = {"worker": -600, "worker-training": 600, "scheduler-2": 20}  # see skewed_clock.cpp
DAEMON = {"SPARK_DAEMON_MEMORY": "192m", "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"}


class Deployment:
    """The services of the compose file as processes.

    Args:
        folder: Where everything is written.
        tools: What `deploy/fetch.sh` has made.
    """

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder, self.tools = folder, tools
        self.var, self.bucket = folder / "var", folder / "objects" / _BUCKET
        self.ports = {name: free_port() for name in PORTS}
        self._file = yaml.safe_load(COMPOSE.read_text())["services"]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._clock = folder / "skewed_clock.so"
        self._ended, self._keeper = threading.Event(), threading.Thread(target=self._keep)
        for path in (
            self.var / "airflow",
            self.bucket,
            folder / "logs",
            folder / "airflow",
            folder / "redis",
        ):
            path.mkdir(parents=True)

    def translated(self, text: str, name: str) -> str:
        """A word of a service's command, or a variable's value, as it is here."""
        text = re.sub(r"\$\{(\w+):\?\}", lambda match: _SECRETS[match[1]], str(text))
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        for host, port in PORTS.items():
            text = re.sub(rf"\b(?:{host}|localhost):{port}\b", f"127.0.0.1:{self.ports[host]}", text)
            if text in (str(port), f":{port}"):
                text = text.replace(str(port), str(self.ports[host]))
        text = text.replace("0.0.0.0", "127.0.0.1").replace(
            "/opt/mtgr/.venv/bin", str(Path(sys.executable).parent)
        )
        for there, here in (
            ("/opt/mtgr/var", self.var),
            ("/opt/mtgr/jars", self.tools / "jars"),
            ("/opt/airflow", self.folder / "airflow"),
            ("/data", self.folder / name),
            ("/opt/mtgr", ROOT),
        ):
            text = text.replace(there, str(here))
        return text

    def environment(self, name: str) -> dict[str, str]:
        """Variables of a service."""
        own = {k: self.translated(v, name) for k, v in self._file[name].get("environment", {}).items()}
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MTGR_", "SPARK_", "AWS_"))
        }
        given = kept | own | SMALL
        given["SPARK_CONF"] = f"{own.get('SPARK_CONF', '')};{SMALL['SPARK_CONF']}"
        given["PYTHONPATH"] = f"{ROOT}:{self.tools / 'python'}"
        given["PATH"] = f"{self.tools / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}"
        given["SPARK_WORKER_DIR"] = str(self.folder / name)
        if name in CLOCKS and self._clock.exists():
            given |= {"LD_PRELOAD": str(self._clock), "CLOCK_SKEW_S": str(CLOCKS[name])}
        # Spark Connect would take the daemons' heap for its own.
        return given | DAEMON if name.startswith(("spark-master", "spark-worker")) else given

    def command(self, name: str) -> list[str]:
        """Command line of a service."""
        if "command" not in self._file[name]:  # the object store: a line for a shell
            words = self._file[name]["entrypoint"][2].rpartition("exec ")[2].split()
            words = [self.translated(word, name) for word in words]
            return [f"127.0.0.1{word}" if word[0] == ":" else word for word in words]
        words = [self.translated(word, name) for word in self._file[name]["command"]]
        return [
            "127.0.0.1" if before == "--host" else word
            for before, word in zip(["", *words[:-1]], words, strict=True)
        ]

    def up(self) -> None:
        """Starts all services, in the order in which they need each other."""
        source = Path(__file__).with_name("skewed_clock.cpp")
        subprocess.run(["g++", "-shared", "-fPIC", "-o", self._clock, source, "-ldl"], check=True)
        self.start_postgres()
        for name in ("redis", "objects"):
            self.start(name)
        self.run("migrate")
        for name in ("spark-master", "airflow", "mlflow"):
            self.start(name)
        for name in ("spark-worker-1", "spark-worker-2", "spark-connect", *AIRFLOW):
            self.start(name)
        self._keeper.start()

    def start(self, name: str) -> None:
        """Starts a service and waits until it listens, where it does."""
        process = self._spawn(name)
        if name in self.ports:
            wait_for(lambda: listens(self.ports[name]), name, 180, lambda: process.poll() is not None)

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self.command(name),
                cwd=ROOT,
                env=self.environment(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._running[name]

    def _keep(self) -> None:
        """Starts again what has ended by itself, as the file's `restart` says: Airflow without Postgres."""
        while not self._ended.wait(3):
            for name, process in list(self._running.items()):
                if process.poll() is not None and self._running.get(name) is process:
                    self._spawn(name)

    def run(self, name: str) -> None:
        """Runs a service that ends."""
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            subprocess.run(
                self.command(name), cwd=ROOT, env=self.environment(name), stdout=log, stderr=log, check=True
            )

    def start_postgres(self) -> None:
        """Starts Postgres, which refuses to run as root, and makes its databases where there are none."""
        place = Path("/tmp") / f"mtgr-{self.ports['postgres']}"  # its user may enter
        options = (
            f"-p {self.ports['postgres']} -k {place} -c listen_addresses=127.0.0.1 -c max_connections=200"
        )
        is_new = not place.exists()
        if is_new:
            place.mkdir()
            shutil.chown(place, _postgres_user() or os.getuid())
            self._postgres("initdb", "-D", str(place / "data"), "-U", "airflow", "--auth", "trust")
        self._postgres(
            "pg_ctl", "-D", str(place / "data"), "-l", str(place / "log"), "-o", options, "-w", "start"
        )
        if is_new:
            here = ["-h", "127.0.0.1", "-p", str(self.ports["postgres"]), "-U", "airflow"]
            self._postgres("createdb", *here, "airflow")
            sql = (ROOT / "deploy" / "databases.sql").read_text()
            self._postgres("psql", *here, "-q", "-c", sql, "airflow")

    def stop_postgres(self) -> None:
        """Stops Postgres at once, as a crash does; what was committed is there when it starts again."""
        place = Path("/tmp") / f"mtgr-{self.ports['postgres']}"
        self._postgres("pg_ctl", "-D", str(place / "data"), "-m", "immediate", "stop")

    def _postgres(self, program: str, *arguments: str) -> None:
        path = next(Path("/usr/lib/postgresql").glob("*/bin")) / program
        with (self.folder / "logs" / "postgres.log").open("ab") as log:
            subprocess.run(
                [path, *arguments], check=True, user=_postgres_user(), cwd="/tmp", stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """Ends a service and all that it has started at once, as a host does that loses its power."""
        process = self._running.pop(name)
        assert process.poll() is None or self._ended.is_set(), f"{name} had ended before it was killed"
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.wait()

    def down(self) -> None:
        """Ends everything."""
        self._ended.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for name in reversed(list(self._running)):
            self.kill(name)
        if listens(self.ports["postgres"]):
            self.stop_postgres()
        shutil.rmtree(Path("/tmp") / f"mtgr-{self.ports['postgres']}", ignore_errors=True)

    def api(self) -> AirflowApi:
        """Airflow's API, once scheduler, DAG processor and triggerer answer and the DAGs are read."""
        passwords = self.var / "airflow" / "passwords.json"
        wait_for(lambda: passwords.exists() and passwords.stat().st_size > 0, "the password", 60)
        api = AirflowApi(
            f"http://127.0.0.1:{self.ports['airflow']}", "admin", json.loads(passwords.read_text())["admin"]
        )
        wait_for(lambda: api.is_healthy("scheduler", "dag_processor", "triggerer"), "Airflow", 180)
        wait_for(lambda: api.has_dag("retraining_daily") and api.has_dag("samples_daily"), "the DAGs", 180)
        return api

    def python(self, *arguments: str, name: str = "worker", fails: bool = False) -> str:
        """Output of a Python command with a service's variables, which is expected to succeed or fail."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment(name),
            capture_output=True,
            text=True,
            check=False,
        )
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        return done.stdout

    def upload(self, folder: Path, place: str) -> None:
        """Copies a folder into the lake, by the object store."""
        self.python("-c", _UPLOAD, str(folder), f"{_BUCKET}/lake/{place}")

    def run_day(self, api: AirflowApi, day: str, seconds: int = 1200) -> None:
        """Triggers a day and waits until it is through, with what it trains."""
        samples = api.trigger("samples_daily", day)
        self.wait_for_run(api, "samples_daily", lambda run: run["dag_run_id"] == samples, seconds)
        self.wait_for_run(api, "retraining_daily", lambda run: run["partition_key"] == day, seconds)

    def wait_for_run(self, api: AirflowApi, dag_id: str, is_it: Any, seconds: int = 900) -> dict[str, Any]:
        """Waits until a run has ended, and requires that it went through."""

        def ended() -> dict[str, Any] | None:
            runs = api.call("GET", f"/dags/{dag_id}/dagRuns", limit=100)["dag_runs"]
            return next((run for run in runs if is_it(run) and run["state"] in ("success", "failed")), None)

        run: dict[str, Any] = wait_for(ended, f"a run of {dag_id}", seconds)
        if run["state"] == "failed":
            raise AssertionError(f"{dag_id} failed:\n{self.failures(api, dag_id, run['dag_run_id'])}")
        return run

    def failures(self, api: AirflowApi, dag_id: str, run_id: str) -> str:
        """Ends of the logs of a run's failed tasks."""
        failed = [task for task in api.tasks(dag_id, run_id) if task["state"] == "failed"]
        logs = {t["task_id"]: api.log(dag_id, run_id, t["task_id"], t["try_number"])[-40:] for t in failed}
        return "\n".join(f"-- {task}\n" + "\n".join(lines) for task, lines in logs.items())


_UPLOAD = """
import os, sys
from pyarrow import fs
scheme, _, address = os.environ["AWS_ENDPOINT_URL"].partition("://")
store = fs.S3FileSystem(endpoint_override=address, scheme=scheme, region=os.environ["AWS_REGION"])
fs.copy_files(sys.argv[1], sys.argv[2], destination_filesystem=store)
"""


def _postgres_user() -> str | None:
    return "postgres" if os.getuid() == 0 else None


def wait_for(condition: Any, what: str, seconds: float, is_over: Any = lambda: False) -> Any:
    """Waits until a condition holds and returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        assert not is_over(), f"{what} has ended"
        time.sleep(1)
    raise AssertionError(f"{what}: not within {seconds} s")


@contextlib.contextmanager
def deployed(folder: Path, tools: Path, *services: str) -> Iterator[Deployment]:
    """A deployment that is up, or only some of its services; all is ended at the end."""
    deployment = Deployment(folder, tools)
    try:
        for name in services:
            deployment.start(name)
        if not services:
            deployment.up()
        yield deployment
    finally:
        deployment.down()
