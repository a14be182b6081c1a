"""The lake's tables by day: rows, bytes and files, from Delta's logs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spark_jobs.contract import locations
from spark_jobs.contract.clock import HISTORY_DS
from spark_jobs.lake.log import exists, open_table

TABLES = ("events", "users", "items", "samples", "quarantine")
_DAY = {"events": "delivery_ds"}  # the partition column that a stage replaces; `ds` of the others


@dataclass(frozen=True, kw_only=True)
class TableState:
    """A table as its newest version has it.

    Args:
        name: Its name.
        version: Its version.
        rows: Rows by day, of events by delivery.
        size: Bytes of the version's files.
        files: How many they are.
        kept: Bytes on disk, with those that only older versions need; None on an object store.
    """

    name: str
    version: int
    rows: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    files: int = 0
    kept: int | None = None

    @property
    def days(self) -> list[str]:
        """Its days, ascending; without the history from before the log, which is no day's."""
        return sorted(day for day in self.rows if day != HISTORY_DS)


def table_state(dataset: str, name: str) -> TableState | None:
    """A table's state; None where there is no table.

    Raises:
        LakeError: Its log is damaged.
    """
    uri = locations.table(dataset, name)
    if not exists(uri):
        return None
    table = open_table(uri)
    actions = table.get_add_actions(flatten=True)
    days = actions[f"partition.{_DAY.get(name, 'ds')}"].to_pylist()
    rows: dict[str, int] = {}
    for day, number in zip(days, actions["num_records"].to_pylist(), strict=True):
        rows[str(day)] = rows.get(str(day), 0) + int(number or 0)
    return TableState(
        name=name,
        version=int(table.version()),
        rows=rows,
        size=sum(actions["size_bytes"].to_pylist()),
        files=len(days),
        kept=None if "://" in uri else locations.size_of(Path(uri)),
    )
