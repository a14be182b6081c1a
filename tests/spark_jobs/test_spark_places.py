"""The jobs in other places than a local session: Spark Connect, a standalone cluster, and what fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spark_jobs import maintain
from spark_jobs.contract import locations
from spark_jobs.lake import session
from spark_jobs.lake.log import open_table
from spark_jobs.lake.session import SparkUnavailableError
from spark_jobs.lake.writer import content_hash, replace_partition, table_at
from tests.spark_servers import free_port, spark_connect, standalone_cluster

REPOSITORY = Path(session.__file__).resolve().parents[2]
DAYS = ("2026-03-01", "2026-03-02")
# One compiler and interpreted plans: for 600 impressions a day, compiling is most of the work.
SMALL = ";".join(
    [
        "spark.sql.shuffle.partitions=3;spark.driver.memory=1g;spark.executor.memory=512m;spark.cores.max=2",
        "spark.sql.codegen.wholeStage=false;spark.sql.codegen.factoryMode=NO_CODEGEN",
        *(
            f"spark.{side}.extraJavaOptions=-XX:+UseSerialGC -XX:TieredStopAtLevel=1 "
            "-XX:ReservedCodeCacheSize=240m -Duser.timezone=UTC"
            for side in ("driver", "executor")
        ),
    ]
)
# Both jobs for both days in one process: one start of Spark, not four.
_PIPELINE = """
import sys
from spark_jobs import build_samples, ingest
from spark_jobs.lake import verdicts
for ds in sys.argv[1:]:
    for job in (ingest, build_samples):
        code = job.main(["--dataset", "foodlog", "--ds", ds])
        if code:
            sys.exit(code)
        verdicts.allow("foodlog", "events", [ds], "a test")
