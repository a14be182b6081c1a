"""What users have done today, in memory: bounded, and gone with the day.

    today = Today(dataset, most=100_000)
    today.add(event, lookups.day)                      # an object of `POST /events`
    done = today.before(user, time_ms)                 # that user's events of the day, strictly earlier

An event has `event_id`, `event_type`, `user_id`, `item_id` and `time_ms`; a behaviour its `action` by name;
and what is known of its context. An impression counts from the time of its request on, as in samples. The day
is that of the published lookups, or the one behind it, until its lookups are there; what is of an earlier day
is dropped. A copy of an event changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.serving.request import RequestError, integer_of, is_id
from spark_jobs.contract.clock import CLOCK_FEATURES, DAY_MS
from spark_jobs.contract.features import Dataset, EventType, FeatureSpec, Kind, Owner
from spark_jobs.contract.tables import WEIGHTS

_NAMED = ("event_id", "event_type", "user_id", "item_id", "time_ms", "action", "weight")


class FullError(Exception):
    """There is no room for more events of today."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that a user did, or was shown.

    Attributes:
        time_ms: When.
        event_id: Whose copies are one.
        kind: Of event.
        user: Who.
        item: On what.
        action: 1 and its place in `Dataset.actions`; 0: it is no behaviour.
        context: By name.
        weight: How many impressions it stands for.
    """

    time_ms: int
    event_id: str
    kind: EventType
    user: int
    item: int
    action: int
    context: Mapping[str, float]
    weight: float

    @property
    def order(self) -> tuple[int, str]:
        """By what events are sorted, as in samples."""
        return self.time_ms, self.event_id


class Today:
    """The log.

    Args:
        dataset: Whose events.
        most: Events that there is room for.
    """

    def __init__(self, dataset: Dataset, most: int) -> None:
        self._dataset, self._most = dataset, most
        self._context = [f for f in dataset.of(Owner.CONTEXT) if f.name not in CLOCK_FEATURES]
        self._days: dict[int, dict[int, dict[tuple[str, str], Event]]] = {}
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def add(self, event: Any, ds: str) -> None:
        """Notes an event.

        Args:
            event: As it came.
            ds: Day of the lookups that are published.

        Raises:
            RequestError: It is no event of that day or the one behind it; names field and rule.
            FullError: There is no room.
        """
        made = self._event(event)
        start, day = self._dataset.day_start_ms(ds), self._day_of(made.time_ms)
        for past in [kept for kept in self._days if kept < start]:
            self._number -= sum(map(len, self._days.pop(past).values()))
        if not start <= day <= start + DAY_MS:
            raise RequestError(
                f"time_ms {made.time_ms} is not of {ds}, of which the lookups are, nor of the day behind it"
            )
        of_user = self._days.setdefault(day, defaultdict(dict))[made.user]
        key = (made.kind.value, made.event_id)
        if key in of_user:
            return
        is_impression = made.kind is EventType.IMPRESSION
        others = sum((other.kind is EventType.IMPRESSION) == is_impression for other in of_user.values())
        if others >= self._dataset.max_impressions_a_day:
            raise RequestError(
                f"user_id {made.user} has {others} events of this kind today: more than a person can"
            )
        if self._number >= self._most:
            raise FullError(f"there are {self._number} events of today, and no room for more")
        of_user[key] = made
        self._number += 1

    def _event(self, event: Any) -> Event:
        if not isinstance(event, dict):
            raise RequestError(f"an event is a {type(event).__name__}, it must be an object")
        names = (*_NAMED, *(f.name for f in self._context))
        if unknown := sorted(set(event) - set(names)):
            raise RequestError(f"an event has no {unknown[0]!r}; it has {', '.join(names)}")
        action = event.get("action")
        if action is not None and action not in self._dataset.actions:
            raise RequestError(f"action is {action!r}; use one of {', '.join(self._dataset.actions)}")
        try:
            kind = EventType(str(event.get("event_type")))
        except ValueError:
            kinds = ", ".join(EventType)
            raise RequestError(f"event_type is {event.get('event_type')!r}; use one of {kinds}") from None
        event_id = event.get("event_id")
        if not isinstance(event_id, str) or not 0 < len(event_id) <= 128:
            raise RequestError(f"event_id is {event_id!r}; it must be text of 1 to 128 characters")
        user, item, time_ms = (integer_of(event, name) for name in ("user_id", "item_id", "time_ms"))
        context = {f.name: self._known(event, f) for f in self._context}
        return Event(
            time_ms=time_ms,
            event_id=event_id,
            kind=kind,
            user=user,
            item=item,
            action=0 if action is None else 1 + self._dataset.actions.index(action),
            context=context,
            weight=self._weight(event),
        )

    @staticmethod
    def _known(event: Mapping[str, Any], feature: FeatureSpec) -> float:
        """The value of a feature of the context, as it is stored."""
        is_number, value = feature.kind is Kind.NUMBER, event.get(feature.name)
        if value is None:
            return feature.unknown if is_number else int(feature.unknown)
        if is_number:
            if type(value) in (int, float) and feature.low <= value <= feature.high:
                return float(np.float32(value))
            wanted = f"a number from {feature.low:g} to {feature.high:g}"
        else:
            is_category = feature.kind is Kind.CATEGORY
            if is_id(value) and (not is_category or 0 <= value < feature.cardinality):
                return int(value)
            wanted = f"an integer below {feature.cardinality}" if is_category else "an integer of 64 bits"
        raise RequestError(f"{feature.name} is {value!r}; it must be {wanted}")

    def _weight(self, event: Mapping[str, Any]) -> float:
        weight = event.get("weight")
        if weight is None:
            return 1.0
        if not self._dataset.has_weights:
            raise RequestError(f"events of {self._dataset.name} have no weight")
        if type(weight) not in (int, float) or not WEIGHTS[0] <= weight <= WEIGHTS[1]:
            raise RequestError(f"weight is {weight!r}; it must lie in {WEIGHTS[0]:g} to {WEIGHTS[1]:g}")
        return float(np.float32(weight))

    def _day_of(self, time_ms: int) -> int:
        offset = self._dataset.utc_offset_ms
        return (time_ms + offset) // DAY_MS * DAY_MS - offset

    def before(self, user: int, time_ms: int) -> list[Event]:
        """A user's events of the day of a time, strictly before it, in order."""
        of_user = self._days.get(self._day_of(time_ms), {}).get(user, {})
        return sorted((e for e in of_user.values() if e.time_ms < time_ms), key=lambda e: e.order)
