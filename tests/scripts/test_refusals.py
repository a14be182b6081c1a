"""What stops `make run` before it starts anything, or a setup: the thing is named, and the remedy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.embedded.processes import exclusive
from tests.spark_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f'exec {sys.executable} "$@"'


def _call(module, var, **settings):
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MTGR_", "SPARK_", "MLFLOW_"))
    }
    ports = {name: str(free_port()) for name in ("AIRFLOW_PORT", "SPARK_PORT")}
    return subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**kept, **ports, "MTGR_VAR": str(var), **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (
            "scripts.run",
            {"DATASET": "foodlogg"},
            "DATASET: unknown dataset 'foodlogg'; known: foodlog, journey, kuairand",
        ),
        ("scripts.run", {"PRESET": "huge"}, "PRESET: .*'huge'"),
        ("scripts.run", {"FROM": "2026-02-30"}, "FROM: '2026-02-30' is not a day"),
        ("scripts.backfill", {}, "give the days: FROM="),
        (
            "scripts.backfill",
            {"FROM": "2026-03-01", "TO": "2026-03-02", "REPROCESS": "al"},
            "REPROCESS=al is none of",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2_and_leaves_nothing(tmp_path, module, given, message):
    done = _call(module, tmp_path / "var", **given)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr)
    assert not (tmp_path / "var").exists()


def test_what_does_not_answer_is_named_before_anything_starts(tmp_path):
    mlflow, spark = (f"127.0.0.1:{free_port()}" for _ in range(2))
    done = _call(
        "scripts.run",
        tmp_path / "var",
        MLFLOW_TRACKING_URI=f"http://{mlflow}",
        AIRFLOW_CONN_SPARK_DEFAULT=f"spark://{spark}",
    )
    assert done.returncode == 1, done.stderr
    assert f"AIRFLOW_CONN_SPARK_DEFAULT: no answer from {spark}" in done.stderr
    assert f"MLFLOW_TRACKING_URI: no answer from {mlflow}" in done.stderr
    assert done.stderr.count("start it, open the way to it, or correct ") == 2
    assert not (tmp_path / "var" / "airflow" / "airflow.db").exists()


def test_a_run_that_is_started_twice_is_refused_by_name(tmp_path):
    with exclusive(tmp_path / "var" / "airflow" / "running", "make backfill"):
        done = _call("scripts.run", tmp_path / "var")
    assert done.returncode == 1, done.stderr
    assert f"make backfill (process {os.getpid()}) already runs on {tmp_path}/var/airflow" in done.stderr
    assert "stop it (Ctrl-C or kill), or give this one a folder and ports of its own" in done.stderr


def _machine(tmp_path, **programs):
    """A PATH with what every machine has, a user who is not root, and the given programs as shell scripts."""
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "find", "sed", "sha256sum", "sort"):
        (path / name).symlink_to(shutil.which(name))
    for name, text in {"id": "echo 1000", **programs}.items():
        (path / name).write_text(f"#!/bin/bash\n{text}\n")
        (path / name).chmod(0o755)
    return {"PATH": str(path)}


def _set_up(environment):
    command = [shutil.which("bash"), "scripts/setup.sh"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_machine_without_java_is_told_what_to_install(tmp_path):
    done = _set_up(_machine(tmp_path, python3=PYTHON))
    assert done.returncode == 1
    wanted = (
        "Spark needs Java 17 or 21, found none (the path): install Java 17 or 21 (Debian: apt-get install "
    )
    assert done.stderr.startswith(f"setup: {wanted}openjdk-17-jre-headless)")


def test_a_java_that_is_too_old_is_named(tmp_path):
    done = _set_up(_machine(tmp_path, python3=PYTHON, java="echo 'openjdk version \"11.0.2\"' >&2"))
    assert done.returncode == 1
    assert "Spark needs Java 17 or 21, found 11 at " in done.stderr


def test_a_machine_without_compiler_or_python_is_told_what_to_install(tmp_path):
    java = "echo 'openjdk version \"17.0.2\"' >&2"
    environment = {**_machine(tmp_path, java=java), "HSTU_OPS_CUDA": "other than the stamp's"}
    done = _set_up(environment)
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 found: install one" in done.stderr
    python = tmp_path / "bin" / "python3"
    python.write_text(f"#!/bin/bash\n{PYTHON}\n")
    python.chmod(0o755)
    done = _set_up(environment)
    assert done.returncode == 1
    assert done.stderr == (
        "setup: no C++ compiler found: install g++ (Debian: apt-get install g++) or set CXX\n"
    )


def test_a_gpu_that_is_neither_wanted_nor_unwanted_is_named(tmp_path):
    done = _set_up({**_machine(tmp_path), "GPU": "yes"})
    assert (done.returncode, done.stderr) == (1, "setup: GPU=yes is neither 0 nor 1\n")
