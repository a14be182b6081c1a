"""Sources: literal files in, typed rows out; broken lines are kept apart; the documented example runs."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import re
import sys
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

import spark_jobs.sources
from spark_jobs.contract import datasets
from spark_jobs.contract.features import Dataset, Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.sources import Delivery, foodlog, foodlog_names, kuairand, source_of, typed
from spark_jobs.sources.files import read_parquet
from spark_jobs.sources.records import checked_dimension, last_copies, with_days, with_reason

REPO = Path(__file__).resolve().parents[2]
KUAIRAND_ROOT = Path(
    os.environ.get("MTGR_KUAIRAND") or REPO.parent / "shared" / "data" / "KuaiRand-Pure" / "data"
)
DS = "2026-03-01"
NOON = 1_772_366_400_000  # 2026-03-01 12:00 UTC
LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def rows(df: DataFrame, *columns: str) -> list[tuple[object, ...]]:
    return sorted((tuple(row) for row in df.select(*columns).collect()), key=repr)


def assert_types(delivery: Delivery, dataset: Dataset) -> None:
    expected = {**dict(event_columns(dataset)), "arrival_ms": "bigint", "file": "string"}
    has = {"log": "string", **dict(delivery.events_df.dtypes)}
    assert has == expected | dict.fromkeys(("mistyped", "log"), "string")
    assert delivery.users_df is not None
    assert delivery.items_df is not None
    for snapshot_df, owner in ((delivery.users_df, Owner.PROFILE), (delivery.items_df, Owner.ITEM)):
        assert snapshot_df.dtypes == [*dimension_columns(dataset, owner), ("mistyped", "string")]
    assert delivery.broken_df.dtypes == [(name, "string") for name in ("log", "reason", "record", "file")]


def write_foodlog(root: Path, **logs: list[str]) -> None:
    for log in foodlog.SCHEMAS:
        folder = root / log / f"ds={DS}"
        folder.mkdir(parents=True)
        text = "".join(f"{line}\n" for line in logs.get(log, []))
        (folder / "part-00000.jsonl.gz").write_bytes(gzip.compress(text.encode()))


def shown(**changes: object) -> str:
    row = {
        "impression_id": "i1",
        "request_id": "r1",
        "user_id": 1,
        "item_id": 10,
        "time_ms": NOON,
        "weather": "rain",
        "distance_km": 1.5,
        "delivery_minutes": 30,
        "position": 2,
        "received_ms": NOON + 5,
    }
    return json.dumps(row | changes)


def test_foodlog_lines_become_typed_events(spark: SparkSession, tmp_path: Path) -> None:
    follow = {
        "impression_id": "i1",
        "request_id": "r1",
        "user_id": 1,
        "item_id": 10,
        "received_ms": NOON + 99,
    }
    write_foodlog(
        tmp_path,
        impressions=[
            shown(),
            shown(),
            shown(impression_id="i2", weather=None, user_id=None, time_ms=NOON - 86_400_000),
        ],
        clicks=[json.dumps({"click_id": "c1", "time_ms": NOON + 7, **follow})],
        orders=[json.dumps({"order_id": "o1", "time_ms": NOON + 43_200_000, **follow})],
    )
    delivery = foodlog.read_delivery(spark, str(tmp_path), DS)
    assert_types(delivery, FOODLOG)
    names = ("event_id", "event_type", "user_id", "impression_id", "action", "ds", "weather", "arrival_ms")
    assert rows(delivery.events_df, *names) == [
        ("c1", "click", 1, "i1", 1, DS, 0, NOON + 99),
        ("i1", "impression", 1, "i1", None, DS, 3, NOON + 5),
        ("i1", "impression", 1, "i1", None, DS, 3, NOON + 5),
        ("i2", "impression", None, "i2", None, "2026-02-28", 0, NOON + 5),
        ("o1", "conversion", 1, "i1", 2, "2026-03-02", 0, NOON + 99),
    ]
    assert rows(delivery.events_df, "delivery_ds") == [(DS,)] * 5
    assert delivery.broken_df.isEmpty()


def test_foodlog_names_become_codes_and_unknown_ones_zero(spark: SparkSession, tmp_path: Path) -> None:
    user = {
        "user_id": 1,
        "city": "hillside",
        "age": "30-39",
        "budget": "lavish",
        "is_member": True,
        "home_cell": 5,
    }
    dish = {"item_id": 10, "merchant_id": 3, "cuisine": "hotpot", "price": 12.0, "merchant_cell": 9}
    write_foodlog(
        tmp_path,
        users=[json.dumps(user | {"registered_on": "2026-02-27"}), '{"user_id": 2, "city": "Atlantis"}'],
        items=[json.dumps(dish), json.dumps(dish | {"item_id": 11, "cuisine": None, "price": None})],
    )
    delivery = foodlog.read_delivery(spark, str(tmp_path), DS)
    assert rows(delivery.users_df.drop("mistyped"), "*") == [
        (1, 2, 4, 5, 2, 5, 2.0, DS),
        (2, 0, 0, 0, 0, 0, 0.0, DS),
    ]
    assert rows(delivery.items_df.drop("mistyped"), "*") == [
        (10, 3, 3, 2, 12.0, 9, DS),
        (11, 3, 0, 0, None, 9, DS),
    ]


def test_foodlog_keeps_broken_lines_apart(spark: SparkSession, tmp_path: Path) -> None:
    broken = [
        '{"impression_id": "i9", "user',
        "WARN queue is full",
        shown(user_id="one"),
        "[1, 2]",
        shown(time_ms=1.5e12),
    ]
    write_foodlog(tmp_path, impressions=[shown(), *broken, ""])
    delivery = foodlog.read_delivery(spark, str(tmp_path), DS)
    assert rows(delivery.events_df, "event_id") == [("i1",)]
    assert rows(delivery.broken_df, "log", "record") == sorted(("impressions", line) for line in broken)
    assert delivery.broken_df.first()["file"].endswith("part-00000.jsonl.gz")


def test_two_records_on_a_line_are_both_read_and_all_else_on_it_is_broken(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Files joined without a newline between them, and whatever else stands behind a record."""
    first, second, third = (shown(impression_id=f"i{n}") for n in range(3))
    braces = shown(impression_id="i}{3", request_id="{r}")
    nested = shown(impression_id="i4", extra={"a": {"b": [1]}})
    broken = [
        f"{first} WARN queue is full",
        f"{second}}}",
        f"[{first},{second}]",
        f"{first},{second}",
        f"{first},",
        f"{{{first}}}",
        "[",
        '"text"',
        "7",
        f"x{first}",
        '{"time_ms": 1e12}',
    ]
    good = [f"{first}{second}", f" {third} \t{braces}  ", nested, "   "]
    write_foodlog(tmp_path, impressions=[*good, *broken], clicks=[shown(click_id=1) + shown(click_id=2)])
    delivery = foodlog.read_delivery(spark, str(tmp_path), DS)
    names = [f"{row['log']}/{row['event_id']}" for row in delivery.events_df.collect()]
    assert sorted(names) == [
        *("clicks/1", "clicks/2", "impressions/i0", "impressions/i1"),
        *("impressions/i2", "impressions/i4", "impressions/i}{3"),
    ]
    records = [row["record"] for row in delivery.broken_df.collect()]
    assert sorted(records) == sorted(broken)


