"""What happens to a log on its way to the collector: copies, delays, holes, broken lines.

Works on one log of one district and day; every kind of trouble has its rate in `SimulationSettings` and
leaves the rest alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spark_jobs.contract.clock import DAY_MS
from spark_jobs.simulator.settings import SimulationSettings

UNKNOWN_ITEM = 9_000_000_000  # dishes from here on are in no catalogue
MAX_LATE_DAYS = 2
CLOSING_MS = 2 * 3_600_000  # a delivery closes two hours after its day: orders may follow until then


def with_unknown_items(
    impressions: pd.DataFrame, settings: SimulationSettings, rng: np.random.Generator
) -> pd.DataFrame:
    """Gives a few impressions, and so what follows them, a dish that the catalogue does not have."""
    unknown = rng.random(len(impressions)) < settings.unknown_item_rate
    item_id = impressions["item_id"].to_numpy()
    return impressions.assign(item_id=np.where(unknown, UNKNOWN_ITEM + item_id, item_id))


def with_mess(
    log: pd.DataFrame, settings: SimulationSettings, rng: np.random.Generator, day_start_ms: int
) -> pd.DataFrame:
    """Sends the lines: adds `received_ms` and `late_days`, copies and holes, in the order of arrival.

    Args:
        log: Lines with `user_id`, `time_ms`, `weather`; at most one of each key.
        settings: Rates.
        rng: The random stream of this log, district and day.
        day_start_ms: First millisecond of the day, UTC.
    """
    again = np.flatnonzero(rng.random(len(log)) < settings.duplicate_rate)
    sent = log.iloc[np.concatenate([np.arange(len(log)), again])].reset_index(drop=True)
    num_lines = len(sent)
    late_days = np.where(
        rng.random(num_lines) < settings.late_rate, rng.choice([1, 2], num_lines, p=[0.7, 0.3]), 0
    )
    retry_ms = np.where(np.arange(num_lines) < len(log), 0, 20_000)
    on_time_ms = (
        sent["time_ms"].to_numpy() + 200 + rng.exponential(1_500, num_lines).astype(np.int64) + retry_ms
    )
    window_ms = day_start_ms + late_days * DAY_MS + CLOSING_MS
    late_ms = window_ms + rng.integers(0, DAY_MS, num_lines)
    hole = rng.random((3, num_lines)) < np.array([[1.0], [1.0], [10.0]]) * settings.null_rate
    sent = sent.assign(
        user_id=_with_holes(sent["user_id"], hole[0]),
        time_ms=_with_holes(sent["time_ms"], hole[1] & ~hole[0]),
        weather=sent["weather"].mask(pd.Series(hole[2]), None),
        received_ms=np.where(late_days > 0, late_ms, on_time_ms),
        late_days=late_days,
    )
    # Collectors write what they get, nearly in order: lines of the same minute change places.
    arrival = sent["received_ms"].to_numpy() + rng.integers(0, 60_000, num_lines)
    arrived: pd.DataFrame = sent.iloc[np.argsort(arrival, kind="stable")].reset_index(drop=True)
    return arrived


def json_lines(table: pd.DataFrame) -> list[str]:
    """One JSON object a row; missing values are null."""
    if table.empty:
        return []
    text = str(table.to_json(orient="records", lines=True, double_precision=3))
    return text.rstrip("\n").split("\n")


def with_broken_lines(lines: list[str], settings: SimulationSettings, rng: np.random.Generator) -> list[str]:
    """Cuts a few lines off, as when a producer dies, and puts other output in the place of a few more."""
    trouble = rng.random(len(lines))
    for index in np.flatnonzero(trouble < settings.malformed_rate):
        is_cut = trouble[index] < settings.malformed_rate / 2
        lines[index] = (
            lines[index][: len(lines[index]) // 2] if is_cut else "WARN retrying upload, queue is full"
        )
    return lines


def _with_holes(column: pd.Series, hole: NDArray[np.bool_]) -> pd.Series:
    return column.astype("Int64").mask(pd.Series(hole))