"""


def run(*arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_unreachable_remote_or_master_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("SPARK_REMOTE", f"sc://127.0.0.1:{port}")
    with pytest.raises(
        SparkUnavailableError, match=re.escape(f"SPARK_REMOTE=sc://127.0.0.1:{port}: no answer")
    ):
        session.spark_session("x")
    monkeypatch.setenv("SPARK_REMOTE", "sc://host:fifteen")
    with pytest.raises(SparkUnavailableError, match="host:fifteen is no host and port; correct SPARK_REMOTE"):
        session.spark_session("x")
    monkeypatch.delenv("SPARK_REMOTE")


def test_no_java_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(SparkUnavailableError, match=r"found none \(the path\): install Java"):
        session.require_machine()


def test_settings_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_CONF", "spark.driver.memory")
    with pytest.raises(SparkUnavailableError, match=r"'spark\.driver\.memory' is not written"):
        session.settings(local=True)


def test_spark_reads_the_object_store_that_deltalake_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "SPARK_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert not [key for key in session.settings(local=True) if key.startswith("spark.hadoop.fs.s3a")]
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert session.object_store() == {
        "spark.hadoop.fs.s3a.endpoint.region": "eu-west-1"
    }  # AWS's own: by host
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://objects:7070")
    conf = session.settings(local=False)
    assert conf["spark.hadoop.fs.s3a.endpoint"] == "http://objects:7070"
    assert conf["spark.hadoop.fs.s3a.path.style.access"] == "true"
    monkeypatch.setenv("SPARK_CONF", "spark.hadoop.fs.s3a.path.style.access=false")
    assert session.settings(local=False)["spark.hadoop.fs.s3a.path.style.access"] == "false"


@pytest.mark.parametrize("module", ["spark_jobs.ingest", "spark_jobs.build_samples"])
def test_wrong_usage_is_refused_before_spark_starts(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = __import__(module, fromlist=["main"]).main
    for arguments, message in (
        (["--dataset", "nope", "--ds", DAYS[0]], "unknown dataset 'nope'; known: foodlog, journey, kuairand"),
        (["--dataset", "foodlog", "--ds", "2026-02-30"], "'2026-02-30' is not a day"),
        (["--dataset", "foodlog"], "--ds"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


_PRODUCT = ("spark_jobs", "expectations", "model", "dags", "scripts")
_RAW_LOGS = "spark_jobs/simulator/"  # writes the logs that a real app would: no table of ours


@pytest.mark.parametrize(
    ("forbidden", "folders", "allowed"),
    [
        # A schema changes by a declaration; a session may run where there is no JVM to reach into.
        (r"overwriteSchema|mergeSchema|\.rdd\b|\._jvm\b|\bpandas_udf\b|F\.udf\b", _PRODUCT, ()),
        # The lake has one writer, which demands a partition.
        (r"\.mode\(|write_deltalake|saveAsTable|insertInto|writeTo\(", _PRODUCT,
         ("spark_jobs/lake/writer.py", "benchmarks/samples_events.py", _RAW_LOGS)),
        # Neither the clock of a machine nor the time of a file says when something happened.
        (r"st_mtime|getmtime|current_timestamp|current_date|\.now\(|\.today\(|time\.time\(|modificationTime",
         ("spark_jobs", "expectations"), ("spark_jobs/lake/lease.py", "expectations/judging/validation.py")),
        # prev_* and the dates of a run depend on what ran before it.
        (r"prev_\w+|logical_date|data_interval|macros\.|\{\{ ds", ("dags",), ()),
    ],
)  # fmt: skip
def test_what_the_code_may_not_use(
    forbidden: str, folders: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    for folder in folders:
        for path in (REPOSITORY / folder).rglob("*.py"):
            name = path.relative_to(REPOSITORY).as_posix()
            code = re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text(encoding="utf-8"))
            found = re.search(forbidden, code)
            assert name.startswith(allowed) or not found, f"{name}: {found and found.group()}"


@pytest.mark.slow
def test_maintenance_keeps_versions_and_refuses_a_short_retention(spark: Any, lake: Path) -> None:
    uri = locations.table("foodlog", "samples")
    for ds in DAYS:
        df = spark.range(0, 40, 1, 6).selectExpr("id AS user_id", f"'{ds}' AS ds")
        version = replace_partition(
            df,
            uri,
            {"ds": ds},
            columns=[("user_id", "bigint"), ("ds", "string")],
            partition_by=["ds"],
            stage="x",
        )
    before = content_hash(table_at(spark, uri, version))
    done = maintain.maintain(spark, "foodlog")
    assert done["samples"]["before"] > done["samples"]["after"] == len(DAYS)
    assert content_hash(table_at(spark, uri)) == before
    assert content_hash(table_at(spark, uri, version)) == before
    with pytest.raises(ValueError, match="--retain-hours 1: at least 168"):
        maintain.maintain(spark, "foodlog", 1)
    assert open_table(uri, version).version() == version


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small days of foodlog's raw logs."""
    root = tmp_path_factory.mktemp("raw")
    arguments = ["--dataset", "foodlog", "--from", DAYS[0], "--to", DAYS[1]]
    size = ["--users", "60", "--impressions-a-day", "600"]
    run("-m", "spark_jobs.simulate", *arguments, *size, MTGR_VAR=str(root))
    return root / "lake" / "foodlog" / "raw"


def pipeline(var: Path, raw: Path, **environment: str) -> dict[str, str]:
    """Ingests and builds both days; returns the hashes of the tables."""
    places = {"MTGR_VAR": str(var), "MTGR_FOODLOG": str(raw), "SPARK_CONF": SMALL, **environment}
    run("-c", _PIPELINE, *DAYS, **places)
    return {
        name: str(var / "lake" / "foodlog" / name) for name in ("events", "samples", "users", "quarantine")
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_connect_and_a_standalone_cluster_make_the_same_tables_as_local(
    spark: Any, raw: Path, tmp_path: Path
) -> None:
    made = {"local": pipeline(tmp_path / "local", raw, SPARK_MASTER="local[2]")}
    with spark_connect(tmp_path / "connect.log", SPARK_CONF=SMALL) as remote:
        made["connect"] = pipeline(tmp_path / "connect", raw, SPARK_REMOTE=remote)
    work = tmp_path / "work"
    work.mkdir()
    with standalone_cluster(work) as master:
        made["cluster"] = pipeline(tmp_path / "cluster", raw, SPARK_MASTER=master)
    hashes = {
        place: {name: content_hash(table_at(spark, uri)) for name, uri in tables.items()}
        for place, tables in made.items()
    }
    assert not hashes["local"]["samples"].startswith("0:")
    assert hashes["connect"] == hashes["local"]
    assert hashes["cluster"] == hashes["local"]
