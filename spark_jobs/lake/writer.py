"""The only writer of the lake's Delta tables, and the reading of a table at a version.

`replace_partition` replaces exactly one partition in one commit, or changes nothing. What Delta itself lets
pass without a word is refused by name here: an empty input (which would delete the day and succeed), an
overwrite without a predicate (not expressible), a changed schema, and the commit of a writer that was
overtaken. Rows of another partition are refused by Delta's own check of the predicate.

Two writers of one partition exclude each other by a lease (`spark_jobs/lake/lease.py`). Its token is also
Delta's transaction version, per table *and partition* (one id for a whole table with the day as version would
silently drop a backfill of an older day): a writer that lost its lease finds its commit dropped and says so.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.phases import reach
from spark_jobs.lake.failures import SPARK_ERRORS, reason
from spark_jobs.lake.lease import FencedError, Lease
from spark_jobs.lake.log import (
    LakeError,
    commits,
    create_table,
    exists,
    git_sha,
    last_commit,
    open_table,
)

logger = logging.getLogger(__name__)
_ATTEMPTS = 6
_CONFLICT = re.compile(
    r"Concurrent\w+Exception|DELTA_CONCURRENT|DELTA_METADATA_CHANGED|DELTA_PROTOCOL_CHANGED"
)
# Readers hold a version for as long as a run; VACUUM may not remove its files before.
TABLE_PROPERTIES = {
    "delta.deletedFileRetentionDuration": "interval 7 days",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.checkpointInterval": "20",
}


class EmptyInputError(LakeError):
    """The input has no rows: writing it would delete what the partition holds."""


class SchemaDriftError(LakeError):
    """The input's or the table's columns are not the declared ones."""


def replace_partition(
    df: DataFrame,
    table_uri: str,
    partition: Mapping[str, str],
    *,
    columns: Sequence[tuple[str, str]],
    partition_by: Sequence[str],
    stage: str,
    metadata: Mapping[str, Any] | None = None,
    allow_empty: bool = False,
    witness_df: DataFrame | None = None,
) -> int:
    """Replaces one partition of a table by the rows of `df`, atomically.

    Args:
        df: All rows of the partition, with exactly `columns`.
        table_uri: The table; it is created when there is none.
        partition: Column -> value, the predicate of the replacement; all rows must satisfy it.
        columns: (column, Spark SQL type) of the table.
        partition_by: Partition columns of the table.
        stage: Name of the writing stage, for phases and metadata.
        metadata: What else the commit shall say, see `deltalog`.
        allow_empty: Whether no rows are a result: what the partition held is then removed.
        witness_df: Has rows exactly when `df` has, and is cheaper to look at. Default: `df`.

    Returns:
        Table version that holds the partition.

    Raises:
        EmptyInputError: `df` has no rows and `allow_empty` is False; the table is unchanged.
        SchemaDriftError: `df` or the table has other columns than `columns`; the table is unchanged.
        LeaseHeldError: Another run is writing the partition.
        FencedError: Another run took the partition over; this write was dropped.
        LakeError: The write failed; Delta keeps the last version.
    """
    spark, name = df.sparkSession, partition_name(partition)
    where = " AND ".join(f"{column} = '{_literal(value)}'" for column, value in partition.items())
    _check_columns(f"the input of {table_uri}", df.dtypes, columns)
    reach(f"{stage}:start")
    with Lease(table_uri, name, stage) as lease:
        reach(f"{stage}:leased")
        if (witness_df if witness_df is not None else df).isEmpty():
            if not allow_empty:
                raise EmptyInputError(
                    f"{table_uri}: no rows for {name}; nothing was changed. Check the stage before this one"
                )
            if not exists(table_uri) or not _has_rows(spark, table_uri, where):
                logger.info("%s: no rows for %s and none before", table_uri, name)
                return open_table(table_uri).version() if exists(table_uri) else -1
        _ensure_table(spark, table_uri, columns, partition_by)
        record = {
            **(metadata or {}),
            "stage": stage,
            "partition": name,
            "token": lease.token,
            "git_sha": git_sha(),
        }
        writer = (
            df.select(*(column for column, _ in columns))
            .write.format("delta")
            .mode("overwrite")
            .option("replaceWhere", where)
            .option("userMetadata", json.dumps(record, sort_keys=True))
            .option("txnAppId", f"{table_uri}/{name}")
            .option("txnVersion", str(lease.token))
        )
        before = open_table(table_uri).version()
        lease.check()
        reach(f"{stage}:before_commit")
        _retried(lambda: writer.save(table_uri), table_uri, name)
        reach(f"{stage}:after_commit")
        return _own_version(table_uri, name, lease.token, before, allow_empty=allow_empty)


def partition_name(partition: Mapping[str, str]) -> str:
    """Name of a partition: `ds=2026-03-01`, or `ds=2026-03-01,stage=ingest`."""
    return ",".join(f"{column}={value}" for column, value in partition.items())


def table_at(spark: SparkSession, uri: str, version: int | None = None) -> DataFrame:
    """Reads a table at a version (default: newest).

    Raises:
        LakeError: There is no table, its log is damaged, or the version is gone.
    """
    at = open_table(uri, version).version()
    return spark.read.format("delta").option("versionAsOf", str(at)).load(uri)


def content_hash(df: DataFrame) -> str:
    """Hash of a DataFrame's rows that does not depend on their order: equal content, equal hash.

    The sum of 64-bit row hashes beside the row count; doubles of a row count twice, unlike with xor.
    """
    columns = [
        F.coalesce(F.to_json(F.struct(F.col(c).alias("v"))), F.lit("null")) for c in sorted(df.columns)
    ]
    hashed_df = df.select(F.xxhash64(*columns).cast("decimal(38,0)").alias("h"))
    row = hashed_df.agg(F.count("*").alias("n"), F.coalesce(F.sum("h"), F.lit(0)).alias("h")).first()
    assert row is not None
    return f"{row['n']}:{int(row['h']):x}"


def already_written(uri: str, partition: Mapping[str, str], inputs: Mapping[str, Any]) -> int | None:
    """Version of the partition when this very code made it from these very inputs, else None.

    A run that was killed after its commit finds its own work so, and does not write it again.
    """
    commit = last_commit(uri, partition_name(partition))
    version = git_sha()
    if commit is None or version == "unknown" or version.endswith("+dirty"):
        return None
    same = commit.metadata.get("git_sha") == version and commit.metadata.get("inputs") == dict(inputs)
    return commit.version if same else None


def _literal(value: str) -> str:
    if not re.fullmatch(r"[\w.:-]+", value):
        raise LakeError(f"{value!r} is no partition value: letters, digits and . : - _ only")
    return value


def _check_columns(
    subject: str, present: Sequence[tuple[str, str]], declared: Sequence[tuple[str, str]]
) -> None:
    has, wants = dict(present), dict(declared)
    problems = [f"column {c} is missing" for c in wants if c not in has]
    problems += [f"column {c} is new" for c in has if c not in wants]
    problems += [
        f"column {c} is {has[c]}, declared {kind}" for c, kind in wants.items() if c in has and has[c] != kind
    ]
    if problems:
        raise SchemaDriftError(
            f"{subject}: {'; '.join(problems)}. Correct the source or, after a change of the declaration in "
            "spark_jobs/contract/datasets.py, move the table away and build it again"
        )


def _has_rows(spark: SparkSession, uri: str, where: str) -> bool:
    return not table_at(spark, uri).where(where).isEmpty()


def _ensure_table(
    spark: SparkSession, uri: str, columns: Sequence[tuple[str, str]], partition_by: Sequence[str]
) -> None:
    create_table(uri, columns, partition_by, TABLE_PROPERTIES)
    _check_columns(f"table {uri}", table_at(spark, uri).dtypes, columns)


def _retried(action: Callable[[], Any], uri: str, name: str) -> None:
    """Runs a Delta transaction again, from a fresh read of the table, when another one interfered."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            action()
            return
        except SPARK_ERRORS as error:
            if "ConcurrentTransaction" in str(error):
                raise FencedError(f"{uri}: {name} was committed by a newer run at the same time") from error
            if not _CONFLICT.search(str(error)):
                raise LakeError(
                    f"{uri}: writing {name} failed, the last version stands: {reason(error, uri)}"
                ) from error
            if attempt == _ATTEMPTS:
                raise LakeError(f"{uri}: {name} met other writers {attempt} times; run again") from error
            logger.warning("%s: %s met another writer (attempt %d); trying again", uri, name, attempt)
            time.sleep(random.uniform(0.2, 1.0) * attempt)


def _own_version(uri: str, name: str, token: int, before: int, *, allow_empty: bool) -> int:
    """Version of the commit that carries our token: Delta drops an overtaken transaction without a word."""
    for commit in commits(uri):
        if commit.version <= before:
            break
        if commit.metadata.get("partition") == name and commit.metadata.get("token") == token:
            rows = int(commit.metrics.get("numOutputRows", 0))
            if rows == 0 and not allow_empty:
                raise EmptyInputError(
                    f"{uri}: {name} was written without rows although rows were expected: version "
                    f"{commit.version - 1} holds the rows before; RESTORE it and report this"
                )
            logger.info("%s: %s replaced by %d rows, version %d", uri, name, rows, commit.version)
            return commit.version
    raise FencedError(
        f"{uri}: {name} was written by a newer run, the write with token {token} was dropped. "
        "(Without another run: the table's folder in _leases was removed; keep it with the table)"
    )
