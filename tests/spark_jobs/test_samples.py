"""Samples against literal rows, and against the slow reference over random events."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest

from spark_jobs.contract.features import Dataset, Owner, Snapshot
from spark_jobs.contract.tables import dimension_columns, event_columns, sample_columns
from spark_jobs.lake.writer import content_hash
from spark_jobs.samples.build import Limits, build
from spark_jobs.samples.events import bots, events_of, snapshot_ds, without
from spark_jobs.samples.inputs import Inputs, as_of, unused
from spark_jobs.sources.records import with_reason
from tests.frames import frame
from tests.spark_jobs.random_log import Log
from tests.spark_jobs.sample_reference import TINY, Row

DS = "2026-03-05"
START = TINY.day_start_ms(DS)
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def day_of(time_ms: int) -> str:
    days = {TINY.day_start_ms(f"2026-03-{d:02d}"): f"2026-03-{d:02d}" for d in range(1, 10)}
    return days[max(start for start in days if start <= time_ms)]


def event(event_id: str, kind: str, user: int, item: int, time_ms: int, **more: Any) -> Row:
    row = {
        "event_id": event_id,
        "event_type": kind,
        "user_id": user,
        "item_id": item,
        "request_id": f"r{event_id}" if kind == "impression" else None,
        "impression_id": event_id,
        "time_ms": time_ms,
        "action": {"click": 1, "conversion": 2}.get(kind),
        "ds": day_of(time_ms),
        "weather": 1,
    }
    row |= more
    return {"delivery_ds": row["ds"], **row}


WEIGHTED = replace(TINY, has_weights=True)
USERS = [{"user_id": 1, "city": 3, "ds": "2026-03-01"}, {"user_id": 1, "city": 4, "ds": "2026-03-06"}]
ITEMS = [
    {"item_id": 10, "merchant_id": 7, "price": 5.0, "ds": "2026-03-01"},
    {"item_id": 10, "merchant_id": 7, "price": 6.0, "ds": "2026-03-04"},
    {"item_id": 11, "merchant_id": 8, "price": None, "ds": "2026-03-04"},
]


def build_df(
    spark: Any, events: list[Row], ds: str = DS, limits: Limits | None = None, dataset: Dataset = TINY
) -> Any:
    events_df = events_of(frame(spark, events, event_columns(dataset)))
    people_df = without(events_df, bots(events_df, dataset))
    return build(people_df, *snapshots(spark, ds), dataset, [ds], limits)


def snapshots(spark: Any, ds: str) -> list[Any]:
    """The users and items that hold on a day."""
    tables = ((USERS, Owner.PROFILE), (ITEMS, Owner.ITEM))
    return [
        as_of(frame(spark, rows, dimension_columns(TINY, owner)), [row["ds"] for row in rows], TINY, [ds])
        for rows, owner in tables
    ]


def built(
    spark: Any, events: list[Row], ds: str = DS, limits: Limits | None = None, dataset: Dataset = TINY
) -> list[Row]:
    rows = [row.asDict() for row in build_df(spark, events, ds, limits, dataset).collect()]
    return sorted(rows, key=lambda row: (row["user_id"], row["window_start_ms"]))


def literal_events() -> list[Row]:
    """Every user shows one rule; the test that reads it says which."""
    t = START + 10 * HOUR
    return [
        # 1: the path of one click and order, with a click of the day before as history
        event("a0", "impression", 1, 10, START - 5 * HOUR),
        event("a0c", "click", 1, 10, START - 5 * HOUR + 5, impression_id="a0"),
        event("a1", "impression", 1, 10, t, weather=None),
        event("a1c", "click", 1, 10, t + 1, impression_id="a1"),
        event("a2", "impression", 1, 11, t + 1),  # same millisecond as the click: does not see it
        event("a3", "impression", 1, 99, t + 2),  # item that the catalogue lacks
        event("a1o", "conversion", 1, 10, t + 2 * HOUR, impression_id="a1"),  # the last moment that counts
        # 2: outcomes that do not count: too late, before the impression, of another user, without a click
        event("b1", "impression", 2, 10, t),
        event("b1c", "click", 2, 10, t + 2 * HOUR + 1, impression_id="b1"),
        event("b2", "impression", 2, 10, t + 1),
        event("b2c", "click", 2, 10, t, impression_id="b2"),
        event("b3", "impression", 2, 10, t + 2),
        event("b3c", "click", 1, 10, t + 3 * HOUR, impression_id="b3"),
        event("b4", "impression", 2, 10, t + 3),
        event("b4o", "conversion", 2, 10, t + 4, impression_id="b4"),
        # 3: late records: the click labels its day, but is no behaviour and no statistic of it
        event("c1", "impression", 3, 10, t),
        event("c1c", "click", 3, 10, t + 1, impression_id="c1", delivery_ds="2026-03-07"),
        event("c2", "impression", 3, 10, t + MINUTE),
        event("c3", "impression", 3, 11, t + 2 * MINUTE, delivery_ds="2026-03-06"),
        # an event of the day before that today's delivery brought is not known yet
        event("c0", "click", 3, 10, START - HOUR, impression_id="none", delivery_ds=DS),
        # 4: a click just after midnight, brought by the delivery of the day before, and again by its own
        event("d1", "impression", 4, 10, START - MINUTE),
        event("d1c", "click", 4, 10, START + 1, impression_id="d1", delivery_ds="2026-03-04"),
        event("d1c", "click", 4, 10, START + 1, impression_id="d1"),
        event("d2", "impression", 4, 10, START + 2),
        # 5: behaviours without a candidate make no row
        event("e1", "click", 5, 10, t, impression_id="gone"),
        # 6: a bot
        *(event(f"f{i}", "impression", 6, 11, t + i) for i in range(21)),
        # 8: a person by the end of the day; what arrives later cannot make a bot of the day, but is too much
        *(event(f"h{i}", "impression", 8, 11, t + i) for i in range(11)),
        *(event(f"h{i}", "impression", 8, 11, t + i, delivery_ds="2026-03-06") for i in range(11, 22)),
        *(event(f"k{i}", "impression", 8, 11, t + i, delivery_ds="2026-03-07") for i in range(21)),
        # 9: one request, logged card by card while the user clicks; the last click is in time for its card
        event("l1", "impression", 9, 10, t, request_id="page"),
        event("l1c", "click", 9, 10, t + 1, impression_id="l1"),
        event("l2", "impression", 9, 10, t + 2, request_id="page"),
        event("l2c", "click", 9, 10, t + 2 * HOUR + 2, impression_id="l2"),
        event("l3", "impression", 9, 10, t + 3),
        # 10: requests over midnight: of the night before, into tomorrow, and a name that comes again
        event("m1", "impression", 10, 10, START - 1, request_id="night"),
        event("m2", "impression", 10, 10, START + 1, request_id="night"),
        event("m3", "impression", 10, 10, START + 2 * HOUR, request_id="night"),
        event("n1", "impression", 10, 10, START + DAY - HOUR + 1, request_id="late"),
        event("n1c", "click", 10, 10, START + DAY - 1, impression_id="n1"),
        event("n2", "impression", 10, 10, START + DAY, request_id="late"),
        event("n2c", "click", 10, 10, START + DAY + 2 * HOUR, impression_id="n2"),
        event("n3", "impression", 10, 10, START + DAY + 1, request_id="late"),
        # 11: an order of four days ago that was never shown: counted, though the static sequence ends before
        event("p1", "feedback", 11, 10, START - 4 * DAY + HOUR, impression_id=None, action=2),
        event("p0", "click", 11, 11, START - 4 * DAY + HOUR, impression_id="x"),
        event("p2", "click", 11, 11, START - 2 * DAY, impression_id="x"),
        event("p3", "click", 11, 11, START - DAY, impression_id="x", delivery_ds=DS),  # not known before DS
        event("p4", "feedback", 11, 10, t, impression_id=None, action=2),
        event("p5", "impression", 11, 10, t),
        event("p6", "impression", 11, 11, t + 1),
        # 7: four behaviours with a limit of three, the second and third of one millisecond
        event("g0", "click", 7, 10, START - DAY, impression_id="x"),
        event("g1", "click", 7, 10, t, impression_id="x"),
        event("g2", "click", 7, 11, t + 10, impression_id="x"),
        event("g3", "click", 7, 10, t + 20, impression_id="x"),
        event("g4", "click", 7, 10, t + 20, impression_id="x"),
        event("g5", "impression", 7, 10, t + 15),
        event("g6", "impression", 7, 10, t + 20),
        event("g7", "impression", 7, 10, t + 21),
    ]


@pytest.fixture(scope="module")
def literal(spark: Any) -> dict[int, list[Row]]:
    rows = built(spark, literal_events(), limits=Limits(static=3, realtime=3))
    return {user: [row for row in rows if row["user_id"] == user] for user in range(1, 12)}


def test_columns_are_those_of_the_contract(spark: Any) -> None:
    assert build_df(spark, literal_events()).dtypes == sample_columns(TINY)


def test_one_row_a_user_with_labels_history_and_visibility(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[1]
    t = START + 10 * HOUR
    assert (row["window_start_ms"], row["window_end_ms"]) == (START, START + DAY)
    assert row["static_time_ms"] == [START - 5 * HOUR + 5]
    assert row["static_action"] == [1]
    assert row["static_price"] == [6.0]
    assert row["realtime_time_ms"] == [t + 1, t + 2 * HOUR, t + 3 * HOUR]
    assert row["realtime_visible"] == [0, 1, 2]
    assert row["candidate_impression_id"] == ["a1", "a2", "a3"]
    assert row["candidate_visible"] == [0, 0, 1]
    assert row["label_click"] == [1, 0, 0]
    assert row["label_conversion"] == [1, 0, 0]


def test_absent_values_are_unknown_and_dimensions_are_as_of_the_day(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[1]
    assert row["profile_city"] == 3  # 4 holds from the next day on
    assert literal[2][0]["profile_city"] == 0
    assert row["candidate_weather"] == [0, 1, 1]
    assert row["candidate_merchant_id"] == [7, 8, 0]
    assert row["candidate_price"] == [6.0, 1.0, 1.0]  # unknown is the allowed value nearest to 0
    assert row["candidate_hour"] == [10, 10, 10]
    assert row["candidate_weekday"] == [3, 3, 3]  # 2026-03-05 is a Thursday


def test_no_snapshot_is_younger_than_the_start_of_the_day() -> None:
    after = replace(TINY, snapshot=Snapshot.AFTER_DAY)
    held = ["2026-03-01", "2026-03-04", "2026-03-06"]
    days = ("2026-02-28", "2026-03-01", "2026-03-04", "2026-03-05", "2026-03-07")
    assert [snapshot_ds(held, TINY, ds) for ds in days] == [None, held[0], held[1], held[1], held[2]]
    assert [snapshot_ds(held, after, ds) for ds in days] == [None, None, held[0], held[1], held[2]]


def test_outcomes_outside_of_attribution_are_no_labels(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[2]
    assert row["label_click"] == [0, 0, 0, 0]
    assert row["label_conversion"] == [0, 0, 0, 0]


def test_late_records_label_but_are_not_known_on_their_day(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[3]
    assert row["candidate_impression_id"] == ["c1", "c2", "c3"]
    assert row["label_click"] == [1, 0, 0]
    assert row["realtime_time_ms"] == row["static_time_ms"] == []
    assert row["candidate_user_id_impressions_0"] == [0.0, 1.0, 2.0]
    assert row["candidate_user_id_merchant_id_clicks_0"] == [0.0, 0.0, 0.0]
    assert row["profile_user_id_clicks_5"] == 0.0


def test_a_copy_in_a_second_delivery_counts_once(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[4]
    assert row["realtime_time_ms"] == [START + 1]
    assert row["candidate_visible"] == [1]
    assert row["candidate_user_id_merchant_id_clicks_0"] == [1.0]


def test_no_candidates_no_row_and_bots_are_left_out(literal: dict[int, list[Row]]) -> None:
    assert literal[5] == []
    assert literal[6] == []


def test_what_arrives_later_makes_no_bot_of_the_day(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[8]
    assert sorted(row["candidate_impression_id"]) == sorted(f"h{i}" for i in range(22))


def test_candidates_of_a_request_see_the_state_at_its_first_time(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[9]
    t = START + 10 * HOUR
    assert row["candidate_impression_id"] == ["l1", "l2", "l3"]
    assert row["candidate_time_ms"] == [t, t, t + 3]
    assert row["candidate_visible"] == [0, 0, 1]
    assert row["candidate_user_id_impressions_0"] == [0.0, 0.0, 2.0]
    assert row["candidate_user_id_merchant_id_clicks_0"] == [0.0, 0.0, 1.0]
    assert row["label_click"] == [1, 1, 0]


def test_a_request_is_of_the_day_that_it_began_on(literal: dict[int, list[Row]]) -> None:
    (row,) = literal[10]
    assert row["candidate_impression_id"] == ["m3", "n1", "n2"]
    assert row["candidate_time_ms"] == [START + 2 * HOUR, *[START + DAY - HOUR + 1] * 2]
    assert row["candidate_hour"] == [2, 23, 23]
    assert row["candidate_visible"] == [0, 0, 0]
    assert row["label_click"] == [0, 1, 1]


def test_a_busy_day_is_cut_where_the_limit_is_passed(literal: dict[int, list[Row]]) -> None:
    first, second = literal[7]
    t = START + 10 * HOUR
    assert (first["window_start_ms"], first["window_end_ms"]) == (START, t + 20)
    assert first["static_time_ms"] == [START - DAY]
    assert first["realtime_time_ms"] == [t, t + 10]
    assert first["candidate_time_ms"] == [t + 15]
    assert first["candidate_visible"] == [2]
    assert (second["window_start_ms"], second["window_end_ms"]) == (t + 20, START + DAY)
    assert second["static_time_ms"] == [START - DAY, t, t + 10]
    assert second["realtime_time_ms"] == [t + 20, t + 20]  # one millisecond is not cut
    assert second["realtime_visible"] == [0, 0]
    assert second["candidate_time_ms"] == [t + 20, t + 21]
    assert second["candidate_visible"] == [0, 2]


def test_actions_are_counted_over_all_behaviours_and_windows_longer_than_the_sequence(
    literal: dict[int, list[Row]],
) -> None:
    (row,) = literal[11]
    assert row["static_time_ms"] == [START - 2 * DAY]
    assert row["candidate_user_id_merchant_id_actions_order_5"] == [1.0, 0.0]
    assert row["candidate_user_id_merchant_id_days_since_order_5"] == [4.0, 6.0]  # 6: not in five days
    assert row["candidate_user_id_item_id_days_since_click_5"] == [6.0, 2.0]
    assert row["candidate_user_id_merchant_id_clicks_0"] == [0.0, 0.0]
    assert row["candidate_user_id_merchant_id_actions_order_0"] == [
        0.0,
        0.0,
    ]  # of the same millisecond, elsewhere
    assert row["profile_user_id_actions_click_2"] == 1.0
    assert row["candidate_merchant_id_days_since_order_2"] == [3.0, 3.0]
    assert row["label_click"] == [0, 0]


def test_a_weight_that_is_none_is_refused_by_ingest(spark: Any) -> None:
    weights = [None, 1.0, 0.001, 1e6, 0.0, -1.0, 1e7, math.nan, math.inf]
    rows = [
        event(f"w{i}", "impression", 1, 10, START + i) | {"weight": weight}
        for i, weight in enumerate(weights)
    ]
    frame_df = frame(spark, rows, event_columns(WEIGHTED)).orderBy("time_ms")
    reasons = [row["reason"] for row in frame_df.transform(with_reason, WEIGHTED, DS).collect()]
    assert reasons[:4] == [None] * 4
    assert reasons[4:] == ["weight is outside of 0.001..1e+06"] * 5


@pytest.mark.slow
def test_neither_time_zone_nor_partitioning_nor_order_changes_a_sample(spark: Any) -> None:
    events = [event for arrival in Log(3).final for event in arrival.events]
    hashes = {content_hash(build_df(spark, events))}
    random.Random(4).shuffle(events)
    for zone, partitions in (("Asia/Tokyo", 3), ("America/New_York", 1)):
        try:
            spark.conf.set("spark.sql.session.timeZone", zone)
            spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
            hashes.add(content_hash(build_df(spark, events)))
        finally:
            spark.conf.set("spark.sql.session.timeZone", "UTC")
            spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_user_with_a_million_events_changes_nothing_and_fits_in_a_gigabyte(spark: Any) -> None:
    events = literal_events()
    names = [name for name, _ in event_columns(TINY)]
    one = event("m", "impression", 99, 10, START + HOUR)
    values = {
        "event_id": "concat('m', id)",
        "impression_id": "concat('m', id)",
        "time_ms": f"{START} + id * 60",
    }
    bot_df = spark.range(1_000_000).selectExpr(
        *(
            f"CAST({values.get(name, 'NULL' if one.get(name) is None else repr(one[name]))} AS {kind}) {name}"
            for name, kind in event_columns(TINY)
        )
    )
    alone_df = frame(spark, events, event_columns(TINY))
    hashes, found = [], []
    for events_df in (alone_df, alone_df.unionByName(bot_df.select(*names))):
        once_df = events_of(events_df)
        bots_df = bots(once_df, TINY)
        found.append({row["user_id"] for row in bots_df.collect()})
        hashes.append(content_hash(build(without(once_df, bots_df), *snapshots(spark, DS), TINY, [DS])))
    assert found == [{6}, {6, 99}]
    assert hashes[0] == hashes[1]


def test_outcomes_without_an_impression_are_told_by_day_however_many_days_are_asked(spark: Any) -> None:
    next_ds = day_of(START + DAY)
    events = [
        event("a", "impression", 1, 10, START - 10_000),
        event("of-a", "click", 1, 10, START + 10_000, impression_id="a"),
        event("b", "impression", 1, 10, START + DAY + 1),
        event("before-b", "click", 1, 10, START + DAY - 1, impression_id="b"),
        event("c", "impression", 1, 10, START - 1),
        event("long-after-c", "conversion", 1, 10, START + DAY + 5, impression_id="c"),
        event("after-c", "conversion", 1, 10, START + TINY.attribution_ms, impression_id="c"),
        event("others-c", "click", 2, 10, START, impression_id="c"),
    ]
    events += [
        event(f"bot{i}", "impression", 9, 10, START + i) for i in range(TINY.max_impressions_a_day + 1)
    ]
    events_df = frame(spark, events, event_columns(TINY))
    users_df, items_df = snapshots(spark, DS)
    inputs = Inputs(
        events_df=events_df,
        bots_df=bots(events_df, TINY),
        people_df=events_df,
        users_df=users_df,
        items_df=items_df,
    )

    def told(days: list[str]) -> list[tuple[str, Any, str]]:
        rows = [
            (row["day"], json.loads(row["record"]), row["reason"])
            for row in unused(inputs, TINY, days).collect()
        ]
        return sorted(
            (day, str(record.get("event_id") or record["user_id"]), why) for day, record, why in rows
        )

    nobody, late = "no impression of this user with this impression_id", "outside of the attribution window"
    both = told([DS, next_ds])
    assert [(day, name, why.partition(" of its")[0]) for day, name, why in both] == [
        (DS, "9", "a bot: more events on the day than max_impressions_a_day"),
        (DS, "after-c", late),
        (DS, "before-b", nobody),
        (DS, "others-c", nobody),
        (next_ds, "long-after-c", nobody),
    ]
    assert both == [*told([DS]), *told([next_ds])]
