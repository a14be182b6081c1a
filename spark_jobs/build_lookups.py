"""Builds what serving looks up on a day: `python -m spark_jobs.build_lookups --dataset foodlog --ds DAY`.

Knows what samples of the day know at its start: the deliveries before it that their gate has passed, and the
newest snapshot of users and items that was taken by then. Replaces the partition `ds` of the table `lookups`
(`spark_jobs/samples/lookups.py`), from which `python -m model.publish --lookups DAY` makes what a server
reads.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.contract import command, locations
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import current_version
from spark_jobs.lake.session import keeping, spark_session
from spark_jobs.lake.writer import replace_partition
from spark_jobs.samples.deliveries import deliveries_of
from spark_jobs.samples.inputs import inputs_of
from spark_jobs.samples.lookups import COLUMNS, lookups

logger = logging.getLogger(__name__)
STAGE = "build_lookups"


def build_lookups(spark: SparkSession, dataset: Dataset, ds: str) -> dict[str, Any]:
    """Builds the lookups of a day; what was done, as printed by the command.

    Raises:
        NotPassedError: A delivery up to the day was not judged.
        LakeError: A table cannot be read or written.
    """
    versions = {
        name: current_version(locations.table(dataset.name, name)) for name in ("events", "users", "items")
    }
    deliveries = deliveries_of(dataset, ds, versions)
    with inputs_of(spark, dataset, [ds], versions, deliveries) as inputs, keeping() as keep:
        rows_df = keep(lookups(inputs.people_df, inputs.users_df, inputs.items_df, dataset, ds, keep))
        version = replace_partition(
            rows_df,
            locations.table(dataset.name, "lookups"),
            {"ds": ds},
            columns=COLUMNS,
            partition_by=["ds"],
            stage=STAGE,
            metadata={"ds": ds, "inputs": versions},
        )
        counted = {row["kind"]: row["count"] for row in rows_df.groupBy("kind").count().collect()}
    return {"dataset": dataset.name, "ds": ds, "rows": counted, "lookups_version": version}


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset, ds = arguments.dataset, arguments.ds
    spark = spark_session(f"{STAGE} {dataset.name} {ds}")
    with spark_errors(f"{STAGE} of {dataset.name} {ds}"):
        return build_lookups(spark, dataset, ds)


def main(argv: Sequence[str] | None = None) -> int:
    """Builds lookups; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.build_lookups", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="the day on which they are looked up")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
