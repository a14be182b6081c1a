"""Writes foodlog's raw logs and its oracle: `python -m spark_jobs.simulate --from D --to D`.

The same settings give the same bytes, whether days are written together, alone or in another order. One
process writes 10^5 impressions in seconds; `--spark` spreads the districts over a cluster for more, with the
same lines in files that Spark names. The last line on stdout is the result as JSON: lines by day and log.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys

from spark_jobs.contract import days_between, parse_day
from spark_jobs.simulator.settings import Settings

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0 done, 1 failed, 2 usage."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        parse_day(args.from_day), parse_day(args.to_day)
        days = days_between(args.from_day, args.to_day)
        if not days:
            raise ValueError(f"--from {args.from_day} lies after --to {args.to_day}")
        for ds in days:
            settings.day_number(ds)
    except ValueError as error:
        logger.error("%s", error)
        return 2
    try:
        # Imported late: a usage error need not wait for Spark or Delta.
        if args.spark:
            from spark_jobs.simulator.spark_writer import write_deliveries_by_spark as write
        else:
            from spark_jobs.simulator.writer import write_deliveries as write
        counts = write(settings, days)
    except (OSError, ValueError, RuntimeError) as error:
        logger.error("simulation failed: %s", error)
        return 1
    sys.stdout.write(json.dumps({"dataset": "foodlog", "days": counts}) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spark_jobs.simulate", description=__doc__)
    parser.add_argument("--dataset", choices=["foodlog"], default="foodlog")
    parser.add_argument("--from", dest="from_day", required=True, metavar="DAY", help="first day, YYYY-MM-DD")
    parser.add_argument("--to", dest="to_day", required=True, metavar="DAY", help="last day, included")
    parser.add_argument("--spark", action="store_true", help="spread districts over the Spark cluster")
    for name, field in Settings.__dataclass_fields__.items():
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=kind, metavar="X", help=f"default {field.default}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