def test_a_csv_line_of_two_records_and_a_header_among_the_lines_are_broken(
    spark: SparkSession, tmp_path: Path
) -> None:
    noon = 1_650_859_200_000
    joined = view(7, 3, noon) + view(7, 4, noon + 1)
    write_kuairand(tmp_path, view(7, 3, noon + 2), joined, LOG_HEADER, view(7, 3, noon + 3) + ",")
    delivery = kuairand.read_delivery(spark, str(tmp_path), "2022-04-25")
    assert delivery.events_df.where("event_type = 'impression'").count() == 1
    assert delivery.broken_df.count() == 3


def test_times_and_numbers_that_no_type_holds_break_their_record_alone(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Nanoseconds, the ends of int64 and beyond, in every number of a record."""
    huge = [1_772_366_400_000_000_000, 2**63 - 1, -(2**63)]
    numbers = ("time_ms", "received_ms", "user_id", "item_id", "distance_km", "delivery_minutes", "position")
    lines = [
        shown(impression_id=f"{name}{n}", **{name: value}) for name in numbers for n, value in enumerate(huge)
    ]
    beyond = [
        shown(impression_id=f"{name} beyond {n}", **{name: value})
        for name in numbers
        for n, value in enumerate((2**63, 10**400, -(10**30)))
    ]
    users = [
        json.dumps({"user_id": 1, "home_cell": 2**63 - 1, "registered_on": day})
        for day in ("-99999-01-01", "x")
    ]
    items = [json.dumps({"item_id": 1, "price": 1e308, "merchant_id": -(2**63)})]
    write_foodlog(tmp_path, impressions=[shown(), *lines, *beyond], users=users, items=items)
    delivery = foodlog.read_delivery(spark, str(tmp_path), DS)
    checked_df = delivery.events_df.transform(last_copies).transform(with_days, FOODLOG, DS)
    reasons = {row["event_id"]: row["reason"] for row in with_reason(checked_df, FOODLOG, DS).collect()}
    assert reasons["i1"] is None
    assert all("more than a year" in reasons[f"time_ms{n}"] for n in range(3))
    assert all("distance_km is NaN or outside" in reasons[f"distance_km{n}"] for n in range(3))
    assert all("is NaN or outside" in reasons[f"delivery_minutes beyond {n}"] for n in range(3))
    assert (
        delivery.broken_df.where("log = 'impressions'").count() == 3 + 5 * 3
    )  # the position, and beyond int64
    for snapshot_df, owner in ((delivery.users_df, Owner.PROFILE), (delivery.items_df, Owner.ITEM)):
        assert checked_dimension(snapshot_df, FOODLOG, owner, DS).count() == 1


def test_kuairands_numbers_at_the_ends_of_int64_break_nothing_else(
    spark: SparkSession, tmp_path: Path
) -> None:
    noon = 1_650_859_200_000
    ends = [view(7, 3, value) for value in (2**63 - 1, -(2**63), noon * 1_000_000)]
    write_kuairand(tmp_path, view(7, 3, noon), view(7, 4, noon, play_ms=2**63 - 1), *ends)
    (tmp_path / "user_features_b.csv").write_text(
        (tmp_path / "KuaiRand-Pure/data/user_features_pure.csv").read_text().replace(",2.0,", ",1e300,")
    )
    delivery = kuairand.read_delivery(spark, str(tmp_path), "2022-04-25")
    assert delivery.events_df.where("event_type = 'impression'").count() == 2
    assert delivery.broken_df.count() == 3
    mistyped = rows(delivery.users_df, "user_id", "mistyped")
    assert mistyped == [(7, '{"onehot_feat2":1.0E300}'), (7, None)]


def test_a_wrong_type_of_a_column_names_the_column(spark: SparkSession) -> None:
    columns = [("user_id", "bigint"), ("price", "float")]
    rows_df = spark.createDataFrame([("1", 2.0), ("two", 3.0), (None, 4.0)], "user_id string, price double")
    assert rows(typed(rows_df, columns), "user_id", "price", "mistyped") == [
        (1, 2.0, None),
        (None, 3.0, '{"user_id":"two"}'),
        (None, 4.0, None),
    ]
    with pytest.raises(ValueError, match="column price is array<double>, declared float"):
        typed(rows_df.selectExpr("user_id", "array(price) AS price"), columns)
    with pytest.raises(ValueError, match="column price is missing; the source gives user_id"):
        typed(rows_df.select("user_id"), columns)


def test_parquet_names_the_file_and_the_column(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "p")
    pq.write_table(pa.table({"a": pa.array([1, 300], pa.int32()), "b": ["1", "x"]}), tmp_path / "p")
    read_df = read_parquet(spark.read, path, {"a": "tinyint", "b": "bigint"}, "nothing there")
    assert rows(read_df, "a", "b", "is_broken") == [(1, 1, False), (None, None, True)]
    with pytest.raises(ValueError, match="p has no column c; it has a, b"):
        read_parquet(spark.read, path, {"c": "int"}, "nothing there")
    with pytest.raises(ValueError, match="p: column a is int, timestamp is wanted"):
        read_parquet(spark.read, path, {"a": "timestamp"}, "nothing there")
    with pytest.raises(FileNotFoundError, match="nothing there"):
        read_parquet(spark.read, f"{path}q", {"a": "int"}, "nothing there")


def test_foodlog_names_the_absent_delivery(spark: SparkSession, tmp_path: Path) -> None:
    write_foodlog(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no delivery of 2026-03-02: .*/impressions/ds=2026-03-02"):
        foodlog.read_delivery(spark, str(tmp_path), "2026-03-02")


def test_foodlog_codes_fit_their_features() -> None:
    size = {feature.name: feature.cardinality for feature in FOODLOG.features}
    for feature, table in (
        ("city", foodlog_names.CITIES),
        ("age_band", foodlog_names.AGES),
        ("budget_band", foodlog_names.BUDGETS),
        ("cuisine", foodlog_names.CUISINES),
        ("weather", foodlog_names.WEATHERS),
        ("price_band", (*foodlog_names.PRICE_LIMITS, "the rest")),
    ):
        assert len(table) < size[feature]
        assert len(set(table)) == len(table)


def write_kuairand(root: Path, *lines: str, header: str = LOG_HEADER) -> None:
    data = root / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    (data / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join([header, *lines]) + "\n")
    (data / "log_random_4_22_to_5_08_pure.csv").write_text("not read\n")
    bands = ",".join(
        f"{name}_range" for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    )
    onehot = ",".join(f"onehot_feat{i}" for i in range(18))
    (data / "user_features_pure.csv").write_text(
        f"user_id,user_active_degree,is_video_author,{bands},{onehot}\n"
        f'7,UNKNOWN,0,500+,"[1,10)",0,730+,1,,2.0{",0" * 15}\n'
    )
    (data / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,video_duration,music_id,tag\n"
        '3,33,AD,2022-04-10,Kmovie,2500.0,333,"12,62"\n4,44,NORMAL,2022-04-10,Telepathy,,0,\n'
    )


def view(user: int, video: int, time_ms: int, *deeds: str, play_ms: int = 0, date: int = 20220425) -> str:
    values = {
        "user_id": user,
        "video_id": video,
        "date": date,
        "time_ms": time_ms,
        "play_time_ms": play_ms,
        "tab": 4,
    }
    return ",".join(str(values.get(name, int(name in deeds))) for name in LOG_HEADER.split(","))


def test_kuairand_lines_become_events_when_their_outcome_is_known(
    spark: SparkSession, tmp_path: Path
) -> None:
    noon = 1_650_859_200_000  # 2022-04-25 12:00 in China
    midnight = noon + 43_200_000
    write_kuairand(
        tmp_path,
        view(7, 3, noon),
        view(7, 3, noon),
        view(7, 4, noon + 1, "is_click", "long_view", play_ms=60_000),
        view(7, 4, midnight - 1, "is_click", "is_follow", play_ms=5_000_000, date=20220426),
        view(7, 4, midnight, "is_like", "is_hate", date=20220426),
        "7,4,20220425,oops",
        view(7, 3, noon + 2).replace("20220425", "yesterday"),
    )
    delivery = kuairand.read_delivery(spark, str(tmp_path), "2022-04-25")
    assert_types(delivery, KUAIRAND)
    skip = ("7-3-1650859200000-feedback", "feedback", 3, noon + 1_000, 1, "2022-04-25", 4)
    first = ("7-3-1650859200000-impression", "impression", 3, noon, None, "2022-04-25", 4)
    names = ("event_id", "event_type", "item_id", "time_ms", "action", "ds", "tab")
    assert rows(delivery.events_df, *names) == sorted(
        [
            *(first, first, skip, skip),
            ("7-4-1650859200001-impression", "impression", 4, noon + 1, None, "2022-04-25", 4),
            ("7-4-1650859200001-click", "click", 4, noon + 60_001, None, "2022-04-25", 4),
            ("7-4-1650859200001-conversion", "conversion", 4, noon + 60_001, None, "2022-04-25", 4),
            ("7-4-1650859200001-feedback", "feedback", 4, noon + 60_001, 3, "2022-04-25", 4),
            ("7-4-1650902399999-impression", "impression", 4, midnight - 1, None, "2022-04-25", 4),
            ("7-4-1650902399999-click", "click", 4, midnight + 1_799_999, None, "2022-04-26", 4),
            ("7-4-1650902399999-feedback", "feedback", 4, midnight + 1_799_999, 4, "2022-04-26", 4),
        ],
        key=repr,
    )
    mistyped, short = sorted(delivery.broken_df.collect(), key=lambda row: len(row["record"]), reverse=True)
    assert '"date":"yesterday"' in mistyped["record"]
    assert (short["log"], short["record"]) == ("log_standard", "7,4,20220425,oops")
    next_day_df = kuairand.read_delivery(spark, str(tmp_path), "2022-04-26").events_df
    assert rows(next_day_df, "event_type", "action") == [("feedback", 5), ("impression", None)]
    profile = ("active_degree", "video_author", "follow_band", "fans_band", "friend_band", "register_band")
    onehot = ("onehot_feat0", "onehot_feat1", "onehot_feat2")
    assert rows(delivery.users_df, "user_id", *profile, *onehot) == [(7, 0, 1, 8, 2, 1, 8, 2, 0, 3)]
    items = [(3, 33, 333, 13, 2, 3, 2.5, "2022-04-25"), (4, 44, 0, 0, 1, 0, 0.0, "2022-04-25")]
    assert rows(delivery.items_df.drop("mistyped"), "*") == items


def test_kuairand_history_is_what_happened_before_the_log(spark: SparkSession, tmp_path: Path) -> None:
    midnight = 1_650_859_200_000 - 43_200_000
    write_kuairand(tmp_path, view(7, 3, 1_650_859_200_000), view(8, 3, midnight - 1))
    assert kuairand.read_history(spark, str(tmp_path)) is None
    history = {
        "user_id": [7],
        "last_time_ms": [1_650_000_000_000],
        "watch_seq": [[3, 3, 4]],
        "like_seq": [[3]],
        "long_watch_seq": [[9, 4]],
    }
    pq.write_table(pa.table(history), tmp_path / "user_history_before_20220425.parquet")
    delivery = kuairand.read_history(spark, str(tmp_path))
    assert delivery is not None
    assert (delivery.users_df, delivery.items_df, delivery.broken_df.count()) == (None, None, 0)
    view_df = delivery.events_df.where("user_id = 8")
    assert rows(view_df, "event_type", "ds", "log") == [
        ("feedback", "2022-04-25", "log_standard"),
        ("impression", "2022-04-24", "log_standard"),
    ]
    events_df = delivery.events_df.where("user_id = 7")
    noon = 1_650_859_200_000 - 86_400_000
    assert rows(events_df.orderBy("time_ms"), "time_ms", "item_id", "action", "event_type") == [
        (noon - 4_000, 9, 3, "feedback"),
        (noon - 3_000, 3, 1, "feedback"),
        (noon - 2_000, 3, 5, "feedback"),
        (noon - 1_000, 4, 3, "feedback"),
    ]
    assert len(set(rows(events_df, "event_id"))) == 4
    assert rows(events_df, "ds")[0] == ("2022-04-24",)
    with pytest.raises(FileNotFoundError, match="no delivery of 2022-04-23: no line of that day"):
        kuairand.read_delivery(spark, str(tmp_path), "2022-04-23")


def test_kuairand_history_is_not_read_beside_a_log_of_those_days(spark: SparkSession, tmp_path: Path) -> None:
    write_kuairand(tmp_path, view(7, 3, 1_650_859_200_000 - 86_400_000, date=20220424))
    history = {"user_id": [7], "watch_seq": [[3]], "like_seq": [[3]], "long_watch_seq": [[3]]}
    pq.write_table(pa.table(history), tmp_path / "user_history_before_20220425.parquet")
    assert kuairand.read_history(spark, str(tmp_path)) is None


def test_kuairand_refuses_a_log_with_other_columns(spark: SparkSession, tmp_path: Path) -> None:
    write_kuairand(tmp_path, view(7, 3, 1_650_859_200_000), header=LOG_HEADER.replace("is_click", "clicked"))
    with pytest.raises(Exception, match="CSV header does not conform"):
        kuairand.read_delivery(spark, str(tmp_path), "2022-04-25").events_df.collect()


def test_kuairand_names_the_missing_file(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"2022-04-25: no file log_standard_\*\.csv below"):
        kuairand.read_delivery(spark, str(tmp_path), "2022-04-25")
    with pytest.raises(FileNotFoundError, match="MTGR_KUAIRAND"):
        kuairand.read_delivery(spark, str(tmp_path / "absent"), "2022-04-25")


@pytest.mark.skipif(not KUAIRAND_ROOT.exists(), reason="no KuaiRand data; set MTGR_KUAIRAND")
def test_kuairand_reads_the_real_log(spark: SparkSession) -> None:
    delivery = kuairand.read_delivery(spark, str(KUAIRAND_ROOT), "2022-05-05")
    events_df = delivery.events_df.dropDuplicates(["event_id"])
    counts = {row["event_type"]: row["count"] for row in events_df.groupBy("event_type").count().collect()}
    assert counts == {"impression": 13_074, "click": 5_735, "conversion": 3_993, "feedback": 13_074}
    assert delivery.broken_df.isEmpty()
    assert (delivery.users_df.count(), delivery.items_df.count()) == (27_285, 7_583)


def test_the_documented_source_works(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPO / "docs" / "sources.md").read_text()
    blocks = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", page, flags=re.DOTALL))
    declaration = types.ModuleType("spark_jobs.contract.grocery")
    exec(compile(blocks.pop("spark_jobs/contract/grocery.py"), "grocery", "exec"), vars(declaration))
    scope = vars(declaration)
    monkeypatch.setitem(sys.modules, declaration.__name__, declaration)
    monkeypatch.setitem(datasets.DATASETS, "grocery", scope["GROCERY"])
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "grocery.py").write_text(blocks.pop("spark_jobs/sources/grocery.py"))
    monkeypatch.setattr(
        spark_jobs.sources, "__path__", [*spark_jobs.sources.__path__, str(tmp_path / "modules")]
    )
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pacsv.read_csv(io.BytesIO(text.encode())), tmp_path / name)
        else:
            (tmp_path / name).write_text(text)
    source = source_of("grocery")
    delivery = source.read_delivery(spark, str(tmp_path), DS)
    assert_types(delivery, scope["GROCERY"])
    assert rows(
        delivery.events_df, "event_id", "event_type", "impression_id", "action", "store_open", "ds"
    ) == [
        ("e1", "impression", "e1", None, 1, DS),
        ("e2", "impression", "e2", None, 1, DS),
        ("e3", "click", "e2", 1, 1, DS),
        ("e4", "conversion", "e2", 2, 1, DS),
    ]
    (broken,) = delivery.broken_df.collect()
    assert '"shopper":"two"' in broken["record"]
    assert rows(delivery.items_df, "item_id", "aisle", "price") == [(10, 1, 1.9900000095367432), (11, 2, 2.5)]
    assert rows(delivery.users_df, "user_id", "district") == [(1, 1)]
    with pytest.raises(FileNotFoundError, match=r"no delivery of 2026-03-09: .*/2026-03-09"):
        source.read_delivery(spark, str(tmp_path), "2026-03-09")


def test_the_documented_parquet_source_works(spark: SparkSession, tmp_path: Path) -> None:
    page = (REPO / "docs" / "sources.md").read_text()
    (block,) = re.findall(r"```python parquet\n(.*?)```", page, flags=re.DOTALL)
    scope: dict[str, Any] = {"F": F, "read_parquet": read_parquet}
    exec(f"from __future__ import annotations\n{block}", scope)
    folder = tmp_path / "events" / f"day={DS}"
    folder.mkdir(parents=True)
    time = [datetime(2026, 3, 1, 9, tzinfo=UTC), datetime(2026, 3, 1, 10, tzinfo=UTC)]
    narrow = {
        "id": ["e1", "e2"],
        "uid": pa.array([1, 2], pa.int32()),
        "product": pa.array([3, 4], pa.uint64()),
    }
    pq.write_table(pa.table({**narrow, "at": time, "more": [["x"], ["y"]]}), folder / "part-0.parquet")
    events_df = scope["read_events"](spark, str(tmp_path), DS)
    assert rows(events_df, "event_id", "user_id", "item_id", "time_ms") == [
        ("e1", 1, 3, 1_772_355_600_000),
        ("e2", 2, 4, 1_772_359_200_000),
    ]
    local = pa.array([datetime(2026, 3, 2, 9)], pa.timestamp("ms"))
    (tmp_path / "events" / "day=2026-03-02").mkdir()
    table = pa.table({"id": ["e3"], "uid": [1], "product": [3], "at": local})
    pq.write_table(table, tmp_path / "events" / "day=2026-03-02" / "part-0.parquet")
    with pytest.raises(ValueError, match="column at is timestamp_ntz, timestamp is wanted"):
        scope["read_events"](spark, str(tmp_path), "2026-03-02")
    with pytest.raises(FileNotFoundError, match="shop: no delivery of 2026-03-09"):
        scope["read_events"](spark, str(tmp_path), "2026-03-09")


def test_a_dataset_without_a_source_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown dataset 'nowhere'"):
        source_of("nowhere")
    monkeypatch.setitem(datasets.DATASETS, "nowhere", dataclasses.replace(FOODLOG, name="nowhere"))
    with pytest.raises(ValueError, match=r"write spark_jobs/sources/nowhere\.py"):
        source_of("nowhere")
