"""Ingest and the whole way to samples, with deliveries of literal rows."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deltalake import DeltaTable

from spark_jobs import ingest
from spark_jobs.build_samples import build_days
from spark_jobs.contract import locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.features import NO_ID, NO_IDS, Owner
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.ingest import DeliveryRefusedError
from spark_jobs.lake import verdicts
from spark_jobs.lake.failures import spark_errors
from spark_jobs.lake.log import LakeError, current_version, last_commit, partition_values
from spark_jobs.lake.verdicts import NotPassedError
from spark_jobs.lake.writer import EmptyInputError, content_hash, table_at
from spark_jobs.samples.build import known_before
from spark_jobs.samples.events import events_of
from spark_jobs.samples.inputs import as_of
from spark_jobs.sources import Delivery
from spark_jobs.sources.foodlog import SCHEMAS
from spark_jobs.sources.records import checked_dimension, last_copies, with_days, with_reason
from tests.frames import frame
from tests.spark_jobs.sample_reference import TINY, Row

DAY = "2026-03-05"
START = TINY.day_start_ms(DAY)
HOUR = 3_600_000
COLUMNS = [*event_columns(TINY), ("arrival_ms", "bigint"), ("file", "string")]
BROKEN = [("log", "string"), ("reason", "string"), ("record", "string"), ("file", "string")]


def event(event_id: str | None, time_ms: int | None, **more: Any) -> Row:
    return {
        "event_id": event_id,
        "event_type": "impression",
        "user_id": 1,
        "item_id": 10,
        "request_id": "r",
        "impression_id": event_id,
        "time_ms": time_ms,
        "weather": 1,
        "arrival_ms": 1,
        "file": "f",
        **more,
    }


@pytest.fixture
def deliver(spark: Any, lake: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Deliveries of literal rows under the dataset `tiny`: `deliver(ds, events, broken)`."""
    monkeypatch.setattr("spark_jobs.contract.datasets.dataset_named", lambda name: TINY)
    profiles = [{"user_id": 1, "city": 3}]
    items = [
        {"item_id": 10, "merchant_id": 7, "price": 5.0},
        {"item_id": 11, "merchant_id": 8, "price": 99.0},
    ]

    def deliver(
        ds: str, events: list[Row], broken: list[Row] | None = None, users: list[Row] | None = profiles
    ) -> dict[str, Any]:
        more = [(name, "string") for name in ("log", "mistyped") if any(name in row for row in events)]
        delivery = Delivery(
            frame(spark, events, [*COLUMNS, *more]),
            None if users is None else frame(spark, users, dimension_columns(TINY, Owner.PROFILE)),
            frame(spark, items, dimension_columns(TINY, Owner.ITEM)),
            frame(spark, broken or [], BROKEN),
        )
        source = SimpleNamespace(read_delivery=lambda spark, root, ds: delivery)
        monkeypatch.setattr(ingest, "source_of", lambda name: source)
        done = ingest.ingest(spark, TINY, ds, "unused")
        verdicts.allow("tiny", "events", [ds], "a test")
        return done

    return deliver


def table(spark: Any, name: str) -> Any:
    return table_at(spark, locations.table("tiny", name))


def test_the_copy_that_arrived_last_wins(spark: Any) -> None:
    rows = [
        event("a", START, item_id=10, arrival_ms=5),
        event("a", START, item_id=11, arrival_ms=9),
        event("a", START, item_id=12, arrival_ms=7),
        event("b", START, arrival_ms=None),
        event(None, START),
        event(None, START),
    ]
    kept = frame(spark, rows, COLUMNS).transform(last_copies).collect()
    assert sorted((row["event_id"] or "-", row["item_id"]) for row in kept) == [
        ("-", 10),
        ("-", 10),
        ("a", 11),
        ("b", 10),
    ]


@pytest.mark.parametrize("hours", [8, 5.75, -9.5])
def test_an_event_lies_on_the_day_of_the_datasets_clock(spark: Any, hours: float) -> None:
    dataset = replace(TINY, utc_offset_hours=hours)
    start = dataset.day_start_ms(DAY)
    assert start == TINY.day_start_ms(DAY) + (8 - hours) * HOUR
    rows = [event("eve", start - 1), event("day", start), event("night", start + 24 * HOUR - 1)]
    placed = with_days(frame(spark, rows, COLUMNS), dataset, DAY).collect()
    days = {row["event_id"]: row["ds"] for row in placed}
    assert days == {"eve": shift_day(DAY, -1), "day": DAY, "night": DAY}


