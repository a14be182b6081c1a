"""Settings of the embedded run: ports, days and the environment that every component and step gets.

| variable | what | default |
|---|---|---|
| `DATASET` | what to run | `foodlog` |
| `CHALLENGERS` | presets that are trained every day; `PRESET` for one | `tiny user_tower` |
| `DATA` | folder with the dataset's raw logs | `MTGR_<DATASET>`, else in the lake |
| `AIRFLOW_PORT`, `MLFLOW_PORT`, `SPARK_PORT`, `DOCS_PORT` | loopback ports | 8080, 5000, 15002, 8090 |
| `MTGR_VAR` | everything that is written | `<repo>/var` |
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from model.config.names import plain_presets
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError, UsageError
from spark_jobs.contract.datasets import dataset_named, require_source
from spark_jobs.contract.environment import flag, raw_logs, text, whole
from spark_jobs.contract.features import Dataset

REPOSITORY = Path(__file__).resolve().parents[2]
PREPARED = Path(sys.prefix) / "share" / "mtgr"  # what depends on the environment alone, see `databases`
# A server that lives for minutes does not earn back what the second compiler costs: without it a first ingest
# takes half the processor time (33 s for 64 s). The first compiler alone would have 48 MB for its code, which
# two days of steps fill ("Out of space in CodeCache"): it gets what both have.
SHORT_LIVED = (
    "spark.driver.extraJavaOptions=-XX:+UseSerialGC -XX:TieredStopAtLevel=1 "
    "-XX:ReservedCodeCacheSize=240m -Duser.timezone=UTC;"
    # A day of the embedded log is small: compiling a plan's stages takes longer than it saves, compiling its
    # expressions does not.
    "spark.sql.codegen.wholeStage=false;spark.sql.codegen.factoryMode=FALLBACK;"
    # A part a core: each task unpacks its stage's plan anew, which is a megabyte for build_samples.
    "spark.sql.shuffle.partitions=2;spark.databricks.delta.snapshotPartitions=1;"
    # What a step's frames are made from is analysed once: it has more of them than 16 (the default).
    "spark.connect.session.planCache.maxSize=512;"
    # Its sizes are known, and planning build_samples once more after each of its stages costs a tenth of it.
    "spark.sql.adaptive.enabled=false"
)


class EmbeddedRunError(CommandError):
    """The embedded run cannot start or go on; the message names what is wrong and the remedy."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedSettings:
    """Settings of the embedded run.

    Args:
        dataset: Name of the dataset.
        presets: Presets that are trained every day, beside the champion's own.
        data: Folder with the dataset's raw logs, or None.
        airflow_port: Port of Airflow's API and UI.
        mlflow_port: Port of MLflow's UI.
        spark_port: Port of the Spark Connect server.
        docs_port: Port of the data docs.
    """

    dataset: str = "foodlog"
    presets: tuple[str, ...] = ("tiny", "user_tower")
    data: Path | None = None
    airflow_port: int = 8080
    mlflow_port: int = 5000
    spark_port: int = 15002
    docs_port: int = 8090

    @property
    def home(self) -> Path:
        """Airflow's home: database, logs, secrets."""
        return locations.var() / "airflow"

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's API and UI."""
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def database(self) -> Path:
        """Airflow's database; each dataset has one, because the day is the key of a run."""
        name = "airflow" if self.dataset == "foodlog" else f"airflow-{self.dataset}"
        return self.home / f"{name}.db"

    def environment(self, *, scheduled: bool = False) -> dict[str, str]:
        """Environment of all components and, through them, of all steps.

        Args:
            scheduled: Whether Airflow also makes the daily runs of its schedule.
        """
        given = {
            "AIRFLOW_CONFIG": str(REPOSITORY / "airflow.cfg"),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "AIRFLOW__API__BASE_URL": self.airflow_url,
            "AIRFLOW__API__PORT": str(self.airflow_port),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}?timeout=60",
            "MTGR_VAR": str(locations.var()),
            "MTGR_DATASET": self.dataset,
            "MTGR_CHALLENGERS": " ".join(self.presets),
            "MTGR_PRESET": "",  # of the caller: set to nothing counts as not set
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": str(os.cpu_count() or 1),
            "SPARK_CONF": ";".join(
                filter(None, (SHORT_LIVED if self.has_own_spark else "", text("SPARK_CONF")))
            ),
            "TZ": "UTC",
        }
        if self.data is not None:
            given[f"MTGR_{self.dataset.upper()}"] = str(self.data)
        defaults = {
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "AIRFLOW_CONN_SPARK_DEFAULT": f"spark-connect://127.0.0.1:{self.spark_port}",
            "MTGR_SCHEDULED": str(int(scheduled)),
            "MTGR_PYTHON": sys.executable,
            "MTGR_DOCS_URL": f"http://127.0.0.1:{self.docs_port}",
            "MTGR_MLFLOW_URL": f"http://127.0.0.1:{self.mlflow_port}",
            "MTGR_RETRIES": "1",
            "MTGR_RETRY_SECONDS": "5",
            "SPARK_CONF_DIR": str(REPOSITORY / "spark_jobs"),  # log4j2.properties: warnings only
        }
        if self.forks_steps:
            words = (
                sys.executable,
                "-S",
                REPOSITORY / "scripts" / "launchers" / "forked.py",
                self.step_socket,
            )
            defaults["MTGR_LAUNCHER"] = shlex.join(str(word) for word in words)
        return {**defaults, **os.environ, **given}

    @property
    def step_socket(self) -> Path:
        """Socket of the server that forks steps."""
        return self.home / "steps.sock"

    @property
    def forks_steps(self) -> bool:
        """Whether steps are forks of one process with the libraries loaded (Linux, without a GPU).

        A process that has touched CUDA cannot be forked, and libraries touch it when they are imported.
        """
        is_able = sys.platform == "linux" and shutil.which("nvidia-smi") is None
        return is_able and not {"MTGR_LAUNCHER", "MTGR_PYTHON"} & os.environ.keys()

    def with_spark(self, command: list[str]) -> list[str]:
        """A step's command outside Airflow, on the run's own Spark Connect server."""
        if not self.has_own_spark:
            return command
        return ["env", f"SPARK_REMOTE=sc://127.0.0.1:{self.spark_port}", *command]

    @property
    def has_own_spark(self) -> bool:
        """Whether the run starts a Spark Connect server of its own: no connection names another Spark."""
        return "AIRFLOW_CONN_SPARK_DEFAULT" not in os.environ


