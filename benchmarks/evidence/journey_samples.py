"""Writes the samples of many days of journey, each as the Spark builder would, without Spark.

    python -m benchmarks.evidence.journey_samples --from 2017-03-20 --to 2017-12-24 [--workers 16]

For experiments: a machine that has DuckDB and the raw log (`python -m spark_jobs.journey`) builds a year in
minutes, a day a process. The statements are those that `make bench-samples` holds equal to the Spark
builder's rows (`benchmarks/samples_duckdb.py`). Each day of the log counts as delivered on itself, and no
gate judges the table `$MTGR_LAKE/journey/samples`: it is allowed as what it is. Days that are there stay; a
run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.samples_duckdb import build
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.journey import JOURNEY
from spark_jobs.lake import verdicts

logger = logging.getLogger(__name__)
_REASON = "made for experiments by DuckDB, day by day as the Spark builder makes them"


def tables_of(log: str) -> dict[str, str]:
    """The relations of the raw log that `samples_duckdb.build` reads."""
    dated = "(SELECT *, '2017-01-01' AS ds FROM read_parquet('{}'))"
    types = "hive_partitioning=true, hive_types={'ds': VARCHAR}"
    return {
        "events": f"(SELECT *, ds AS delivery_ds FROM read_parquet('{log}/events/*/*.parquet', {types}))",
        "users": dated.format(f"{log}/users.parquet"),
        "items": dated.format(f"{log}/items.parquet"),
    }


def _write(given: tuple[str, str, Path]) -> tuple[str, float]:
    """Writes a day's samples, whole or not at all; the day and how many seconds it took."""
    import duckdb

    log, ds, folder = given
    start = time.monotonic()
    part = folder / f".{ds}.partial"
    with duckdb.connect(config={"threads": 1}) as connection:
        build(connection, tables_of(log), JOURNEY, ds, str(part))
    (folder / f"ds={ds}").mkdir(exist_ok=True)
    os.replace(part, folder / f"ds={ds}" / "part-00000.parquet")
    return ds, time.monotonic() - start


def write_samples(log: str, days: Sequence[str], workers: int) -> dict[str, Any]:
    """Writes the days that the table lacks, and makes it a Delta table of all its days.

    Returns:
        What was done: days written, seconds, bytes.

    Raises:
        CommandError: There is no log without a history: each day must have been delivered on itself.
    """
    from deltalake import Field, Schema, convert_to_deltalake

    if not Path(log, "events").is_dir() or Path(log, "history").exists():
        raise CommandError(f"{log} holds no log of all days: python -m spark_jobs.journey --out {log}")
    folder = Path(locations.table(JOURNEY.name, "samples"))
    folder.mkdir(parents=True, exist_ok=True)
    missing = [
        ds for ds in days if not (folder / f"ds={ds}").exists() and Path(log, "events", f"ds={ds}").exists()
    ]
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for ds, seconds in pool.imap_unordered(_write, [(log, ds, folder) for ds in missing]):
            logger.info("%s: %.1f s", ds, seconds)
    if missing or not (folder / "_delta_log").exists():
        shutil.rmtree(folder / "_delta_log", ignore_errors=True)
        by_day = Schema([Field("ds", "string")])
        convert_to_deltalake(str(folder), partition_by=by_day, partition_strategy="hive")
    held = sorted(path.name.removeprefix("ds=") for path in folder.glob("ds=*"))
    verdicts.allow(JOURNEY.name, "samples", held, _REASON)
    return {
        "days": len(held),
        "written": len(missing),
        "seconds": round(time.monotonic() - start, 1),
        "bytes": locations.size_of(folder),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Writes samples; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey_samples", __doc__)
    command.add_day(parser, "--from", dest="first", help="first day, YYYY-MM-DD")
    command.add_day(parser, "--to", dest="last", help="last day, included")
    parser.add_argument("--log", help="folder of the raw log; default: MTGR_JOURNEY, else in the lake")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="days at a time")

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        log = arguments.log or environment.raw_logs("journey") or locations.raw("journey")
        return write_samples(log, days_between(arguments.first, arguments.last), arguments.workers)

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
