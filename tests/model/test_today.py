"""The log of today: what it takes, when it lets go, and that a row of it is what samples would have."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.serving import so_far
from model.serving.request import RequestError
from model.serving.so_far import Done
from model.serving.today import Event, FullError, Today
from spark_jobs.contract.clock import DAY_MS, clock_features
from spark_jobs.contract.features import Group
from tests.spark_jobs.sample_reference import TINY, reference_samples

DS = "2026-03-05"
START = TINY.day_start_ms(DS)
BEHAVIOURS = 4  # of a window
ITEMS = [{"item_id": item, "merchant_id": item % 2, "price": 2.5 + item, "ds": DS} for item in (10, 11, 12)]
OF_ITEM = {item["item_id"]: {name: item[name] for name in ("merchant_id", "price")} for item in ITEMS}


def event(**fields: Any) -> dict[str, Any]:
    of = {
        "event_id": "a",
        "event_type": "click",
        "user_id": 1,
        "item_id": 10,
        "time_ms": START,
        "action": "click",
    }
    return {**of, **fields}


def drawn(seed: int, weighted: bool) -> list[dict[str, Any]]:
    """Rows of the table `events` of two users' day: requests of cards, and what follows on them."""
    draw, rows = random.Random(seed), []
    for request in range(9):
        user, time_ms = draw.randint(1, 2), START + draw.randint(0, 60) * 60_000 + 7
        for card in range(2):
            for kind, action in (("impression", None), ("click", "click"), ("conversion", "order")):
                if kind != "impression" and draw.random() < 0.4:
                    continue
                after = (
                    0 if kind == "impression" else draw.choice([1, 1, 30_000, 60_001])
                )  # none at the time of a request
                name = f"{kind}-{request}-{card}"
                rows.append(
                    event(event_id=name, event_type=kind, user_id=user, item_id=10 + draw.randint(0, 2),
                          time_ms=time_ms + after, action=action, weather=draw.randint(0, 7),
                          request_id=f"r{request}", impression_id=f"i{request}-{card}")
                    | ({"weight": round(draw.uniform(0.1, 9), 2)} if weighted else {})
                )  # fmt: skip
    return rows


def stored(row: dict[str, Any]) -> dict[str, Any]:
    """An event as the table has it."""
    action = row["action"] and 1 + TINY.actions.index(row["action"])
    return {**row, "action": action, "ds": DS, "delivery_ds": DS}


