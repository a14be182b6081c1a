"""The writer of the lake: what it refuses, who may write, and what is left after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.lake import lease as lease_module
from spark_jobs.lake import log as deltalog
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.lease import FencedError, Lease, LeaseHeldError
from spark_jobs.lake.log import LakeError, commits, current_version, last_commit, partition_values
from spark_jobs.lake.writer import (
    EmptyInputError,
    SchemaDriftError,
    already_written,
    content_hash,
    replace_partition,
    table_at,
)

COLUMNS = [("a", "bigint"), ("tags", "array<string>"), ("ds", "string")]
DAY, NEXT = "2026-03-01", "2026-03-02"


def rows(
    spark: Any, numbers: list[int], ds: str = DAY, columns: str = "a bigint, tags array<string>, ds string"
) -> Any:
    return spark.createDataFrame([(n, ["x"], ds) for n in numbers], columns)


def write(df: Any, uri: str, ds: str = DAY, **more: Any) -> int:
    return replace_partition(df, uri, {"ds": ds}, columns=COLUMNS, partition_by=["ds"], stage="test", **more)


def content(spark: Any, uri: str, version: int | None = None) -> list[tuple[str, int]]:
    return sorted((row["ds"], row["a"]) for row in table_at(spark, uri, version).collect())


@pytest.fixture
def uri(lake: Path) -> str:
    return str(lake / "tiny" / "samples")


def test_one_partition_is_replaced_and_the_commit_says_by_whom(spark: Any, uri: str) -> None:
    first = write(rows(spark, [1, 2, 3]), uri)
    write(rows(spark, [9], NEXT), uri, NEXT)
    third = write(rows(spark, [4]), uri, metadata={"inputs": {"events": 7}})
    assert content(spark, uri) == [(DAY, 4), (NEXT, 9)]  # fewer rows than before leave no remains
    assert content(spark, uri, first) == [(DAY, 1), (DAY, 2), (DAY, 3)]
    assert partition_values(uri, "ds") == [DAY, NEXT]
    commit = last_commit(uri, f"ds={DAY}")
    assert commit is not None
    assert commit.version == third == current_version(uri)
    assert commit.metadata["stage"] == "test"
    assert commit.metadata["inputs"] == {"events": 7}
    assert commit.metadata["token"] > 0


def test_what_delta_lets_pass_is_refused_and_changes_nothing(spark: Any, uri: str) -> None:
    write(rows(spark, [1]), uri)
    before = current_version(uri)
    with pytest.raises(EmptyInputError, match=f"no rows for ds={DAY}"):
        write(rows(spark, []), uri)
    with pytest.raises(LakeError, match="DELTA_REPLACE_WHERE_MISMATCH"):
        write(rows(spark, [2], NEXT), uri)
    with pytest.raises(SchemaDriftError, match="column a is string, declared bigint"):
        write(rows(spark, [2]).selectExpr("cast(a as string) a", "tags", "ds"), uri)
    with pytest.raises(SchemaDriftError, match="column tags is missing; column labels is new"):
        write(rows(spark, [2]).withColumnRenamed("tags", "labels"), uri)
    with pytest.raises(SchemaDriftError, match="column b is missing"):
        replace_partition(
            rows(spark, [2]).selectExpr("*", "a AS b"),
            uri,
            {"ds": DAY},
            columns=[*COLUMNS, ("b", "bigint")],
            partition_by=["ds"],
            stage="test",
        )
    assert current_version(uri) == before
    assert content(spark, uri) == [(DAY, 1)]


def test_an_empty_result_that_is_allowed_empties_its_partition_only(spark: Any, uri: str) -> None:
    write(rows(spark, [1]), uri)
    write(rows(spark, [2], NEXT), uri, NEXT)
    write(rows(spark, []), uri, allow_empty=True)
    assert content(spark, uri) == [(NEXT, 2)]
    before = current_version(uri)
    assert write(rows(spark, []), uri, allow_empty=True) == before  # nothing there, nothing to do


def test_an_older_day_lands_after_a_newer_one(spark: Any, uri: str) -> None:
    write(rows(spark, [2], NEXT), uri, NEXT)
    write(rows(spark, [1]), uri)
    assert content(spark, uri) == [(DAY, 1), (NEXT, 2)]


def test_a_second_writer_of_a_day_is_told_who_writes(spark: Any, uri: str) -> None:
    with Lease(uri, f"ds={DAY}", "build_samples"):
        with pytest.raises(
            LeaseHeldError, match=rf"samples ds={DAY} is being written by build_samples \(process"
        ):
            write(rows(spark, [1]), uri)
        write(rows(spark, [2], NEXT), uri, NEXT)  # another day is free
    write(rows(spark, [1]), uri)
    assert content(spark, uri) == [(DAY, 1), (NEXT, 2)]


def test_a_writer_that_was_overtaken_is_fenced(spark: Any, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zombie sleeps through its lease before its commit, and wakes up after the retry has written."""
    write(rows(spark, [0]), uri)
    overtaken: list[int] = []

    def overtake(phase: str) -> None:
        if phase == "test:before_commit" and not overtaken:
            overtaken.append(1)
            monkeypatch.setattr(lease_module, "LEASE_MS", 0)
            overtaken.append(write(rows(spark, [2]), uri))

    monkeypatch.setattr("spark_jobs.lake.writer.reach", overtake)
    with pytest.raises(FencedError, match=r"newer run"):
        write(rows(spark, [1]), uri)
    assert content(spark, uri) == [(DAY, 2)]
    assert current_version(uri) == overtaken[1]


