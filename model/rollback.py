"""Takes the champion back: `python -m model.rollback --dataset foodlog [--version N]`.

Without `--version` the champion before the present one serves again. The files of the version are fetched
and checked before the alias moves, and the answer says from which data it was made. What was rolled back is
marked, so that a rerun of its promotion does not bring it back; the next day's candidate is judged against
the restored champion as usual.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.registry import pages
from model.registry import versions as registry
from model.registry.lineage import read_lineage
from model.registry.store import TrackingError
from model.registry.versions import RegistryError, Version
from spark_jobs.contract import command
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)


def rollback(dataset: str, number: int | None = None) -> dict[str, Any]:
    """Makes an earlier version the champion again.

    Args:
        dataset: Name of the dataset.
        number: Version; default: the champion before the present one.

    Returns:
        `champion`, `was`, and of the champion: `ds`, `preset`, `samples_version`, `seen_days` (with the
        samples version that each was read from), `digest`.

    Raises:
        RegistryError: There is no such version, its files are damaged, or it is not clear which is meant.
        TrackingError: MLflow is not reachable or refuses.
        LakeError: Another command is changing the registry and does not end.
    """
    with registry.exclusive(dataset, "rollback") as lease:
        present = _present(dataset, is_named=number is not None)
        target = _before(dataset, present) if number is None else registry.numbered(dataset, number)
        if target.status != registry.READY:
            raise RegistryError(f"{target} has the status {target.status} and cannot serve")
        registry.fetch(target)
        if present is None or present.version != target.version:
            if present is not None:
                registry.annotate(present, {registry.ROLLED_BACK: f"to version {target.version}"})
            was = "nothing" if present is None else f"version {present.version}"
            registry.annotate(target, {registry.RESTORED: f"after {was}"})
            registry.clear_tag(target, registry.ROLLED_BACK)
            reach("rollback:before_alias")
            lease.check()
            registry.set_champion(dataset, target)
            reach("rollback:after_alias")
        pages.refresh(dataset)
    return {
        "model": target.model,
        "champion": target.version,
        "was": None if present is None else present.version,
        "ds": target.ds,
        "preset": target.preset,
        "samples_version": target.samples_version,
        "seen_days": _seen_days(target),
        "digest": target.digest,
    }


def _seen_days(version: Version) -> dict[str, int | None]:
    """Days a version has seen, with the samples version of each; null where its run does not tell it."""
    try:
        links = read_lineage(version.run_id)
    except TrackingError as error:
        logger.warning("which samples version each day of %s was read from is not known: %s", version, error)
        return dict.fromkeys(version.seen_days)
    return {day: number for link in links for day, number in link["days"].items()}


def _present(dataset: str, *, is_named: bool) -> Version | None:
    try:
        return registry.aliased(dataset, registry.CHAMPION)
    except RegistryError:
        if not is_named:
            raise
        return None  # the alias has vanished: naming a version is the remedy


def _before(dataset: str, present: Version | None) -> Version:
    """The champion before the present one."""
    if present is None:
        raise RegistryError(f"mtgr-{dataset} has no champion to roll back; name a version: --version <N>")
    if registry.RESTORED in present.tags:
        raise RegistryError(
            f"{present} was itself restored by a rollback ({present.tags[registry.RESTORED]}); to go further "
            "back, name a version: --version <N>"
        )
    before = present.tags.get(registry.PREVIOUS, "")
    if not before:
        raise RegistryError(f"{present} is the first champion; name a version: --version <N>")
    return registry.numbered(dataset, int(before))


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    result = rollback(arguments.dataset.name, arguments.version)
    logger.info(
        "the champion is version %d, made for %s from samples version %d",
        result["champion"],
        result["ds"],
        result["samples_version"],
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Rolls back; see `command.run` for the exit codes."""
    parser = command.parser("model.rollback", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--version", type=int, help="version to restore (default: the champion before)")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
