"""Scores of a day's rows by several models, and their metrics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model.data.reader import SamplesTable
from model.judging.baselines import item_baselines
from model.judging.metrics import group_ids, task_metrics
from model.judging.scoring import SCORES, Scorer, candidate_frame
from spark_jobs.contract.features import Dataset

Array = npt.NDArray[Any]

LABELS = {"ctr": "label_click", "ctcvr": "label_conversion"}

# Bands of static history by which users are told apart: name, least and greatest length.
_HISTORY_BANDS = (("none", 0, 0), ("1_to_9", 1, 9), ("10_to_49", 10, 49), ("50_and_more", 50, 1 << 30))


def groups_of(dataset: Dataset, frame: dict[str, Array]) -> dict[str, Array]:
    """An integer of each row's `user`, `window` and, where requests have several candidates, `request`."""
    groups = {
        "user": group_ids(frame["user_id"]),
        "window": group_ids(frame["user_id"], frame["window_start_ms"]),
    }
    if dataset.has_requests:
        groups["request"] = group_ids(frame["user_id"], frame["request_id"])
    return groups


def metrics_of(dataset: Dataset, frame: dict[str, Array], scores: dict[str, Array]) -> dict[str, float]:
    """CTR and CTCVR metrics of scores beside the frame of `candidate_frame`."""
    groups = groups_of(dataset, frame)
    metrics: dict[str, float] = {}
    for task, label in LABELS.items():
        metrics |= task_metrics(
            task,
            frame[label],
            frozen=scores[f"{task}_frozen"],
            live=scores[f"{task}_live"],
            window=groups["window"],
            user=groups["user"],
            request=groups.get("request"),
            weight=frame.get("weight"),
        )
    return metrics


def rates_of(frame: dict[str, Array]) -> dict[str, float]:
    """The shares of a day's impressions that were clicked and that were ordered, before any sampling."""
    return {
        name: float(np.average(frame[label], weights=frame.get("weight")))
        for name, label in (("click_rate", "label_click"), ("conversion_rate", "label_conversion"))
    }


def score_day(
    samples: SamplesTable, ds: str, scorers: dict[str, Scorer]
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """The frame of a day's candidates, and by name of scorer and baseline the scores beside it."""
    frames: list[dict[str, Array]] = []
    parts: dict[str, list[dict[str, Array]]] = {}
    for chunk in samples.chunks(ds):
        table = chunk.sort_by([("user_id", "ascending"), ("window_start_ms", "ascending")])
        frame = candidate_frame(table)
        counts = np.diff(table.column("candidate_time_ms").combine_chunks().offsets.to_numpy())
        lengths = np.diff(table.column("static_time_ms").combine_chunks().offsets.to_numpy())
        frames.append(frame | {"static_length": np.repeat(lengths, counts)})
        of_chunk = item_baselines(samples.dataset, table)
        of_chunk |= {name: scorer.score(table) for name, scorer in scorers.items()}
        for name, scores in of_chunk.items():
            parts.setdefault(name, []).append(scores)
    return _joined(frames), {name: _joined(some) for name, some in parts.items()}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def segments_of(dataset: Dataset, frame: dict[str, Array], scores: dict[str, Array]) -> dict[str, Any]:
    """Metrics by length of the static history."""
    segments = {}
    for name, least, greatest in _HISTORY_BANDS:
        rows = (frame["static_length"] >= least) & (frame["static_length"] <= greatest)
        if rows.any():
            part = {key: values[rows] for key, values in frame.items()}
            metrics = metrics_of(dataset, part, {key: values[rows] for key, values in scores.items()})
            segments[f"history_{name}"] = {"candidates": int(rows.sum()), **metrics}
    return segments


def write_scores(path: Path, frame: dict[str, Array], scores: dict[str, Array]) -> None:
    """Writes scores with the keys and labels of their rows, whole."""
    columns = {name: values for name, values in frame.items() if name != "static_length"}
    table = pa.table({**columns, **{name: scores[name] for name in SCORES}})
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, neighbour)
    os.replace(neighbour, path)


def without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have: a metric that is not defined."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
