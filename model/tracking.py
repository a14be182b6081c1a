"""MLflow's database and server.

python -m model.tracking prepare               create or migrate the database, once, before anything else
python -m model.tracking serve --port 5000     the server with its UI, on loopback
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from model.registry.store import TrackingError, prepare, safe_uri
from spark_jobs.contract import command, locations

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "prepare":
        prepare(locations.tracking_uri())
        logger.info("MLflow at %s is ready", safe_uri(locations.tracking_uri()))
        return
    from model.registry.server import serve

    if serve(arguments.host, arguments.port, arguments.allowed_hosts, arguments.artifacts):
        raise TrackingError(f"MLflow's server on port {arguments.port} ended by itself: see its log above")


def main(argv: Sequence[str] | None = None) -> int:
    """`prepare` and `serve`; see `command.run` for the exit codes."""
    parser = command.parser("model.tracking", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="create or migrate the database")
    server = commands.add_parser("serve", help="run the server until SIGTERM")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    server.add_argument("--port", type=int, default=5000)
    server.add_argument("--allowed-hosts", help="host names by which browsers may call it, comma-separated")
    server.add_argument("--artifacts", metavar="URI", help="where to keep artifacts, e.g. s3://bucket/mlflow")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
