"""What requests need not carry: the store, its keys and unknowns, and requests that lack a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from model import publish
from model.runs.files import RunError
from model.serving import roles
from model.serving.lookups import Lookups, write_store
from model.serving.request import RequestError
from model.serving.today import Today
from spark_jobs.contract import locations
from spark_jobs.contract.clock import HOUR_MS
from spark_jobs.contract.declare import category, id_feature, number, statistics
from spark_jobs.contract.features import Dataset, Measure, Owner

SHOP = Dataset(
    name="shop",
    actions=("buy",),
    conversion="a purchase",
    utc_offset_hours=8,
    features=(
        id_feature("user_id", Owner.PROFILE, "user"),
        category("city", Owner.PROFILE, 9, "city"),
        number("age", Owner.PROFILE, 0, 100, "age"),
        *statistics(Owner.PROFILE, ("user_id",), (7,), Measure.CLICKS),
        id_feature("item_id", Owner.ITEM, "item"),
        id_feature("brand", Owner.ITEM, "brand"),
        number("price", Owner.ITEM, 0, 1000, "price"),
        *statistics(Owner.CROSS, ("user_id", "brand"), (7,), Measure.CLICKS, Measure.CTR),
        *statistics(Owner.ITEM_STATISTIC, ("item_id", "hour"), (7,), Measure.CLICKS),
        category("hour", Owner.CONTEXT, 24, "hour"),
        category("place", Owner.CONTEXT, 4, "where on the page"),
        category("action", Owner.ACTION, 2, "action"),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id",), (0,), Measure.CLICKS),
    ),
)
DS = "2026-03-01"
NOON = 1_772_337_600_000  # 2026-03-01 04:00 UTC, 12:00 in the shop
ROWS: list[tuple[str, list[int], list[int], list[float]]] = [
    ("user", [], [0], [0.0]),
    ("user", [5], [3], [41.0]),
    ("item", [], [0], [0.0]),
    ("item", [70], [7], [12.5]),
    ("item", [71], [8], [2.0]),
    # item_id, brand, hour, place, action, time; price
    ("static", [5], [70, 71, 7, 8, 11, 12, 1, 2, 1, 1, 100, 200], [12.5, 2.0]),
    ("statistic:user_id", [], [], [0.0]),
    ("statistic:user_id", [5], [], [9.0]),
    ("statistic:user_id,brand", [], [], [0.0, 0.25]),
    ("statistic:user_id,brand", [5, 7], [], [4.0, 0.5]),
    ("statistic:item_id,hour", [], [], [0.0]),
    ("statistic:item_id,hour", [71, 12], [], [6.0]),
]


@pytest.fixture
def lookups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lookups:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "var"))
    monkeypatch.delenv("MTGR_LAKE", raising=False)
    types = (pa.string(), pa.list_(pa.int64()), pa.list_(pa.int64()), pa.list_(pa.float32()))
    columns = [
        pa.array(values, kind) for values, kind in zip(map(list, zip(*ROWS, strict=True)), types, strict=True)
    ]
    rows = pa.table([*columns, pa.array(["2026-03-01"] * len(ROWS))], ["kind", "key", "ids", "numbers", "ds"])
    write_deltalake(locations.table("shop", "lookups"), rows, partition_by=["ds"])
    assert write_store(SHOP, "2026-03-01")["rows"] == len(ROWS)
    return Lookups(SHOP, roles.link("shop", "lookups"))


def asked(**more: Any) -> dict[str, Any]:
    request = {"user_id": 5, "time_ms": NOON, "candidate_item_id": [70, 71, 99], "candidate_place": [0, 1, 2]}
    return {**request, "candidate_user_clicks_today": [1.0] * 3, **more}


def test_a_request_gets_what_hangs_on_its_keys(lookups: Lookups) -> None:
    assert lookups.day == "2026-03-01"
    assert lookups.complete(asked()) == {
        "user_id": 5,
        "profile_user_id": 5,
        "window_start_ms": NOON - 12 * HOUR_MS,
        "profile_city": 3,
        "profile_age": 41.0,
        "profile_user_clicks_7d": 9.0,
        "static_item_id": [70, 71],
        "static_brand": [7, 8],
        "static_hour": [11, 12],
        "static_place": [1, 2],
        "static_action": [1, 1],
        "static_time_ms": [100, 200],
        "static_price": [12.5, 2.0],
        "candidate_item_id": [70, 71, 99],
        "candidate_brand": [7, 8, 0],
        "candidate_price": [12.5, 2.0, 0.0],
        "candidate_hour": [12, 12, 12],
        "candidate_place": [0, 1, 2],
        "candidate_user_brand_clicks_7d": [4.0, 0.0, 0.0],
        "candidate_user_brand_ctr_7d": [0.5, 0.25, 0.25],
        "candidate_item_hour_clicks_7d": [0.0, 6.0, 0.0],
        "candidate_user_clicks_today": [1.0, 1.0, 1.0],
        **{f"realtime_{name}": [] for name in ("item_id", "brand", "price", "hour", "place", "action")},
        "realtime_time_ms": [],
        "realtime_visible": [],
        "candidate_visible": [0, 0, 0],
    }


def test_who_is_unknown_has_what_is_unknown(lookups: Lookups) -> None:
    row = lookups.complete(asked(user_id=6))
    assert (row["profile_city"], row["profile_user_clicks_7d"], row["static_time_ms"]) == (0, 0.0, [])
    assert row["candidate_user_brand_ctr_7d"] == [0.25] * 3


def test_what_the_request_has_is_not_looked_up_and_today_is_seen_up_to_its_time(lookups: Lookups) -> None:
    row = lookups.complete(asked(profile_city=8, realtime_time_ms=[NOON - 9, NOON - 9, NOON - 1, NOON]))
    assert row["profile_city"] == 8
    assert row["realtime_visible"] == [0, 0, 2, 3]
    assert row["candidate_visible"] == [3, 3, 3]


def test_who_brings_no_day_has_what_the_log_of_today_has(lookups: Lookups) -> None:
    today, done = Today(SHOP, most=9), {"user_id": 5, "item_id": 70, "place": 2}
    today.add(
        {**done, "event_id": "a", "event_type": "click", "time_ms": NOON - HOUR_MS, "action": "buy"}, DS
    )
    today.add({**done, "event_id": "b", "event_type": "impression", "time_ms": NOON - 9}, DS)
    today.add({**done, "event_id": "c", "event_type": "click", "time_ms": NOON, "action": "buy"}, DS)
    request = asked()
    del request["candidate_user_clicks_today"]
    row = lookups.complete(request, today)
    assert row["candidate_user_clicks_today"] == [1.0] * 3
    token = {"item_id": 70, "brand": 7, "price": 12.5, "hour": 11, "place": 2, "action": 1}
    assert {name: row[f"realtime_{name}"] for name in token} == {name: [v] for name, v in token.items()}
    assert (row["realtime_time_ms"], row["realtime_visible"]) == ([NOON - HOUR_MS], [0])
    assert row["candidate_visible"] == [1] * 3
    brought = lookups.complete(asked(realtime_time_ms=[NOON - 1]), today)
    assert (brought["realtime_time_ms"], brought["candidate_visible"]) == ([NOON - 1], [1] * 3)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"user_id": "5"}, "user_id is '5'"),
        ({"time_ms": None}, "time_ms is None"),
        ({"candidate_item_id": [1.5]}, "candidate_item_id must be a list of integers"),
        ({"candidate_item_id": [2**63]}, "candidate_item_id must be a list of integers of 64 bits"),
        ({"realtime_time_ms": ["x"]}, "realtime_time_ms must be a list of integers"),
    ],
)
def test_a_key_that_is_not_right_is_named(lookups: Lookups, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        lookups.complete(asked(**wrong))


def test_a_day_that_is_not_there_is_named(lookups: Lookups, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RunError, match="has no day 2026-03-02; build it: python"):
        write_store(SHOP, "2026-03-02")
    with pytest.raises(RunError, match="cannot be read"):
        Lookups(SHOP, Path("/nowhere"))
    assert publish.main(["--dataset", "foodlog", "--lookups", "2026-03-01"]) == 1
    assert "lookups" in caplog.text
