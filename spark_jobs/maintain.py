"""Keeps a dataset's tables small: joins a day's small files, and removes files that no kept version needs.

    python -m spark_jobs.maintain --dataset foodlog [--retain-hours 168] [--budget BYTES] [--dry-run]

Delta's OPTIMIZE joins the small files of each partition; every kept version still reads as before. VACUUM
then removes files that only versions older than the retention hold. **The retention must be longer than the
longest training run**: a run reads the version that it started with to its end. The default, seven days, is
also the least that is taken.

`--dry-run` says which bytes VACUUM would free, and changes nothing. Days are deleted by nobody but a person:
when the tables hold more than `--budget` bytes after all, the command is refused and says which hold them.

Prints one JSON line: `{"tables": {table: {"before", "after", "version", "freed", "left"}}, "freed", "left",
"dry_run"}`; before and after are numbers of files, freed and left bytes on disk (of an object store: of the
files of the newest version).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyspark.sql import SparkSession

from spark_jobs.contract import command, locations
from spark_jobs.contract.command import RefusedError
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import exists, open_table
from spark_jobs.lake.session import spark_session

logger = logging.getLogger(__name__)
TABLES = ("events", "users", "items", "quarantine", "samples", "lookups")
LEAST_HOURS = 168


def maintain(spark: SparkSession, dataset: str, retain_hours: int = LEAST_HOURS) -> dict[str, Any]:
    """Compacts and vacuums the tables of a dataset.

    Args:
        spark: Session.
        dataset: Name of the dataset.
        retain_hours: How long versions stay readable, at least `LEAST_HOURS`.

    Returns:
        Files of each table before and after, its version, and bytes freed and left.

    Raises:
        ValueError: The retention is too short.
        LakeError: Spark failed; the message names the table.
    """
    _check_retention(retain_hours)
    done = {}
    for name, uri in _tables(dataset):
        before, size = len(open_table(uri).file_uris()), _size(uri)
        with spark_errors(f"maintenance of {uri}"):
            spark.sql(f"OPTIMIZE delta.`{uri}`")
            spark.sql(f"VACUUM delta.`{uri}` RETAIN {retain_hours} HOURS")
        table, left = open_table(uri), _size(uri)
        done[name] = {
            "before": before,
            "after": len(table.file_uris()),
            "version": table.version(),
            "freed": max(0, size - left),
            "left": left,
        }
        logger.info("%s: %d files, now %d", uri, before, done[name]["after"])
    return done


def would_free(dataset: str, retain_hours: int = LEAST_HOURS) -> dict[str, Any]:
    """What VACUUM would free of each table, as `maintain` returns it; joining small files is not foreseen."""
    _check_retention(retain_hours)
    done = {}
    for name, uri in _tables(dataset):
        table = open_table(uri)
        files, size = len(table.file_uris()), _size(uri)
        old = table.vacuum(retention_hours=retain_hours, dry_run=True, full=True)  # as Spark does
        freed = 0 if "://" in uri else sum((Path(uri) / unquote(file)).stat().st_size for file in old)
        done[name] = {
            "before": files,
            "after": files,
            "version": table.version(),
            "freed": freed,
            "left": size - freed,
        }
        logger.info("%s: %d files would be removed", uri, len(old))
    return done


def _check_retention(retain_hours: int) -> None:
    if retain_hours < LEAST_HOURS:
        raise ValueError(
            f"--retain-hours {retain_hours}: at least {LEAST_HOURS}, or running readers lose their files"
        )


def _tables(dataset: str) -> Iterator[tuple[str, str]]:
    for name in TABLES:
        uri = locations.table(dataset, name)
        if exists(uri):
            yield name, uri


def _size(uri: str) -> int:
    if "://" not in uri:
        return locations.size_of(Path(uri))
    return int(sum(open_table(uri).get_add_actions()["size_bytes"].to_pylist()))


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    name, hours = arguments.dataset.name, arguments.retain_hours
    if arguments.dry_run:
        tables = would_free(name, hours)
    else:
        tables = maintain(spark_session(f"maintain {name}"), name, hours)
    freed, left = (sum(of[what] for of in tables.values()) for what in ("freed", "left"))
    result = {"tables": tables, "freed": freed, "left": left, "dry_run": arguments.dry_run}
    if arguments.budget and left > arguments.budget:
        most = sorted(tables, key=lambda table: -tables[table]["left"])
        held = ", ".join(f"{table} {tables[table]['left']}" for table in most)
        raise RefusedError(
            f"the tables of {name} hold {left} bytes, --budget {arguments.budget} ({held}): delete days that "
            "nobody needs (docs/operations.md, mending a day), or raise the budget",
            result,
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Maintains the tables of a dataset; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.maintain", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--retain-hours", type=int, default=LEAST_HOURS)
    parser.add_argument("--budget", type=int, default=0, help="bytes that the tables may hold; 0: any")
    parser.add_argument("--dry-run", action="store_true", help="say what would be freed, and change nothing")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
