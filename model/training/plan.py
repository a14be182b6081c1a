"""What a run will train on: the days not yet seen, and the run to continue from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from model.config.run import Config
from model.data.reader import SamplesTable
from model.runs.files import RunError
from model.runs.store import Run, base_of, complete_runs
from spark_jobs.contract.declaration import differences
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.verdicts import Standing, Standings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will train on.

    Attributes:
        days: Days to train on, in order, with the version of the samples table to read each from.
        version: Version of the samples table: the newest of `days`.
        base: Folder of the run to continue from, or None.
        base_digest: Its digest, or None.
        seen_days: Days the base has seen, with their versions.
        lineage: A link for each training before this one, oldest first; see `loop.train`.
        allowed: Days of `days` that did not pass their gate, with why an operator lets them be used.
    """

    days: Mapping[str, int]
    version: int
    base: str | None = None
    base_digest: str | None = None
    seen_days: Mapping[str, int] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)

    def key(self, dataset: Dataset, config: Config) -> str:
        """What must be equal for a checkpoint to be continued: all but the table's version."""
        declared = [(feature.name, feature.owner, feature.kind) for feature in dataset.features]
        base = [self.base_digest, dict(self.seen_days)]
        return json.dumps([list(self.days), base, asdict(config), declared], sort_keys=True)


def plan_of(dataset: Dataset, config: Config, ds: str, version: int | None = None) -> Plan:
    """Plans the run of day `ds`: on days that their gate has passed, or that an operator has allowed.

    It reads one version of the samples table, by default the newest.

    A day that failed is as good as not there. One that was built again, and that the gate has not judged yet,
    is read as it passed; one that no gate has judged at all is refused if it would be trained on.

    Raises:
        RunError: There are no samples before `ds` that may be used, or the base has another model.
        NotPassedError: A day that would be trained on was not judged.
    """
    table = SamplesTable(dataset, version)
    stands = table.standings([day for day in table.days() if day < ds])
    days = stands.days(Standing.PASSED, Standing.ALLOWED, Standing.UNJUDGED)
    runs = complete_runs(dataset.name, config.preset)
    if stands.failed:
        logger.warning("left out, as they did not pass their gate: %s", ", ".join(stands.failed))
    if not days:
        raise RunError(
            f"{table.uri} has no samples of a day before {ds}"
            + (f" that passed its gate (failed: {', '.join(stands.failed)})" if stands.failed else "")
            + "; build some, or ask for a later day"
        )
    refused: dict[str, str] = {}
    base = base_of(runs, days, ds, lambda run: _continues(run, dataset, stands, refused))
    if refused:
        newest, why = next(iter(refused.items()))
        start = f"training goes on from {base.path}" if base else "a new lineage begins from scratch"
        logger.warning("%s does not continue (%s): %s", newest, why, start)
    unseen = [day for day in days if base is None or day not in base.seen_days]
    stands.require_judged([day for day in unseen if day not in stands.earlier])
    versions = {day: stands.earlier.get(day, table.version) for day in unseen}
    allowed = {day: why for day, why in stands.reasons.items() if day in unseen}
    if base is None:
        return Plan(days=versions, version=table.version, allowed=allowed)
    if base.config()[1].model != config.model:
        changes = _changed(asdict(base.config()[1].model), asdict(config.model), "model")
        raise RunError(
            f"{base.path} has another model than preset {config.preset} has now ({changes}); move it away to "
            "start over"
        )
    seen = base.seen_days
    if lost := sorted(set(seen) - set(days) - set(stands.failed)):
        logger.info("%s has seen %s, which the samples table has no more", base.path, ", ".join(lost))
    return Plan(
        days=versions,
        version=table.version,
        base=str(base.path),
        base_digest=base.digest,
        seen_days=seen,
        lineage=(*base.record["lineage"][:-1], {**base.record["lineage"][-1], "digest": base.digest}),
        allowed=allowed,
    )


def _continues(run: Run, dataset: Dataset, stands: Standings, refused: dict[str, str]) -> bool:
    """Whether a run's weights mean under today's declaration what they meant under its own; else says why.

    Nor does a run continue that has learned from the very rows which a gate has failed since.
    """
    run.verify()
    try:
        changes = (*differences(run.config()[0], dataset), *_failed_since(run, stands))
    except RunError as error:  # whole, but written by another version of this code
        changes = (str(error),)
    if changes:
        refused[str(run.path)] = "; ".join(changes)
    return not changes


def _failed_since(run: Run, stands: Standings) -> list[str]:
    """Days whose rows, as the run has seen them, have failed their gate."""
    return [
        f"it has seen {day}, which has failed its gate since"
        for link in run.record.get("lineage", ())
        if link.get("samples_table") == stands.table
        for day, version in link["days"].items()
        if version >= stands.failed.get(day, version + 1)
    ]


def is_as_asked(run: Run, dataset: Dataset, config: Config) -> bool:
    """Whether a finished run of the same days is what is asked for; of another declaration, it is made anew.

    Raises:
        RunError: It was made with other settings, which its name does not tell, or is damaged.
    """
    run.verify()
    declared, made_with = run.config()
    if changes := differences(declared, dataset):
        logger.warning("%s is made again, the declaration has changed: %s", run.path, "; ".join(changes))
        return False
    if made_with != config:
        raise RunError(
            f"{run.path} is finished and of other settings than preset {config.preset} has now "
            f"({_changed(asdict(made_with), asdict(config))}); move it away to train again, or leave the "
            "preset as it was and give the new settings a preset of their own"
        )
    return True


def _changed(old: Any, new: Any, place: str = "") -> str:
    """What differs between the values of two configs: `train.dense_lr 0.001 -> 0.002`."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [_changed(old.get(key), new.get(key), f"{place}.{key}".strip(".")) for key in {**old, **new}]
        return ", ".join(part for part in parts if part)
    return "" if old == new else f"{place} {old!r} -> {new!r}"
