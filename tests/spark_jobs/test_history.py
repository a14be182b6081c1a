"""Random logs, delivered in any order, repeated, split, late and corrected, give the reference's samples.

What is drawn: outcomes across midnight, ties, requests of many moments, copies in several deliveries, bots by
the end of the day and after it, snapshots that come and go. An example is whole in its seed, which a failure
prints; it is not shrunk, since a Spark job an attempt would take hours.
"""

from __future__ import annotations

import copy
import itertools
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from spark_jobs import ingest
from spark_jobs.build_samples import build_days
from spark_jobs.contract import locations
from spark_jobs.contract.features import Owner, Snapshot
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.lake import verdicts
from spark_jobs.lake.log import partition_values
from spark_jobs.lake.writer import table_at
from spark_jobs.samples.build import Limits, build
from spark_jobs.samples.events import bots, events_of, without
from spark_jobs.samples.inputs import as_of
from spark_jobs.sources import Delivery
from tests.frames import frame
from tests.spark_jobs.random_log import DAYS, Arrival, Log
from tests.spark_jobs.sample_reference import TINY, Row, differences, reference_samples

LIMITS = Limits(static=6, realtime=3)
SEEDS = st.integers(0, 2**32 - 1)
MANY: dict[str, Any] = {
    "derandomize": True,  # the same logs in every run
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
FEW = MANY | {"phases": [Phase.explicit]}


def wanted(log: Log) -> list[Row]:
    """The reference's samples of the log's days, of all that holds in the end."""
    arrivals = log.final
    return [
        row
        for ds in log.days
        for row in reference_samples(
            [event for a in arrivals for event in a.events],
            [row for a in arrivals for row in a.users],
            [row for a in arrivals for row in a.items],
            log.dataset,
            ds,
            max_static=LIMITS.static,
            max_realtime=LIMITS.realtime,
        )
    ]


def built(spark: Any, log: Log) -> list[Row]:
    """The builder's samples of all days, in one plan, of all that holds in the end."""
    arrivals, dataset = log.final, log.dataset
    once_df = events_of(frame(spark, [e for a in arrivals for e in a.events], event_columns(dataset)))
    snapshots = [
        as_of(
            frame(spark, rows, dimension_columns(dataset, owner)),
            sorted({r["ds"] for r in rows}),
            dataset,
            DAYS,
        )
        for owner, rows in (
            (Owner.PROFILE, [row for a in arrivals for row in a.users]),
            (Owner.ITEM, [row for a in arrivals for row in a.items]),
        )
    ]
    people_df = without(once_df, bots(once_df, dataset))
    return [row.asDict() for row in build(people_df, *snapshots, dataset, log.days, LIMITS).collect()]


def check_built(spark: Any, seed: int) -> None:
    offset = (8, 5.75, -9.5)[seed % 3]  # Nepal, the Marquesas: clocks whose hours do not begin with UTC's
    snapshot, has_weights = list(Snapshot)[seed % 2], seed % 4 > 1
    dataset = replace(TINY, snapshot=snapshot, has_weights=has_weights, utc_offset_hours=offset)
    log = Log(seed, dataset)
    rows = wanted(log)
    assert len({row["ds"] for row in rows}) == len(DAYS)
    assert differences(built(spark, log), rows) == [], f"Log({seed})"


@pytest.mark.timeout(900)
@settings(**FEW)
@example(seed=1)
@example(seed=2)
@given(seed=SEEDS)
def test_any_log_gives_what_the_slow_reference_gives(spark: Any, seed: int) -> None:
    check_built(spark, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=60, **MANY)
@given(seed=SEEDS)
def test_many_logs_give_what_the_slow_reference_gives(spark: Any, seed: int) -> None:
    check_built(spark, seed)


def delivery_of(spark: Any, arrival: Arrival) -> Delivery:
    """What a source reads of an arrival, some records sent twice, in no order."""
    columns = [*event_columns(TINY), ("arrival_ms", "bigint"), ("file", "string")]
    broken = [(name, "string") for name in ("log", "reason", "record", "file")]
    draw = random.Random(len(arrival.events))
    sent = [e | {"arrival_ms": 2} for e in arrival.events]
    sent += [e | {"arrival_ms": 1, "item_id": 12} for e in sent if draw.random() < 0.1]  # sent twice
    draw.shuffle(sent)
    snapshots = (
        frame(spark, rows, dimension_columns(TINY, owner)) if rows else None
        for rows, owner in ((arrival.users, Owner.PROFILE), (arrival.items, Owner.ITEM))
    )
    return Delivery(frame(spark, sent, columns), *snapshots, frame(spark, [], broken))


@pytest.fixture
def arrive(spark: Any, lake: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`arrive(log)`: takes a log in, each arrival followed by its day's run; the samples of a fresh lake."""
    monkeypatch.setattr("spark_jobs.contract.datasets.dataset_named", lambda name: TINY)
    monkeypatch.setattr("spark_jobs.samples.build.Limits", lambda: LIMITS)
    # Code without changes: what it made before may stay where nothing that it knew of has changed.
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    lakes = itertools.count()

    def take(arrival: Arrival) -> None:
        delivery = delivery_of(spark, arrival)
        source = SimpleNamespace(read_delivery=lambda spark, root, ds: delivery)
        monkeypatch.setattr(ingest, "source_of", lambda name: source)
        ingest.ingest(spark, TINY, arrival.ds, "unused")
        verdicts.allow("tiny", "events", [arrival.ds], "a test")

    def arrive(log: Log) -> list[Row]:
        monkeypatch.setenv("MTGR_VAR", str(lake.parent / f"{next(lakes)}"))
        stale: set[str] = set()
        for arrival in log.arrivals:
            take(arrival)
            result = build_days(spark, TINY, arrival.ds, late=True)
            stale = (stale | set(result["stale"])) - {arrival.ds}
        for ds in sorted(stale):
            build_days(spark, TINY, ds)
        uri = locations.table("tiny", "samples")
        assert partition_values(uri, "ds") == log.days
        return [row.asDict() for row in table_at(spark, uri).collect()]

    return arrive


@pytest.mark.timeout(900)
@settings(**FEW)
@example(seed=1)  # the second day's delivery comes before the first's
@given(seed=SEEDS)
def test_deliveries_in_any_order_end_in_the_reference(arrive: Any, seed: int) -> None:
    log = Log(seed, days=DAYS[:2])
    assert differences(arrive(log), wanted(log)) == [], f"Log({seed})"


@pytest.mark.timeout(900)
def test_outcomes_of_the_night_come_with_the_next_day_and_nothing_else_does(arrive: Any) -> None:
    log = Log(9, days=DAYS[:2], by_event_time=True)
    first, second = log.arrivals
    shown = {e["impression_id"] for e in first.events if e["event_type"] == "impression"}
    assert any(e["impression_id"] in shown for e in second.events), "an outcome across midnight"
    assert {e["ds"] for e in second.events} == {second.ds}, "no event of an earlier day"
    assert differences(arrive(log), wanted(log)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=12, **MANY)
@given(seed=SEEDS, by_event_time=st.sampled_from([False, False, True]))
def test_many_logs_in_any_order_end_in_the_reference(arrive: Any, seed: int, by_event_time: bool) -> None:
    log = Log(seed, by_event_time=by_event_time)
    assert differences(arrive(log), wanted(log)) == [], f"Log({seed})"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_days_of_the_history_give_what_they_would_have_given_one_by_one(
    spark: Any, arrive: Any, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first day comes as history, without a delivery; the second with copies and late records of it."""
    log = Log(1, days=DAYS[:2])
    first, second = DAYS[:2]
    past, rest = log.final
    of_first = [e | {"delivery_ds": min(e["ds"], first)} for e in past.events]
    assert {e["ds"] for e in of_first} >= {first, second}, "an outcome across the midnight that ends it"
    copied = {(e["event_type"], e["event_id"]) for e in of_first}
    assert copied & {(e["event_type"], e["event_id"]) for e in rest.events}
    log.arrivals = [replace(past, events=of_first), rest]
    monkeypatch.setattr(ingest, "read_history", lambda spark, name, root: delivery_of(spark, past))
    monkeypatch.setenv("MTGR_VAR", str(lake.parent / "0"))  # where `arrive` takes the second day in
    ingest.ingest_history(spark, TINY, "unused")
    verdicts.allow("tiny", "events", [first], "a test", of_history=[first])
    build_days(spark, TINY, first)
    assert differences(arrive(replace_arrivals(log, [rest])), wanted(log)) == []


def replace_arrivals(log: Log, arrivals: list[Arrival]) -> Log:
    """The same log with other arrivals."""
    other = copy.copy(log)
    other.arrivals = arrivals
    return other
