"""The simulated log: the same bytes for the same settings, honest probabilities, mess at the set rates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake

from spark_jobs import simulate
from spark_jobs.contract import locations
from spark_jobs.contract.clock import DAY_MS, days_between, shift_day
from spark_jobs.contract.features import Snapshot
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.simulator.behaviour import Shown, State, simulate_day
from spark_jobs.simulator.deliveries import EVENT_LOGS, LOGS, DistrictDelivery, district_deliveries
from spark_jobs.simulator.mess import MAX_LATE_DAYS, UNKNOWN_ITEM, with_mess
from spark_jobs.simulator.sessions import craving_logits
from spark_jobs.simulator.settings import MAX_CANDIDATES, PHENOMENA, SimulationSettings
from spark_jobs.simulator.world import build_world, next_day, weather_of
from spark_jobs.simulator.writer import write_deliveries

SMALL = SimulationSettings(users=60, users_a_district=30, impressions_a_day=900, bot_impressions=30)
CLEAN = replace(
    SMALL, bots=0, duplicate_rate=0, late_rate=0, null_rate=0, unknown_item_rate=0, malformed_rate=0
)
MESS = ("duplicate_rate", "late_rate", "null_rate", "unknown_item_rate", "malformed_rate")
WHOLE = SimulationSettings(bots=0, **dict.fromkeys(MESS, 0))
DAYS = days_between("2026-02-18", "2026-02-20")


def deliveries(
    settings: SimulationSettings, days: list[str], district: int = 0
) -> dict[str, DistrictDelivery]:
    return {part.ds: part for part in district_deliveries(settings, district, days)}


def parsed(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def shown() -> Shown:
    """Ten days of one district of 400 people."""
    settings = SimulationSettings(users=400, users_a_district=400, impressions_a_day=8_000)
    world = build_world(settings, 0)
    state = State.fresh(world)
    days = []
    for n in range(10):
        world = next_day(settings, world, n)
        days.append(simulate_day(settings, world, state, n, weather_of(settings, 0, n)))
    return Shown(**{k: np.concatenate([getattr(d, k) for d in days]) for k in Shown.__dataclass_fields__})


@pytest.fixture(scope="module")
def ten_days() -> list[DistrictDelivery]:
    """Ten days of the default world, all districts in one, without mess."""
    days = days_between("2026-03-01", "2026-03-10")
    parts = [deliveries(WHOLE, days, district) for district in range(WHOLE.districts)]
    return [
        DistrictDelivery(
            ds,
            {log: [line for part in parts for line in part[ds].lines[log]] for log in LOGS},
            pd.concat([part[ds].oracle for part in parts]),
        )
        for ds in days
    ]


def test_a_day_is_the_same_alone_and_among_others() -> None:
    together, alone = deliveries(SMALL, DAYS), deliveries(SMALL, DAYS[-1:])
    assert together[DAYS[-1]].lines == alone[DAYS[-1]].lines
    pd.testing.assert_frame_equal(together[DAYS[-1]].oracle, alone[DAYS[-1]].oracle)


def test_files_are_the_same_bytes_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = [
        "--users",
        "60",
        "--users-a-district",
        "30",
        "--impressions-a-day",
        "900",
        "--bot-impressions",
        "30",
    ]
    found: list[dict[str, bytes]] = []
    for folder, days in (("a", DAYS), ("b", DAYS[::-1])):
        monkeypatch.setenv("MTGR_LAKE", str(tmp_path / folder))
        for ds in days:
            assert simulate.main(["--from", ds, "--to", ds, *size]) == 0
        assert simulate.main(["--from", DAYS[0], "--to", DAYS[0], *size]) == 0  # a rerun changes nothing
        raw = tmp_path / folder / "foodlog" / "raw"
        found.append({str(p.relative_to(raw)): p.read_bytes() for p in sorted(raw.rglob("*.gz"))})
    assert found[0] == found[1]
    assert len(found[0]) == 5 * len(DAYS)


@pytest.mark.parametrize("phase", ["simulate:before_move", "simulate:clicks_moved"])
def test_a_killed_run_leaves_nothing_half_written(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--from", DAYS[0], "--to", DAYS[0], "--users", "30", "--impressions-a-day", "450"]
    command = [sys.executable, "-m", "spark_jobs.simulate", *argv]
    environment = {**os.environ, "MTGR_LAKE": str(tmp_path), "MTGR_KILL_AT": phase}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    raw = tmp_path / "foodlog" / "raw"
    before = {p.parent.parent.name: p.read_bytes() for p in raw.glob("*/ds=*/*.gz")}
    assert set(before) == (set() if phase == "simulate:before_move" else {"impressions", "clicks"})
    monkeypatch.setenv("MTGR_LAKE", str(tmp_path))
    assert simulate.main(argv) == 0
    after = {p.parent.parent.name: p.read_bytes() for p in raw.glob("*/ds=*/*.gz")}
    assert len(after) == 5
    assert before.items() <= after.items()
    assert not list(raw.glob("*/.ds=*"))


def test_the_users_of_a_day_are_those_who_had_registered_before_it() -> None:
    """FOODLOG declares that a snapshot is taken before the day: who registers on it is in the next."""
    assert FOODLOG.snapshot is Snapshot.BEFORE_DAY
    many = replace(CLEAN, users=600, users_a_district=600, impressions_a_day=9_000)
    days = [shift_day(many.first_day, n) for n in range(12)]
    newcomers = 0
    for ds, delivery in deliveries(many, days).items():
        users = {row["user_id"]: row["registered_on"] for row in parsed(delivery.lines["users"])}
        assert all(str(day) < ds for day in users.values()), ds
        newcomers += len({row["user_id"] for row in parsed(delivery.lines["impressions"])} - set(users))
    assert newcomers > 0, "nobody ate on the day of registration"


def test_another_seed_is_another_world() -> None:
    ours, theirs = deliveries(SMALL, DAYS[:1]), deliveries(replace(SMALL, seed=8), DAYS[:1])
    assert ours[DAYS[0]].lines["impressions"] != theirs[DAYS[0]].lines["impressions"]


def test_a_district_does_not_depend_on_how_many_there_are() -> None:
    more = replace(CLEAN, users=600, impressions_a_day=9_000)
    assert deliveries(CLEAN, DAYS[:1], 1)[DAYS[0]].lines == deliveries(more, DAYS[:1], 1)[DAYS[0]].lines


def test_probabilities_are_those_that_clicks_and_orders_follow(shown: Shown) -> None:
    for p, happened in ((shown.p_click, shown.click_ms >= 0), (shown.p_conversion, shown.order_ms >= 0)):
        low, high = np.quantile(p, [0.5, 0.9])
        for part in (p <= low, (p > low) & (p <= high), p > high):
            sigma = np.sqrt((p[part] * (1 - p[part])).sum())
            assert abs(happened[part].sum() - p[part].sum()) < 4 * sigma
    assert 0.05 < (shown.click_ms >= 0).mean() < 0.12
    assert 0.01 < (shown.order_ms >= 0).mean() < 0.04


def test_the_oracle_knows_more_than_the_item(shown: Shown) -> None:
    item = shown.merchant * 100 + shown.dish
    for p, frozen, label in (
        (shown.p_click, shown.p_click_frozen, shown.click_ms >= 0),
        (shown.p_conversion, shown.p_conversion_frozen, shown.order_ms >= 0),
    ):
        item_mean = (
            pd.Series(label.astype(float)).groupby(item).transform("mean").to_numpy()
        )  # knows its label
        assert auc(p, label) > auc(frozen, label) > auc(item_mean, label)
        assert auc(frozen, label) > 0.75
    for p, session, frozen, label in (
        (shown.p_click, shown.p_click_session, shown.p_click_frozen, shown.click_ms >= 0),
        (shown.p_conversion, shown.p_conversion_session, shown.p_conversion_frozen, shown.order_ms >= 0),
    ):
        assert auc(p, label) > auc(session, label) > auc(frozen, label)


def auc(score: np.ndarray, label: np.ndarray) -> float:
    rank = pd.Series(score).rank().to_numpy()
    positives = int(label.sum())
    return float(
        (rank[label].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives))
    )


def test_the_session_oracle_knows_what_clicks_tell_of_the_craving() -> None:
    """Where the session has clicked the cuisine at another merchant, it expects as many clicks as come."""
    settings = SimulationSettings(users=400, users_a_district=400, impressions_a_day=20_000)
    world, parts = build_world(settings, 0), []
    state = State.fresh(world)
    for n in range(6):
        world = next_day(settings, world, n)
        day = simulate_day(settings, world, state, n, weather_of(settings, 0, n))
        names = ("user", "merchant", "time_ms", "click_ms", "p_click_session")
        rows = pd.DataFrame({name: getattr(day, name) for name in names})
        rows = rows.assign(cuisine=world.cuisine[day.merchant], row=np.arange(len(rows)))
        clicks = rows.loc[rows["click_ms"] >= 0, ["user", "cuisine", "merchant", "time_ms"]]
        both = rows.merge(clicks, on=["user", "cuisine"], suffixes=("", "_of_click"))
        since_ms = both["time_ms"] - both["time_ms_of_click"]
        after = (since_ms > 0) & (since_ms < 3_600_000) & (both["merchant"] != both["merchant_of_click"])
        parts.append(both[after].drop_duplicates("row"))
    told = pd.concat(parts)
    clicked, said = (told["click_ms"] >= 0).sum(), told["p_click_session"].sum()
    assert abs(clicked - said) < 3 * np.sqrt(said)


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_a_phenomenon_moves_people_as_the_oracle_says(phenomenon: str) -> None:
    """Where it speaks for a click there are more than somebody who does not know of it expects."""
    size = {"users": 300, "users_a_district": 300, "impressions_a_day": 6_000}
    settings = SimulationSettings(**size, phenomena=phenomenon)
    world = build_world(settings, 0)
    state, tastes, days = State.fresh(world), world.taste_uc, []
    for n in range(8):
        world = next_day(settings, world, n)
        shown = simulate_day(settings, world, state, n, weather_of(settings, 0, n))
        days.append(shown)
    clicked = np.concatenate([day.click_ms >= 0 for day in days])
    p, frozen, plain = (
        np.concatenate([getattr(day, name) for day in days])
        for name in ("p_click", "p_click_frozen", "p_click_plain")
    )
    assert abs(clicked.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    moved = (world.taste_uc != tastes).any(axis=1).sum()
    if phenomenon == "changing":
        assert 300 * 8 / 28 * 0.5 < moved < 300 * 8 / 28 * 1.5
        return
    assert moved == 0
    for up, sign in ((frozen > 1.1 * plain, 1), (frozen < plain / 1.1, -1)):
        if phenomenon in ("weekly", "exploring") and sign < 0:
            assert not up.any()
            continue
        sigma = np.sqrt(plain[up].sum())
        assert sign * (clicked[up].sum() - plain[up].sum()) > 3 * sigma
    none = next_day(replace(settings, phenomena=""), build_world(settings, 0), 0)
    usual = simulate_day(replace(settings, phenomena=""), none, State.fresh(none), 0, 0)
    np.testing.assert_array_equal(usual.p_click_frozen, usual.p_click_plain)


def test_orders_follow_clicks_within_the_attribution_window(shown: Shown) -> None:
    clicked, ordered = shown.click_ms >= 0, shown.order_ms >= 0
    assert not (ordered & ~clicked).any()
    assert (shown.click_ms[clicked] > shown.time_ms[clicked]).all()
    assert (shown.order_ms[ordered] > shown.click_ms[ordered]).all()
    assert (shown.order_ms[ordered] - shown.time_ms[ordered] < FOODLOG.attribution_ms).all()
    assert (shown.time_ms >= 0).all()
    assert (shown.time_ms < DAY_MS).all()


def test_requests_show_several_dishes_of_different_merchants_at_once() -> None:
    lines = parsed(deliveries(CLEAN, DAYS[:1])[DAYS[0]].lines["impressions"])
    requests = pd.DataFrame(lines).groupby("request_id")
    assert requests.size().between(4, MAX_CANDIDATES).all()
    assert (requests["time_ms"].nunique() == 1).all()
    assert (requests["user_id"].nunique() == 1).all()
    assert (requests["item_id"].nunique() == requests.size()).all()


def test_without_mess_every_line_is_whole_unique_and_in_time() -> None:
    delivery = deliveries(CLEAN, DAYS)[DAYS[1]]
    for log, key in zip(EVENT_LOGS, ("impression_id", "click_id", "order_id"), strict=True):
        rows = parsed(delivery.lines[log])
        assert len({row[key] for row in rows}) == len(rows) > 0
        assert all(value is not None for row in rows for value in row.values())
    start = FOODLOG.day_start_ms(DAYS[1])
    assert all(
        start <= int(str(row["time_ms"])) < start + DAY_MS for row in parsed(delivery.lines["impressions"])
    )
    shown_ids = {row["impression_id"] for row in parsed(delivery.lines["impressions"])}
    assert shown_ids == set(delivery.oracle["impression_id"])


def minutes_of(delivery: DistrictDelivery, log: str) -> Iterator[tuple[int, int]]:
    """Minutes from the start of the delivery's day, and minutes from the impression, of a log's lines."""
    for row in parsed(delivery.lines[log]):
        impression_ds = pd.Timestamp(str(row["impression_id"])[1:9]).strftime("%Y-%m-%d")
        minute = (int(str(row["time_ms"])) - FOODLOG.day_start_ms(delivery.ds)) // 60_000
        days_ago = (pd.Timestamp(delivery.ds) - pd.Timestamp(impression_ds)).days
        yield minute, days_ago


def test_every_log_is_partitioned_by_event_time_and_has_a_night_on_every_day(
    ten_days: list[DistrictDelivery],
) -> None:
    for log in EVENT_LOGS:
        for delivery in ten_days:
            minutes = [minute for minute, _ in minutes_of(delivery, log)]
            assert all(0 <= minute < 24 * 60 for minute in minutes), (log, delivery.ds)
            assert sum(minute < 120 for minute in minutes) > 0, (log, delivery.ds)
            assert sum(minute >= 23 * 60 for minute in minutes) > 0, (log, delivery.ds)


def test_orders_of_yesterdays_impressions_come_with_todays_log(ten_days: list[DistrictDelivery]) -> None:
    mature_late = [
        sum(days_ago == 1 for _, days_ago in minutes_of(delivery, "orders")) for delivery in ten_days
    ]
    assert min(mature_late) > 0
    assert {days_ago for delivery in ten_days for _, days_ago in minutes_of(delivery, "orders")} == {0, 1}
    first = f"i{ten_days[0].ds.replace('-', '')}-"
    shown, clicked, ordered = (
        {i for d in ten_days for row in parsed(d.lines[log]) if (i := str(row["impression_id"])) >= first}
        for log in EVENT_LOGS
    )
    assert ordered < clicked < shown


def test_the_logs_of_a_day_and_the_next_hold_every_label_of_the_day(ten_days: list[DistrictDelivery]) -> None:
    times_of: dict[str, list[int]] = {"clicks": [], "orders": []}
    for district in range(WHOLE.districts):
        world = build_world(WHOLE, district)
        state = State.fresh(world)
        for n in range(WHOLE.day_number(ten_days[0].ds) + 1):
            world = next_day(WHOLE, world, n)
            shown = simulate_day(WHOLE, world, state, n, weather_of(WHOLE, world.city, n))
        times_of["clicks"] += shown.click_ms.tolist()
        times_of["orders"] += shown.order_ms.tolist()
    for log, times in times_of.items():
        at_once, later = (
            sum(days_ago == number for _, days_ago in minutes_of(delivery, log))
            for number, delivery in enumerate(ten_days[:2])
        )
        assert later == sum(time_ms >= DAY_MS for time_ms in times)
        assert at_once + later == sum(time_ms >= 0 for time_ms in times)


def test_profiles_prices_and_the_menu_change_and_a_snapshot_is_of_the_days_start(
    ten_days: list[DistrictDelivery],
) -> None:
    users = [{row["user_id"]: row for row in parsed(d.lines["users"])} for d in ten_days]
    items = [{row["item_id"]: row for row in parsed(d.lines["items"])} for d in ten_days]
    changed: Counter[str] = Counter()
    for rows in (users, items):
        for before, after in pairwise(rows):
            assert before.keys() <= after.keys()
            for key in before:
                changed.update(name for name in before[key] if before[key][name] != after[key][name])
    assert set(changed) == {"budget", "is_member", "home_cell", "price"}
    assert 0 < changed["price"] < 0.03 * 9 * len(items[0])
    assert 0 < changed["is_member"] < 0.01 * 9 * len(users[0])
    assert len(items[-1]) > len(items[0])
    assert len(users[-1]) > len(users[0])
    for delivery, known in zip(ten_days, users, strict=True):
        assert all(str(row["registered_on"]) < delivery.ds for row in known.values())
    for delivery, known in zip(ten_days, items, strict=True):
        assert {row["item_id"] for row in parsed(delivery.lines["impressions"])} <= known.keys()
    merchants = [{row["merchant_id"] for row in rows.values()} for rows in items]
    assert len(merchants[-1]) >= len(merchants[0])


def test_what_midnight_leaves_of_a_session_is_known_as_well_as_its_clicks_tell() -> None:
    """The craving's probability at midnight is honest, and says more than the tastes alone."""
    settings = SimulationSettings(
        users=400, users_a_district=400, impressions_a_day=20_000, night_share=0.5, newcomer_share=0.0
    )
    world, state = build_world(settings, 0), State.fresh(build_world(settings, 0))
    said, is_it, told, liked = [], [], [], []
    happened = expected = 0.0
    for n in range(9):
        left = len(state.sessions.meal)
        shown = simulate_day(settings, world, state, n, weather_of(settings, 0, n))
        night = shown.time_ms < 3 * 3_600_000
        assert night.any() == (left > 0)
        happened += (shown.click_ms[night] >= 0).sum()
        expected += shown.p_click[night].sum()
        odds = np.exp(state.sessions.craving_logit_sc)
        p = odds / odds.sum(axis=1, keepdims=True)
        craved = np.arange(p.shape[1]) == state.sessions.craving[:, None]
        said.append(p.ravel())
        is_it.append(craved.ravel())
        told.append(p[craved])
        _, first = np.unique(state.requests.session, return_index=True)
        tastes = np.exp(craving_logits(world, state.requests.user[first], state.sessions.meal))
        liked.append((tastes / tastes.sum(axis=1, keepdims=True))[craved])
    assert abs(happened - expected) < 4 * np.sqrt(expected)
    p, craved = np.concatenate(said), np.concatenate(is_it)
    for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 1.0)):
        part = (p >= low) & (p < high)
        assert abs(craved[part].sum() - p[part].sum()) < 4 * np.sqrt((p[part] * (1 - p[part])).sum())
    gain = np.log(np.concatenate(told) / np.concatenate(liked))
    assert gain.mean() > 0.02


