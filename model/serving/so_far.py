"""A user's day so far as columns of a row of samples: real-time behaviours, the window, statistics of today.

The rules are those by which samples are built (`spark_jobs/samples/windows.py`, `statistics.with_today`),
over the events of one user; `tests/model/test_replay.py` holds both against each other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.serving.today import Event
from spark_jobs.contract.features import (
    COUNTED_BY,
    EVENT_OF,
    MAX_REALTIME,
    MAX_STATIC,
    SMOOTHING,
    Dataset,
    FeatureSpec,
    Group,
    Measure,
)

_EXACT = 10**9  # weights are summed as integers, as samples sum decimals: no order changes a sum


@dataclass(frozen=True, kw_only=True)
class Done:
    """An event, and what a token of it has by feature."""

    event: Event
    known: Mapping[str, Any]


def window_of(times_ms: Sequence[int], day_start_ms: int, limit: int) -> tuple[int, int]:
    """The window that goes on after these behaviours: its start, and how many of them lie before it.

    Args:
        times_ms: Of the day's behaviours so far, ascending.
        day_start_ms: Where the first window starts.
        limit: Greatest number of behaviours in a window.
    """
    start_ms, first, held, ties, last_ms = day_start_ms, 0, 0, 0, -1
    for seen, time_ms in enumerate(times_ms):
        ties = ties + 1 if time_ms == last_ms else 1
        if held >= limit and time_ms > start_ms:
            start_ms, first, held = time_ms, seen - ties + 1, ties
        else:
            held += 1
        last_ms = time_ms
    return start_ms, first


def add_behaviours(row: dict[str, Any], dataset: Dataset, behaviours: Sequence[Done], count: int) -> None:
    """Adds the real-time sequence of a request; what it has no room for becomes history, as in samples.

    Args:
        row: With its static sequence, and the start of the day as `window_start_ms`.
        dataset: Dataset.
        behaviours: Of the user on the day, strictly before the request, in order.
        count: Candidates.
    """
    times = [done.event.time_ms for done in behaviours]
    row["window_start_ms"], first = window_of(times, row["window_start_ms"], MAX_REALTIME)
    offset = max(first, len(times) - MAX_REALTIME)
    moved, kept = behaviours[:first], behaviours[offset:]
    for feature in dataset.in_group(Group.STATIC):
        values = [done.known[feature.name] for done in moved]
        row[f"static_{feature.name}"] = (row[f"static_{feature.name}"] + values)[-MAX_STATIC:]
    row["static_time_ms"] = (row["static_time_ms"] + times[:first])[-MAX_STATIC:]
    for feature in dataset.in_group(Group.REALTIME):
        row[f"realtime_{feature.name}"] = [done.known[feature.name] for done in kept]
    row["realtime_time_ms"] = times[offset:]
    row["realtime_visible"] = [max(bisect_left(times, time_ms) - offset, 0) for time_ms in times[offset:]]
    row["candidate_visible"] = [len(times) - offset] * count


def statistics(
    dataset: Dataset, done: Sequence[Done], keys: Mapping[str, Sequence[Any]]
) -> dict[str, list[float]]:
    """Statistics of today of each candidate, by column.

    Args:
        dataset: Dataset.
        done: The user's events of the day, strictly before the request.
        keys: By name, what statistics are keyed by, a value a candidate.
    """
    columns = {}
    for feature in dataset.in_group(Group.CANDIDATE):
        if feature.statistic is None or feature.statistic.days:
            continue
        names = feature.statistic.keys
        values: dict[tuple[Any, ...], list[Event]] = {}
        for one in done:
            values.setdefault(tuple(one.known[name] for name in names), []).append(one.event)
        asked = zip(*(keys[name] for name in names), strict=True)
        columns[f"candidate_{feature.name}"] = [
            _value(dataset, feature, values.get(key, [])) for key in asked
        ]
    return columns


def _value(dataset: Dataset, feature: FeatureSpec, events: Sequence[Event]) -> float:
    statistic = feature.statistic
    assert statistic is not None
    if not statistic.measure.is_rate:
        if statistic.measure is Measure.ACTIONS:
            action = 1 + dataset.actions.index(statistic.action)
            number = sum(event.action == action for event in events)
        else:
            number = sum(event.kind is EVENT_OF[statistic.measure] for event in events)
        return float(np.float32(min(float(number), feature.high)))
    happened, shown = (
        _sum(event for event in events if event.kind is EVENT_OF[measure])
        for measure in (COUNTED_BY[statistic.measure], Measure.IMPRESSIONS)
    )
    return float(np.float32(min(happened / (shown + SMOOTHING), 1.0)))


def _sum(events: Iterable[Event]) -> float:
    exact: int = sum(round(event.weight * _EXACT) for event in events)
    return exact / _EXACT