def known_of(one: Event) -> dict[str, Any]:
    named = {"user_id": one.user, "item_id": one.item, "action": one.action}
    return {**named, **OF_ITEM[one.item], **one.context, **clock_features(one.time_ms, TINY.utc_offset_ms)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weighted", [False, True])
def test_a_request_has_the_day_that_samples_have(
    seed: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(so_far, "MAX_REALTIME", BEHAVIOURS)
    monkeypatch.setattr(so_far, "MAX_STATIC", 6)
    dataset = dataclasses.replace(TINY, has_weights=weighted, max_impressions_a_day=100)
    rows = drawn(seed, weighted)
    samples = reference_samples([*map(stored, rows)], [], ITEMS, dataset, DS, 6, BEHAVIOURS)
    today = Today(dataset, most=1000)
    for row in random.Random(seed).sample(rows, len(rows)):  # in any order
        today.add({name: v for name, v in row.items() if name not in ("request_id", "impression_id")}, DS)
    num_windows = 0
    for sample in samples:
        num_windows += sample["window_start_ms"] > START
        for place, time_ms in enumerate(sample["candidate_time_ms"]):
            done = [Done(event=e, known=known_of(e)) for e in today.before(sample["user_id"], time_ms)]
            names = [f.name for f in dataset.in_group(Group.STATIC)]
            row = {"window_start_ms": START, "static_time_ms": [], **{f"static_{n}": [] for n in names}}
            so_far.add_behaviours(row, dataset, [one for one in done if one.event.action], 1)
            keys = {"user_id": [sample["user_id"]]}
            keys |= {name: [sample[f"candidate_{name}"][place]] for name in ("item_id", "merchant_id")}
            statistics = so_far.statistics(dataset, done, keys)
            for name, (value,) in statistics.items():
                assert value == pytest.approx(sample[name][place], rel=1e-6), name
            assert len(statistics) == 4
            seen = sum(other < time_ms for other in sample["realtime_time_ms"])
            assert row.pop("candidate_visible") == [sample["candidate_visible"][place]]
            for name, value in row.items():
                wanted = sample[name]
                assert value == (wanted[:seen] if name.startswith("realtime") else wanted), name
    assert num_windows  # some days did not fit one


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"user_id": "1"}, "user_id is '1'"),
        ({"time_ms": None}, "time_ms is None"),
        ({"event_id": ""}, "event_id is ''"),
        ({"event_type": "look"}, "event_type is 'look'; use one of impression, click"),
        ({"action": 1}, "action is 1; use one of click, order"),
        ({"weather": 1.5}, "weather is 1.5; it must be an integer below 8"),
        ({"weather": 8}, "weather is 8; it must be an integer below 8"),
        ({"weather": 10**400}, "it must be an integer below 8"),
        ({"weight": 2}, "events of tiny have no weight"),
        ({"colour": 1}, "an event has no 'colour'; it has event_id"),
        ({"time_ms": START - 1}, f"is not of {DS}"),
        ({"time_ms": START + 2 * DAY_MS}, f"is not of {DS}"),
    ],
)
def test_what_is_no_event_of_today_is_named(wrong: dict[str, Any], told: str) -> None:
    today = Today(TINY, most=10)
    with pytest.raises(RequestError, match=told):
        today.add(event(**wrong), DS)
    with pytest.raises(RequestError, match="an event is a list"):
        today.add([], DS)
    assert not len(today)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("event_id", "event_type", "user_id", "item_id", "time_ms", "action", "weather", "weight")


@settings(max_examples=40, deadline=None, database=None)
@given(
    wrong=VALUES | st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4).map(lambda of: event(**of))
)
def test_whatever_is_posted_is_held_or_refused_with_its_field(wrong: Any) -> None:
    today = Today(dataclasses.replace(TINY, has_weights=True), most=10)
    told = ""
    try:
        today.add(wrong, DS)
    except RequestError as error:
        told = str(error)
    if told:
        assert any(name in told for name in (*FIELDS, "an event has no", "an event is a"))
        assert not len(today)
    else:
        assert len(today.before(wrong["user_id"], wrong["time_ms"] + 1)) == 1


def test_the_log_is_bounded_and_ends_with_the_day() -> None:
    today = Today(TINY, most=3)
    for name in ("a", "b", "a"):
        today.add(event(event_id=name), DS)
    today.add(event(time_ms=START + DAY_MS), DS)  # the day behind it, whose lookups are not there yet
    assert len(today) == 3
    with pytest.raises(FullError, match="3 events"):
        today.add(event(event_id="c"), DS)
    assert [e.event_id for e in today.before(1, START + 1)] == ["a", "b"]
    assert not today.before(1, START)  # strictly earlier
    assert not today.before(2, START + 1)
    today.add(event(event_id="d", time_ms=START + DAY_MS + 5), "2026-03-06")
    assert not today.before(1, START + 1)
    assert [e.event_id for e in today.before(1, START + DAY_MS + 9)] == ["a", "d"]
    assert len(today) == 2


def test_a_user_has_no_more_events_than_a_person_can() -> None:
    today = Today(TINY, most=100)
    for number in range(TINY.max_impressions_a_day):
        today.add(event(event_id=str(number), event_type="impression", action=None), DS)
    with pytest.raises(RequestError, match="user_id 1 has 20 events of this kind"):
        today.add(event(event_id="more", event_type="impression", action=None), DS)
    today.add(event(), DS)
