"""Days: their names, their arithmetic, and the two features that are read off the clock."""

from __future__ import annotations

import re
from datetime import date, timedelta

HOUR_MS = 60 * 60 * 1000
DAY_MS = 24 * HOUR_MS
# The delivery of what happened before the log: earlier than any day that knows of it.
HISTORY_DS = "0001-01-01"


def parse_day(ds: str) -> date:
    """Reads a day.

    Raises:
        ValueError: `ds` is not a calendar day written YYYY-MM-DD.
    """
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", ds):
        try:
            return date.fromisoformat(ds)
        except ValueError:
            pass
    raise ValueError(f"{ds!r} is not a day; write it as YYYY-MM-DD, e.g. 2026-03-01")


def shift_day(ds: str, days: int) -> str:
    """The day that lies `days` after `ds` (before it, when negative)."""
    return (parse_day(ds) + timedelta(days=days)).isoformat()


def days_between(first: str, last: str) -> list[str]:
    """All days from `first` to `last`, both included, ascending; empty when `last` is before `first`."""
    return [shift_day(first, i) for i in range((parse_day(last) - parse_day(first)).days + 1)]


CLOCK_FEATURES = ("hour", "weekday")  # hour 0..23 and Monday 0 .. Sunday 6 in the dataset's clock
THURSDAY = 3  # 1970-01-01, with Monday 0


def clock_features(time_ms: int, utc_offset_ms: int) -> dict[str, int]:
    """`CLOCK_FEATURES` of a time, in a clock that is so far ahead of UTC."""
    local = time_ms + utc_offset_ms
    return {"hour": local // HOUR_MS % 24, "weekday": (local // DAY_MS + THURSDAY) % 7}
