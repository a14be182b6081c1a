"""Removing versions whole: run, logged model, name, and the bytes of all three.

Files that MLflow keeps go by `mlflow gc`, which works on the database itself. Where MLflow is a server its
database is not for its clients, so there they go by its API of artifacts; what stays are rows, a few KB a
version, marked as deleted.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.registry import versions
from model.registry.store import TrackingError, client, with_named_errors
from spark_jobs.contract import locations

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


def is_server() -> bool:
    """Whether MLflow is reached by a server, which keeps files and database to itself."""
    return locations.tracking_uri().startswith("http")


@with_named_errors
def delete_whole(version: versions.Version) -> None:
    """Deletes a version with its run, its logged model and its serving package.

    Files before names: the version goes last, so that a rerun finds what is left of it.
    """
    for repository in _at_server(version.run_id, version.model_id):
        repository.delete_artifacts()
    for delete, name in (
        (client().delete_logged_model, version.model_id),
        (client().delete_run, version.run_id),
    ):
        with _absent_is_done():
            delete(name)
    package = locations.package(version.model.removeprefix("mtgr-"), version.version)
    for folder in (package, locations.engines(version.digest)):
        shutil.rmtree(folder, ignore_errors=True)
    versions.delete(version, "superfluous")
    shutil.rmtree(locations.var() / "models" / version.digest, ignore_errors=True)


@contextlib.contextmanager
def _absent_is_done() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise


def _at_server(run_id: str, model_id: str) -> list[ArtifactRepository]:
    """Where a server keeps files of a version: of its logged model, of its run; nothing without a server."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    places = []
    if is_server():
        with _absent_is_done():
            places.append(client().get_logged_model(model_id).artifact_location)
        with _absent_is_done():
            places.append(client().get_run(run_id).info.artifact_uri)
    return [get_artifact_repository(place) for place in places]


@with_named_errors
def size_at_server(version: versions.Version) -> int:
    """Bytes of the files of a version that a server keeps; 0 without a server."""
    return _size_at_server(version.run_id, version.model_id)


@functools.lru_cache(maxsize=1024)
def _size_at_server(run_id: str, model_id: str) -> int:
    return sum(_size(repository, None) for repository in _at_server(run_id, model_id))


def _size(repository: ArtifactRepository, folder: str | None) -> int:
    files = repository.list_artifacts(folder)
    return sum(_size(repository, file.path) if file.is_dir else int(file.file_size or 0) for file in files)


def collect_garbage(uri: str) -> None:
    """Frees the bytes of deleted runs and models, by `mlflow gc` on the database behind `uri`.

    Raises:
        TrackingError: It failed.
    """
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrackingError(f"`mlflow gc` failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
