"""Score parity: what is exported scores as evaluation does, or it is not exported.

Golden requests are scored one by one, all together, and in another order with other neighbours; each time
every probability must be as near evaluation's as the precision allows, and AUC and GAUC over them equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.judging.evaluation import metrics_of
from model.judging.scoring import SCORES, Scorer, candidate_frame
from model.serving.golden import Golden
from spark_jobs.contract.features import Dataset

Array = npt.NDArray[Any]

TOLERANCE = {"float32": 1e-5, "bfloat16": 6e-3, "float16": 6e-3}  # of a probability, absolute
METRIC_TOLERANCE = 1e-4
_METRICS = tuple(f"{task}_{kind}" for task in ("ctr", "ctcvr") for kind in ("auc", "gauc", "gauc_request"))


def parity(golden: Golden, scorer: Scorer, precision: str) -> dict[str, Any]:
    """How far a scorer is from evaluation on golden requests.

    Args:
        golden: Requests with evaluation's scores.
        scorer: What is to be exported, behind evaluation's own encoder.
        precision: `float32`, `bfloat16` or `float16`: what it computes in.

    Returns:
        `passed`; `max`, the greatest difference of a probability, beside its `tolerance`, and by way of
        scoring; `worst`: request, user, score and way that has it; `metrics` of both with their greatest
        difference `metrics_max`, null where a metric is not defined.
    """
    ways = {"one_by_one": _one_by_one, "together": _together, "reordered": _reordered}
    scores = {way: score(golden, scorer) for way, score in ways.items()}
    differences = {
        (way, name): np.abs(scores[way][name].astype(np.float64) - golden.scores[name])
        for way in ways
        for name in SCORES
    }
    worst = max(differences, key=lambda key: _greatest(differences[key]))
    metrics = {
        of: _metrics(scorer.dataset, golden, some)
        for of, some in (("evaluation", golden.scores), ("exported", scores["together"]))
    }
    apart = _apart(metrics["evaluation"], metrics["exported"])
    greatest = _greatest(differences[worst])
    tolerance = TOLERANCE[precision]
    return {
        "passed": bool(greatest <= tolerance and apart <= METRIC_TOLERANCE),
        "precision": precision,
        "tolerance": tolerance,
        "max": greatest,
        "max_by_way": {way: max(_greatest(differences[way, name]) for name in SCORES) for way in ways},
        "worst": _described(golden, differences[worst], *worst),
        "metrics": metrics,
        "metrics_max": apart,
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
        f"AUC and GAUC by {report['metrics_max']:.3g} (allowed: {report['metrics_tolerance']:g}); worst is "
        f"{worst['score']} of request {worst['request_id']!r} of user {worst['user_id']} ({worst['way']})"
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


def _metrics(dataset: Dataset, golden: Golden, scores: Mapping[str, Array]) -> dict[str, float | None]:
    """AUC and GAUC, None where no group has both classes."""
    metrics = metrics_of(dataset, candidate_frame(golden.rows), dict(scores))
    return {
        name: metrics[name] if math.isfinite(metrics[name]) else None for name in _METRICS if name in metrics
    }


def _apart(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> float:
    """The greatest difference; infinite where a metric is defined for one alone."""
    apart = 0.0
    for name, value in ours.items():
        other = theirs[name]
        if value is not None and other is not None:
            apart = max(apart, abs(value - other))
        elif value is not other:
            return math.inf
    return apart


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