def test_every_reason_has_a_row_that_has_it_and_the_borders_are_taken(spark: Any) -> None:
    cases = [
        (event("ok", START), None),
        (event("last_ms", START + 24 * HOUR - 1), None),
        (event("after_midnight", START + 25 * HOUR), None),
        (event("late", START - 72 * HOUR), None),
        (event("int64", START, user_id=2**63 - 2, item_id=-(2**63)), None),
        (event("negative", START, user_id=-2, item_id=0), None),
        (event("unknown_weather", START, weather=None), None),
        (event("", START), "no event_id"),
        (event("type", START, event_type="view"), "event_type is none of"),
        (event("user", START, user_id=None), "no user_id"),
        (event("item", START, item_id=None), "no item_id"),
        *((event(f"user{one}", START, user_id=one), f"user_id is {NO_ID}") for one in NO_IDS),
        *((event(f"item{one}", START, item_id=one), f"item_id is {NO_ID}") for one in NO_IDS),
        (event("time", None), "no time_ms"),
        (event("seconds", START // 1000), "not milliseconds"),
        (event("micros", START * 1000), "not milliseconds"),
        (event("future", START + 48 * HOUR), "after the delivery was closed"),
        (event("too_late", START - 72 * HOUR - 1), "more than 3 days late"),
        (event("no_impression", START, event_type="click", impression_id=None), "no impression_id"),
        (event("no_request", START, request_id=None), "no request_id"),
        (event("action", START, event_type="feedback", action=3), r"action is outside of 0..2"),
        (event("weather", START, weather=8), "weather is outside of 0..7"),
    ]
    checked_df = (
        frame(spark, [row for row, _ in cases], COLUMNS)
        .transform(with_days, TINY, DAY)
        .transform(with_reason, TINY, DAY)
    )
    found = {row["event_id"]: row for row in checked_df.collect()}
    for row, reason in cases:
        got = found[row["event_id"]]["reason"]
        assert (reason is None and got is None) or (reason and got and reason in got), (row["event_id"], got)
    assert found["last_ms"]["ds"] == DAY
    assert found["after_midnight"]["ds"] == "2026-03-06"
    assert found["late"]["ds"] == "2026-03-02"
    assert {row["delivery_ds"] for row in found.values()} == {DAY}
    assert found["int64"]["user_id"] == 2**63 - 2


def test_a_row_of_a_snapshot_whose_ids_stand_for_none_is_not_taken(spark: Any) -> None:
    rows: list[Row] = [{"item_id": n, "merchant_id": -n - 2, "price": 5.0} for n in range(2)]
    wrong = [{"item_id": one, "merchant_id": 7, "price": 5.0} for one in NO_IDS]
    wrong += [{"item_id": 20 + n, "merchant_id": one, "price": 5.0} for n, one in enumerate(NO_IDS)]
    items_df = frame(spark, [*rows, *wrong], dimension_columns(TINY, Owner.ITEM))
    found = {
        row["item_id"]: row["reason"] for row in checked_dimension(items_df, TINY, Owner.ITEM, DAY).collect()
    }
    assert found == {
        **{n: None for n in range(2)},
        **{one: f"item_id is {NO_ID}" for one in NO_IDS},
        **{20 + n: f"merchant_id is {NO_ID}" for n in range(2)},
    }


@pytest.mark.parametrize(
    ("ds", "next_ds"),
    [("2024-02-29", "2024-03-01"), ("2026-12-31", "2027-01-01"), ("2026-03-29", "2026-03-30")],
)
def test_days_are_those_of_the_datasets_clock_on_every_calendar(spark: Any, ds: str, next_ds: str) -> None:
    start = TINY.day_start_ms(ds)
    rows = [event("a", start), event("b", start + 24 * HOUR - 1), event("c", start + 24 * HOUR)]
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        spark.conf.set("spark.sql.session.timeZone", zone)
        try:
            days_df = frame(spark, rows, COLUMNS).transform(with_days, TINY, ds)
            days = [r["ds"] for r in days_df.orderBy("event_id").collect()]
        finally:
            spark.conf.set("spark.sql.session.timeZone", "UTC")
        assert days == [ds, ds, next_ds], zone
    assert shift_day(ds, 1) == next_ds


def test_snapshots_are_stored_whole_whatever_the_order_they_come_in(spark: Any, deliver: Any) -> None:
    days = [shift_day(DAY, n) for n in range(3)]
    cities = {days[0]: {1: 3, 2: 5}, days[1]: {1: 4, 2: 5}, days[2]: {1: 3}}  # back again, and one is gone
    for ds in (days[0], days[2], days[1]):
        users = [{"user_id": user, "city": city} for user, city in cities[ds].items()]
        deliver(ds, [event(f"e{ds}", TINY.day_start_ms(ds))], users=users)
    held = partition_values(locations.table("tiny", "users"), "ds")
    for ds in (*days, shift_day(DAY, 7)):
        rows = as_of(table(spark, "users"), held, TINY, [ds]).collect()
        assert {row["user_id"]: row["city"] for row in rows} == cities[min(ds, days[2])], ds
    assert as_of(table(spark, "users"), held, TINY, [shift_day(DAY, -1)]).isEmpty()


def test_a_delivery_replaces_what_it_brought_and_nothing_else(spark: Any, deliver: Any) -> None:
    first = [
        event("a", START),
        event("a", START),
        event("old", START - 24 * HOUR),
        event("bad", START, user_id=None),
    ]
    result = deliver(DAY, [*first, *(event(f"n{i}", START + i) for i in range(40))], [])
    assert (result["events"], result["duplicates"], result["quarantined"]) == (42, 1, 2)
    assert result["late_days"] == ["2026-03-04"]
    assert result["reasons"] == {"no user_id": 1, "price is NaN or outside of 1..50": 1}
    deliver("2026-03-06", [event("next", START + 30 * HOUR), event("late", START + 1)])
    deliver(DAY, [event("a", START, item_id=11)])  # corrected: fewer rows
    rows = sorted(
        (r["event_id"], r["ds"], r["delivery_ds"], r["item_id"]) for r in table(spark, "events").collect()
    )
    assert rows == [
        ("a", DAY, DAY, 11),
        ("late", DAY, "2026-03-06", 10),
        ("next", "2026-03-06", "2026-03-06", 10),
    ]
    left = [(r["log"], r["reason"]) for r in table(spark, "quarantine").where(f"ds = '{DAY}'").collect()]
    assert left == [("items", "price is NaN or outside of 1..50")]  # the corrected delivery had no bad event
    assert json.loads(table(spark, "quarantine").first()["record"])["item_id"] == 11
    with pytest.raises(EmptyInputError, match=f"no rows for delivery_ds={DAY}"):
        deliver(DAY, [])
    assert table(spark, "events").count() == 3
    assert math.isclose(table(spark, "items").where("item_id = 10").first()["price"], 5.0)


def test_too_many_broken_records_refuse_the_delivery(spark: Any, deliver: Any) -> None:
    broken = [{"log": "clicks", "reason": "not JSON", "record": "{", "file": "f:3"}] * 2
    with pytest.raises(DeliveryRefusedError, match=r"2 broken records, 9.1% of the delivery.*not JSON"):
        deliver(DAY, [event(f"e{i}", START + i) for i in range(20)], broken)
    assert not Path(locations.table("tiny", "events")).exists()


def test_ids_are_unique_in_their_log_only(spark: Any, deliver: Any) -> None:
    """Click 1 and order 1 are no copies of impression 1, within a delivery and over deliveries."""
    kinds = ("impression", "click", "conversion")
    action = dict(zip(kinds, (None, 1, 2), strict=True))
    once = [
        event("1", START + n, event_type=kind, impression_id="1", action=action[kind])
        for n, kind in enumerate(kinds)
    ]
    other = event("5", START + 9)
    result = deliver(DAY, [*once, *once, other])
    assert (result["events"], result["duplicates"]) == (4, 3)
    late = [other | {"event_type": kind, "action": action[kind]} for kind in kinds[1:]]  # click 5, order 5
    deliver("2026-03-06", [event("2", START + 24 * HOUR), *once[1:], *late])  # and copies come again
    first = events_of(table(spark, "events")).where(f"ds = '{DAY}'").collect()
    wanted = [(kind, "1", DAY) for kind in kinds] + [("impression", "5", DAY)]
    wanted += [(kind, "5", "2026-03-06") for kind in kinds[1:]]
    assert sorted((r["event_type"], r["event_id"], r["delivery_ds"]) for r in first) == sorted(wanted)
    build_days(spark, TINY, DAY)
    (row,) = table(spark, "samples").where(f"ds = '{DAY}'").collect()
    assert (row["label_click"], row["label_conversion"]) == ([1, 1], [1, 1])


def raw_logs(**logs: bytes) -> None:
    """Raw logs of foodlog's `DAY` with an impression, its click, a user and an item, but for `logs`."""
    shown = {"impression_id": "i1", "request_id": "r1", "user_id": 1, "item_id": 10, "time_ms": START}
    lines = {
        "impressions": shown,
        "clicks": {"click_id": "c1", **shown},
        "orders": {"order_id": "o1", **shown},
        "users": {"user_id": 1, "city": "harbour"},
        "items": {"item_id": 10, "price": 20.0},
    }
    for log in SCHEMAS:
        folder = Path(locations.raw("foodlog"), log, f"ds={DAY}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part.jsonl").write_bytes(logs.get(log, json.dumps(lines[log]).encode()) + b"\n")


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("users", b'[{"user_id": 1, "city": "harbour"}, {"user_id": 2}]'),
        ("users", b'{"user_id": null}'),
        ("items", b'[{"item_id": 10}]'),
        ("items", b'{"item_id": 10, "price": "dear"}'),
        ("items", b""),
    ],
)
def test_a_snapshot_without_a_usable_record_is_none(
    spark: Any, lake: Path, caplog: pytest.LogCaptureFixture, log: str, text: bytes
) -> None:
    raw_logs(**{log: text})
    assert ingest.main(["--dataset", "foodlog", "--ds", DAY]) == 1
    assert f"the snapshot {log} has no usable record" in caplog.text
    assert not list(lake.glob("foodlog/*/_delta_log"))


