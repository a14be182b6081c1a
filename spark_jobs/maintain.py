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
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs import locations
from spark_jobs.datasets import dataset_named
from spark_jobs.deltalog import LakeError, exists, open_table
from spark_jobs.failures import spark_errors
from spark_jobs.session import SparkUnavailableError, spark_session

LOG = logging.getLogger(__name__)
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
        LOG.info("%s: %d files, now %d", uri, before, done[name]["after"])
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Maintains the tables of a dataset. Exit code 0 done, 1 failed, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m spark_jobs.maintain", description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--retain-hours", type=int, default=LEAST_HOURS)
    arguments = parser.parse_args(argv)
    try:
        dataset_named(arguments.dataset)
    except ValueError as error:
        parser.error(str(error))
    try:
        done = maintain(
            spark_session(f"maintain {arguments.dataset}"), arguments.dataset, arguments.retain_hours
        )
    except (ValueError, LakeError, SparkUnavailableError) as error:
        LOG.error("%s", error)
        return 1
    sys.stdout.write(json.dumps(done) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