def test_mess_comes_at_its_rates() -> None:
    settings = replace(SMALL, duplicate_rate=0.2, late_rate=0.1, null_rate=0.01)
    log = pd.DataFrame({"key": range(20_000), "user_id": 5, "time_ms": 1_000, "weather": "rain"})
    sent = with_mess(log, settings, np.random.default_rng(1), 0)
    assert len(sent) - len(log) == pytest.approx(4_000, rel=0.1)
    assert sent["key"].nunique() == 20_000
    shares = sent["late_days"].value_counts(normalize=True)
    assert shares[1] == pytest.approx(0.07, rel=0.15)
    assert shares[2] == pytest.approx(0.03, rel=0.15)
    assert sent["user_id"].isna().mean() == pytest.approx(0.01, rel=0.3)
    assert sent["time_ms"].isna().mean() == pytest.approx(0.01, rel=0.3)
    assert sent["weather"].isna().mean() == pytest.approx(0.1, rel=0.15)
    assert (np.diff(sent["received_ms"]) < 0).any()  # nearly in order, not in order


def test_late_records_come_with_a_later_delivery_and_none_is_lost() -> None:
    settings = replace(CLEAN, late_rate=0.3)
    late, in_time = deliveries(settings, days_between(DAYS[0], "2026-02-22")), deliveries(CLEAN, DAYS[:1])
    arrived: Counter[int] = Counter()
    for number, part in enumerate(late.values()):
        for row in parsed(part.lines["impressions"]):
            if str(row["impression_id"]).startswith("i20260218-"):
                arrived[number] += 1
                assert int(str(row["received_ms"])) < FOODLOG.day_end_ms(part.ds) + FOODLOG.attribution_ms
    assert set(arrived) == set(range(MAX_LATE_DAYS + 1))
    assert sum(arrived.values()) == len(in_time[DAYS[0]].lines["impressions"])


