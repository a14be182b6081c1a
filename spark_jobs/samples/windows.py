"""Cutting a user's day into windows of at most `MAX_REALTIME` behaviours.

A window starts where the last one ended: at the time of the first behaviour that no longer fits. Behaviours
of one millisecond are never separated, since a window's static sequence holds what is strictly earlier than
its start; more than `MAX_REALTIME` of them at one millisecond cannot be split, and the window keeps the last.

Behaviours cut a day, not candidates: only they fill the sequence that has a limit. A window is as long as it
can be, so that a cut depends on what lies before it alone: what happens later moves no window, and serving,
which knows no later, has the window that training had.
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

_STATE = "struct<starts:array<bigint>,firsts:array<int>,seen:int,last_ms:bigint,ties:int,held:int>"


def day_windows(times_ms: Column, day_start_ms: Column, day_end_ms: Column, limit: int) -> Column:
    """Windows of a day as `array<struct<start_ms, end_ms, first, count>>`, oldest first.

    Args:
        times_ms: `array<bigint>`, times of the day's behaviours, ascending.
        day_start_ms: Start of the first window.
        day_end_ms: End of the last window.
        limit: Greatest number of behaviours in a window.

    Returns:
        Per window its start (inclusive) and end (exclusive), and the number of the day's behaviours before it
        (`first`) and in it (`count`).
    """
    whole = F.array(_window(day_start_ms, day_end_ms, F.lit(0), F.size(times_ms)))
    start = F.struct(
        F.array(day_start_ms),
        F.array(F.lit(0)),
        F.lit(0),
        F.lit(-1).cast("bigint"),
        F.lit(0),
        F.lit(0),
    ).cast(_STATE)
    # A fold, as where a window starts depends on where the one before did: every limit-th time would be wrong
    # after the first tie. It sees times only, and only of days that are too long for one window.
    folded = F.aggregate(times_ms, start, lambda state, time: _step(state, time, limit))
    starts, firsts = folded["starts"], folded["firsts"]
    ends = F.concat(F.slice(starts, 2, F.size(starts)), F.array(day_end_ms))
    lasts = F.concat(F.slice(firsts, 2, F.size(firsts)), F.array(F.size(times_ms)))
    cut = F.transform(
        F.arrays_zip(starts.alias("s"), ends.alias("e"), firsts.alias("f"), lasts.alias("l")),
        lambda w: _window(w["s"], w["e"], w["f"], w["l"] - w["f"]),
    )
    return F.when(F.size(times_ms) <= limit, whole).otherwise(cut)


def _step(state: Column, time_ms: Column, limit: int) -> Column:
    """One behaviour more: when it does not fit, it opens a window with those of its own millisecond.

    These were counted to the window before (`held`) as they came; they are taken back: `firsts` is the place
    of the first of them, and that window ends with fewer than the limit. Where they already began the window,
    there is nothing to cut: it grows beyond the limit.
    """
    ties = F.when(state["last_ms"] == time_ms, state["ties"] + 1).otherwise(F.lit(1))
    opens = (state["held"] >= limit) & (time_ms > F.element_at(state["starts"], -1))
    return F.struct(
        F.when(opens, F.concat(state["starts"], F.array(time_ms))).otherwise(state["starts"]),
        F.when(opens, F.concat(state["firsts"], F.array(state["seen"] - ties + 1))).otherwise(
            state["firsts"]
        ),
        state["seen"] + 1,
        time_ms,
        ties,
        F.when(opens, ties).otherwise(state["held"] + 1),
    ).cast(_STATE)


def _window(start_ms: Column, end_ms: Column, first: Column, count: Column) -> Column:
    return F.struct(
        start_ms.cast("bigint").alias("start_ms"),
        end_ms.cast("bigint").alias("end_ms"),
        first.cast("int").alias("first"),
        count.cast("int").alias("count"),
    )
