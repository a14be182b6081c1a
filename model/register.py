"""Registers evaluated runs: `python -m model.register --dataset foodlog --ds D --preset tiny user_tower`.

Each run becomes one version of `mtgr-<dataset>`, however often and wherever the command was interrupted: a
version exists only once its files are uploaded and give the run's digest, and carries that digest as a tag
from its first moment, by which a retry finds it. The alias `candidate` then names the newest version.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.registry import packaging, pages
from model.registry import record as run_record
from model.registry import versions as registry
from model.registry.store import client, with_named_errors
from model.registry.tracking import bounded
from model.registry.versions import RegistryError, Version
from model.runs.store import Run, load_run
from spark_jobs.contract import command
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)


def register(dataset: Dataset, run: Run) -> tuple[Version, bool]:
    """Registers a run, or finds it registered.

    Args:
        dataset: Of the run.
        run: An evaluated run.

    Returns:
        The version, and whether it was made by this call.

    Raises:
        RunError: The run is damaged or not evaluated.
        NotPassedError: The gate of its evaluation has not passed it.
        RegistryError: An aliased version of this run is damaged.
        TrackingError: MLflow is not reachable or refuses.
        LakeError: Another command is changing the registry and does not end.
    """
    run.verify()
    evaluation = run_record.read_evaluation(run)
    run_record.require_passed(dataset, run)
    with registry.exclusive(dataset.name, "register"):
        version = _registered(dataset, run)
        is_new = version is None
        if version is None:
            run_id = run_record.start(run)
            reach("register:before_log")
            model_id = packaging.log_model(dataset, run, run_id)
            reach("register:after_log")
            run_record.log(dataset, run, evaluation, run_id, model_id)
            reach("register:before_version")
            version = _create(dataset, run, evaluation, run_id, model_id)
            reach("register:after_version")
        registry.advance_candidate(dataset.name, version)
        reach("register:after_alias")
        pages.refresh(dataset.name)
    return version, is_new


def _registered(dataset: Dataset, run: Run) -> Version | None:
    """The run's version when it is whole; one that is not is deleted."""
    version = registry.with_digest(dataset.name, run.digest)
    if version is None:
        return None
    try:
        if version.status != registry.READY:
            raise RegistryError(f"{version} has the status {version.status}")
        registry.check_files(version.model_id, run.digest)
        return version
    except RegistryError as error:
        registry.delete(version, str(error))
        return None


@with_named_errors
def _create(dataset: Dataset, run: Run, evaluation: Mapping[str, Any], run_id: str, model_id: str) -> Version:
    name = registry.create_model(dataset.name)
    headlines = {key: evaluation["candidate"].get(key) for key in run_record.HEADLINES}
    scores = {key: str(value) for key, value in run_record.finite(headlines).items()}
    days = sorted(run.seen_days)
    entry = client().create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        model_id=model_id,
        tags=bounded({**run_record.tags_of(run), **scores}),
        description=f"{run.record['preset']} of {run.ds}: trained on {len(days)} days up to {days[-1]}, "
        f"samples version {run.record['samples_version']}. Not decided yet.",
    )
    logger.info("registered %s version %s", name, entry.version)
    return registry.numbered(dataset.name, int(entry.version))


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    runs = {preset: load_run(dataset.name, preset, arguments.ds) for preset in arguments.preset}
    return command.by_preset({preset: _result(*register(dataset, run)) for preset, run in runs.items()})


def _result(version: Version, is_new: bool) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.version,
        "new": is_new,
        "ds": version.ds,
        "preset": version.preset,
        "samples_version": version.samples_version,
        "digest": version.digest,
        "run_id": version.run_id,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Registers; see `command.run` for the exit codes."""
    parser = command.parser("model.register", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="day of the run, YYYY-MM-DD")
    command.add_presets(parser)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
