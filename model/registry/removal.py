"""Removing versions whole: run, logged model, name, and the bytes of all three."""

from __future__ import annotations

import shutil
import subprocess
import sys

from model.registry import versions
from model.registry.store import TrackingError, client, with_named_errors
from spark_jobs.contract import locations


@with_named_errors
def delete_whole(version: versions.Version) -> None:
    """Deletes a version with its run, its logged model and its serving package.

    Files before names: the version goes last, so that a rerun finds what is left of it.
    """
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
    package = locations.package(version.model.removeprefix("mtgr-"), version.version)
    for folder in (package, locations.engines(version.digest)):
        shutil.rmtree(folder, ignore_errors=True)
    versions.delete(version, "superfluous")
    shutil.rmtree(locations.var() / "models" / version.digest, ignore_errors=True)


def collect_garbage(uri: str) -> None:
    """Frees the bytes of deleted runs and models, by `mlflow gc`.

    Raises:
        TrackingError: It failed.
    """
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrackingError(f"`mlflow gc` failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
