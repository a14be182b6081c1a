"""Serves what is published: `python -m model.serve --dataset foodlog [--port 8080]`, until Ctrl-C.

NVIDIA's Triton Inference Server behind a small front, see `model/serving/front.py` for the protocol. A newly
published package (`python -m model.publish`) is taken up without a dropped request. Once it is ready it
prints a request to try.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from model.config.environment import cores, device_type
from model.serving import roles, server
from model.serving.engine import PRECISIONS
from model.serving.front import Limits
from model.serving.package import Package
from model.serving.scorers import EngineOptions
from model.serving.server import ServerOptions
from spark_jobs.contract import command

logger = logging.getLogger(__name__)

_GPU_INSTANCES = 2  # one computes while the other encodes; each has tables and prefixes of its own there
_UNREAD = ("ds", "window_end_ms", "candidate_time_ms", "candidate_request_id", "candidate_impression_id")


def example(package: Package) -> dict[str, Any]:
    """A request to try: a golden one, without what is not read."""
    rows = package.golden.rows
    unread = [
        n for n in rows.column_names if n in _UNREAD or n.startswith("label_") or n == "candidate_weight"
    ]
    row: dict[str, Any] = rows.drop_columns(unread).slice(0, 1).to_pylist()[0]
    return row


def _instances() -> int:
    """Half of the cores, as the front, Triton and Python's own work need the others; 2 on a GPU."""
    return _GPU_INSTANCES if device_type() == "cuda" else max(1, cores() // 2)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    package = Package.load(roles.link(dataset.name, roles.CURRENT))
    folder = server.folder_of(dataset.name)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.repository:
        server.repository(dataset.name, arguments.repository, _options(arguments))
        return {"dataset": dataset.name, "served": False, "repository": str(arguments.repository)}
    body = folder / "request.json"
    body.write_text(json.dumps(example(package)) + "\n", encoding="utf-8")

    def ready(url: str) -> None:
        gc.collect()
        gc.freeze()  # a collection that walks all that was imported takes longer than an answer
        logger.info("version %d of %s answers at %s; a request to try:", package.version, dataset.name, url)
        logger.info("    %s", _curl(url, body))

    uvloop.run(server.serve(dataset, _options(arguments), ready))
    return {"dataset": dataset.name, "served": True}


def _options(arguments: argparse.Namespace) -> ServerOptions:
    return ServerOptions(
        host=arguments.host,
        port=arguments.port,
        instances=arguments.instances or _instances(),
        limits=Limits(
            max_waiting=arguments.max_waiting,
            deadline_ms=arguments.deadline_ms,
            is_mirrored=arguments.mirror,
            today_events=arguments.today_events,
        ),
        is_logged=not arguments.no_log,
        grpc_port=arguments.grpc_port,
        engine=EngineOptions(
            is_used=not arguments.no_engine,
            precision=arguments.precision,
            has_graphs=not arguments.no_graphs,
            prefix_mb=arguments.prefix_mb,
        ),
    )


def _curl(url: str, body: Path) -> str:
    return f"curl -s {url}/score -H 'Content-Type: application/json' -d @{shlex.quote(str(body))}"


def main(argv: Sequence[str] | None = None) -> int:
    """Serves; see `command.run` for the exit codes."""
    parser = command.parser("model.serve", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: loopback)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--repository", type=Path, metavar="FOLDER", help="only write Triton's model repository there"
    )
    parser.add_argument("--grpc-port", type=int, help="answer gRPC there, too (0: a free one; default: not)")
    parser.add_argument(
        "--instances", type=int, help="processes that score (default: one for two cores, 2 on a GPU)"
    )
    parser.add_argument("--max-waiting", type=int, default=256, help="requests under way; more get 429")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="greatest time to an answer")
    parser.add_argument("--mirror", action="store_true", help="the shadow scores what the champion is asked")
    parser.add_argument(
        "--today-events",
        type=int,
        default=0,
        help="events of today that are held (default: a request has its day)",
    )
    parser.add_argument("--no-log", action="store_true", help="do not log scores")
    gpu = parser.add_argument_group("on a GPU", "an MTGR is computed by the engine, see docs/serving.md")
    gpu.add_argument("--precision", choices=PRECISIONS, help="to compute in (default: the training's)")
    gpu.add_argument("--prefix-mb", type=int, default=2048, help="kept prefixes of a process; 0: none")
    gpu.add_argument("--no-graphs", action="store_true", help="capture none")
    gpu.add_argument("--no-engine", action="store_true", help="compute as evaluation does")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
