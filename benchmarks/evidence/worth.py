"""What scores are worth: metrics of each seed, intervals over users, paired differences, controls."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.judging.evaluation import LABELS, groups_of, metrics_of
from model.judging.metrics import GroupAuc, group_auc, group_ids, paired_gain
from spark_jobs.contract.features import Dataset

Array = npt.NDArray[Any]
Frame = dict[str, Array]
TASKS = tuple(LABELS)
HISTORIES = ((0, 9), (10, 49), (50, 199), (200, 1000))


def control(frame: Frame) -> Frame:
    """Scores of someone who knows a user's earlier outcomes of the window and nothing else.

    Frozen, nothing is known. A model that such a control beats by GAUC would be judged by what labels tell of
    each other, not by its ranking.
    """
    order = np.lexsort((frame["time_ms"], frame["window_start_ms"], frame["user_id"]))
    keys = [frame[name][order] for name in ("user_id", "window_start_ms")]
    is_first = np.r_[True, np.any([key[1:] != key[:-1] for key in keys], axis=0)]
    start = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    time = frame["time_ms"][order]
    is_new = is_first | np.r_[True, time[1:] != time[:-1]]
    before = np.maximum.accumulate(
        np.where(is_new, np.arange(len(order)), 0)
    )  # those at the same time are not
    scores: Frame = {}
    for task, label in LABELS.items():
        summed = np.r_[0, np.cumsum(frame[label][order])]
        known = (summed[before] - summed[start] + 0.1) / (before - start + 1)
        live = np.empty(len(order), np.float32)
        live[order] = np.clip(known, 0, 0.99)
        scores |= {f"{task}_live": live, f"{task}_frozen": np.full(len(order), 0.1, np.float32)}
    return scores


def of_seeds(dataset: Dataset, frame: Frame, seeds: Mapping[int, Frame]) -> dict[str, Any]:
    """Metrics by seed, their mean and spread, and intervals over users of the seeds' mean GAUC."""
    measured = {seed: metrics_of(dataset, frame, scores) for seed, scores in seeds.items()}
    of_metric = {name: [one[name] for one in measured.values()] for name in next(iter(measured.values()))}
    user = groups_of(dataset, frame)["user"]
    intervals = {
        task: list(mean_auc(dataset, frame, list(seeds.values()), task).interval(user)) for task in TASKS
    }
    return {
        "seeds": {str(seed): metrics for seed, metrics in measured.items()},
        "mean": {name: float(np.mean(values)) for name, values in of_metric.items()},
        "stdev": {
            name: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            for name, values in of_metric.items()
        },
        "interval": intervals,
    }


def segments(frame: Frame, seeds: Sequence[Frame]) -> dict[str, dict[str, float]]:
    """Frozen GAUC of the candidates of a kind among themselves, the mean over seeds, by kind and task.

    Kinds: how long the user's static history is, and whether it holds the candidate's item.
    """
    length, is_known = frame["static_length"], frame["is_known"]
    kinds = {
        **{f"history {low} to {high}": (length >= low) & (length <= high) for low, high in HISTORIES},
        "item in the history": is_known,
        "item not in the history": ~is_known,
    }
    window = group_ids(frame["user_id"], frame["window_start_ms"])
    return {
        kind: {
            task: statistics.fmean(
                group_auc(window[rows], frame[LABELS[task]][rows], scores[f"{task}_frozen"][rows]).gauc
                for scores in seeds
            )
            for task in TASKS
        }
        for kind, rows in kinds.items()
        if rows.any()
    }


def mean_auc(dataset: Dataset, frame: Frame, seeds: Sequence[Frame], task: str) -> GroupAuc:
    """Frozen AUC of each user and window, the mean over seeds."""
    window = groups_of(dataset, frame)["window"]
    each = [group_auc(window, frame[LABELS[task]], scores[f"{task}_frozen"]) for scores in seeds]
    return dataclasses.replace(each[0], auc=np.mean([one.auc for one in each], axis=0))


def difference(
    dataset: Dataset, frame: Frame, ours: Sequence[Frame], theirs: Sequence[Frame]
) -> dict[str, Any]:
    """How much higher the seeds' mean GAUC is, by task, with a paired 95 % bootstrap interval over users."""
    user = groups_of(dataset, frame)["user"]
    return {
        task: dataclasses.asdict(
            paired_gain(mean_auc(dataset, frame, ours, task), mean_auc(dataset, frame, theirs, task), user)
        )
        for task in TASKS
    }
