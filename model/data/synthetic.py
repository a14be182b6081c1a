"""Random rows that follow a dataset's contract: input for tests and benchmarks, not for learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder, arrow_schema
from spark_jobs.contract.clock import DAY_MS
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind


def random_samples(
    dataset: Dataset,
    num_rows: int,
    *,
    seed: int = 0,
    ds: str = "2026-03-02",
    max_static: int = 20,
    max_realtime: int = 6,
    max_candidates: int = 5,
) -> pa.Table:
    """Random rows of the samples table: every column, valid values, one row a user.

    Labels depend on the candidate's item, so that a model can learn something from enough rows.
    """
    rng = np.random.default_rng(seed)
    start = dataset.day_start_ms(ds)
    rows = [
        _row(dataset, rng, user, ds, start, (max_static, max_realtime, max_candidates))
        for user in range(num_rows)
    ]
    return pa.Table.from_pylist(rows, schema=arrow_schema(dataset))


def random_batch(dataset: Dataset, num_rows: int, *, seed: int = 0) -> JaggedBatch:
    """A `JaggedBatch` of `random_samples`."""
    return SampleEncoder(dataset).encode(random_samples(dataset, num_rows, seed=seed))


def _row(
    dataset: Dataset, rng: np.random.Generator, user: int, ds: str, start: int, limits: tuple[int, int, int]
) -> dict[str, Any]:
    num_static, num_realtime = (int(rng.integers(0, limit + 1)) for limit in limits[:2])
    num_candidates = int(rng.integers(1, limits[2] + 1))
    end = start + DAY_MS
    realtime_ms = np.sort(rng.integers(start, end, num_realtime))
    candidate_ms = np.sort(rng.integers(start, end, num_candidates))
    row: dict[str, Any] = {
        "user_id": user,
        "ds": ds,
        "window_start_ms": start,
        "window_end_ms": end,
        "static_time_ms": np.sort(rng.integers(start - 30 * DAY_MS, start, num_static)),
        "realtime_time_ms": realtime_ms,
        "realtime_visible": np.searchsorted(realtime_ms, realtime_ms, "left"),
        "candidate_time_ms": candidate_ms,
        "candidate_visible": np.searchsorted(realtime_ms, candidate_ms, "left"),
        "candidate_request_id": [f"{user}-{time}" for time in candidate_ms],
        "candidate_impression_id": [f"{user}-{place}" for place in range(num_candidates)],
    }
    if dataset.has_weights:
        row["candidate_weight"] = rng.uniform(0.5, 20, num_candidates).astype(np.float32)
    sizes = {Group.STATIC: num_static, Group.REALTIME: num_realtime, Group.CANDIDATE: num_candidates}
    for group in Group:
        for feature in dataset.in_group(group):
            values = _values(feature, rng, sizes.get(group, 1))
            row[f"{group}_{feature.name}"] = values if group in sizes else values[0]
    row["profile_user_id"] = user
    clicked = (row["candidate_item_id"] % 3 == 0) & (rng.random(num_candidates) < 0.7)
    row["label_click"] = clicked.astype(np.int8)
    row["label_conversion"] = (clicked & (rng.random(num_candidates) < 0.4)).astype(np.int8)
    return {name: list(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}


def _values(feature: FeatureSpec, rng: np.random.Generator, count: int) -> Any:
    if feature.kind is Kind.ID:
        return rng.integers(0, 500, count)
    if feature.kind is Kind.CATEGORY:
        return rng.integers(0, feature.cardinality, count)
    return rng.uniform(max(feature.low, 0), min(feature.high, 20), count).astype(np.float32)
