"""Which deliveries a build may know of: those that their gate has passed, and those that an operator allows.

A delivery whose `gate_events` failed is left out of everything: the day's own events, history, statistics and
snapshots of later days. One that arrived after the day of the run and is not judged yet is left out, too, as
it is when days are built one by one. Any other that no gate has judged is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import locations
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import exists, open_table, partition_values
from spark_jobs.lake.verdicts import Standing, standings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Deliveries:
    """How the deliveries of a dataset stand.

    Args:
        left_out: Deliveries that must not be known, ascending.
        allowed: Delivery to why an operator lets it be used although its gate failed.
    """

    left_out: tuple[str, ...] = ()
    allowed: Mapping[str, str]

    def events(self, events_df: DataFrame) -> DataFrame:
        """Rows of the table `events` that may be known."""
        return events_df.where(~F.col("delivery_ds").isin(*self.left_out)) if self.left_out else events_df

    def days(self, held: Iterable[str]) -> list[str]:
        """Those of the days that have a snapshot whose snapshot may be known."""
        return [day for day in held if day not in self.left_out]


def deliveries_of(dataset: Dataset, ds: str, versions: Mapping[str, int]) -> Deliveries:
    """How deliveries stand for the run of day `ds`.

    Args:
        dataset: Dataset.
        ds: Day of the run.
        versions: Versions of the tables that are read.

    Raises:
        NotPassedError: The day's own delivery failed, or an earlier one was not judged.
    """
    uris = {name: locations.table(dataset.name, name) for name in ("events", "users", "items")}
    delivered = {str(p["delivery_ds"]) for p in open_table(uris["events"], versions["events"]).partitions()}
    for name in ("users", "items"):
        if exists(uris[name]):
            delivered |= set(partition_values(uris[name], "ds", versions[name]))
    stands = standings(dataset.name, "events", delivered, versions["events"])
    unjudged = stands.days(Standing.UNJUDGED)
    stands.require_judged([day for day in unjudged if day <= ds])
    if ds in delivered:
        stands.require_usable(ds)
    left_out = tuple(sorted({*stands.failed, *unjudged}))
    if left_out:
        logger.warning("%s %s: deliveries left out, no gate has passed them: %s", dataset.name, ds, left_out)
    return Deliveries(left_out=left_out, allowed=dict(stands.reasons))
