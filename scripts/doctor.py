"""Checks a machine and prints the fix for whatever is wrong: `make doctor`.

Looks at Python and the locked versions, Java, the user, proxies, memory, disk, the folder that is written
to, ports, secrets, the Spark and MLflow that settings name, and the GPU. `DEPLOYMENT=1` looks at what a
deployment needs instead of one machine's ports and secrets (`scripts/embedded/deployment.py`). Exit code 1
when something would stop `make run`, or the deployment. Needs nothing but the standard library and this
repository, so it also runs before `make setup`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scripts.embedded import deployment, ports, secrets_store
from scripts.embedded.diagnosis import Diagnosis, Level, check_answers
from scripts.embedded.settings import (
    REPOSITORY,
    EmbeddedSettings,
    settings_from_environment,
    spark_connection,
)
from spark_jobs.contract import command, environment, locations, machine
from spark_jobs.contract.command import CommandError

MEMORY_GB = 6.0
DISK_GB = 3.0
_DIRECT = (
    "apache-airflow",
    "pyspark",
    "delta-spark",
    "deltalake",
    "great-expectations",
    "mlflow",
    "torch",
    "torchrec",
)


def check_python() -> Iterator[Diagnosis]:
    """The interpreter and the versions that the lock names."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in ("3.11", "3.12"):
        yield Diagnosis(Level.BLOCKS, "python", version, "install Python 3.11 or 3.12, then: make setup")
        return
    yield Diagnosis(Level.OK, "python", f"{version} at {sys.executable}")
    wrong = []
    for name in _DIRECT:
        wanted = _locked(name)
        try:
            installed = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed != wanted:
            wrong.append(f"{name} {installed}, not {wanted}")
    if importlib.util.find_spec("hstu_ops") is None:
        wrong.append("hstu_ops missing")
    if wrong:
        yield Diagnosis(Level.BLOCKS, "packages", "; ".join(wrong), "make setup")
    else:
        yield Diagnosis(Level.OK, "packages", f"{len(_DIRECT)} direct dependencies as locked, hstu_ops built")


def _locked(name: str) -> str:
    """Version of a package in the lock."""
    lock = (REPOSITORY / "requirements.txt").read_text()
    match = re.search(rf"^{re.escape(name)}(?:\[\w+\])?==([^ ;\n]+)", lock, re.MULTILINE)
    return match.group(1) if match else "?"


def check_java() -> Iterator[Diagnosis]:
    """The Java that Spark will use."""
    try:
        java = machine.java()
    except machine.MachineError as error:
        text, _, fix = str(error).rpartition(": ")
        yield Diagnosis(Level.BLOCKS, "java", text, fix)
    else:
        yield Diagnosis(Level.OK, "java", f"{java.version} at {java.path}")


def check_user() -> Iterator[Diagnosis]:
    """The user's name, without which Spark does not start."""
    try:
        machine.require_user()
    except machine.MachineError as error:
        text, _, fix = str(error).partition(": ")
        yield Diagnosis(Level.BLOCKS, "user", text, fix)


def check_spark_home() -> Iterator[Diagnosis]:
    """Another Spark that the environment names: it is not the one that runs."""
    home = environment.spark_home()
    locked = _locked("pyspark")
    if home and not any(Path(home, "jars").glob(f"spark-core_*-{locked}.jar")):
        text = f"SPARK_HOME={home} holds no Spark {locked}: PySpark's own is used"
        yield Diagnosis(Level.WARNING, "spark", text, "unset SPARK_HOME, or install that version there")


def check_proxies() -> Iterator[Diagnosis]:
    """The proxies that the environment names."""
    proxies = environment.proxies()
    names = ", ".join(proxies)
    if any(proxy.lower().startswith("socks") for proxy in proxies.values()):
        fix = f"unset {names}, or name an HTTP proxy"
        yield Diagnosis(Level.BLOCKS, "proxy", f"{names}: Airflow's clients do not speak SOCKS", fix)
    elif proxies:
        yield Diagnosis(Level.OK, "proxy", f"{names} for other hosts; loopback is spared")


def check_memory() -> Iterator[Diagnosis]:
    """Memory that is free for the components and a step."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    free = int(match.group(1)) / 2**20 if match else 0.0
    if free < MEMORY_GB:
        fix = f"free {MEMORY_GB:.0f} GB, or give Spark less: SPARK_CONF=spark.driver.memory=1g"
        yield Diagnosis(Level.WARNING, "memory", f"{free:.1f} GB free", fix)
    else:
        yield Diagnosis(Level.OK, "memory", f"{free:.1f} GB free, {os.cpu_count()} cores")


def check_disk(folder: Path, *, need_gb: float = DISK_GB) -> Iterator[Diagnosis]:
    """The folder that everything is written to: can it be written, is there space?

    Args:
        folder: The folder; it need not exist.
        need_gb: Least free space.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield Diagnosis(
            Level.BLOCKS,
            "folder",
            f"{existing} cannot be written",
            f"sudo chown -R $USER {existing}, or set MTGR_VAR to a folder of yours",
        )
        return
    free = shutil.disk_usage(existing).free / 1e9
    if free < need_gb:
        fix = f"free {need_gb - free:.1f} GB there (make clean), or set MTGR_VAR to another disk"
        yield Diagnosis(Level.BLOCKS, "disk", f"{free:.1f} GB free at {existing}, {need_gb:.0f} needed", fix)
    else:
        yield Diagnosis(Level.OK, "disk", f"{free:.0f} GB free at {existing}")


