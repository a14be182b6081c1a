"""What arrives for a day: the lines of the five logs of one district, and the oracle beside them.

The logs are partitioned by event time: the records of a day are those whose own time lies in it, so that an
order at 00:20 for a dish shown at 23:50 comes with the next day's. A delivery holds the day's records that
came in time and the late ones of the two days before. Asked for a day alone, the district's earlier days are
replayed (about 1 ms per 200 impressions) to find its state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.simulator.behaviour import Shown, State, simulate_day
from spark_jobs.simulator.mess import (
    MAX_LATE_DAYS,
    json_lines,
    with_broken_lines,
    with_mess,
    with_unknown_items,
)
from spark_jobs.simulator.settings import MAX_CANDIDATES, SimulationSettings
from spark_jobs.simulator.world import World, build_world, items_of, next_day, users_on, weather_of
from spark_jobs.sources.foodlog_names import WEATHERS

EVENT_LOGS = ("impressions", "clicks", "orders")
LOGS = (*EVENT_LOGS, "users", "items")
ORACLE_COLUMNS = ("impression_id", "p_click", "p_conversion", "p_click_frozen", "p_conversion_frozen",
                  "p_click_session", "p_conversion_session")  # fmt: skip
_CONTEXT = ["user_id", "item_id", "time_ms", "weather", "distance_km", "delivery_minutes"]


@dataclass(frozen=True)
class DistrictDelivery:
    """One district's part of the delivery of a day.

    Args:
        ds: The day.
        lines: The lines of each log of `LOGS`.
        oracle: `ORACLE_COLUMNS` of the day's own impressions, late or not; bots have none.
    """

    ds: str
    lines: dict[str, list[str]]
    oracle: pd.DataFrame


def district_deliveries(
    settings: SimulationSettings, district: int, days: list[str]
) -> Iterator[DistrictDelivery]:
    """Yields the deliveries of `days`, ascending, of one district.

    Raises:
        ValueError: A day lies before the first day of the world.
    """
    world = build_world(settings, district)
    state = State.fresh(world)
    wanted = {settings.day_number(ds): ds for ds in days}
    sent = {n - late for n in wanted for late in range(MAX_LATE_DAYS + 1)}
    shown_on: dict[int, pd.DataFrame] = {}
    logs: dict[int, dict[str, pd.DataFrame]] = {}
    for number in range(max(wanted, default=-1) + 1):
        ds = shift_day(settings.first_day, number)
        weather = weather_of(settings, world.city, number)
        world = next_day(settings, world, number)
        shown = simulate_day(settings, world, state, number, weather)
        if number not in sent and number + 1 not in sent:
            continue
        impressions = _impressions(world, shown, ds, weather)
        shown_on[number] = _with_bots(settings, world, impressions, number, ds, weather)
        if number in sent:
            logs[number] = _event_logs(settings, world, shown_on, number, ds)
        shown_on.pop(number - 1, None)
        logs.pop(number - MAX_LATE_DAYS - 1, None)
        if number in wanted:
            yield DistrictDelivery(ds, _lines(settings, world, logs, number), _oracle(impressions))


def _impressions(world: World, shown: Shown, ds: str, weather: int) -> pd.DataFrame:
    """The impressions as they happened, with what followed and the true probabilities."""
    stem = f"{ds.replace('-', '')}-{world.district}"
    start_ms = FOODLOG.day_start_ms(ds)
    order = np.argsort(shown.time_ms * MAX_CANDIDATES + shown.position, kind="stable")
    columns = {
        "user_id": world.user_id[shown.user],
        "item_id": world.item_id_mp[shown.merchant, shown.dish],
        "time_ms": start_ms + shown.time_ms,
        "position": shown.position + 1,
        "weather": WEATHERS[weather],
        "distance_km": shown.distance_km,
        "delivery_minutes": shown.delivery_minutes,
        "click_ms": np.where(shown.click_ms >= 0, start_ms + shown.click_ms, -1),
        "order_ms": np.where(shown.order_ms >= 0, start_ms + shown.order_ms, -1),
        **{name: getattr(shown, name) for name in ORACLE_COLUMNS[1:]},
        "request": shown.request,
    }
    table = pd.DataFrame(columns).iloc[order].reset_index(drop=True)
    table.insert(0, "impression_id", [f"i{stem}-{i}" for i in range(len(table))])
    table.insert(1, "request_id", [f"r{stem}-{i}" for i in table.pop("request")])
    return table


def _bot_impressions(
    settings: SimulationSettings, world: World, number: int, ds: str, weather: int
) -> pd.DataFrame:
    """Programs that page through the catalogue around the clock and click on a third of it."""
    bots = [b for b in range(settings.bots) if b % settings.districts == world.district]
    tables = []
    for bot in bots:
        rng = settings.rng("bots", bot, number)
        count = settings.bot_impressions
        page = np.arange(count) // MAX_CANDIDATES
        time_ms = (
            FOODLOG.day_start_ms(ds) + np.sort(rng.integers(0, 86_000_000, page.max(initial=0) + 1))[page]
        )
        clicked = rng.random(count) < 0.33
        table = pd.DataFrame(
            {
                "impression_id": [f"i{ds.replace('-', '')}-bot{bot}-{i}" for i in range(count)],
                "request_id": [f"r{ds.replace('-', '')}-bot{bot}-{i}" for i in page],
                "user_id": settings.users + 1 + bot,
                "item_id": rng.choice(world.item_id_mp[world.is_sold_mp], count),
                "time_ms": time_ms,
                "position": np.arange(count) % MAX_CANDIDATES + 1,
                "weather": WEATHERS[weather],
                "distance_km": np.round(rng.uniform(0.3, 8.0, count), 2),
                "delivery_minutes": np.round(rng.uniform(20, 60, count)),
                "click_ms": np.where(clicked, time_ms + rng.integers(100, 1_000, count), -1),
                "order_ms": -1,
            }
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _with_bots(
    settings: SimulationSettings, world: World, impressions: pd.DataFrame, number: int, ds: str, weather: int
) -> pd.DataFrame:
    """What the app shows on a day, to people and programs, and what follows it."""
    shown = impressions.drop(columns=list(ORACLE_COLUMNS[1:]))
    bots = _bot_impressions(settings, world, number, ds, weather)
    shown = pd.concat([shown, bots], ignore_index=True) if len(bots) else shown
    return with_unknown_items(shown, settings, settings.rng("mess", world.district, number))


def _event_logs(
    settings: SimulationSettings, world: World, shown_on: dict[int, pd.DataFrame], number: int, ds: str
) -> dict[str, pd.DataFrame]:
    """The three event logs of a day as sent, with `late_days`.

    Args:
        settings: Rates.
        world: The district.
        shown_on: What was shown on this day and the day before, by number, with times of clicks and orders.
        number: Number of the day.
        ds: The day.
    """
    start_ms, end_ms = FOODLOG.day_start_ms(ds), FOODLOG.day_end_ms(ds)
    shown = shown_on[number]
    logs = {"impressions": shown[["impression_id", "request_id", *_CONTEXT, "position"]]}
    lately = pd.concat([shown_on[n] for n in (number - 1, number) if n in shown_on], ignore_index=True)
    for log, key, when in (("clicks", "click_id", "click_ms"), ("orders", "order_id", "order_ms")):
        followed = lately[(lately[when] >= start_ms) & (lately[when] < end_ms)]
        event_id = key[0] + followed["impression_id"].astype(str).str[1:]
        followed = followed.assign(**{key: event_id, "time_ms": followed[when]})
        logs[log] = followed[[key, "impression_id", "request_id", *_CONTEXT]]
    rngs = [settings.rng("mess", world.district, number, 0, i) for i in range(len(EVENT_LOGS))]
    return {
        log: with_mess(table, settings, rng, start_ms)
        for (log, table), rng in zip(logs.items(), rngs, strict=True)
    }


def _lines(
    settings: SimulationSettings, world: World, logs: dict[int, dict[str, pd.DataFrame]], number: int
) -> dict[str, list[str]]:
    lines = {}
    for index, log in enumerate(EVENT_LOGS):
        arrived = [
            table.loc[table["late_days"] == late].drop(columns="late_days")
            for late in range(MAX_LATE_DAYS, -1, -1)
            if (table := logs.get(number - late, {}).get(log)) is not None
        ]
        rng = settings.rng("mess", world.district, number, 1, index)
        lines[log] = with_broken_lines(json_lines(pd.concat(arrived, ignore_index=True)), settings, rng)
    registered_on = [shift_day(settings.first_day, int(day)) for day in world.registered_day]
    users = pd.DataFrame(users_on(world, number, registered_on))
    bots = [settings.users + 1 + b for b in range(settings.bots) if b % settings.districts == world.district]
    if bots:
        users = pd.concat([users, pd.DataFrame({"user_id": bots})], ignore_index=True)
    lines["users"] = json_lines(users.astype({"home_cell": "Int64"}))
    lines["items"] = json_lines(pd.DataFrame(items_of(world)))
    return lines


def _oracle(impressions: pd.DataFrame) -> pd.DataFrame:
    return impressions[list(ORACLE_COLUMNS)]