def test_a_snapshot_that_is_an_array_over_many_lines_is_refused(
    spark: Any, lake: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last element alone stands on a line as a record does."""
    lines = ",\n".join(json.dumps({"item_id": n}) for n in range(12))
    raw_logs(items=f"[\n{lines}\n]".encode())
    assert ingest.main(["--dataset", "foodlog", "--ds", DAY]) == 1
    assert "of items, at most 5% are taken" in caplog.text


def test_the_quarantine_is_text_whatever_the_line_was(
    spark: Any, lake: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [f'{{"user_id": {n}, "city": "harbour"}}'.encode() for n in range(1, 100)]
    latin = '{"user_id": 100, "city": "K\xf6ln"}'.encode("latin-1")
    raw_logs(users=b"\n".join([*good, latin, b"\xff\xfe\x00", b"\xed\xa0\x80"]))
    assert ingest.main(["--dataset", "foodlog", "--ds", DAY]) == 0
    uri = locations.table("foodlog", "quarantine")
    records = DeltaTable(uri).to_pyarrow_table(columns=["record"])["record"].to_pylist()
    assert sorted(records)[0] == '{"user_id": 100, "city": "K\ufffdln"}'
    assert len(records) == 3


def test_a_log_has_its_own_share(spark: Any, deliver: Any) -> None:
    """What is lost of a small log, or of a snapshot, is not hidden by what is whole of a large one."""
    rows = [event(f"e{i}", START + i, log="impressions") for i in range(400)]
    clicks = [event(f"c{i}", START + i, event_type="click", action=1, log="clicks") for i in range(30)]
    bad = [{**row, "item_id": None} for row in clicks[:10]]
    with pytest.raises(DeliveryRefusedError, match=r"10 broken records, 33.3% of clicks, .*no item_id"):
        deliver(DAY, [*rows, *bad, *clicks[10:]])
    result = deliver(DAY, [*rows, *bad[:9], *clicks[9:]])
    assert result["logs"]["clicks"] == {"usable": 21, "broken": 9}
    users = [{"user_id": n, "city": 3 if n < 20 else 99} for n in range(40)]
    with pytest.raises(DeliveryRefusedError, match=r"20 broken records, 50.0% of users"):
        deliver(DAY, rows, users=users)


def test_the_history_before_the_log_is_known_to_every_day_and_late_days_stay(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of a year in one delivery: behaviours and statistics of the first day of the log."""
    days = [shift_day(DAY, -n) for n in (1, 40, 300)]
    past = [
        event(f"h{ds}{n}", TINY.day_start_ms(ds) + n, event_type="feedback", action=1)
        for ds in days
        for n in range(9)
    ]
    past.append(event("far", TINY.day_start_ms("1980-01-01"), event_type="feedback", action=1))
    nothing_df = frame(spark, [], BROKEN)
    history = Delivery(frame(spark, past, COLUMNS), None, None, nothing_df)
    monkeypatch.setattr(ingest, "read_history", lambda spark, dataset, root: history)
    for _ in range(2):  # again: no copies
        result = ingest.ingest_history(spark, TINY, "unused")
        assert (result["events"], result["late_days"]) == (27, [])
        assert result["reasons"] == {"time_ms is not in milliseconds of 1990 to 2100": 1}
    assert len(table(spark, "events").inputFiles()) == len(days)
    assert (
        deliver(DAY, [event("a", START), event("late", TINY.day_start_ms(days[1]))])["reasons"][
            "arrived more than 3 days late"
        ]
        == 1
    )
    known_df = known_before(events_of(table(spark, "events")), TINY, [DAY])
    assert known_df.where("delivery_ds = '0001-01-01'").count() == 9  # within history_days
    monkeypatch.setattr(ingest, "read_history", lambda spark, dataset, root: None)
    assert ingest.ingest_history(spark, TINY, "unused")["events"] == 0


def test_a_value_that_is_not_of_its_type_breaks_its_record_alone(spark: Any, deliver: Any) -> None:
    rows = [event(f"e{i}", START + i) for i in range(40)]
    rows[7] |= {"item_id": None, "mistyped": '{"item_id":"ten"}'}
    result = deliver(DAY, rows)
    assert result["reasons"]["not of its type: item_id"] == 1
    record = table(spark, "quarantine").where("reason LIKE 'not of its type%'").first()["record"]
    assert json.loads(json.loads(record)["mistyped"]) == {"item_id": "ten"}


def test_a_truncated_file_and_a_clients_secret_in_it(
    spark: Any, lake: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken file is named, and no line of it is printed: neither of what could be read nor of the rest."""
    for log in SCHEMAS:
        folder = Path(locations.raw("foodlog"), log, f"ds={DAY}")
        folder.mkdir(parents=True)
        lines = [f'{{"impression_id": "canary-{n}", "user_id": 987654321{n}}}\n' for n in range(2000)]
        whole = gzip.compress("".join(lines if log == "impressions" else []).encode())
        (folder / "part-00000.jsonl.gz").write_bytes(whole[:-3000] if log == "impressions" else whole)
    spark.conf.set("spark.sql.files.ignoreCorruptFiles", "true")  # as a cluster may have it
    with caplog.at_level(logging.INFO):
        assert ingest.main(["--dataset", "foodlog", "--ds", DAY]) == 1
    assert f"ingest of foodlog {DAY}" in caplog.text
    assert "part-00000.jsonl.gz" in caplog.text
    assert "spark.sql.files.ignoreCorruptFiles is true here" in caplog.text
    printed = caplog.text + "".join(capsys.readouterr())
    assert "canary" not in printed
    assert "987654321" not in printed
    assert not Path(locations.table("foodlog", "events")).exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("nope + 1", "nope"), ("array(id) + 1", "DATATYPE_MISMATCH"), ("CAST('two' AS INT)", "'two'")],
)
def test_a_message_of_spark_has_neither_plan_nor_stack(spark: Any, wrong: str, said: str) -> None:
    with pytest.raises(LakeError) as caught, spark_errors("the subject"):
        spark.range(1).selectExpr(wrong).collect()
    message = str(caught.value)
    assert message.startswith("the subject: ")
    assert said in message
    assert "\n" not in message
    assert not any(
        part in message for part in ("Project", "Range (", "+-", "== ", "JVM", ".scala:", ".java:")
    )


@pytest.mark.slow
def test_a_plain_command_prints_its_message_and_no_stack(lake: Path) -> None:
    """Without SPARK_CONF_DIR, in a session of its own: a file that breaks off in its gzip stream."""
    raw_logs()
    folder = Path(locations.raw("foodlog"), "clicks", f"ds={DAY}")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "part-00000.jsonl.gz").write_bytes(gzip.compress(b'{"click_id": "c1"}\n' * 5000)[:-20])
    unset = ("SPARK_CONF_DIR", "SPARK_REMOTE", "SPARK_MASTER")
    done = subprocess.run(
        [sys.executable, "-m", "spark_jobs.ingest", "--dataset", "foodlog", "--ds", DAY],
        env={name: value for name, value in os.environ.items() if name not in unset},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "part-00000.jsonl.gz" in done.stderr.splitlines()[-1]
    assert not [line for line in done.stderr.splitlines() if line.lstrip().startswith(("at ", "Caused by"))]
    assert len(done.stderr.splitlines()) < 12, done.stderr


def test_no_id_and_no_value_of_a_record_is_printed(
    spark: Any, deliver: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    # Neither stands in this file as it does in the records: a library may show lines of its caller.
    word, canary = "-".join(("no", "value")), 8 * 123456789 + 9
    rows = [event(f"{word}-{i}", START + i, user_id=canary + i, item_id=canary) for i in range(60)]
    broken = [{"log": "clicks", "reason": "not JSON", "record": word, "file": "f"}]
    with caplog.at_level(logging.INFO):
        results = [deliver(DAY, [*rows, event(word, START, user_id=canary, weather=canary)], broken)]
        results.append(build_days(spark, TINY, DAY))
    printed = caplog.text + "".join(capsys.readouterr()) + json.dumps(results)
    place = printed.find(word)
    assert place < 0, printed[max(place - 300, 0) : place + 20]
    assert str(canary)[:8] not in printed
    commit = json.dumps(last_commit(locations.table("tiny", "events"), f"delivery_ds={DAY}").metadata)
    assert word not in commit
    assert str(canary)[:8] not in commit


def test_an_absent_delivery_is_named(spark: Any, lake: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ingest.main(["--dataset", "foodlog", "--ds", DAY]) == 1
    assert DAY in caplog.text
    assert locations.raw("foodlog") in caplog.text


def test_an_empty_day_touches_nothing(spark: Any, deliver: Any) -> None:
    deliver(DAY, [event(f"e{i}", START + i) for i in range(15)])
    result = build_days(spark, TINY, DAY)
    assert (result["rows"], result["candidates"], result["empty"]) == (1, 15, False)
    before = current_version(locations.table("tiny", "samples"))
    empty = build_days(spark, TINY, "2026-03-06")
    assert empty["empty"] is True
    assert current_version(locations.table("tiny", "samples")) == before
    deliver("2026-03-07", [event("c", START + 48 * HOUR, event_type="click")])
    with pytest.raises(EmptyInputError, match="2026-03-07: no impressions, although the day has a delivery"):
        build_days(spark, TINY, "2026-03-07")
    assert current_version(locations.table("tiny", "samples")) == before


def ten_days() -> dict[str, list[Row]]:
    """Deliveries of ten days with clicks, late orders and a copy."""
    deliveries: dict[str, list[Row]] = {}
    for n in range(10):
        ds = shift_day(DAY, n)
        start = TINY.day_start_ms(ds)
        rows = deliveries.setdefault(ds, [])
        for user in (1, 2):
            shown = event(f"{ds}-{user}", start + 9 * HOUR + user, user_id=user)
            clicked = {**shown, "event_id": f"{ds}-{user}-c", "event_type": "click", "action": 1}
            ordered = {**shown, "event_id": f"{ds}-{user}-o", "event_type": "conversion", "action": 2}
            rows += [shown, {**clicked, "time_ms": shown["time_ms"] + 5}]
            late = deliveries.setdefault(shift_day(ds, user), [])
            late += [
                {**ordered, "time_ms": shown["time_ms"] + 9},
                {**clicked, "time_ms": shown["time_ms"] + 5},
            ]
    return {ds: rows for ds, rows in sorted(deliveries.items()) if ds <= shift_day(DAY, 9)}


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_what_is_made_again_follows_from_the_impression(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes across midnight, in vain, corrected, before their impression: what changes is made again."""
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    days = [shift_day(DAY, n) for n in range(3)]
    end = TINY.day_end_ms(DAY)
    night = event("night", end - 600_000)
    click = event("c", end - 500_000, event_type="click", impression_id="night", action=1)
    order = event("o", end + 1_200_000, event_type="conversion", impression_id="night", action=2)
    early = event("e", START + 5 * HOUR + 1, event_type="click", impression_id="unseen", action=1)

    def labels() -> dict[str, list[int]]:
        (row,) = table(spark, "samples").where(f"ds = '{DAY}'").collect()
        return {
            name: labels
            for name, *labels in zip(
                row["candidate_impression_id"], row["label_click"], row["label_conversion"], strict=True
            )
        }

    deliver(DAY, [night, click, early])
    build_days(spark, TINY, DAY, late=True)
    assert labels() == {"night": [1, 0]}
    deliver(days[1], [event("b", end + HOUR), order])  # a log that is partitioned by event time
    second = build_days(spark, TINY, days[1], late=True)
    assert (second["rebuilt"], second["stale"], labels()) == ([DAY], [], {"night": [1, 1]})
    vain = {**click, "event_id": "v", "time_ms": end - 1}  # late, and a second click changes nothing
    deliver(days[2], [event("d", end + 25 * HOUR), vain, click])
    third = build_days(spark, TINY, days[2], late=True)
    assert (third["rebuilt"], third["stale"]) == ([], [])
    # Corrected: the order was another impression's; and an impression that arrives after its click.
    deliver(
        days[1], [event("b", end + HOUR), {**order, "impression_id": "b"}, event("unseen", START + 5 * HOUR)]
    )
    fourth = build_days(spark, TINY, days[1], late=True)
    assert (fourth["rebuilt"], labels()) == ([DAY], {"unseen": [1, 0], "night": [1, 0]})
    assert fourth["stale"] == [days[2]], "its history has changed"
    again = build_days(spark, TINY, days[1], late=True)
    assert again["rebuilt"] == [DAY], "what an attempt before made again is named to what follows"
    assert again["versions"] == fourth["versions"]


@pytest.mark.slow
def test_a_day_whose_delivery_is_no_longer_allowed_is_not_made_again(spark: Any, deliver: Any) -> None:
    deliver(DAY, [event("a", START + HOUR)])
    build_days(spark, TINY, DAY)
    path = verdicts.path_of("tiny", "events", DAY)
    verdicts.write(path, {**(verdicts.read(path) or {}), "success": False, "allowed": ""})
    deliver("2026-03-06", [event("b", START + 25 * HOUR)])
    assert build_days(spark, TINY, "2026-03-06", late=True)["rebuilt"] == []
    assert table(spark, "samples").where(f"ds = '{DAY}'").count() == 1


@pytest.mark.slow
def test_tables_made_anew_are_other_inputs_whatever_their_versions(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    versions = []
    for item in (10, 11):
        deliver(DAY, [event("a", START + HOUR, item_id=item)])
        build_days(spark, TINY, DAY)
        (row,) = table(spark, "samples").collect()
        assert row["candidate_item_id"] == [item]
        uris = [locations.table("tiny", name) for name in ("events", "users", "items")]
        versions.append([current_version(uri) for uri in uris])
        for uri in uris:
            shutil.rmtree(uri)
    assert versions[0] == versions[1]


@pytest.mark.slow
def test_a_delivery_that_failed_its_gate_is_neither_history_nor_statistics_nor_a_snapshot(
    spark: Any, deliver: Any
) -> None:
    days = [shift_day(DAY, n) for n in range(3)]
    for n, ds in enumerate(days):
        shown = event(f"{ds}", TINY.day_start_ms(ds) + HOUR)
        clicked = {**shown, "event_id": f"{ds}-c", "event_type": "click", "action": 1}
        clicked["time_ms"] += 5
        deliver(ds, [shown, clicked], users=[{"user_id": 1, "city": n + 1}] if n < 2 else None)

    def built(ds: str) -> Any:
        build_days(spark, TINY, ds)
        (row,) = table(spark, "samples").where(f"ds = '{ds}'").collect()
        return len(row["static_time_ms"]), row["profile_city"], sum(row["label_click"])

    before = built(days[2])
    path = verdicts.path_of("tiny", "events", days[1])
    failed = {**(verdicts.read(path) or {}), "allowed": ""}
    verdicts.write(path, failed)
    with pytest.raises(NotPassedError, match=f"events of {days[1]} did not pass their gate"):
        build_days(spark, TINY, days[1])
    assert (before, built(days[2])) == ((2, 2, 1), (1, 1, 1))
    commit = last_commit(locations.table("tiny", "samples"), f"ds={days[2]}")
    assert commit is not None
    assert commit.metadata["inputs"]["left_out"] == [days[1]]
    assert commit.metadata["allowed"] == {days[0]: "a test", days[2]: "a test"}
    path.unlink()
    with pytest.raises(NotPassedError, match=f"judged events of {days[1]} as they are now"):
        build_days(spark, TINY, days[2])
    assert built(days[0])[0] == 0  # what comes after the day of the run is not known yet, and not asked for
    commit = last_commit(locations.table("tiny", "samples"), f"ds={days[0]}")
    assert commit is not None
    assert commit.metadata["inputs"]["left_out"] == [days[1]]
    verdicts.write(path, {**failed, "success": True})
    assert build_days(spark, TINY, days[1])["stale"] == [days[2]]
    assert built(days[2]) == before


@pytest.mark.slow
def test_a_day_of_the_history_is_judged_and_left_out_like_a_day_of_the_log(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, eve = shift_day(DAY, -2), shift_day(DAY, -1)
    uri = locations.table("tiny", "samples")
    past = []
    for ds in (before, eve):
        past.append(event(ds, TINY.day_start_ms(ds) + HOUR, weather=2))
        past.append({**past[-1], "event_id": f"{ds}-c", "event_type": "click", "action": 1})
        past[-1]["time_ms"] += 5
    users, items = [{"user_id": 1, "city": 4}], [{"item_id": 10, "merchant_id": 7, "price": 5.0}]
    history = Delivery(
        frame(spark, past, COLUMNS),
        frame(spark, users, dimension_columns(TINY, Owner.PROFILE)),
        frame(spark, items, dimension_columns(TINY, Owner.ITEM)),
        frame(spark, [], BROKEN),
    )
    monkeypatch.setattr(ingest, "read_history", lambda spark, dataset, root: history)
    deliver(DAY, [event("a", START)], users=[{"user_id": 1, "city": 9}])

    def built(ds: str) -> Any:
        build_days(spark, TINY, ds)
        (row,) = table(spark, "samples").where(f"ds = '{ds}'").collect()
        return len(row["static_time_ms"]), row["profile_city"], list(row["label_click"])

    assert built(DAY) == (0, 9, [0])
    ingest.ingest_history(spark, TINY, "unused")
    assert built(DAY) == (2, 9, [0])
    with pytest.raises(NotPassedError, match=f"judged events of {eve} as they are now"):
        build_days(spark, TINY, eve)
    verdicts.allow("tiny", "events", [before, eve], "a test", of_history=[before, eve])
    assert build_days(spark, TINY, before)["stale"] == []
    assert (built(before), built(eve)) == ((0, 4, [1]), (1, 4, [1]))

    def absent(spark: Any, root: str, ds: str) -> None:
        raise FileNotFoundError(f"no delivery of {ds}")

    monkeypatch.setattr(ingest, "source_of", lambda name: SimpleNamespace(read_delivery=absent))
    assert ingest.ingest(spark, TINY, eve, "unused")["of_history"]  # as the chain of a day does
    with pytest.raises(FileNotFoundError, match="no delivery"):
        ingest.ingest(spark, TINY, shift_day(DAY, -3), "unused")
    # Its gate failed: then no day knows it, as of a delivery; the other day of the history is.
    path = verdicts.path_of("tiny", "events", before)
    verdicts.write(path, {**(verdicts.read(path) or {}), "allowed": ""})
    assert (built(eve)[0], built(DAY)[0]) == (0, 1)
    with pytest.raises(NotPassedError, match=f"events of {before} did not pass their gate"):
        build_days(spark, TINY, before)
    # Taken in again, its days are other rows: later days are stale, and the verdicts are of the past.
    ingest.ingest_history(spark, TINY, "unused")
    with pytest.raises(NotPassedError, match=f"judged events of {eve} as they are now"):
        build_days(spark, TINY, eve)
    verdicts.allow("tiny", "events", [before, eve], "a test", of_history=[before, eve])
    assert build_days(spark, TINY, before)["stale"] == [eve, DAY]
    commit = last_commit(uri, f"ds={before}")
    assert commit is not None
    assert set(commit.metadata["allowed"]) == {"0001-01-01", before, eve, DAY}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_daily_runs_with_late_orders_equal_one_backfill_and_a_rerun(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remade = []
    for ds, rows in ten_days().items():
        deliver(ds, rows)
        remade += build_days(spark, TINY, ds, late=True)["rebuilt"]
    daily = content_hash(table(spark, "samples"))
    days = list(ten_days())
    assert len(days) == 10
    # What is late comes one day later, or two, as far as there are later days.
    assert sorted(remade) == sorted([*days[:-1], *days[:-2]])
    ordered = (
        table(spark, "samples").where(f"ds = '{DAY}'").selectExpr("explode(label_conversion) y").collect()
    )
    assert [row["y"] for row in ordered] == [1, 1]
    for ds in ten_days():
        build_days(spark, TINY, ds)  # once more, from the state that holds everything
    assert content_hash(table(spark, "samples")) == daily
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "backfill"))
    for ds, rows in ten_days().items():
        deliver(ds, rows)
    with ThreadPoolExecutor(2) as pool:  # two at a time, the newest first
        list(pool.map(lambda ds: build_days(spark, TINY, ds), reversed(ten_days())))
    assert content_hash(table(spark, "samples")) == daily


@pytest.mark.slow
def test_a_build_that_died_after_its_commit_has_quarantined_before(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    deliver(DAY, [event("a", START), event("orphan", START + 5, event_type="click", impression_id="gone")])

    def die(phase: str) -> None:
        if phase == "build_samples:after_commit":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spark_jobs.lake.writer.reach", die)
        with pytest.raises(KeyboardInterrupt):
            build_days(spark, TINY, DAY)
    assert build_days(spark, TINY, DAY)["unchanged"] is True
    left = table(spark, "quarantine").where("stage = 'build_samples'").collect()
    assert [json.loads(r["record"])["event_id"] for r in left] == ["orphan"]


@pytest.mark.slow
def test_a_commit_says_what_it_was_made_from_and_own_work_is_kept(
    spark: Any, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.lake.writer.git_sha", lambda: "abc")
    orphan = event("orphan", START + 5, event_type="click", impression_id="gone")
    early, tardy = (
        event(name, START + 100 + after, event_type="click", impression_id="b")
        for name, after in (("early", -1), ("tardy", TINY.attribution_ms + 1))
    )
    bot = [event(f"bot{i}", START + i, user_id=9) for i in range(TINY.max_impressions_a_day + 1)]
    deliver(DAY, [event("a", START), event("b", START + 100), orphan, early, tardy, *bot])
    first = build_days(spark, TINY, DAY)
    assert first["rows"] == 1
    commit = last_commit(locations.table("tiny", "samples"), f"ds={DAY}")
    assert commit is not None
    assert commit.version == first["samples_version"]
    assert commit.metadata["inputs"]["events"] == current_version(locations.table("tiny", "events"))
    assert commit.metadata["git_sha"] == "abc"
    again = build_days(spark, TINY, DAY)
    assert (again["unchanged"], again["samples_version"]) == (True, first["samples_version"])
    left = {
        (record.get("event_id") or record["user_id"]): r["reason"]
        for r in table(spark, "quarantine").where("stage = 'build_samples'").collect()
        for record in [json.loads(r["record"])]
    }
    outside = "outside of the attribution window of its impression"
    assert left == {
        9: "a bot: more events on the day than max_impressions_a_day",
        "orphan": "no impression of this user with this impression_id",
        **dict.fromkeys(("early", "tardy"), outside),
    }
