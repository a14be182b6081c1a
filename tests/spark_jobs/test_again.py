"""Days made again build the users that changed; everybody where what the day knew of has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.build_samples import build_days
from spark_jobs.contract import locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.tables import sample_columns
from spark_jobs.lake import verdicts
from spark_jobs.lake.log import last_commit
from spark_jobs.lake.writer import replace_partition, table_at
from tests.spark_jobs.sample_reference import TINY, Row
from tests.spark_jobs.test_ingest import DAY, HOUR, deliver, event

__all__ = ["deliver"]  # a fixture
EVE, NEXT = shift_day(DAY, -1), shift_day(DAY, 1)
MARK = 77


def shown(ds: str, user: int, **more: Any) -> Row:
    return event(f"{ds}-{user}", TINY.day_start_ms(ds) + 9 * HOUR + user, user_id=user, **more)


def order(ds: str, user: int) -> list[Row]:
    """What follows an impression: a click and an order."""
    row = shown(ds, user)
    return [
        {
            **row,
            "event_id": f"{ds}-{user}-{kind}",
            "event_type": kind,
            "action": action,
            "time_ms": row["time_ms"] + 9,
        }
        for kind, action in (("click", 1), ("conversion", 2))
    ]


@pytest.fixture
def marked(spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """EVE and DAY are built, and user 2's row of DAY has a mark that no build would write."""
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    for ds in (EVE, DAY):
        deliver(ds, [shown(ds, user) for user in (1, 2, 3)])
        build_days(spark, TINY, ds)
    uri = locations.table("tiny", "samples")
    rows_df = table_at(spark, uri).where(F.col("ds") == DAY)
    mark = F.when(F.col("user_id") == 2, F.lit(MARK)).otherwise(F.col("profile_city"))
    kept = last_commit(uri, f"ds={DAY}")
    assert kept is not None
    metadata = {
        key: value for key, value in kept.metadata.items() if key in ("ds", "run", "inputs", "allowed")
    }
    columns = sample_columns(TINY)
    replace_partition(
        rows_df.withColumn("profile_city", mark.cast(dict(columns)["profile_city"])),
        uri,
        {"ds": DAY},
        columns=columns,
        partition_by=["ds"],
        stage="build_samples",
        metadata=metadata,
    )

    def after() -> dict[int, tuple[int, int]]:
        """The next day's run, which brings user 1's order of DAY: (city, conversions) of DAY by user."""
        deliver(NEXT, [shown(NEXT, 1), *order(DAY, 1)])
        result = build_days(spark, TINY, NEXT, late=True)
        assert DAY in result["rebuilt"]
        rows = table_at(spark, uri).where(F.col("ds") == DAY).collect()
        return {row["user_id"]: (row["profile_city"], sum(row["label_conversion"])) for row in rows}

    return after


def test_only_users_that_changed_are_built_again(marked: Any) -> None:
    assert marked() == {1: (3, 1), 2: (MARK, 0), 3: (0, 0)}


def test_a_corrected_delivery_before_the_day_has_everybody_built_again(marked: Any, deliver: Any) -> None:
    deliver(EVE, [shown(EVE, user) for user in (1, 2)])
    assert marked() == {1: (3, 1), 2: (0, 0), 3: (0, 0)}


@pytest.mark.slow
def test_other_code_has_everybody_built_again(marked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "def")
    assert marked() == {1: (3, 1), 2: (0, 0), 3: (0, 0)}


@pytest.mark.slow
def test_a_delivery_that_may_no_longer_be_known_has_everybody_built_again(marked: Any) -> None:
    path = verdicts.path_of("tiny", "events", EVE)
    verdicts.write(path, {**(verdicts.read(path) or {}), "success": False, "allowed": ""})
    assert marked() == {1: (3, 1), 2: (0, 0), 3: (0, 0)}


def test_a_late_delivery_of_the_day_after_changes_nothing_that_the_day_knew(
    marked: Any, deliver: Any
) -> None:
    deliver(NEXT, [shown(NEXT, 2)])  # and corrected by `marked`
    assert marked() == {1: (3, 1), 2: (MARK, 0), 3: (0, 0)}
