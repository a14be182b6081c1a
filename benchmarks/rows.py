"""Rows of given lengths, as batches and as a table, made without a loop over tokens: input for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder, arrow_schema
from spark_jobs.contract.clock import DAY_MS
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind

_IDS = 10_000_000  # ids are log-uniform below it, so that some are frequent
Lengths = dict[Group, npt.NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Lengths of rows.

    Args:
        name: By which results name it.
        text: How lengths are drawn.
    """

    name: str
    text: str


P = Shape(name="P", text="static 200..999 with the profile, real-time 10..99, candidates 50..199, uniform")
ZIPF = Shape(name="zipf", text="tokens of a row numpy's zipf(1.2) up to 4,096, a fifth of them candidates")


def lengths_of(shape: Shape, num_rows: int, num_profile: int, seed: int = 1) -> Lengths:
    """Lengths of the three sequences of each row; the shape counts the profile among static tokens."""
    rng = np.random.default_rng(seed)
    if shape is P:
        static, realtime, candidates = (
            rng.integers(*bounds, num_rows) for bounds in ((200, 1000), (10, 100), (50, 200))
        )
    else:
        tokens = np.minimum(rng.zipf(1.2, num_rows), 4096)
        candidates = np.maximum(tokens // 5, 1)
        realtime = np.minimum((tokens - candidates) // 10, 100)
        static = tokens - candidates - realtime
    static = np.maximum(static - num_profile, 0)
    return {Group.STATIC: static, Group.REALTIME: realtime, Group.CANDIDATE: candidates}


def table_of(dataset: Dataset, lengths: Lengths, *, seed: int = 1, ds: str = "2026-03-02") -> pa.Table:
    """Rows of the samples table with valid random values."""
    rng = np.random.default_rng(seed)
    num_rows = len(lengths[Group.CANDIDATE])
    start = dataset.day_start_ms(ds)
    columns: dict[str, Any] = {
        "user_id": np.arange(num_rows),
        "ds": [ds] * num_rows,
        "window_start_ms": np.full(num_rows, start),
        "window_end_ms": np.full(num_rows, start + DAY_MS),
        **_times(lengths, start),
    }
    for group in Group:
        size = int(lengths[group].sum()) if group in lengths else num_rows
        for feature in dataset.in_group(group):
            columns[f"{group}_{feature.name}"] = _values(feature, rng, size)
    num_candidates = int(lengths[Group.CANDIDATE].sum())
    for name in ("label_click", "label_conversion"):
        columns[name] = (rng.random(num_candidates) < 0.1).astype(np.int8)
    for name in ("candidate_request_id", "candidate_impression_id"):
        columns[name] = np.full(num_candidates, "")
    arrays = []
    for field in arrow_schema(dataset):
        values = columns[field.name]
        if not pa.types.is_list(field.type):
            arrays.append(pa.array(values, field.type))
            continue
        group = Group.CANDIDATE if field.name.startswith("label") else Group(field.name.split("_")[0])
        offsets = np.concatenate([[0], lengths[group].cumsum()]).astype(np.int32)
        arrays.append(pa.ListArray.from_arrays(offsets, pa.array(values, field.type.value_type)))
    return pa.Table.from_arrays(arrays, schema=arrow_schema(dataset))


def batch_of(dataset: Dataset, lengths: Lengths, *, seed: int = 1) -> JaggedBatch:
    """The same rows as a batch."""
    return SampleEncoder(dataset, max_static=4096).encode(table_of(dataset, lengths, seed=seed))


def _times(lengths: Lengths, start: int) -> dict[str, npt.NDArray[Any]]:
    """Times in order, evenly spread, and how many real-time events are earlier than each."""
    static, realtime, candidates = (
        lengths[group] for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
    )
    place = _within(candidates)
    of_row = np.repeat(realtime, candidates)
    return {
        "static_time_ms": start - 1 - (np.repeat(static, static) - _within(static)) * 60_000,
        "realtime_time_ms": start + _within(realtime) * DAY_MS // np.repeat(realtime + 1, realtime),
        "realtime_visible": _within(realtime),
        "candidate_time_ms": start + place * DAY_MS // np.repeat(candidates, candidates),
        "candidate_visible": place * of_row // np.repeat(candidates, candidates),
    }


def _within(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)


def _values(feature: FeatureSpec, rng: np.random.Generator, size: int) -> npt.NDArray[Any]:
    if feature.kind is Kind.ID:
        ids: npt.NDArray[Any] = np.exp(rng.random(size) * np.log(_IDS)).astype(np.int64)
        return ids
    if feature.kind is Kind.CATEGORY:
        return rng.integers(0, feature.cardinality, size)
    return rng.uniform(max(feature.low, 0), min(feature.high, 20), size).astype(np.float32)


def shuffled(batch: JaggedBatch, seed: int) -> torch.Tensor:
    """A drawn order of a batch's rows."""
    return torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
