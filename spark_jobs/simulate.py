"""Writes foodlog's raw logs and its oracle: `python -m spark_jobs.simulate --from D --to D`.

The same settings give the same bytes, whether days are written together, alone or in another order. One
process writes 10^5 impressions in seconds; `--spark` spreads the districts over a cluster for more, with the
same lines in files that Spark names. The last line on stdout is the result as JSON: lines by day and log.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jobs.contract import command
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.command import UsageError
from spark_jobs.simulator.settings import SimulationSettings

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in SimulationSettings.__dataclass_fields__
    }
    try:
        settings = SimulationSettings(**{name: value for name, value in given.items() if value is not None})
        days = days_between(arguments.from_day, arguments.to_day)
        if not days:
            raise ValueError(f"--from {arguments.from_day} lies after --to {arguments.to_day}")
        for ds in days:
            settings.day_number(ds)
    except ValueError as error:
        raise UsageError(str(error)) from error
    # Imported late: a usage error need not wait for Spark or Delta.
    if arguments.spark:
        from spark_jobs.simulator.spark_writer import write_deliveries_by_spark as write
    else:
        from spark_jobs.simulator.writer import write_deliveries as write
    return {"dataset": "foodlog", "days": write(settings, days)}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the deliveries; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.simulate", __doc__)
    parser.add_argument("--dataset", choices=["foodlog"], default="foodlog")
    command.add_day(parser, "--from", dest="from_day", help="first day, YYYY-MM-DD")
    command.add_day(parser, "--to", dest="to_day", help="last day, included")
    parser.add_argument("--spark", action="store_true", help="spread districts over the Spark cluster")
    for name, field in SimulationSettings.__dataclass_fields__.items():
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=kind, metavar="X", help=f"default {field.default}")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
