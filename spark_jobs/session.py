"""The Spark Connect server: `python -m spark_jobs.session serve --port 15002`.

Prints a line with its address when it takes jobs, and stops at SIGTERM. With `--classes` it starts from an
archive of the classes that it loaded when it ran before, and makes one where there is none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spark_jobs.contract import command, environment
from spark_jobs.lake.server import serve
from spark_jobs.lake.session import SparkUnavailableError


def _run(arguments: argparse.Namespace) -> None:
    if serve(arguments.port, arguments.master, arguments.classes, arguments.host):
        raise SparkUnavailableError(
            f"Spark Connect on port {arguments.port} ended by itself: see its log above"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """`serve`: the Spark Connect server until SIGTERM; see `command.run` for the exit codes."""
    parser = command.parser("spark_jobs.session", __doc__)
    commands = parser.add_subparsers(dest="action", required=True)
    server = commands.add_parser("serve", help="run the Spark Connect server until SIGTERM")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    server.add_argument("--port", type=int, default=15002)
    server.add_argument("--master", default=environment.spark_master())
    server.add_argument("--classes", type=Path, help="folder of archives of the JVM's loaded classes")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
