"""Which deliveries a build may know of: those that their gate has passed, and those that an operator allows.

A delivery whose `gate_events` failed is left out of everything: the day's own events, history, statistics and
snapshots of later days. One that arrived after the day of the run and is not judged yet is left out, too, as
it is when days are built one by one. Any other that no gate has judged is refused.

The history from before the log is one delivery, allowed by the ingest that took it in. Each of its days
counts as delivered on itself: it is judged and built like a day of the log when it is asked for, and left out
like one when its gate has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract import locations
from spark_jobs.contract.clock import HISTORY_DS
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
        of_history: Days that only the history from before the log brought.
    """

    left_out: tuple[str, ...] = ()
    allowed: Mapping[str, str]
    of_history: tuple[str, ...] = field(default=(), repr=False)

    def events(self, events_df: DataFrame) -> DataFrame:
        """Rows of the table `events` that may be known."""
        events_df = on_their_days(events_df, self.of_history)
        return events_df.where(~F.col("delivery_ds").isin(*self.left_out)) if self.left_out else events_df

    def days(self, held: Iterable[str]) -> list[str]:
        """Those of the days that have a snapshot whose snapshot may be known."""
        return [day for day in held if day not in self.left_out]


def history_days(partitions: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Days of the history from before the log of which no delivery of their own came, ascending.

    Args:
        partitions: Partitions of the table `events`.
    """
    delivered = {(p["delivery_ds"], p["ds"]) for p in partitions}
    own = {delivery for delivery, _ in delivered}
    return tuple(sorted({ds for delivery, ds in delivered if delivery == HISTORY_DS} - own))


def on_their_days(events_df: DataFrame, days: Collection[str]) -> DataFrame:
    """Takes each of the `history_days` as delivered on itself; what reaches into the log stays as it is."""
    if not days:
        return events_df
    is_own = (F.col("delivery_ds") == HISTORY_DS) & F.col("ds").isin(*days)
    return events_df.withColumn("delivery_ds", F.when(is_own, F.col("ds")).otherwise(F.col("delivery_ds")))


def deliveries_of(dataset: Dataset, ds: str, versions: Mapping[str, int]) -> Deliveries:
    """How deliveries stand for the run of day `ds`.

    Args:
        dataset: Dataset.
        ds: Day of the run.
        versions: Versions of the tables that are read.

    Raises:
        NotPassedError: The day's own delivery failed, or an earlier one was not judged. A day of the history
            needs to be judged for its own samples alone.
    """
    uris = {name: locations.table(dataset.name, name) for name in ("events", "users", "items")}
    partitions = open_table(uris["events"], versions["events"]).partitions()
    delivered, of_history = {str(p["delivery_ds"]) for p in partitions}, history_days(partitions)
    for name in ("users", "items"):
        if exists(uris[name]):
            delivered |= set(partition_values(uris[name], "ds", versions[name]))
    stands = standings(dataset.name, "events", delivered, versions["events"], of_history)
    unjudged = [day for day in stands.days(Standing.UNJUDGED) if day not in of_history]
    stands.require_judged([day for day in unjudged if day <= ds])
    if ds in delivered or ds in of_history:
        stands.require_usable(ds)
    left_out = tuple(sorted({*stands.failed, *unjudged}))
    if left_out:
        logger.warning("%s %s: deliveries left out, no gate has passed them: %s", dataset.name, ds, left_out)
    return Deliveries(left_out=left_out, allowed=dict(stands.reasons), of_history=of_history)
