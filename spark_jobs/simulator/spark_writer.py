"""Puts simulated deliveries into the lake by Spark, for worlds that one process cannot write.

A task simulates whole districts with the function that the local writer calls: the lines are the same, only
the files that hold them are of Spark's choosing. Workers need numpy, pandas and pyarrow in the Python that
`PYSPARK_PYTHON` names (on this machine: the one that runs the command); the package itself travels with the
function.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyspark import StorageLevel, cloudpickle
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import spark_jobs
from spark_jobs.contract import environment, locations
from spark_jobs.lake.session import spark_session
from spark_jobs.simulator.deliveries import LOGS, ORACLE_COLUMNS, district_deliveries
from spark_jobs.simulator.settings import SimulationSettings
from spark_jobs.simulator.writer import complete_oracle

logger = logging.getLogger(__name__)
_ORACLE = "oracle"
_COLUMNS = (
    "ds string",
    "log string",
    "line string",
    "impression_id string",
    *(f"{name} double" for name in ORACLE_COLUMNS[1:]),
)
_DISTRICTS_A_TASK = 32


def write_deliveries_by_spark(settings: SimulationSettings, days: list[str]) -> dict[str, dict[str, int]]:
    """Simulates `days` (ascending) and writes them below `locations.raw("foodlog")`.

    Returns:
        Lines by log, by day.
    """
    if environment.spark_master().startswith("local"):
        environment.set_defaults({"PYSPARK_PYTHON": sys.executable})
    spark = spark_session("simulate foodlog")
    lines_df = simulated(spark, settings, days).persist(StorageLevel.DISK_ONLY)
    try:
        for log in LOGS:
            _write_log(lines_df.where(F.col("log") == log), f"{locations.raw('foodlog')}/{log}")
        _write_oracle(lines_df.where(F.col("log") == _ORACLE), days)
        counts: dict[str, dict[str, int]] = {ds: dict.fromkeys(LOGS, 0) for ds in days}
        for row in lines_df.where(F.col("log") != _ORACLE).groupBy("ds", "log").count().toLocalIterator():
            counts[row["ds"]][row["log"]] = row["count"]
    finally:
        lines_df.unpersist()
    logger.info("foodlog: wrote %d deliveries, %s to %s", len(days), days[0], days[-1])
    return counts


def simulated(spark: SparkSession, settings: SimulationSettings, days: list[str]) -> DataFrame:
    """Columns `ds`, `log`, `line`, and for the log "oracle" the oracle's own columns."""
    cloudpickle.register_pickle_by_value(spark_jobs)
    num_tasks = -(-settings.districts // _DISTRICTS_A_TASK)
    districts_df = spark.range(0, settings.districts, 1, num_tasks)
    return districts_df.mapInArrow(_simulate(settings, days), ", ".join(_COLUMNS))


def _simulate(
    settings: SimulationSettings, days: list[str]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def simulate(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for district in batch.column("id").to_pylist():
                for delivery in district_deliveries(settings, district, days):
                    for log in LOGS:
                        yield _batch(delivery.ds, log, {"line": delivery.lines[log]})
                    yield _batch(
                        delivery.ds,
                        _ORACLE,
                        {name: delivery.oracle[name].tolist() for name in ORACLE_COLUMNS},
                    )

    return simulate


def _batch(ds: str, log: str, columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    """Rows of one log; what it does not have is null."""
    num_rows = len(next(iter(columns.values())))
    same = {"ds": [ds] * num_rows, "log": [log] * num_rows}
    arrays = []
    for field in _COLUMNS:
        name, kind = field.split()
        arrow = pa.string() if kind == "string" else pa.float64()
        values = columns.get(name, same.get(name))
        arrays.append(pa.nulls(num_rows, arrow) if values is None else pa.array(list(values), arrow))
    return pa.RecordBatch.from_arrays(arrays, names=[field.split()[0] for field in _COLUMNS])


def _write_log(log_df: DataFrame, path: str) -> None:
    (
        log_df.select("ds", "line")
        .write.mode("overwrite")
        .option("partitionOverwriteMode", "dynamic")  # the days of this run and no others
        .option("compression", "gzip")
        .partitionBy("ds")
        .text(path)
    )


def _write_oracle(oracle_df: DataFrame, days: list[str]) -> None:
    listed = ", ".join(f"'{ds}'" for ds in days)
    complete_oracle(locations.table("foodlog", "oracle"))
    (
        oracle_df.select(*ORACLE_COLUMNS, "ds")
        .write.format("delta")
        .mode("overwrite")
        .option("replaceWhere", f"ds in ({listed})")
        .partitionBy("ds")
        .save(locations.table("foodlog", "oracle"))
    )
