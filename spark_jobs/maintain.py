"""Keeps a dataset's tables small: joins a day's small files, and removes files that no kept version needs.

    python -m spark_jobs.maintain --dataset foodlog [--retain-hours 168]

Delta's OPTIMIZE joins the small files of each partition; every kept version still reads as before. VACUUM
then removes files that only versions older than the retention hold. **The retention must be longer than the
longest training run**: a run reads the version that it started with to its end. The default, seven days, is
also the least that is taken.

Prints one JSON line: table -> files before and after.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.contract import command, locations
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import exists, open_table
from spark_jobs.lake.session import spark_session

logger = logging.getLogger(__name__)
TABLES = ("events", "users", "items", "quarantine", "samples")
LEAST_HOURS = 168


def maintain(spark: SparkSession, dataset: str, retain_hours: int = LEAST_HOURS) -> dict[str, Any]:
    """Compacts and vacuums the tables of a dataset.

    Args:
        spark: Session.
        dataset: Name of the dataset.
        retain_hours: How long versions stay readable, at least `LEAST_HOURS`.

    Returns:
        Files of each table before and after, and its version.

    Raises:
        ValueError: The retention is too short.
        LakeError: Spark failed; the message names the table.
    """
    if retain_hours < LEAST_HOURS:
        raise ValueError(
            f"--retain-hours {retain_hours}: at least {LEAST_HOURS}, or running readers lose their files"
        )
    done = {}
    for name in TABLES:
        uri = locations.table(dataset, name)
        if not exists(uri):
            continue
        before = len(open_table(uri).file_uris())
        with spark_errors(f"maintenance of {uri}"):
            spark.sql(f"OPTIMIZE delta.`{uri}`")
            spark.sql(f"VACUUM delta.`{uri}` RETAIN {retain_hours} HOURS")
        table = open_table(uri)
        done[name] = {"before": before, "after": len(table.file_uris()), "version": table.version()}
        logger.info("%s: %d files, now %d", uri, before, done[name]["after"])
    return done


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    name = arguments.dataset.name
    return maintain(spark_session(f"maintain {name}"), name, arguments.retain_hours)


def main(argv: Sequence[str] | None = None) -> int:
    """Maintains the tables of a dataset; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.maintain", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--retain-hours", type=int, default=LEAST_HOURS)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
