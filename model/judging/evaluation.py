"""Scores the candidate and the champion on the rows of one day, and measures both."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model.data.reader import SamplesTable
from model.judging.baselines import item_baselines, oracle
from model.judging.metrics import group_ids, task_metrics
from model.judging.scoring import SCORES, Scorer, candidate_frame
from model.runs.files import RunError, write_text
from model.runs.store import Champion, Run
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach

EVALUATION = "evaluation.json"

Array = npt.NDArray[Any]

_LABELS = {"ctr": "label_click", "ctcvr": "label_conversion"}

# Bands of static history by which users are told apart: name, least and greatest length.
_HISTORY_BANDS = (("none", 0, 0), ("1_to_9", 1, 9), ("10_to_49", 10, 49), ("50_and_more", 50, 1 << 30))


def metrics_of(dataset: Dataset, frame: dict[str, Array], scores: dict[str, Array]) -> dict[str, float]:
    """CTR and CTCVR metrics of scores beside the frame of `candidate_frame`."""
    user = group_ids(frame["user_id"])
    window = group_ids(frame["user_id"], frame["window_start_ms"])
    request = group_ids(frame["user_id"], frame["request_id"]) if dataset.has_requests else None
    metrics: dict[str, float] = {}
    for task, label in _LABELS.items():
        metrics |= task_metrics(
            task,
            frame[label],
            frozen=scores[f"{task}_frozen"],
            live=scores[f"{task}_live"],
            window=window,
            user=user,
            request=request,
            weight=frame.get("weight"),
        )
    return metrics


def evaluate(dataset: Dataset, run: Run, champion: Champion | None, device: str = "cpu") -> dict[str, Any]:
    """Scores a run and the champion on the run's day and writes the evaluation beside the run.

    Args:
        dataset: Of the run.
        run: The candidate.
        champion: What it is measured against; None when there is none yet.
        device: Where to score.

    Returns:
        The content of `evaluation.json`.

    Raises:
        RunError: The candidate was trained on the day, or its files are damaged.
        SamplesUnavailableError: The day has no samples.
        NotPassedError: No gate has passed them, and no operator allowed them.
        ValueError: Rows or scores are broken.
    """
    start = time.monotonic()
    run.verify()
    if run.ds in run.seen_days:
        raise RunError(
            f"{run.path} was trained on {run.ds}; a day is evaluated by a run that has not seen it"
        )
    samples = SamplesTable(dataset)
    samples.require_days([run.ds])
    stands = samples.standings([run.ds])
    stands.require_usable(run.ds)
    candidate = Scorer.load(run.path, device)
    other = Scorer.load(champion.path, device) if champion is not None else None
    frame, scores = score_day(samples, run.ds, {"candidate": candidate, "champion": other})
    reach("evaluate:scored")
    for name, values in scores.items():
        if name in ("candidate", "champion"):
            _write_scores(run.path / f"scores_{name}.parquet", frame, values)
    true = oracle(dataset, run.ds, frame["impression_id"])
    if true is not None:
        scores["oracle"] = true
    metrics = {name: metrics_of(dataset, frame, values) for name, values in scores.items()}
    evaluation = {
        "dataset": dataset.name,
        "preset": run.record["preset"],
        "ds": run.ds,
        "samples_version": samples.version,
        "samples_allowed": stands.reasons.get(run.ds, ""),
        "candidates": len(frame["user_id"]),
        "users": len(np.unique(frame["user_id"])),
        "click_rate": float(np.average(frame["label_click"], weights=frame.get("weight"))),
        "conversion_rate": float(np.average(frame["label_conversion"], weights=frame.get("weight"))),
        "candidate": {"digest": run.digest, **metrics.pop("candidate")},
        "champion": None
        if champion is None
        else {"version": champion.version, "digest": champion.digest, **metrics.pop("champion")},
        "baselines": metrics,
        "segments": {
            name: _segments(dataset, frame, scores[name])
            for name in ("candidate", "champion")
            if name in scores
        },
        "seconds": round(time.monotonic() - start, 1),
    }
    reach("evaluate:before_write")
    write_text(run.path / EVALUATION, json.dumps(without_nan(evaluation), indent=2, sort_keys=True) + "\n")
    reach("evaluate:written")
    return evaluation


def score_day(
    samples: SamplesTable, ds: str, scorers: dict[str, Scorer | None]
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
        found = item_baselines(samples.dataset, table)
        found |= {name: scorer.score(table) for name, scorer in scorers.items() if scorer is not None}
        for name, scores in found.items():
            parts.setdefault(name, []).append(scores)
    return _joined(frames), {name: _joined(some) for name, some in parts.items()}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _segments(dataset: Dataset, frame: dict[str, Array], scores: dict[str, Array]) -> dict[str, Any]:
    """Metrics by length of the static history."""
    found = {}
    for name, least, greatest in _HISTORY_BANDS:
        rows = (frame["static_length"] >= least) & (frame["static_length"] <= greatest)
        if rows.any():
            part = {key: values[rows] for key, values in frame.items()}
            metrics = metrics_of(dataset, part, {key: values[rows] for key, values in scores.items()})
            found[f"history_{name}"] = {"candidates": int(rows.sum()), **metrics}
    return found


def _write_scores(path: Path, frame: dict[str, Array], scores: dict[str, Array]) -> None:
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
