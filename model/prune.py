"""Deletes old versions and runs and frees their bytes: `python -m model.prune --dataset foodlog --keep 30`.

    python -m model.prune --dataset foodlog --keep 30 [--budget BYTES] [--dry-run]

The newest `--keep` versions stay, and every version that an alias names, that a rollback would restore, or
whose package is published (`model.publish`).
With the others go their serving packages, MLflow runs and logged models, and their files: by `mlflow gc`, or
by the server's own API where MLFLOW_TRACKING_URI is a server (`model/registry/removal.py`).

Of `$MTGR_RUNS` stay, for each preset, the newest `--keep` runs, the one that the next training continues
from, those that became a version that stays, and those which these were continued from.

`--budget` keeps fewer than `--keep`, as many as fit with their files: runs, versions, copies, packages.
When what is in use does not fit, it stays and the command is refused. `--dry-run` says what would go, and
changes nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.registry import versions as registry
from model.registry.removal import collect_garbage, delete_whole, is_server, size_at_server
from model.registry.store import artifacts_root
from model.registry.tracking import experiment_name
from model.registry.versions import Version
from model.runs import store
from model.runs.store import Run
from model.serving import roles
from spark_jobs.contract import command, locations
from spark_jobs.contract.command import RefusedError, UsageError

logger = logging.getLogger(__name__)


def superfluous(dataset: str, keep: int) -> list[Version]:
    """Versions beyond the newest `keep` that no alias, rollback or server needs, oldest first."""
    versions = registry.versions(dataset)
    champion = registry.aliased(dataset, registry.CHAMPION)
    candidate = registry.aliased(dataset, registry.CANDIDATE)
    needed = {version.version for version in (champion, candidate) if version is not None}
    if champion is not None and champion.tags.get(registry.PREVIOUS):
        needed.add(int(champion.tags[registry.PREVIOUS]))
    needed |= set(roles.versions(dataset))
    return [v for v in versions[: max(0, len(versions) - keep)] if v.version not in needed]


def superfluous_runs(runs: Sequence[Run], keep: int, versions: Sequence[Version]) -> list[Run]:
    """Runs of a preset beyond the newest `keep` that nothing needs, oldest first.

    Args:
        runs: All its runs, by day.
        keep: How many of the newest stay.
        versions: Versions that stay.
    """
    registered = {version.digest for version in versions}
    needed = registered | {run.record["base_digest"] for run in runs if run.digest in registered}
    # What is continued from is the run that has seen most, see `store.base_of`; of equals the later.
    furthest = max(reversed(runs), key=lambda run: len(run.seen_days), default=None)
    return [
        run for run in runs[: max(0, len(runs) - keep)] if run.digest not in needed and run is not furthest
    ]


def outdated(dataset: str, keep: int) -> tuple[list[Version], list[Run]]:
    """What `prune` would delete: versions, and runs of all presets."""
    old = superfluous(dataset, keep)
    numbers = {version.version for version in old}
    stay = [version for version in registry.versions(dataset) if version.version not in numbers]
    return old, [
        run
        for preset in store.presets_with_runs(dataset)
        for run in superfluous_runs(store.complete_runs(dataset, preset), keep, stay)
    ]


def size_of_outdated(dataset: str, keep: int) -> int:
    """Bytes that `prune` would free."""
    versions, runs = outdated(dataset, keep)
    folders = [folder for version in versions for folder in _folders(dataset, version)]
    here = sum(map(locations.size_of, [*folders, *(run.path for run in runs)]))
    return here + sum(map(size_at_server, versions))


def size_of_all(dataset: str) -> int:
    """Bytes of all runs and versions."""
    versions = registry.versions(dataset)
    folders = {folder for version in versions for folder in _folders(dataset, version)}
    here = sum(map(locations.size_of, {*folders, locations.runs() / dataset}))
    return here + sum(map(size_at_server, versions))


def _folders(dataset: str, version: Version) -> tuple[Path, ...]:
    """Where files of a version lie on this machine: run, logged model, copy, package, engines."""
    artifacts = artifacts_root() / experiment_name(dataset)
    copy = locations.var() / "models" / version.digest
    exported = locations.package(dataset, version.version), locations.engines(version.digest)
    return artifacts / version.run_id, artifacts / "models" / version.model_id, copy, *exported


def fitting(dataset: str, keep: int, budget: int) -> int:
    """How many of the newest may stay, at most `keep`, so that all fit `budget` bytes; at least 1."""
    total = size_of_all(dataset)
    while keep > 1 and total - size_of_outdated(dataset, keep) > budget:
        keep -= 1
    return keep


def prune(dataset: str, keep: int) -> tuple[list[int], list[str]]:
    """Deletes what is superfluous, files included; run again after an interruption, it does the rest.

    Returns:
        Numbers of the versions deleted, and the runs deleted, as `<preset>/<day>`.

    Raises:
        TrackingError: MLflow is not reachable or refuses.
        RegistryError: The champion's alias has vanished.
        LakeError: Another command is changing the registry and does not end.
        RunError: A training is in progress.
    """
    with registry.exclusive(dataset, "prune"):
        old = superfluous(dataset, keep)
        for version in old:
            delete_whole(version)
        runs = _prune_runs(dataset, keep, registry.versions(dataset))
    if not is_server():
        collect_garbage(locations.tracking_uri())
    return [version.version for version in old], runs


def _prune_runs(dataset: str, keep: int, versions: Sequence[Version]) -> list[str]:
    removed = []
    for preset in store.presets_with_runs(dataset):
        with store.exclusively(locations.runs() / dataset / preset):
            for run in superfluous_runs(store.complete_runs(dataset, preset), keep, versions):
                store.remove(run)
                removed.append(f"{preset}/{run.path.name}")
    return removed


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    if arguments.keep < 1:
        raise UsageError(f"--keep is {arguments.keep}; keep at least one version")
    name, keep, budget = arguments.dataset.name, arguments.keep, arguments.budget
    keep = fitting(name, keep, budget) if budget else keep
    before = size_of_all(name)
    if arguments.dry_run:
        old, old_runs = outdated(name, keep)
        versions = [version.version for version in old]
        runs = [f"{run.path.parent.name}/{run.path.name}" for run in old_runs]
        left = before - size_of_outdated(name, keep)
    else:
        versions, runs = prune(name, keep)
        left = size_of_all(name)
    result = {"deleted": versions, "deleted_runs": runs, "kept": keep, "dry_run": arguments.dry_run}
    result |= {"freed": before - left, "left": left}
    if budget and left > budget:
        raise RefusedError(
            f"runs and versions of {name} hold {left} bytes, --budget {budget}: what is left is in use; "
            "raise the budget, or train smaller models",
            result,
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Prunes; see `command.run` for the exit codes."""
    parser = command.parser("model.prune", __doc__)
    command.add_dataset(parser)
    parser.add_argument(
        "--keep", type=int, required=True, help="how many of the newest versions and runs stay"
    )
    parser.add_argument("--budget", type=int, default=0, help="bytes that they may hold; 0: any")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