def check_ports(settings: EmbeddedSettings) -> Iterator[Diagnosis]:
    """The ports that components listen on."""
    taken = {name: port for name, port in ports.needed(settings, ui=True).items() if not ports.is_free(port)}
    if taken and ports.is_running(settings):
        yield Diagnosis(Level.OK, "ports", f"in use by this folder's own run: {taken}")
        return
    for name, port in taken.items():
        needed = name in ports.needed(settings, ui=False)
        fix = f"stop the program that listens there (ss -ltnp), or choose one: {name}={port + 1}"
        yield Diagnosis(Level.BLOCKS if needed else Level.WARNING, "ports", f"{port} ({name}) is taken", fix)
    if not taken:
        yield Diagnosis(
            Level.OK, "ports", ", ".join(map(str, ports.needed(settings, ui=True).values())) + " are free"
        )


def check_secrets(settings: EmbeddedSettings) -> Iterator[Diagnosis]:
    """Airflow's secrets and who may read them."""
    problems = secrets_store.problems(settings.home)
    for problem in problems:
        text, _, fix = problem.partition(": ")
        yield Diagnosis(Level.WARNING if "missing" in text else Level.BLOCKS, "secrets", text, fix)
    if not problems:
        yield Diagnosis(
            Level.OK,
            "secrets",
            "readable by you alone" if settings.home.exists() else "made by the first run",
        )


def check_services(settings: EmbeddedSettings) -> Iterator[Diagnosis]:
    """Services of others that settings name: the Spark connection and MLflow's server."""
    named = {
        "AIRFLOW_CONN_SPARK_DEFAULT": "" if settings.has_own_spark else spark_connection(),
        "MLFLOW_TRACKING_URI": locations.tracking_uri(),
    }
    for setting, uri in named.items():
        yield from check_answers(setting, uri)


def check_gpu() -> Iterator[Diagnosis]:
    """The GPU, its driver and whether this environment can use it."""
    if shutil.which("nvidia-smi") is None:
        yield Diagnosis(Level.OK, "gpu", "none: training runs on the CPU")
        return
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        yield Diagnosis(
            Level.WARNING,
            "gpu",
            "nvidia-smi fails",
            f"repair the driver: {(done.stdout + done.stderr).strip()[:200]}",
        )
        return
    try:
        importlib.metadata.version("fbgemm-gpu")
        yield Diagnosis(Level.OK, "gpu", done.stdout.strip().replace("\n", "; "))
    except importlib.metadata.PackageNotFoundError:
        yield Diagnosis(Level.WARNING, "gpu", "the environment is the one for CPUs", "GPU=1 make setup")


def findings(settings: EmbeddedSettings) -> list[Diagnosis]:
    """What all checks found."""
    return _all(
        *_HOST,
        lambda: check_disk(locations.var()),
        lambda: check_ports(settings),
        lambda: check_secrets(settings),
        lambda: check_services(settings),
        check_gpu,
    )


def findings_of_deployment() -> list[Diagnosis]:
    """What the checks of a deployment's host and settings found."""
    return _all(*_HOST, lambda: check_disk(locations.var()), *deployment.CHECKS, check_gpu)


_HOST = (check_python, check_java, check_user, check_spark_home, check_proxies, check_memory)


def _all(*checks: Callable[[], Iterator[Diagnosis]]) -> list[Diagnosis]:
    return [diagnosis for check in checks for diagnosis in check()]


def blocking(settings: EmbeddedSettings) -> list[str]:
    """What would stop a run that is about to start, each with its fix; soon checked."""
    checks = [check_disk(locations.var()), check_proxies(), check_services(settings)]
    if settings.has_own_spark:
        checks += [check_java(), check_user()]
    diagnoses = [diagnosis for check in checks for diagnosis in check]
    return [f"{d.subject}: {d.text}; {d.fix}" for d in diagnoses if d.level is Level.BLOCKS]


def _run(arguments: argparse.Namespace) -> None:
    if arguments.deployment:
        runpy.run_path(str(REPOSITORY / "dags" / "settings.py"))  # refuses what the DAGs would
        diagnoses = findings_of_deployment()
    else:
        diagnoses = findings(settings_from_environment())
    for one in diagnoses:
        sys.stdout.write(f"{one.level:<8} {one.subject:<10} {one.text}\n")
        if one.fix:
            sys.stdout.write(f"{'':<8} {'':<10} fix: {one.fix}\n")
    sys.stdout.flush()
    blocked = [one.subject for one in diagnoses if one.level is Level.BLOCKS]
    if blocked:
        what = "the deployment would fail" if arguments.deployment else "make run would not start"
        raise CommandError(f"{what}: see {', '.join(blocked)} above")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was found; exit code 1 when something blocks, see `command.run` for the others."""
    parser = command.parser("scripts.doctor", __doc__)
    parser.add_argument(
        "--deployment", action="store_true", help="check the settings of a deployment, where they hold"
    )
    return command.run(parser, _run, argv, for_people=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
