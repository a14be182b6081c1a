"""LightGBM on the samples of any dataset: what a practitioner tries first and a model has to beat.

Its features are those of the candidate and of the user as the samples hold them, point in time, one flat row
a candidate: every number and category, and of ids none, whose past the statistics tell; beside them how long
the history is. How many candidates are shown at once is none: where the bought ones are always among them, it
tells of the outcome. Objectives: `binary`, and `lambdarank` within requests (within windows, where a request
has one candidate). Click and conversion are learned apart. Scores are live and, with the statistics of the
day so far at zero, frozen, as those of rankers are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.data.reader import SamplesTable
from model.judging.evaluation import LABELS
from model.judging.metrics import group_ids
from model.judging.scoring import candidate_frame
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind, Owner

Array = npt.NDArray[Any]
Frame = dict[str, Array]
OBJECTIVES = ("binary", "lambdarank")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Candidates as flat rows.

    Attributes:
        frame: Keys and labels, `[C]` each.
        values: float32 `[C, F]`.
        names: Of the features.
        categories: Which of them are categories.
        live: Which of them are of the day so far: zero while the state is frozen.
    """

    frame: Frame
    values: Array
    names: tuple[str, ...]
    categories: tuple[str, ...]
    live: Array


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """How LightGBM learns.

    Args:
        objective: `binary` or `lambdarank`.
        rounds: Trees.
        leaves: Most leaves of a tree.
        rate: Learning rate.
        least: Least rows of a leaf.
        share: Share of the features that a tree sees.
    """

    objective: str = "binary"
    rounds: int = 300
    leaves: int = 63
    rate: float = 0.05
    least: int = 100
    share: float = 0.7

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; use one of {', '.join(OBJECTIVES)}")


def rows_of(samples: SamplesTable, days: Sequence[str]) -> Rows:
    """The candidates of days, day after day and there by user and window, as `score_day` has them.

    Args:
        samples: One version of a table.
        days: In order.
    """
    dataset = samples.dataset
    profile, candidate = _features(dataset, Group.PROFILE), _features(dataset, Group.CANDIDATE)
    frames: list[Frame] = []
    parts: list[Array] = []
    for ds in days:
        for chunk in samples.chunks(ds):
            table = chunk.sort_by([("user_id", "ascending"), ("window_start_ms", "ascending")])
            frame = candidate_frame(table)
            frames.append(frame)
            parts.append(_values(dataset, table))
    names = [f.name for f in (*profile, *candidate)] + ["static_length"]
    return Rows(
        frame={name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]},
        values=np.concatenate(parts),
        names=tuple(names),
        categories=tuple(f.name for f in (*profile, *candidate) if f.kind is Kind.CATEGORY),
        live=np.array([f.owner is Owner.REALTIME_STATISTIC for f in (*profile, *candidate)] + [False]),
    )


def _features(dataset: Dataset, group: Group) -> list[FeatureSpec]:
    return [f for f in dataset.in_group(group) if f.kind is not Kind.ID]


def shown_together(dataset: Dataset, frame: Frame) -> Array:
    """An integer of each row's request, or of its window where a request has one candidate."""
    return group_ids(frame["user_id"], frame["request_id" if dataset.has_requests else "window_start_ms"])


def _values(dataset: Dataset, table: pa.Table) -> Array:
    counts = np.diff(table.column("candidate_time_ms").combine_chunks().offsets.to_numpy())
    columns = [
        np.repeat(table.column(f"profile_{f.name}").to_numpy().astype(np.float32), counts)
        for f in _features(dataset, Group.PROFILE)
    ]
    for feature in _features(dataset, Group.CANDIDATE):
        flat = table.column(f"candidate_{feature.name}").combine_chunks().flatten()
        columns.append(flat.to_numpy().astype(np.float32))
    lengths = np.diff(table.column("static_time_ms").combine_chunks().offsets.to_numpy())
    columns.append(np.repeat(lengths, counts).astype(np.float32))
    return np.stack(columns, axis=1)


def fit(dataset: Dataset, rows: Rows, task: str, boosting: Boosting, seed: int) -> Any:
    """Learns a task (`ctr` or `ctcvr`) from rows.

    Returns:
        LightGBM's booster.
    """
    import lightgbm

    label = rows.frame[LABELS[task]]
    order, sizes = np.arange(len(label)), None
    if boosting.objective == "lambdarank":
        group = shown_together(dataset, rows.frame)
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
    data = lightgbm.Dataset(
        rows.values[order],
        label[order],
        group=sizes,
        weight=rows.frame["weight"][order] if "weight" in rows.frame else None,
        feature_name=list(rows.names),
        categorical_feature=list(rows.categories),
    )
    options = {
        "objective": boosting.objective,
        "num_leaves": boosting.leaves,
        "learning_rate": boosting.rate,
        "min_data_in_leaf": boosting.least,
        "feature_fraction": boosting.share,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": seed,
        "num_threads": len(os.sched_getaffinity(0)),
        "deterministic": True,
        "verbose": -1,
    }
    return lightgbm.train(options, data, boosting.rounds)


def scores_of(rows: Rows, boosters: dict[str, Any]) -> Frame:
    """Scores by name of `model.judging.scoring.SCORES`: probabilities, of `lambdarank` squashed ranks."""
    frozen = rows.values.copy()
    frozen[:, rows.live] = 0
    scores = {}
    for state, values in (("frozen", frozen), ("live", rows.values)):
        for task, booster in boosters.items():
            raw = booster.predict(values, raw_score=True)
            scores[f"{task}_{state}"] = (1 / (1 + np.exp(-raw))).astype(np.float32)
    return scores


def gains(booster: Any, most: int = 15) -> dict[str, float]:
    """The features that reduced the loss most, with their share of all that was reduced."""
    gain = booster.feature_importance("gain")
    named = sorted(zip(gain / max(gain.sum(), 1e-9), booster.feature_name(), strict=True), reverse=True)
    return {name: round(float(share), 4) for share, name in named[:most]}