def test_malformed_lines_bots_and_unknown_items_come_as_set() -> None:
    settings = replace(CLEAN, bots=1, bot_impressions=500, malformed_rate=0.1, unknown_item_rate=0.1)
    delivery = deliveries(settings, DAYS[:1])[DAYS[0]]
    rows, broken = [], 0
    for line in delivery.lines["impressions"]:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            broken += 1
    assert broken / len(delivery.lines["impressions"]) == pytest.approx(0.1, rel=0.5)
    bot = [row for row in rows if row["user_id"] == settings.users + 1]
    assert len(bot) > 400
    unknown = sum(row["item_id"] >= UNKNOWN_ITEM for row in rows)
    assert unknown / len(rows) == pytest.approx(0.1, rel=0.5)
    assert not delivery.oracle["impression_id"].str.contains("bot").any()
    assert settings.users + 1 in {row["user_id"] for row in parsed(delivery.lines["users"])}


def test_a_program_is_shown_what_is_sold_on_the_day() -> None:
    settings = replace(CLEAN, bots=1, bot_impressions=500, newcomer_share=0.5)
    delivery = deliveries(settings, DAYS[:1])[DAYS[0]]
    sold = {row["item_id"] for row in parsed(delivery.lines["items"])}
    shown = [row for row in parsed(delivery.lines["impressions"]) if row["user_id"] == settings.users + 1]
    assert len(shown) == 500
    assert all(row["item_id"] in sold for row in shown)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--from", "2026-01-01", "--to", "2026-01-01"], "lies before 2026-02-16"),
        (["--from", "2026-03-02", "--to", "2026-03-01"], "lies after"),
        (["--from", "2026-3-1", "--to", "2026-03-01"], "is not a day"),
        (["--from", "2026-03-01", "--to", "2026-03-01", "--late-rate", "2"], "late_rate is 2.0"),
        (["--from", "2026-03-01", "--to", "2026-03-01", "--phenomena", "weekly,full moon"], "'full moon'"),
        (
            ["--from", "2026-03-01", "--to", "2026-03-01", "--users", "10"],
            "change users or impressions_a_day",
        ),
    ],
)
def test_usage_errors_name_the_value(
    argv: list[str],
    message: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MTGR_LAKE", str(tmp_path))
    assert simulate.main(argv) == 2
    assert message in caplog.text + capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_oracle_of_an_earlier_version_takes_on_the_columns_that_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.delenv("MTGR_LAKE", raising=False)
    uri = locations.table("foodlog", "oracle")
    write_deliveries(SMALL, DAYS[:1])
    whole = DeltaTable(uri).to_pyarrow_table()
    fewer = whole.drop_columns(["p_click_session", "p_conversion_session"])
    write_deltalake(uri, fewer, mode="overwrite", schema_mode="overwrite", partition_by=["ds"])
    write_deliveries(SMALL, DAYS[1:2])
    table = DeltaTable(uri).to_pyarrow_table()
    assert set(table.column_names) == set(whole.column_names)
    of_day = pc.equal(table["ds"], DAYS[0])
    assert table.filter(of_day)["p_click_session"].null_count == len(whole)
    assert table.filter(pc.invert(of_day))["p_click_session"].null_count == 0
