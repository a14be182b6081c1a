"""Random logs with all that is hard about time, whole in their seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spark_jobs.contract.clock import DAY_MS, days_between, shift_day
from spark_jobs.contract.features import Dataset
from tests.spark_jobs.sample_reference import HOUR_MS, TINY, Row

DAYS = days_between("2026-03-03", "2026-03-06")
MINUTE_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A delivery that comes in: its events and the snapshots beside them."""

    ds: str
    events: list[Row]
    users: list[Row]
    items: list[Row]


class Log:
    """A drawn log: `arrivals` in the order in which they come in; a day's last one is what holds.

    Args:
        seed: Of all that is drawn.
        dataset: Dataset.
        days: Its days.
        by_event_time: Whether it is partitioned by event time: a delivery brings the events of its own day
            and no others, and the days come in one after the other.
    """

    def __init__(
        self, seed: int, dataset: Dataset = TINY, days: Sequence[str] = DAYS, *, by_event_time: bool = False
    ) -> None:
        self.draw, self.dataset, self.days, self.number = random.Random(seed), dataset, list(days), 0
        events = [event for ds in self.days for _ in range(16) for event in self._request(ds)]
        events += [event for ds in self.days for event in self._crowd(ds)]
        if by_event_time:
            own = {e["event_id"]: e | {"delivery_ds": e["ds"]} for e in events if e["ds"] in self.days}
            self.arrivals = [
                self._arrival(ds, [e for e in own.values() if e["ds"] == ds]) for ds in self.days
            ]
            return
        events += [copy for event in events if self.draw.random() < 0.15 for copy in self._copy(event)]
        whole = [self._arrival(ds, [e for e in events if e["delivery_ds"] == ds]) for ds in self.days]
        self.draw.shuffle(whole)
        spoiled = [self._spoiled(arrival) for arrival in whole if self.draw.random() < 0.4]
        corrected = [next(a for a in whole if a.ds == bad.ds) for bad in spoiled]
        for bad, good in zip(spoiled, corrected, strict=True):
            whole[whole.index(good)] = bad
        self.arrivals = [*whole, *corrected]

    @property
    def final(self) -> list[Arrival]:
        """What holds in the end, by day."""
        return [{a.ds: a for a in self.arrivals}[ds] for ds in self.days]

    def _request(self, ds: str) -> Iterator[Row]:
        """Cards of one request, and what follows on them."""
        draw = self.draw
        user = draw.randint(1, 4)
        first_ms = self.dataset.day_start_ms(ds) + self._moment()
        name = draw.choice([f"session-{user}", *[f"request-{self._next()}"] * 3])
        for _ in range(draw.choice([1, 1, 2, 3])):
            delay = draw.choice([0, 0, 0, 1, 20 * MINUTE_MS, HOUR_MS - 1, HOUR_MS])
            shown = self._event(
                "impression", user, draw.choice([10, 11, 12]), first_ms + delay, request_id=name
            )
            yield shown
            for kind, share in (("click", 0.6), ("conversion", 0.4), ("feedback", 0.2)):
                if draw.random() < share:
                    yield self._following(shown, kind)

    def _moment(self) -> int:
        """A time of the day: often at its borders, often one that others have."""
        draw = self.draw
        evening = DAY_MS - draw.choice([1, 2, 10, 30, 60, 61]) * MINUTE_MS
        border = draw.choice([0, 1, MINUTE_MS, DAY_MS - 1, DAY_MS - HOUR_MS, evening])
        return draw.choice(
            [border, draw.randrange(24) * HOUR_MS, 10 * HOUR_MS + draw.randrange(4) * MINUTE_MS]
        )

    def _following(self, shown: Row, kind: str) -> Row:
        draw, closes = self.draw, self.dataset.attribution_ms
        delay = draw.choice(
            [-MINUTE_MS, 0, 1, MINUTE_MS, MINUTE_MS, 15 * MINUTE_MS, HOUR_MS, closes, closes + 1]
        )
        user = shown["user_id"] if draw.random() < 0.95 else 1 + shown["user_id"] % 4
        return self._event(
            kind,
            user,
            shown["item_id"],
            shown["time_ms"] + delay,
            impression_id=shown["impression_id"],
            action=draw.choice([None, 0, 1, 2]),
        )

    def _crowd(self, ds: str) -> Iterator[Row]:
        """Too much for a person: by the end of the day, with what comes later, or in one late delivery."""
        known, late = self.draw.choice([(21, 0), (12, 12), (1, 21), (0, 0)])
        start_ms = self.dataset.day_start_ms(ds)
        for n, delivery_ds in enumerate([ds] * known + [shift_day(ds, 1)] * late):
            time_ms = start_ms + 10 * HOUR_MS + n
            yield self._event("impression", 5, 10, time_ms) | {"delivery_ds": min(delivery_ds, self.days[-1])}

    def _event(self, kind: str, user: int, item: int, time_ms: int, **more: Any) -> Row:
        """An event, delivered with its own day, the day before where that is possible, or late."""
        name = f"{kind[:2]}{self._next()}"
        day = (time_ms - self.dataset.day_start_ms(self.days[0])) // DAY_MS
        ds = shift_day(self.days[0], day)
        delivered = shift_day(ds, self.draw.choice([0, 0, 0, 0, -1, 1, 1, 2, 3]))
        row = {
            "event_id": name,
            "event_type": kind,
            "user_id": user,
            "item_id": item,
            "request_id": name if kind == "impression" else None,
            "impression_id": name,
            "time_ms": time_ms,
            "action": None,
            "weather": self.draw.choice([None, 0, 1, 2]),
            "weight": self.draw.choice([None, 0.5, 4.0, 20.0]),
            "ds": ds,
            "delivery_ds": min(max(delivered, self.days[0], shift_day(ds, -1)), self.days[-1]),
        }
        return row | more

    def _copy(self, event: Row) -> list[Row]:
        """The same event in another delivery, with other values."""
        latest = min(shift_day(event["ds"], self.dataset.late_days), self.days[-1])
        days = days_between(max(shift_day(event["ds"], -1), self.days[0]), latest)
        days = [day for day in days if day != event["delivery_ds"]]
        return (
            [event | {"delivery_ds": self.draw.choice(days), "item_id": self.draw.choice([10, 11])}]
            if days
            else []
        )

    def _arrival(self, ds: str, events: list[Row]) -> Arrival:
        """With snapshots: some people and dishes are not in them, some days have none."""
        draw = self.draw
        users = [{"user_id": user, "city": draw.randint(0, 9)} for user in range(1, 6) if draw.random() < 0.8]
        items = [
            {"item_id": item, "merchant_id": draw.choice([7, 8]), "price": draw.choice([None, 5.0, 9.5])}
            for item in (10, 11)
            if draw.random() < 0.8
        ]
        return Arrival(
            ds=ds,
            events=events,
            users=[row | {"ds": ds} for row in users if draw.random() < 0.9],
            items=[row | {"ds": ds} for row in items],
        )

    def _spoiled(self, arrival: Arrival) -> Arrival:
        """The delivery before it was corrected: events lacking, others of another user or in excess."""
        kept = [e for e in arrival.events if self.draw.random() < 0.7]
        kept += [
            e | {"event_id": f"x{e['event_id']}", "impression_id": f"x{e['impression_id']}"} for e in kept[:3]
        ]
        first_ms = self.dataset.day_start_ms(arrival.ds) + 9 * HOUR_MS
        own = self._event("impression", 1, 10, first_ms) | {"delivery_ds": arrival.ds}
        return replace(arrival, events=[*kept, own], users=arrival.users[::2])

    def _next(self) -> int:
        self.number += 1
        return self.number