def test_a_lease_is_taken_by_one_of_many(lake: Path) -> None:
    held, refused = [], []
    barrier = threading.Barrier(6)

    def take(number: int) -> None:
        lease = Lease(str(lake / "tiny" / "samples"), "ds=x", "test")
        barrier.wait()
        try:
            held.append(lease.acquire())
        except LeaseHeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 5


def test_the_lease_of_a_dead_process_is_free_at_once_and_tokens_grow(lake: Path) -> None:
    table = str(lake / "tiny" / "samples")
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys; from spark_jobs.lake.lease import Lease;"
            "print(Lease(sys.argv[1], 'ds=x', 'child').acquire(), flush=True);"
            "os.kill(os.getpid(), signal.SIGKILL)",
            table,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    with Lease(table, "ds=x", "retry") as lease:
        assert lease.token > int(child.stdout)


def test_a_lease_is_renewed_while_it_is_held(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_MS", 400)
    monkeypatch.setattr(lease_module, "_is_running", lambda pid, started: True)
    table = str(lake / "tiny" / "samples")
    with Lease(table, "ds=x", "long"):
        time.sleep(1.2)  # three leases long
        with pytest.raises(LeaseHeldError):
            Lease(table, "ds=x", "other").acquire()


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_clocks_of_other_hosts_decide_nothing(
    lake: Path, monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    """A live holder keeps its lease, a lost one's is free at once, by whatever clock one looks."""
    table = str(lake / "tiny" / "samples")
    holder = Lease(table, "ds=x", "build_samples")
    token = holder.acquire()  # and renews when it is told to
    here, now, look = lease_module._this_process(), lease_module._now_ms(), lease_module.open_table
    monkeypatch.setattr(lease_module, "_this_process", lambda: {**here, "host": "elsewhere"})
    wrong_by = [skew_s]
    monkeypatch.setattr(lease_module, "_now_ms", lambda: now + 1000 * wrong_by[0])
    monkeypatch.setattr(lease_module, "LEASE_MS", 100)
    looks: list[str] = []

    def renew_then_look(uri: str) -> Any:
        if looks:
            wrong_by[0] = 0  # the holder's clock
            holder._commit(released=False)
            wrong_by[0] = skew_s
        looks.append(uri)
        return look(uri)

    with monkeypatch.context() as alive:
        alive.setattr(lease_module, "open_table", renew_then_look)
        with pytest.raises(LeaseHeldError, match="clock and this host's differ by some 600 s"):
            Lease(table, "ds=x", "retry").acquire()
    assert Lease(table, "ds=x", "retry").acquire() > token


def test_writers_of_different_days_both_succeed(spark: Any, uri: str) -> None:
    write(rows(spark, [0], "2026-02-28"), uri, "2026-02-28")
    errors: list[BaseException] = []

    def run(day: str, number: int) -> None:
        try:
            write(rows(spark, [number], day), uri, day)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f"2026-03-0{n}", n)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [a for _, a in content(spark, uri)] == [0, 1, 2, 3]


def test_versions_of_commits_are_right_while_others_write(
    spark: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rows(spark, [1]), uri)
    opened = deltalog.open_table
    late: list[int] = []

    def open_late(table: str, version: int | None = None) -> Any:
        found = opened(table, version)
        if not late:  # another day is committed between the opening of the table and the reading of its log
            late.append(-1)
            late[0] = write(rows(spark, [2], NEXT), uri, NEXT)
        return found

    mine = current_version(uri)
    with monkeypatch.context() as patch:
        patch.setattr(deltalog, "open_table", open_late)
        found = {commit.metadata.get("partition"): commit.version for commit in commits(uri)}
    assert (found[f"ds={DAY}"], found[f"ds={NEXT}"]) == (mine, late[0])


def test_damage_has_a_name(spark: Any, uri: str) -> None:
    with pytest.raises(LakeError, match="there is no table at"):
        table_at(spark, uri)
    write(rows(spark, [1]), uri)
    with pytest.raises(LakeError, match="version 99 is no longer readable"):
        table_at(spark, uri, 99)
    newest = sorted(Path(uri, "_delta_log").glob("*.json"))[-1]
    newest.write_bytes(newest.read_bytes()[:-40])
    with pytest.raises(LakeError, match="_delta_log is damaged"):
        table_at(spark, uri)


def damaged(path: Path) -> None:
    """Flips one bit in the middle of a file, and lets Hadoop's own checksum beside it go."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def numbers(spark: Any, count: int) -> Any:
    """Rows that do not compress, so that a flipped bit still decodes."""
    return (
        spark.range(count).selectExpr("xxhash64(id) AS a", "array('x') AS tags", f"'{DAY}' AS ds").coalesce(1)
    )


def test_a_flipped_bit_is_an_error_and_no_value(spark: Any, uri: str) -> None:
    write(numbers(spark, 20_000), uri)
    (path,) = Path(uri).glob(f"ds={DAY}/*.parquet")
    damaged(path)
    with pytest.raises(LakeError, match=rf"sum of a: .*{path.name}.*CRC checksum"), spark_errors("sum of a"):
        table_at(spark, uri).selectExpr("bit_xor(a)").collect()


def test_a_full_disk_is_named_and_the_last_version_stands(spark: Any, uri: str) -> None:
    """The files of Spark's process may not grow: what a full disk does to each of them."""
    write(rows(spark, [1]), uri)
    before = current_version(uri)
    java = spark.sparkContext._gateway.proc.pid
    soft, hard = resource.prlimit(java, resource.RLIMIT_FSIZE)
    try:
        resource.prlimit(java, resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(
            LakeError,
            match=rf"writing ds={DAY} failed, the last version stands: the disk takes no more \(\d+ bytes",
        ):
            write(numbers(spark, 50_000), uri)
    finally:
        resource.prlimit(java, resource.RLIMIT_FSIZE, (soft, hard))
    assert current_version(uri) == before
    assert content(spark, uri) == [(DAY, 1)]
    write(rows(spark, [2]), uri)
    assert content(spark, uri) == [(DAY, 2)]


def test_own_work_is_recognised_by_code_and_inputs(
    spark: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    version = write(rows(spark, [1]), uri, metadata={"inputs": {"events": 3}})
    assert already_written(uri, {"ds": DAY}, {"events": 3}) == version
    assert already_written(uri, {"ds": DAY}, {"events": 4}) is None
    assert already_written(uri, {"ds": NEXT}, {"events": 3}) is None
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc+dirty")
    assert already_written(uri, {"ds": DAY}, {"events": 3}) is None


def test_content_hash_sees_values_and_copies_but_no_order(spark: Any) -> None:
    one = content_hash(rows(spark, [1, 2, 3]))
    assert content_hash(rows(spark, [3, 1, 2])) == one
    assert content_hash(rows(spark, [1, 2, 4])) != one
    assert content_hash(rows(spark, [1, 2, 3, 3, 3])) != content_hash(rows(spark, [1, 2, 3]))
    assert content_hash(rows(spark, [])) == "0:0"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_without_a_free_byte_is_named_before_anything_changes(spark: Any, small_disk: Path) -> None:
    uri = str(small_disk / "tiny" / "samples")
    write(rows(spark, [1]), uri)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(
        LakeError, match=r"_leases/.* the disk takes no more \(0 bytes are free at .*free space"
    ):
        write(rows(spark, [2]), uri)  # the lease cannot be taken
    with pytest.raises(LakeError, match=r"_leases/.* cannot be created: the disk takes no more \(0 bytes"):
        write(rows(spark, [3], NEXT), uri, NEXT)  # nor made
    filler.unlink()
    write(rows(spark, [2]), uri)
    assert content(spark, uri) == [(DAY, 2)]


_WRITER = """
import json, os, sys
os.environ["SPARK_CONF"] = "spark.sql.shuffle.partitions=2;spark.driver.memory=512m"
from spark_jobs.lake.writer import replace_partition
from spark_jobs.lake.session import spark_session
spark = spark_session("killed")
df = spark.createDataFrame([(5, ["x"], "2026-03-01")], "a bigint, tags array<string>, ds string")
columns = [tuple(c) for c in json.loads(sys.argv[2])]
replace_partition(df, sys.argv[1], {"ds": "2026-03-01"}, columns=columns, partition_by=["ds"], stage="test")
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["start", "leased", "before_commit", "after_commit"])
def test_a_kill_at_any_phase_leaves_the_old_or_the_new_and_a_rerun_gives_the_new(
    spark: Any, uri: str, phase: str
) -> None:
    write(rows(spark, [1, 2]), uri)
    environment = {**os.environ, "MTGR_KILL_AT": f"test:{phase}"}
    command = [sys.executable, "-c", _WRITER, uri, json.dumps(COLUMNS)]
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    new = phase == "after_commit"
    assert content(spark, uri) == ([(DAY, 5)] if new else [(DAY, 1), (DAY, 2)])
    write(rows(spark, [5]), uri)
    assert content(spark, uri) == [(DAY, 5)]
    assert len([c for c in commits(uri) if c.metadata]) == (3 if new else 2)


_TORN = """
import os, sys, time
os.environ["SPARK_CONF"] = "spark.sql.shuffle.partitions=2;spark.driver.memory=512m"
from pyspark import TaskContext
from spark_jobs.lake.writer import replace_partition
from spark_jobs.lake.session import spark_session
def rows(batches):
    yield from batches
    if TaskContext.get().partitionId() == 1 and os.path.exists(sys_argv_1):
        time.sleep(600)
sys_argv_1 = sys.argv[1]
spark = spark_session("torn")
df = spark.range(0, 8, 1, 2).selectExpr("id AS a", "array('x') AS tags", "'2026-03-01' AS ds")
columns = [("a", "bigint"), ("tags", "array<string>"), ("ds", "string")]
replace_partition(
    df.mapInArrow(rows, df.schema), sys.argv[1], {"ds": "2026-03-01"}, columns=columns, partition_by=["ds"],
    stage="test", witness_df=df,
)
"""


@pytest.mark.slow
def test_half_written_files_are_invisible_and_vacuumed(spark: Any, uri: str) -> None:
    write(rows(spark, [1, 2]), uri)
    known = set(Path(uri).rglob("*.parquet"))
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    writer = subprocess.Popen([sys.executable, "-c", _TORN, uri], env=environment, start_new_session=True)
    while not (torn := set(Path(uri, f"ds={DAY}").glob("*.parquet")) - known):
        assert writer.poll() is None, "it ended before it was killed"
        time.sleep(0.1)
    os.killpg(writer.pid, signal.SIGKILL)  # with its JVM, one file written, the other not
    writer.wait()
    assert content(spark, uri) == [(DAY, 1), (DAY, 2)]
    write(rows(spark, [5]), uri)
    assert content(spark, uri) == [(DAY, 5)]
    assert torn <= set(Path(uri).rglob("*.parquet"))
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    try:
        spark.sql(f"VACUUM delta.`{uri}` RETAIN 0 HOURS")
    finally:
        spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")
    assert not torn & set(Path(uri).rglob("*.parquet"))
    assert content(spark, uri) == [(DAY, 5)]