def settings_from_environment() -> EmbeddedSettings:
    """Reads and checks the settings, those of the DAGs and of training, too: before anything starts.

    Raises:
        UsageError: One of them is wrong.
    """
    locations.check()
    runpy.run_path(str(REPOSITORY / "dags" / "settings.py"))
    whole("MTGR_THREADS", 1, low=1)
    name = dataset_asked_for()
    dataset = dataset_named(name)
    presets = _presets(dataset)
    folder = text("DATA") or raw_logs(name)
    data = Path(folder).absolute() if folder else None
    if name == "kuairand" and data is None:
        raise UsageError("DATASET=kuairand needs DATA=<folder with the official KuaiRand-Pure files>")
    if data is not None and not data.is_dir():
        raise UsageError(f"DATA={data} is not a folder")
    if data is not None:
        locations.check_name("DATA", str(data))
    ports = {key: _port(key, default) for key, default in _PORTS.items()}
    if len(set(ports.values())) < len(ports):
        raise UsageError(f"two of the ports are equal: {ports}")
    return EmbeddedSettings(
        dataset=name,
        presets=presets,
        data=data,
        airflow_port=ports["AIRFLOW_PORT"],
        mlflow_port=ports["MLFLOW_PORT"],
        spark_port=ports["SPARK_PORT"],
        docs_port=ports["DOCS_PORT"],
    )


def _presets(dataset: Dataset) -> tuple[str, ...]:
    """`CHALLENGERS`, or `PRESET`, which is a list of one."""
    name = "PRESET" if text("PRESET") else "CHALLENGERS"
    if text("PRESET") and text("CHALLENGERS"):
        raise UsageError(
            f"CHALLENGERS={text('CHALLENGERS')} and PRESET={text('PRESET')}: give one of the two"
        )
    presets = tuple(dict.fromkeys(text(name, "tiny user_tower").split()))
    for preset in set(presets) - set(plain_presets()):  # for a plain one, PyTorch would be loaded for nothing
        from model.config.presets import preset_named

        try:
            preset_named(preset).sized(dataset)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
    return presets


_PORTS = {"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5000, "SPARK_PORT": 15002, "DOCS_PORT": 8090}


def _port(name: str, default: int) -> int:
    try:
        return whole(name, default, 1024, 65535)
    except UsageError as error:
        raise UsageError(f"{name}={text(name)} is not a port from 1024 to 65535") from error


def dataset_asked_for() -> str:
    """`DATASET`, a dataset that is declared and has a source.

    Raises:
        UsageError: It is not, or has none.
    """
    name = text("DATASET", "foodlog")
    try:
        require_source(dataset_named(name))
    except ValueError as error:
        raise UsageError(f"DATASET: {error}") from error
    return name


def days_asked_for() -> dict[str, str]:
    """`FROM`, `TO` and `DAYS` as given; empty where not."""
    return {name: text(name) for name in ("FROM", "TO", "DAYS")}


def simulation_asked_for() -> tuple[bool | None, dict[str, str]]:
    """`SIMULATE` (None where not given), and the size of the simulated app: `USERS`, `IMPRESSIONS`."""
    simulate = flag("SIMULATE", False) if text("SIMULATE") else None
    sizes = {name: text(name) and str(whole(name, 1, low=1)) for name in ("USERS", "IMPRESSIONS")}
    return simulate, sizes


def reprocess() -> str:
    """`REPROCESS`: what a backfill does with days that have a run already."""
    return text("REPROCESS", "none")


def is_plan() -> bool:
    """`PLAN`: whether a backfill is only to say what it would do."""
    return flag("PLAN", False)


def spark_connection() -> str:
    """URI of the Airflow connection that names a Spark of others; empty where the run has its own."""
    return text("AIRFLOW_CONN_SPARK_DEFAULT")


def child(changes: dict[str, str]) -> dict[str, str]:
    """The environment of a child process: this one, but for what changes."""
    return {**os.environ, **changes}


def take_over(variables: dict[str, str]) -> None:
    """Replaces this process's environment by another's, as a fork does that acts for its caller."""
    os.environ.clear()
    os.environ.update(variables)
