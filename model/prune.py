"""Deletes old versions and frees their bytes: `python -m model.prune --dataset foodlog --keep 30`.

The newest `--keep` versions stay, and every version that an alias names or that a rollback would restore.
With the others go their runs and logged models, and then, by `mlflow gc`, the files. `mlflow gc` works on the
database itself, so where MLFLOW_TRACKING_URI is a server, run this where its database is reachable and give
that as MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.registry import versions as registry
from model.registry.removal import collect_garbage, delete_whole
from model.registry.store import TrackingError
from model.registry.versions import Version
from spark_jobs.contract import command, locations
from spark_jobs.contract.command import UsageError

logger = logging.getLogger(__name__)


def superfluous(dataset: str, keep: int) -> list[Version]:
    """Versions beyond the newest `keep` that neither an alias nor a rollback needs, oldest first."""
    versions = registry.versions(dataset)
    champion = registry.aliased(dataset, registry.CHAMPION)
    candidate = registry.aliased(dataset, registry.CANDIDATE)
    needed = {version.version for version in (champion, candidate) if version is not None}
    if champion is not None and champion.tags.get(registry.PREVIOUS):
        needed.add(int(champion.tags[registry.PREVIOUS]))
    return [v for v in versions[: len(versions) - keep] if v.version not in needed]


def prune(dataset: str, keep: int) -> list[int]:
    """Deletes what is superfluous, files included; run again after an interruption, it does the rest.

    Returns:
        Numbers of the versions deleted.

    Raises:
        TrackingError: MLflow is not reachable or refuses, or its URI is a server's.
        RegistryError: The champion's alias has vanished.
        LakeError: Another command is changing the registry and does not end.
    """
    uri = locations.tracking_uri()
    if uri.startswith("http"):
        raise TrackingError(
            f"mlflow gc needs the database behind {uri}: set MLFLOW_TRACKING_URI to the URI of that database"
        )
    with registry.exclusive(dataset, "prune"):
        old = superfluous(dataset, keep)
        for version in old:
            delete_whole(version)
    collect_garbage(uri)
    return [version.version for version in old]


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    if arguments.keep < 1:
        raise UsageError(f"--keep is {arguments.keep}; keep at least one version")
    return {"deleted": prune(arguments.dataset.name, arguments.keep)}


def main(argv: Sequence[str] | None = None) -> int:
    """Prunes; see `command.run` for the exit codes."""
    parser = command.parser("model.prune", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--keep", type=int, required=True, help="how many of the newest versions stay")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
