"""For all tests: one small Spark session, a lake for each test that asks for one, who runs which files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_OF_SPARK = ("tests/expectations/", "tests/spark_jobs/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time; Spark's go to the first worker while it has any, so that one JVM warms up for all."""
    from xdist.scheduler import LoadFileScheduling

    class SparkApart(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            is_first = node is self.nodes[0]
            own = next((file for file in self.workqueue if file.startswith(_OF_SPARK) is is_first), None)
            if own is not None:  # else it helps the others
                self.workqueue.move_to_end(own, last=False)
            super()._assign_work_unit(node)

    return SparkApart(config, log)


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """A local session with Delta: serial collector, two shuffle partitions."""
    from spark_jobs.lake.session import spark_session

    before = {name: os.environ.pop(name, None) for name in ("SPARK_REMOTE", "SPARK_MASTER", "SPARK_CONF")}
    # For a handful of rows, compiling a plan takes far longer than interpreting it.
    interpreted = "spark.sql.codegen.wholeStage=false;spark.sql.codegen.factoryMode=NO_CODEGEN"
    # Literal rows are read by tasks, as a table's are, and not by the optimizer.
    planned = (
        "spark.sql.optimizer.excludedRules=org.apache.spark.sql.catalyst.optimizer.ConvertToLocalRelation"
    )
    # The second compiler would take two fifths of the processor time, and a session ends before that pays.
    java = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -Duser.timezone=UTC"
    os.environ["SPARK_CONF"] = (
        f"spark.sql.shuffle.partitions=2;spark.driver.memory=1g;{interpreted};{planned};"
        f"spark.driver.extraJavaOptions={java}"
    )
    session = spark_session("tests")
    session.sparkContext.setLogLevel("OFF")
    del os.environ["SPARK_CONF"]
    os.environ.update({name: value for name, value in before.items() if value is not None})
    yield session
    session.stop()


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a fresh lake, set for this process and its children."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.delenv("MTGR_LAKE", raising=False)
    return tmp_path / "lake"
