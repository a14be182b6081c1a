"""What a cluster and its machines do to a job: failed tasks, lost executors, copies of tasks, clocks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.lake.writer import content_hash, table_at
from tests.spark_jobs.test_spark_places import DAYS, REPOSITORY, SMALL, pipeline, run
from tests.spark_servers import standalone_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# Builds a day from events whose reading fails: at some evaluations of its first partition the task raises, or
# takes its executor with it, or is slow until a speculative copy has overtaken it.
_FAULTY = """
import os, sys, time
from pathlib import Path
import psutil
from pyspark import TaskContext
from spark_jobs import build_samples
from spark_jobs.contract.datasets import FOODLOG
from spark_jobs.lake.session import spark_session
from spark_jobs.samples import inputs
fault, ds, folder = sys.argv[1:]
read = build_samples.table_at
def faulty(spark, uri, version=None):
    df = read(spark, uri, version)
    if not uri.endswith("/events"):
        return df
    def rows(batches):
        if TaskContext.get().partitionId() == 0:
            number = len(os.listdir(folder))
            Path(folder, f"{number}").touch()
            if number in (1, 4, 9):
                with Path(folder + ".done").open("a") as done:
                    done.write(f"{number} ")
                if fault == "task":
                    raise RuntimeError("failed on purpose")
                if fault == "executor":
                    next(p for p in psutil.Process().parents() if p.name() == "java").kill()
                time.sleep(8)
        yield from batches
    return df.mapInArrow(rows, df.schema)
build_samples.table_at = inputs.table_at = faulty
spark = spark_session("faulty")
print(build_samples.build_days(spark, FOODLOG, ds))
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small days of foodlog's raw logs."""
    root = tmp_path_factory.mktemp("raw")
    size = ["--users", "60", "--impressions-a-day", "600"]
    days = ["--from", DAYS[0], "--to", DAYS[1]]
    run("-m", "spark_jobs.simulate", "--dataset", "foodlog", *days, *size, MTGR_VAR=str(root))
    return root / "lake" / "foodlog" / "raw"


@pytest.fixture(scope="module")
def local(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `var` folder of both days, made by undisturbed local sessions."""
    var = tmp_path_factory.mktemp("local")
    pipeline(var, raw, SPARK_MASTER="local[2]")
    return var


def hashes(spark: Any, var: Path, *tables: str) -> dict[str, str]:
    return {name: content_hash(table_at(spark, str(var / "lake" / "foodlog" / name))) for name in tables}


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_machine_in_another_time_zone_makes_the_same_tables(
    spark: Any, raw: Path, local: Path, zone: str, tmp_path: Path
) -> None:
    """Python's, the JVM's and Spark's own time zone."""
    java = f"spark.driver.extraJavaOptions=-XX:+UseSerialGC -Duser.timezone={zone}"
    conf = f"{SMALL};{java};spark.sql.session.timeZone={zone}"
    pipeline(tmp_path, raw, SPARK_MASTER="local[2]", TZ=zone, SPARK_CONF=conf)
    tables = ("events", "samples", "users", "items", "quarantine")
    assert hashes(spark, tmp_path, *tables) == hashes(spark, local, *tables)


@pytest.mark.parametrize("fault", ["task", "executor", "slow"])
def test_failed_tasks_lost_executors_and_speculative_copies_change_no_sample(
    spark: Any, local: Path, tmp_path: Path, fault: str
) -> None:
    for folder in ("lake", "gates"):
        shutil.copytree(local / folder, tmp_path / folder)
    shutil.rmtree(tmp_path / "lake" / "foodlog" / "samples")
    evaluations, work = tmp_path / "evaluations", tmp_path / "work"
    evaluations.mkdir()
    work.mkdir()
    more = "spark.task.maxFailures=6"
    if fault == "slow":
        more = "spark.speculation=true;spark.speculation.multiplier=1.1;spark.speculation.quantile=0.1"
    with standalone_cluster(work) as master:
        places = {"MTGR_VAR": str(tmp_path), "SPARK_MASTER": master, "SPARK_CONF": f"{SMALL};{more}"}
        done = subprocess.run(
            [sys.executable, "-c", _FAULTY, fault, DAYS[1], str(evaluations)],
            env={**os.environ, "PYSPARK_PYTHON": sys.executable, **places},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert Path(f"{evaluations}.done").read_text().split()[:2] == ["1", "4"]
    found, expected = (
        content_hash(table_at(spark, str(var / "lake" / "foodlog" / "samples")).where(f"ds = '{DAYS[1]}'"))
        for var in (tmp_path, local)
    )
    assert not found.startswith("0:")
    assert found == expected
