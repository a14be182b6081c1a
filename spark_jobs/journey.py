"""Writes journey's raw logs out of the retailer's tables: `python -m spark_jobs.journey --first-day D`.

What the tables are and what becomes of them: `spark_jobs/sources/journey_log.py`. What happened before the
first day becomes the history. Written once; for a log that is there, nothing changes. The last line on stdout
is the result as JSON: rows by log.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_jobs.contract import command, environment, locations

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    from spark_jobs.sources.journey_log import package_folder, write_log  # a usage error need not wait for it

    out = arguments.out or Path(environment.raw_logs("journey") or locations.raw("journey"))
    if (out / "events").exists():
        logger.info("%s holds a log already, which stays as it is", out)
        return {"dataset": "journey", "log": str(out), "rows": {}}
    rows = write_log(arguments.tables or package_folder(), out, arguments.first_day)
    return {"dataset": "journey", "log": str(out), "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the logs; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.journey", __doc__)
    command.add_day(
        parser, "--first-day", required=False, help="first day of the log; default: there is no history"
    )
    parser.add_argument(
        "--tables", type=Path, help="folder with the tables; default: the installed package's"
    )
    parser.add_argument("--out", type=Path, help="folder of the log; default: MTGR_JOURNEY, else in the lake")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
