"""Lets a package be served: `python -m model.publish --dataset foodlog [--version N] [--role shadow]`.

Exports the version, by default the champion, unless its package is there already (`model.export`: refused
where it does not score as evaluation does), checks every digest, and lets `current` name it. A running server
takes it up within a second, between two batches. `--back` names again what was current before: a rollback.
`--role shadow` sets what `/score/shadow` answers with, from the server's next start on if there was none;
`--role shadow --clear` ends that. Published already, nothing changes; nor where there is no champion yet.
`--lookups DAY` publishes what requests of a day need not carry (`model/serving/lookups.py`).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.export import export
from model.registry import versions as registry
from model.serving import roles
from model.serving.lookups import write_store
from model.serving.package import PackageError
from spark_jobs.contract import command
from spark_jobs.contract.command import UsageError
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    return {**_published(arguments), "ds": arguments.ds}


def _published(arguments: argparse.Namespace) -> dict[str, Any]:
    dataset, role = arguments.dataset, arguments.role
    if arguments.lookups:
        return {"dataset": dataset.name, **write_store(dataset, arguments.lookups)}
    if arguments.clear:
        if role != roles.SHADOW:
            raise UsageError("--clear is for --role shadow: something is always current")
        before = roles.version_in(dataset.name, role)
        roles.clear(dataset.name, role)
        return _result(dataset.name, role, before, None)
    if arguments.back:
        version = roles.version_in(dataset.name, roles.PREVIOUS)
        if version is None:
            raise PackageError(
                f"nothing was current before: {roles.link(dataset.name, roles.PREVIOUS)} is missing"
            )
        exported: Mapping[str, Any] = {}
    else:
        version = arguments.version or _champion(dataset.name)
        now = roles.version_in(dataset.name, role)
        if version is None or version == now:
            logger.info("%s of %s stays version %s", role, dataset.name, now or "none")
            return _result(dataset.name, role, now, now)
        exported = export(dataset, version, graph=arguments.graph)
    reach("publish:exported")
    before = roles.point(dataset.name, role, version)
    reach("publish:pointed")
    logger.info("%s of %s is version %d, it was %s", role, dataset.name, version, before or "none")
    return {**exported, **_result(dataset.name, role, before, version)}


def _champion(dataset: str) -> int | None:
    champion = registry.aliased(dataset, registry.CHAMPION)
    return None if champion is None else champion.version


def _result(dataset: str, role: str, before: int | None, version: int | None) -> dict[str, Any]:
    changed = before != version
    return {"dataset": dataset, "role": role, "version": version, "before": before, "changed": changed}


def main(argv: Sequence[str] | None = None) -> int:
    """Publishes; see `command.run` for the exit codes."""
    parser = command.parser("model.publish", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="the day whose run asks, for the result", required=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="version to publish (default: the champion)")
    which.add_argument("--back", action="store_true", help="publish what was current before")
    command.add_day(which, "--lookups", help="publish what is looked up on a day", required=False)
    which.add_argument("--clear", action="store_true", help="of the shadow: end it")
    parser.add_argument("--graph", action="store_true", help="export it with its compiled graph")
    parser.add_argument("--role", choices=roles.ROLES, default=roles.CURRENT, help="default: current")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
