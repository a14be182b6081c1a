"""Environment variables: how they are read, and those of `spark_jobs`. Each package has one such module.

| variable | what | default |
|---|---|---|
| `MTGR_VAR`, `MTGR_LAKE`, `MTGR_RUNS`, `MLFLOW_TRACKING_URI` | where things lie: `contract/locations.py` | |
| `MTGR_<DATASET>` | folder with a dataset's raw logs | `<lake>/<dataset>/raw` |
| `MTGR_KILL_AT`, `MTGR_TRACE_PHASES` | for tests: `contract/phases.py` | none |
| `SPARK_REMOTE`, `SPARK_MASTER` | the Spark to work on: `spark_jobs/session.py` | `local[2]` |
| `SPARK_CONF`, `SPARK_JARS` | Spark properties `key=value;...`, Delta's jars | none |
| `JAVA_HOME` | the Java that Spark runs on: `contract/machine.py` | the one on the path |
| `AWS_ENDPOINT_URL`, `AWS_REGION` | the object store of an `s3a://` lake | AWS's own |
| `SPARK_HOME` | another installation of the same Spark | PySpark's own |
| `http_proxy`, `no_proxy`, ... | as every program reads them; loopback is always spared | none |

A variable that is set to nothing counts as not set. The linter forbids `os.environ` everywhere else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from spark_jobs.contract.command import UsageError

JAVA_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def text(name: str, default: str = "") -> str:
    """A variable, or the default where it is not set."""
    return os.environ.get(name) or default


def whole(name: str, default: int, low: int = 0, high: int = 2**31 - 1) -> int:
    """A variable that is a whole number in [low, high].

    Raises:
        UsageError: It is something else; names the variable and the value.
    """
    value = text(name, str(default)).strip()
    if not value.removeprefix("-").isdecimal() or not low <= int(value) <= high:
        raise UsageError(f"{name}={value} is not a whole number from {low} to {high}")
    return int(value)


def real(name: str, default: float, low: float = 0.0, high: float = math.inf) -> float:
    """A variable that is a number in [low, high].

    Raises:
        UsageError: It is something else; names the variable and the value.
    """
    value = text(name, str(default))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        raise UsageError(f"{name}={value} is not a number from {low:g} to {high:g}")
    return number


def flag(name: str, default: bool) -> bool:
    """A variable that is 0 or 1.

    Raises:
        UsageError: It is something else; names the variable and the value.
    """
    return bool(whole(name, int(default), 0, 1))


def child(changes: Mapping[str, str], without: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a child process: this one, but for what changes."""
    return {name: value for name, value in os.environ.items() if name not in without} | dict(changes)


def set_defaults(values: Mapping[str, str]) -> None:
    """Sets variables that libraries read, where they are not set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def override(values: Mapping[str, str]) -> None:
    """Sets variables for this process and its children."""
    os.environ.update(values)


def raw_logs(dataset: str) -> str:
    """Folder with a dataset's raw logs where a variable names one, else an empty text."""
    return text(f"MTGR_{dataset.upper()}")


def kill_at() -> str:
    """The phase at which a stage kills itself, for tests; empty otherwise."""
    return text("MTGR_KILL_AT")


def phase_trace() -> str:
    """The file to which a stage appends the phases that it reaches, for tests; empty otherwise."""
    return text("MTGR_TRACE_PHASES")


def spark_remote() -> str:
    """Address of a Spark Connect server; empty where Spark runs otherwise."""
    return text("SPARK_REMOTE")


def spark_master() -> str:
    """Spark's master."""
    return text("SPARK_MASTER", "local[2]")


def spark_conf() -> str:
    """Further Spark properties, `key=value;key=value`."""
    return text("SPARK_CONF")


def spark_jars() -> str:
    """Delta's jars, comma-separated; empty where they are found or fetched."""
    return text("SPARK_JARS")


def java_home() -> str:
    """Java's home; empty where the one on the path serves."""
    return text("JAVA_HOME")


def spark_home() -> str:
    """An installation of Spark that the environment names; empty where PySpark's own is used."""
    return text("SPARK_HOME")


def proxies() -> dict[str, str]:
    """The proxies that programs will use, by variable; each may be written in capitals, too."""
    names = (*PROXIES, *(name.upper() for name in PROXIES))
    return {name: text(name) for name in names if text(name)}


def everything() -> dict[str, str]:
    """All variables, for a child process or a rule over several."""
    return dict(os.environ)
