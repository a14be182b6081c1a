"""The Spark Connect server's archive of classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spark_jobs.lake import server
from spark_jobs.lake.session import DEFAULTS
from tests.spark_servers import spark_connect

OPTIONS = "spark.driver.extraJavaOptions"


def option(conf: dict[str, str], name: str) -> Path:
    """The path that a JVM option `-XX:<name>=<path>` gives."""
    (word,) = (word for word in conf[OPTIONS].split() if word.startswith(f"-XX:{name}="))
    return Path(word.partition("=")[2])


def test_a_server_that_ends_leaves_an_archive_and_the_next_one_takes_it(tmp_path: Path) -> None:
    conf, variables = {OPTIONS: "-XX:+UseSerialGC"}, {"SPARK_CONF_DIR": str(DEFAULTS.parent)}
    with server._class_archive(tmp_path, conf, variables):
        option(conf, "ArchiveClassesAtExit").write_text("classes")
    assert variables == {}  # the JVM refuses a class path with a folder in it
    again = {OPTIONS: "-XX:+UseSerialGC"}
    with server._class_archive(tmp_path, again, {}):
        assert option(again, "SharedArchiveFile").read_text() == "classes"
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsa"]


def test_what_a_killed_server_left_is_not_taken(tmp_path: Path) -> None:
    conf = {OPTIONS: ""}
    served = server._class_archive(tmp_path, conf, {})
    served.__enter__()
    option(conf, "ArchiveClassesAtExit").write_text("the first half of cla")
    served.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not list(tmp_path.iterdir())


def test_an_archive_is_of_one_java_and_of_its_jars(tmp_path: Path) -> None:
    jar = tmp_path / "delta.jar"
    jar.write_text("old")
    digests = set()
    for conf in ({}, {OPTIONS: "-XX:+UseParallelGC"}, {"spark.jars": str(jar)}):
        digests.add(server._classes_digest(conf))
    jar.write_text("newer")
    digests.add(server._classes_digest({"spark.jars": str(jar)}))
    assert len(digests) == 4


@pytest.mark.parametrize("folder", [None, "given"])
def test_without_a_folder_or_with_other_settings_of_spark_there_is_none(
    tmp_path: Path, folder: str | None
) -> None:
    conf, variables = {OPTIONS: ""}, {"SPARK_CONF_DIR": str(tmp_path)}
    with server._class_archive(tmp_path / folder if folder else None, conf, variables):
        assert conf == {OPTIONS: ""}
    assert variables == {"SPARK_CONF_DIR": str(tmp_path)}


@pytest.mark.slow
def test_a_real_server_makes_an_archive_and_starts_from_it(tmp_path: Path) -> None:
    query = "from pyspark.sql import SparkSession; SparkSession.builder.getOrCreate().range(9).count()"
    places = []
    for log in ("first.log", "second.log"):
        with spark_connect(tmp_path / log, "--classes", str(tmp_path / "classes")) as remote:
            subprocess.run([sys.executable, "-c", query], env={"SPARK_REMOTE": remote}, check=True)
        (place,) = (tmp_path / "classes").iterdir()
        places.append((place.name, place.stat().st_mtime_ns))
    assert places[0] == places[1]
    assert (
        "[cds]" not in (tmp_path / "second.log").read_text()
    )  # what the JVM says of an archive that does not fit
