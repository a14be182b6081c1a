"""What a run will train on: the days not yet seen, and the run to continue from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from model.config.run import Config
from model.data.reader import SamplesTable
from model.runs.files import RunError
from model.runs.store import (
    base_of,
    complete_runs,
)
from spark_jobs.contract.features import Dataset


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will train on.

    Attributes:
        days: Days to train on, in order.
        version: Version of the samples table.
        base: Folder of the run to continue from, or None.
        base_digest: Its digest, or None.
        seen_days: Days the base has seen, with their versions.
    """

    days: tuple[str, ...]
    version: int
    base: str | None
    base_digest: str | None
    seen_days: dict[str, int]

    def key(self, config: Config) -> str:
        """What must be equal for a checkpoint to be continued: all but the table's version."""
        return json.dumps([self.days, self.base_digest, self.seen_days, asdict(config)], sort_keys=True)


def plan_of(dataset: Dataset, config: Config, ds: str) -> Plan:
    """Plans the run of day `ds`.

    Raises:
        RunError: There are no samples before `ds`, or the base has another model.
    """
    table = SamplesTable(dataset)
    days = [day for day in table.days() if day < ds]
    if not days:
        raise RunError(f"{table.uri} has no samples of a day before {ds}; build some, or ask for a later day")
    base = base_of(complete_runs(dataset.name, config.preset), days)
    seen = base.seen_days if base else {}
    if base is not None:
        base.verify()
    if base is not None and base.config()[1].model != config.model:
        raise RunError(
            f"{base.path} has another model than preset {config.preset} has now; move it away to start over"
        )
    return Plan(
        days=tuple(day for day in days if day not in seen),
        version=table.version,
        base=str(base.path) if base else None,
        base_digest=base.digest if base else None,
        seen_days=seen,
    )
