"""Which package is served in which role: a symlink a role, replaced by one rename.

    $MTGR_VAR/serving/<dataset>/<version>           packages, each whole or not there
    $MTGR_VAR/serving/<dataset>/current -> 4        what requests are scored with
    $MTGR_VAR/serving/<dataset>/shadow -> 5         what may be asked beside it
    $MTGR_VAR/serving/<dataset>/previous -> 3       what was current before

A server looks at its links several times a second and loads what they name; see `holder`.
"""

from __future__ import annotations

import os
from pathlib import Path

from model.runs.files import sync_folder
from model.runs.store import exclusively
from model.serving.package import Package
from spark_jobs.contract import locations

CURRENT, SHADOW, PREVIOUS = "current", "shadow", "previous"
ROLES = (CURRENT, SHADOW)


def link(dataset: str, role: str) -> Path:
    """The symlink of a role."""
    return locations.serving() / dataset / role


def version_in(dataset: str, role: str) -> int | None:
    """The version that a role names; None where it names none."""
    path = link(dataset, role)
    return int(os.readlink(path)) if path.is_symlink() else None


def versions(dataset: str) -> list[int]:
    """The versions that are in some role, `previous` included: what a server needs, or may go back to."""
    named = (version_in(dataset, role) for role in (*ROLES, PREVIOUS))
    return [version for version in named if version is not None]


def point(dataset: str, role: str, version: int) -> int | None:
    """Lets a role name the package of a version, after its digests were checked.

    Returns:
        The version that it named before, which for `current` becomes `previous`.

    Raises:
        PackageError: There is no such package, or a file of it differs from its digest.
        RunError: Another process changes the dataset's packages.
    """
    folder = locations.serving() / dataset
    Package.load(folder / str(version))
    with exclusively(folder, "publishing"):
        before = version_in(dataset, role)
        if before == version:
            return before
        if role == CURRENT and before is not None:
            _replace(link(dataset, PREVIOUS), before)
        _replace(link(dataset, role), version)
    return before


def clear(dataset: str, role: str) -> None:
    """Lets a role name nothing."""
    link(dataset, role).unlink(missing_ok=True)


def _replace(path: Path, version: int) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(str(version))
    os.replace(new, path)
    sync_folder(path.parent)
