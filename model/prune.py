"""Deletes old versions and frees their bytes: `python -m model.prune --dataset foodlog --keep 30`.

The newest `--keep` versions stay, and every version that an alias names or that a rollback would restore.
With the others go their runs and logged models, and then, by `mlflow gc`, the files. `mlflow gc` works on the
database itself, so where MLFLOW_TRACKING_URI is a server, run this where its database is reachable and give
that as MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from model import registry
from model.mlflow_store import TrackingError, client, with_named_errors
from model.registry import RegistryError, Version
from model.settings import configure_logging
from spark_jobs import locations
from spark_jobs.datasets import dataset_named
from spark_jobs.deltalog import LakeError

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
            _delete(version)
    _collect(uri)
    return [version.version for version in old]


@with_named_errors
def _delete(version: Version) -> None:
    """Files before names: the version goes last, so that a rerun finds what is left of it."""
    from mlflow.exceptions import MlflowException

    for delete, name in (
        (client().delete_logged_model, version.model_id),
        (client().delete_run, version.run_id),
    ):
        try:
            delete(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    registry.delete(version, "superfluous")
    shutil.rmtree(locations.var() / "models" / version.digest, ignore_errors=True)


def _collect(uri: str) -> None:
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrackingError(f"`mlflow gc` failed ({done.returncode}): {done.stderr.strip()[-2000:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints the versions deleted as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m model.prune", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--keep", type=int, required=True, help="how many of the newest versions stay")
    arguments = parser.parse_args(argv)
    configure_logging()
    try:
        dataset = dataset_named(arguments.dataset).name
        if arguments.keep < 1:
            raise ValueError(f"--keep is {arguments.keep}; keep at least one version")
    except ValueError as error:
        logger.error("%s", error)
        return 2
    try:
        result: dict[str, Any] = {"deleted": prune(dataset, arguments.keep)}
    except (RegistryError, TrackingError, LakeError, OSError) as error:
        logger.error("%s", error)
        return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
