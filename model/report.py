"""Writes the report of a day (`make report DAY=2026-03-03`).

    python -m model.report --dataset foodlog --ds 2026-03-03

One HTML page from the records of the day: verdicts of the gates, volumes, label maturity, the metrics of all
presets with their intervals, the decision in words, and which files and commits all of it came from.
`model.promote` writes it for every day that is decided; the task of a gate that has stopped a day calls this
command. It reads records alone, and writes the page: run again, it is the same.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.reports import page, words
from model.reports.records import read_day
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset, ds = arguments.dataset.name, arguments.ds
    day = read_day(dataset, ds)
    if not day.runs and not any(ds in of for of in day.verdicts.values()):
        raise CommandError(
            f"{dataset} has no record of {ds}: no gate has judged it and no run was made for it; run the "
            f"day, e.g. make backfill FROM={ds} TO={ds}"
        )
    path = page.write(dataset, ds)
    logger.info("%s: %s", path, words.headline(day))
    return {"dataset": dataset, "ds": ds, "report": str(path), "presets": [one.preset for one in day.runs]}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; see `command.run` for the exit codes."""
    parser = command.parser("model.report", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="the day, YYYY-MM-DD")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
