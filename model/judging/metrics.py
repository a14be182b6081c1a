"""Exact ranking metrics over ranks, ties averaged, and calibration.

GAUC is the AUC within groups that have both classes, weighted by their impressions (`mean` beside it: not
weighted), always with how many groups counted. Groups of a frozen evaluation are (user, window) of one
scored day; groups of a live one are requests. All functions are vectorised and exact: no thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_BOOTSTRAPS = 1000
_DRAWN_AT_ONCE = 1 << 22  # users drawn in one call: 32 MB of places
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class GroupAuc:
    """AUC of each group that has both classes.

    Attributes:
        auc: float64 `[groups counted]`, by ascending group.
        weight: Impressions of each, int64.
        row: A row of each, in the order that was given: what else is known of a group stands there.
        num_groups: Groups in all, counted or not.
    """

    auc: Array
    weight: Array
    row: Array
    num_groups: int

    @property
    def gauc(self) -> float:
        """AUC weighted by impressions; NaN when no group counts."""
        return float(np.average(self.auc, weights=self.weight)) if len(self.auc) else float("nan")

    @property
    def mean(self) -> float:
        """Plain mean of the groups' AUC; NaN when no group counts."""
        return float(self.auc.mean()) if len(self.auc) else float("nan")

    def interval(self, user: Array, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the weighted AUC over users; NaN when no group counts.

        Args:
            user: Integer of each row's user, `[N]`, in the order that was given to `group_auc`.
            seed: Of the draws.
        """
        if not len(self.auc):
            return float("nan"), float("nan")
        low, high = np.quantile(
            _resampled(self.auc * self.weight, self.weight, user[self.row], seed), _INTERVAL
        )
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much higher one model's GAUC is than another's on the same rows.

    Attributes:
        gain: Difference of the GAUCs; NaN when no group counts.
        low: Lower end of its 95 % interval over users.
        high: Upper end.
        users: Users who have a group that counts.
    """

    gain: float
    low: float
    high: float
    users: int


def paired_gain(ours: GroupAuc, theirs: GroupAuc, user: Array, seed: int = 0) -> Gain:
    """The gain of one model over another, with a paired bootstrap over users.

    Users are drawn with all their groups, the same for both models, so that what makes a user easy or hard
    for both cancels out; a draw weighs groups by their impressions, as GAUC does.

    Args:
        ours: Of the one, over the rows and groups of the other.
        theirs: Of the other.
        user: Integer of each row's user, `[N]`.
        seed: Of the draws.

    Raises:
        ValueError: The two are not of the same groups.
    """
    of_user = user[ours.row]
    if not (np.array_equal(of_user, user[theirs.row]) and np.array_equal(ours.weight, theirs.weight)):
        raise ValueError(f"the two models count different groups: {len(ours.auc)} and {len(theirs.auc)}")
    if not len(ours.auc):
        return Gain(gain=float("nan"), low=float("nan"), high=float("nan"), users=0)
    difference = (ours.auc - theirs.auc) * ours.weight
    low, high = np.quantile(_resampled(difference, ours.weight, of_user, seed), _INTERVAL)
    return Gain(
        gain=float(difference.sum() / ours.weight.sum()),
        low=float(low),
        high=float(high),
        users=len(np.unique(of_user)),
    )


def _resampled(value: Array, weight: Array, user: Array, seed: int) -> Array:
    """Sum of values over sum of weights, for users drawn with replacement: `[_BOOTSTRAPS]`.

    Args:
        value: Of each group, times its weight.
        weight: Of each group.
        user: Of each group.
        seed: Of the draws.
    """
    _, place = np.unique(user, return_inverse=True)
    values, weights = np.bincount(place, value), np.bincount(place, weight)
    rng = np.random.default_rng(seed)
    ratios: list[Array] = []
    left = _BOOTSTRAPS
    while left:
        size = (min(left, max(1, _DRAWN_AT_ONCE // len(values))), len(values))
        drawn = rng.integers(0, len(values), size)
        ratios.append(values[drawn].sum(1) / weights[drawn].sum(1))
        left -= size[0]
    return np.concatenate(ratios)


def group_auc(group: Array, label: Array, score: Array) -> GroupAuc:
    """AUC within groups, by the rank sum of the positives (Mann-Whitney), ties at their average rank.

    Args:
        group: Integers `[N]`; equal values are one group.
        label: 0 or 1, `[N]`.
        score: Finite, `[N]`.

    Raises:
        ValueError: A score is not finite, or lengths differ.
    """
    if not (len(group) == len(label) == len(score)):
        raise ValueError(f"lengths differ: group {len(group)}, label {len(label)}, score {len(score)}")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    if not len(group):
        none = np.zeros(0, np.int64)
        return GroupAuc(auc=np.zeros(0), weight=none, row=none, num_groups=0)
    order = np.lexsort((score, group))
    group, label, score = group[order], label[order].astype(np.int64), score[order]
    is_first = np.r_[True, group[1:] != group[:-1]]
    first = np.flatnonzero(is_first)
    index = is_first.cumsum() - 1
    size = np.diff(np.r_[first, len(group)])
    is_new = is_first | np.r_[True, score[1:] != score[:-1]]
    tie_first = np.flatnonzero(is_new)
    tie_last = np.r_[tie_first[1:], len(group)] - 1
    rank = ((tie_first + tie_last) / 2)[is_new.cumsum() - 1] - first[index] + 1
    positives = np.add.reduceat(label, first)
    rank_sum = np.add.reduceat(rank * label, first)
    negatives = size - positives
    counted = (positives > 0) & (negatives > 0)
    pairs = positives[counted] * negatives[counted]
    auc = (rank_sum[counted] - positives[counted] * (positives[counted] + 1) / 2) / pairs
    return GroupAuc(auc=auc, weight=size[counted], row=order[first[counted]], num_groups=len(first))


def auc(label: Array, score: Array) -> float:
    """AUC over all rows; NaN when only one class is there."""
    return group_auc(np.zeros(len(label), np.int64), label, score).gauc


def log_loss(label: Array, score: Array, weight: Array | None = None) -> float:
    """Mean binary cross entropy of probabilities, clipped to [1e-7, 1 - 1e-7]."""
    p = np.clip(score.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.average(label * np.log(p) + (1 - label) * np.log1p(-p), weights=weight))


def copc(label: Array, score: Array, weight: Array | None = None) -> float:
    """Clicks over predicted clicks: 1 is calibrated; NaN when nothing is predicted."""
    label, score = (label, score) if weight is None else (label * weight, score * weight)
    predicted = float(score.sum())
    return float(label.sum()) / predicted if predicted > 0 else float("nan")


def calibration_error(
    label: Array, score: Array, num_bins: int = 20, *, weight: Array | None = None
) -> float:
    """Expected calibration error over bins of equal numbers of rows, sorted by score."""
    total = float(len(label) if weight is None else weight.sum())
    order = np.argsort(score, kind="stable")
    parts = np.array_split(order, min(num_bins, max(len(order), 1)))
    label, score = (label, score) if weight is None else (label * weight, score * weight)
    gaps = [abs(float(label[part].sum()) - float(score[part].sum())) for part in parts if len(part)]
    return sum(gaps) / total if len(order) else float("nan")


def group_ids(*columns: Array) -> Array:
    """One integer a row, equal where all columns are equal."""
    ids = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, codes = np.unique(column, return_inverse=True)
        _, ids = np.unique(ids * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)
    return ids


def task_metrics(
    task: str,
    label: Array,
    *,
    frozen: Array,
    live: Array,
    window: Array,
    user: Array,
    request: Array | None = None,
    weight: Array | None = None,
) -> dict[str, float]:
    """All metrics of one task.

    AUC, log loss and calibration are of the live scores, as serving gives them (`*_frozen` beside them);
    `<task>_gauc` is of the frozen scores, `<task>_gauc_request` of the live ones.

    Args:
        task: `ctr` or `ctcvr`, the start of each name.
        label: 0 or 1, `[N]`.
        frozen: Probabilities with the real-time state frozen at the window's start, `[N]`.
        live: Probabilities with each candidate's own real-time state, `[N]`.
        window: Integer of each row's user and window, `[N]`.
        user: Integer of each row's user, `[N]`.
        request: Integer of each row's request, `[N]`; None where requests have one candidate.
        weight: How many impressions each row stands for, `[N]`, in log loss and calibration; AUC and GAUC
            rank the rows that were sampled, not weighted by it. None where nothing was sampled.
    """
    groups = group_auc(window, label, frozen)
    low, high = groups.interval(user)
    metrics = {
        f"{task}_auc": auc(label, live),
        f"{task}_auc_frozen": auc(label, frozen),
        f"{task}_log_loss": log_loss(label, live, weight),
        f"{task}_log_loss_frozen": log_loss(label, frozen, weight),
        f"{task}_copc": copc(label, live, weight),
        f"{task}_calibration_error": calibration_error(label, live, weight=weight),
        f"{task}_gauc": groups.gauc,
        f"{task}_gauc_mean": groups.mean,
        f"{task}_gauc_low": low,
        f"{task}_gauc_high": high,
        f"{task}_gauc_groups": float(len(groups.auc)),
        f"{task}_gauc_users": float(counted_users(window, user, label)),
    }
    if request is not None:
        requests = group_auc(request, label, live)
        metrics |= {
            f"{task}_gauc_request": requests.gauc,
            f"{task}_gauc_request_mean": requests.mean,
            f"{task}_gauc_request_groups": float(len(requests.auc)),
        }
    return metrics


def counted_users(window: Array, user: Array, label: Array) -> int:
    """How many users have a group with both classes."""
    _, group = np.unique(window, return_inverse=True)
    positives = np.bincount(group, weights=label)
    counted = (positives > 0) & (positives < np.bincount(group))
    return len(np.unique(user[counted[group]])) if len(group) else 0
