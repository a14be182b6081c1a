"""Score parity: what is exported scores as evaluation does, or it is not exported.

Golden requests are scored one by one, all together, and in another order with other neighbours; each time
every probability must be as near evaluation's as the precision allows, and AUC and GAUC over them equal. In
half precision candidates that score nearly alike change places by chance, which some dozens of requests show
in AUC long before 1e-4; there a difference counts if users drawn anew have it, too (a paired bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.judging.evaluation import LABELS, groups_of
from model.judging.metrics import group_auc
from model.judging.scoring import SCORES, Scorer, candidate_frame
from model.serving.golden import Golden
from spark_jobs.contract.features import Dataset

Array = npt.NDArray[Any]

TOLERANCE = {"float32": 1e-5, "bfloat16": 6e-3, "float16": 6e-3}  # of a probability, absolute
METRIC_TOLERANCE = 1e-4
_DRAWS = 200


def parity(golden: Golden, scorer: Scorer, precision: str) -> dict[str, Any]:
    """How far a scorer is from evaluation on golden requests.

    Args:
        golden: Requests with evaluation's scores.
        scorer: What is to be exported, behind evaluation's own encoder.
        precision: `float32`, `bfloat16` or `float16`: what it computes in.

    Returns:
        `passed`; `max`, the greatest difference of a probability, beside its `tolerance`, and by way of
        scoring; `worst`: request, user, score and way that has it; `metrics` of both, null where one is not
        defined, with their greatest difference `metrics_max`, and in `beyond` those that differ.
    """
    ways = {"one_by_one": _one_by_one, "together": _together, "reordered": _reordered}
    scores = {way: score(golden, scorer) for way, score in ways.items()}
    differences = {
        (way, name): np.abs(scores[way][name].astype(np.float64) - golden.scores[name])
        for way in ways
        for name in SCORES
    }
    worst = max(differences, key=lambda key: _greatest(differences[key]))
    judged = _Judged(scorer.dataset, golden)
    metrics = {"evaluation": judged.metrics(golden.scores), "exported": judged.metrics(scores["together"])}
    apart = {name: _apart(value, metrics["exported"][name]) for name, value in metrics["evaluation"].items()}
    beyond = [name for name, difference in apart.items() if difference > METRIC_TOLERANCE]
    if precision != "float32" and beyond:
        beyond = judged.told_apart(beyond, golden.scores, scores["together"])
    greatest = _greatest(differences[worst])
    tolerance = TOLERANCE[precision]
    return {
        "passed": greatest <= tolerance and not beyond,
        "precision": precision,
        "tolerance": tolerance,
        "max": greatest,
        "max_by_way": {way: max(_greatest(differences[way, name]) for name in SCORES) for way in ways},
        "worst": _described(golden, differences[worst], *worst),
        "metrics": metrics,
        "metrics_max": max(apart.values()),
        "beyond": beyond,
        "metrics_tolerance": METRIC_TOLERANCE,
        "requests": golden.rows.num_rows,
        "candidates": int(golden.counts.sum()),
        "source": golden.source,
    }


def told(report: Mapping[str, Any]) -> str:
    """A report that did not pass, in one sentence."""
    worst = report["worst"]
    return (
        f"scores differ from evaluation's by up to {report['max']:.3g} (allowed: {report['tolerance']:g}), "
        f"AUC and GAUC by {report['metrics_max']:.3g} ({', '.join(report['beyond']) or 'none'} too much); "
        f"worst is {worst['score']} of request {worst['request_id']!r} of user {worst['user_id']} "
        f"({worst['way']})"
    )


def _one_by_one(golden: Golden, scorer: Scorer) -> dict[str, Array]:
    parts = [scorer.score(golden.rows.slice(place, 1)) for place in range(golden.rows.num_rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in SCORES}


def _together(golden: Golden, scorer: Scorer) -> dict[str, Array]:
    return dict(scorer.score(golden.rows))


def _reordered(golden: Golden, scorer: Scorer) -> dict[str, Array]:
    """Scores of an order in which each request has other neighbours, laid back."""
    order = np.random.default_rng(0).permutation(golden.rows.num_rows)
    scores = scorer.score(golden.rows.take(pa.array(order)))
    ends = golden.counts.cumsum()
    starts = ends - golden.counts
    places = np.concatenate([np.arange(starts[request], ends[request]) for request in order])
    return {name: values[np.argsort(places)] for name, values in scores.items()}


class _Judged:
    """AUC and GAUC over golden requests."""

    def __init__(self, dataset: Dataset, golden: Golden) -> None:
        self.frame = candidate_frame(golden.rows)
        self.groups = groups_of(dataset, self.frame)

    def metrics(self, scores: Mapping[str, Array]) -> dict[str, float | None]:
        """By name, None where no group has both classes."""
        kinds = ("auc", "gauc", *(("gauc_request",) if "request" in self.groups else ()))
        everyone = np.arange(len(self.frame["user_id"]))
        return {
            f"{task}_{kind}": self._metric(f"{task}_{kind}", scores, everyone)
            for task in LABELS
            for kind in kinds
        }

    def _metric(self, name: str, scores: Mapping[str, Array], rows: Array) -> float | None:
        """Of some candidates."""
        task, _, kind = name.partition("_")
        label, state = self.frame[LABELS[task]][rows], "frozen" if kind == "gauc" else "live"
        group = {"gauc": "window", "gauc_request": "request"}.get(kind)
        of_groups = np.zeros(len(rows), np.int64) if group is None else self.groups[group][rows]
        value = group_auc(of_groups, label, scores[f"{task}_{state}"][rows]).gauc
        return value if math.isfinite(value) else None

    def told_apart(
        self, names: list[str], ours: Mapping[str, Array], theirs: Mapping[str, Array]
    ) -> list[str]:
        """Those of the metrics whose difference has one sign in 95 % of draws of users."""
        users, place = np.unique(self.frame["user_id"], return_inverse=True)
        of_user = [np.flatnonzero(place == user) for user in range(len(users))]
        rng = np.random.default_rng(0)
        differences: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(_DRAWS):
            rows = np.concatenate([of_user[user] for user in rng.integers(0, len(users), len(users))])
            for name in names:
                value, other = self._metric(name, ours, rows), self._metric(name, theirs, rows)
                differences[name].append(0.0 if value is None or other is None else other - value)
        intervals = {name: np.quantile(values, (0.025, 0.975)) for name, values in differences.items()}
        return [name for name, (low, high) in intervals.items() if not low <= 0 <= high]


def _apart(ours: float | None, theirs: float | None) -> float:
    """The difference of two values; infinite where one alone is defined."""
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    return abs(ours - theirs)


def _greatest(differences: Array) -> float:
    """Of none, zero; NaN counts as infinite."""
    greatest = float(differences.max(initial=0.0))
    return greatest if math.isfinite(greatest) else math.inf


def _described(golden: Golden, differences: Array, way: str, score: str) -> dict[str, Any]:
    candidate = int(differences.argmax())
    request = int(np.searchsorted(golden.counts.cumsum(), candidate, "right"))
    row = golden.rows.slice(request, 1)
    return {
        "way": way,
        "score": score,
        "request": request,
        "request_id": row.column("candidate_request_id")[0].as_py()[0],
        "user_id": row.column("user_id")[0].as_py(),
        "expected": float(golden.scores[score][candidate]),
        "difference": float(differences[candidate]),
    }
